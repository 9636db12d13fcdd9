"""One block's moment map as SymPy equations, read off the same placement text as the numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from propagate.model import ACTIVATIONS as NAMES
from propagate.model import ModelError, as_placement
from propagate.placement import Placement
from propagate.scaling import Gains, Scaling
from propagate.theory import activations, softmax
from propagate.theory.blocks import Block, Stream, Tape
from propagate.theory.functions import Scalar
from propagate.theory.moments import Atom, Combination, Moments
from propagate.theory.sublayers import Sublayer, attention, ffn

if TYPE_CHECKING:
    import sympy

ARGUMENTS = ("q", "p", "gamma", "kappa")
LONG = 60  # operations above which SymPy's general simplification takes many seconds


@dataclass(frozen=True)
class Recursion:
    """The map of one interior block, as definitions in order and the results in terms of them.

    Attributes:
        definitions: equations for the moments around each sublayer k = 1, 2, ...: `q_k`, `p_k` variance and covariance
            of what it reads, `a_k`, `b_k` of what it adds; `g_k`, `h_k` gradient variance and covariance that arrive
            at its output, `u_k`, `v_k` that it sends back.
        variance, covariance: of the stream that leaves, when q and p are those of the stream that enters.
        grad_variance, grad_covariance: of the cotangent at the stream that enters, when gamma and kappa are those of
            the cotangent at the stream that leaves.

    Further symbols: `T` tokens; `g_a` the attention's gain (value times output) and `g_f` the FFN's; `l` the block's
    index, `L` the depth; `tau` the logit variance. Averages over a softmax, and activations without closed form, are
    named functions that `lambdify` evaluates.
    """

    definitions: tuple[sympy.Eq, ...]
    variance: sympy.Expr
    covariance: sympy.Expr
    grad_variance: sympy.Expr
    grad_covariance: sympy.Expr

    def equations(self) -> list[sympy.Eq]:
        """The definitions, then the four results with primes."""
        import sympy

        names = (r"q'", r"p'", r"\gamma'", r"\kappa'")
        sides = (self.variance, self.covariance, self.grad_variance, self.grad_covariance)
        results = [sympy.Eq(sympy.Symbol(name), side, evaluate=False) for name, side in zip(names, sides, strict=True)]
        return [*self.definitions, *results]

    def closed(self) -> tuple[sympy.Expr, ...]:
        """The four results with every definition put in: functions of q, p, gamma, kappa and the parameters."""
        sides = [self.variance, self.covariance, self.grad_variance, self.grad_covariance]
        for definition in reversed(self.definitions):
            sides = [side.subs(definition.lhs, definition.rhs) for side in sides]
        return tuple(sides)

    def lambdify(self, **values: float) -> Callable[..., tuple[float, ...]]:
        """The map as a numeric function of (q, p, gamma, kappa), with every other symbol given a value.

        Raises:
            ModelError: names the symbols that were given no value.

        Example:
            >>> one_block = recursion("postnorm", activation="linear").lambdify(T=4, g_a=1.0, g_f=1.0)
            >>> [round(float(value), 6) for value in one_block(1.0, 0.0, 1.0, 0.0)]
            [1.0, 0.2, 1.0, 0.2]
        """
        import sympy

        parameters = {_symbol(name): value for name, value in values.items()}
        sides = [sympy.sympify(side).subs(parameters) for side in self.closed()]
        arguments = [_symbol(name) for name in ARGUMENTS]
        missing = set().union(*(side.free_symbols for side in sides)) - set(arguments)
        if missing:
            raise ModelError(f"lambdify needs values for {', '.join(sorted(map(str, missing)))}")
        function: Callable[..., tuple[float, ...]] = sympy.lambdify(arguments, sides, [_named(), "math"], cse=True)
        return function

    def _repr_latex_(self) -> str:
        import sympy

        lines = r" \\ ".join(sympy.latex(equation).replace("=", "&=", 1) for equation in self.equations())
        return rf"$\displaystyle \begin{{aligned}} {lines} \end{{aligned}}$"

    def __str__(self) -> str:
        return "\n".join(f"{equation.lhs} = {equation.rhs}" for equation in self.equations())


def recursion(
    placement: str | Placement,
    *,
    activation: str = "relu",
    logit_std: float | str = 0.0,
    scaling: Scaling | None = None,
) -> Recursion:
    """One interior block of a placement, as SymPy equations.

    Args:
        placement: a name or an instance.
        activation: as in `Model`.
        logit_std: 0 for uniform attention, a number, or "symbol" for the symbol tau (= logit_std^2).
        scaling: multiplies the symbols g_a and g_f.

    Raises:
        ModelError: for an unknown name or value.

    Example:
        >>> print(recursion("prenorm").variance)
        a_1 + a_2 + q
    """
    equations = as_placement(placement)
    if activation not in NAMES:
        raise ModelError(f"activation must be one of {', '.join(NAMES)}, got {activation!r}")
    q, p, gamma, kappa = (_symbol(name) for name in ARGUMENTS)
    definitions: list[sympy.Eq] = []
    block = _interior(equations, activation, _logit_variance(logit_std), scaling, definitions)
    source = Stream(Combination.of(Atom(Moments(q, q - p))), block.tape)
    output = equations.block(source, block)
    left = output.value.moments()
    cotangent = Combination.of(Atom(Moments(gamma, gamma - kappa)))
    back = block.tape.pull(output, cotangent, source).moments()
    sides = (_tidy(side) for side in (left.variance, left.covariance, back.variance, back.covariance))
    return Recursion(tuple(definitions), *sides)


def _interior(
    placement: Placement, activation: str, logit_variance: Scalar, scaling: Scaling | None, definitions: list[Any]
) -> Block:
    index, depth, tokens, gain_a, gain_f = (_symbol(name) for name in ("l", "L", "T", "g_a", "g_f"))
    gains = Gains(attention_out=gain_a, ffn_out=gain_f) * placement.gains(index, depth)
    if scaling is not None:
        gains = gains * scaling.gains(index, depth)
    number = itertools.count(1)
    attention_map = attention(tokens, logit_variance, gains.value * gains.attention_out)
    ffn_map = ffn(activations.ACTIVATIONS[activation], gains.ffn_in, gains.ffn_out)
    return Block(
        index=index,
        depth=depth,
        first=False,
        last=False,
        tape=Tape(),
        attention_map=_naming(attention_map, number, definitions),
        ffn_map=_naming(ffn_map, number, definitions),
    )


def _naming(sublayer: Sublayer, number: Iterator[int], definitions: list[Any]) -> Sublayer:
    """The sublayer, with symbols for the moments before and after it in place of growing expressions."""

    def define(names: str, k: int, moments: Moments) -> Moments:
        import sympy

        stand_ins = []
        for name, value in zip(names, (_tidy(moments.variance), _tidy(moments.covariance)), strict=True):
            if value.is_Atom:  # a number or a symbol stands for itself
                stand_ins.append(value)
                continue
            stand_ins.append(_symbol(f"{name}_{k}"))
            definitions.append(sympy.Eq(stand_ins[-1], value, evaluate=False))
        return Moments(stand_ins[0], stand_ins[0] - stand_ins[1])

    def apply(x: Moments) -> tuple[Moments, Callable[[Moments], Moments]]:
        k = next(number)
        output, pull = sublayer(define("qp", k, x))
        return define("ab", k, output), lambda g: define("uv", k, pull(define("gh", k, g)))

    return apply


def _symbol(name: str) -> Any:
    """Covariances may have either sign; everything else is positive."""
    import sympy

    return sympy.Symbol(name, real=True) if name[0] in "pbhvk" else sympy.Symbol(name, positive=True)


def _logit_variance(logit_std: float | str) -> Any:
    import sympy

    if logit_std == "symbol":
        return _symbol("tau")
    if isinstance(logit_std, str) or not 0 <= logit_std < float("inf"):
        raise ModelError(f'logit_std must be a number of at least 0 or "symbol", got {logit_std!r}')
    return sympy.nsimplify(logit_std, rational=True) ** 2


def _tidy(expression: Any) -> Any:
    """Exact numbers for the floats of the equations, and the form SymPy finds shortest."""
    import sympy

    exact = sympy.nsimplify(expression, rational=True)
    forms = [exact]
    if exact.is_rational_function(*exact.free_symbols):
        forms += [sympy.cancel(exact), sympy.factor_terms(sympy.cancel(exact))]
    if sympy.count_ops(exact) <= LONG:
        forms += [sympy.simplify(exact), sympy.expand(exact)]
    return min(forms, key=sympy.count_ops)


def _named() -> dict[str, Callable[..., float]]:
    """Numeric values of the functions that stand where there is no closed form."""

    def average(field: str) -> Callable[..., float]:
        return lambda tokens, spread, c: float(getattr(softmax.softmax_averages(int(tokens), spread, c), field))

    def kernel(pair: Callable[..., Any]) -> Callable[..., float]:
        def at(variance: float, covariance: float) -> float:
            value, drop = pair(float(variance), float(variance - covariance))
            return float(np.subtract(value, drop))

        return at

    named = {f"softmax_{field}": average(field) for field in softmax.SoftmaxAverages._fields}
    for name in ("silu", "tanh"):
        for part in ("value", "slope"):
            named[f"{name}_{part}"] = kernel(getattr(activations.ACTIVATIONS[name], part))
    return named
