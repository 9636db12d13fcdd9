"""Activations: a name and an expression in z, from which every witness makes its own functions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from propagate.checks import ModelError, check_flag, choice, shown

TEXTS = {
    "linear": "z",
    "relu": "Max(z, 0)",
    "squared_relu": "Max(z, 0)**2",
    "gelu": "z*(1 + erf(z/sqrt(2)))/2",
    "silu": "z/(1 + exp(-z))",
    "tanh": "tanh(z)",
    "leaky_relu": "Max(z, z/100)",
    "erf": "erf(z)",
    "sin": "sin(z)",
    "softplus": "log(1 + exp(z))",
    "mish": "z*tanh(log(1 + exp(z)))",
    "elu": "Piecewise((z, z > 0), (exp(z) - 1, True))",
    "quick_gelu": "z/(1 + exp(-1702*z/1000))",
    "tanh_gelu": "z*(1 + tanh(sqrt(2/pi)*(z + 44715*z**3/10**6)))/2",
}
GATES = {
    "swiglu": "silu",
    "geglu": "gelu",
    "reglu": "relu",
    "gated_squared_relu": "squared_relu",
}
"""Gated activations that come with the package, and what each makes of its gate."""


@dataclass(frozen=True, repr=False, eq=False)
class Activation:
    """What an FFN does to its hidden units, each alone.

    A name stands for it wherever it comes with the package, and equals it. Theory, simulation and torch make their
    functions, and their slopes, from the expression.

    Attributes:
        name: an identifier; one of your own, for an expression of your own.
        expression: a SymPy expression in the symbol z, real and continuous over the real line, with a bounded slope
            almost everywhere. (Of those that come with the package, its text: `import propagate` is light.)
        gated: whether a hidden unit is expression(gate) times a value, both linear in the input (arXiv:2002.05202).

    Raises:
        ModelError: for an expression that is none of that, that vanishes, whose square has no mean over a Gaussian of
            variance 1000, that has poles, or that overflows in floating point.

    Example:
        >>> import sympy
        >>> z = sympy.Symbol("z", real=True)
        >>> Activation("bump", z * sympy.exp(-(z**2)), gated=True)
        Activation('bump', z*exp(-z**2), gated=True)
        >>> Activation("step", sympy.sign(z))
        Traceback (most recent call last):
        propagate.checks.ModelError: activation 'step' must be continuous, got sign(z), which jumps at z = 0
    """

    name: str
    expression: Any
    gated: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ModelError(f"name must be an identifier, such as 'mish', got {shown(self.name)}")
        check_flag("gated", self.gated)
        if isinstance(self.expression, str) and _shipped(self.name) == (self.expression, self.gated):
            return
        if self.name in ACTIVATIONS:
            raise ModelError(f"name must be one of your own, got {self.name!r}, which comes with propagate")
        from propagate.expressions import checked

        object.__setattr__(self, "expression", checked(self.name, self.expression))

    @property
    def shipped(self) -> bool:
        """Whether it comes with the package."""
        return self.name in ACTIVATIONS

    @property
    def core(self) -> Activation:
        """What is done to the gate; itself where there is none."""
        if not self.gated:
            return self
        if self.shipped:
            return as_activation(GATES[self.name])
        found = object.__new__(Activation)
        found.__dict__.update(name=self.name, expression=self.expression, gated=False)
        return found

    @cached_property
    def _key(self) -> Any:
        """A name for those that come with the package: they equal it."""
        return self.name if self.shipped else (self.name, str(self.expression), self.gated)

    def __eq__(self, other: object) -> bool:
        return bool(self._key == (other._key if isinstance(other, Activation) else other))

    def __hash__(self) -> int:
        return hash(self._key)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        if self.shipped:
            return repr(self.name)
        return f"Activation({self.name!r}, {self.expression}{', gated=True' if self.gated else ''})"


ACTIVATIONS = (*list(TEXTS)[:6], "swiglu", "geglu", *list(TEXTS)[6:], "reglu", "gated_squared_relu")
"""Names of those that come with the package."""


def _shipped(name: str) -> tuple[str, bool] | None:
    if name in GATES:
        return TEXTS[GATES[name]], True
    return (TEXTS[name], False) if name in TEXTS else None


def as_activation(value: Any) -> Activation:
    """One from its name, or itself.

    Raises:
        ModelError: for any other name or value.

    Example:
        >>> as_activation("swiglu").core
        'silu'
    """
    if isinstance(value, Activation):
        return value
    choice("activation", value, ACTIVATIONS)
    found = _shipped(value)
    assert found is not None
    return Activation(value, *found)
