"""An activation's expression, checked and made ready to be evaluated: its slope, its kinks, and how far it is safe.

SymPy alone; what evaluates it, on arrays or tensors, is each witness's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from propagate.checks import ModelError, shown

if TYPE_CHECKING:
    from propagate.activations import Activation

if TYPE_CHECKING:
    import sympy

LARGEST_VARIANCE = 1e3
SAFE = (36.0, 12.0, 4.0, 1.0)
"""Ends to try: exponentials must have died out there in double precision, and not overflowed in single."""
FARTHEST = 300.0  # nine standard deviations of the largest variance
ROUGH = ("floor", "ceiling", "frac", "Mod", "DiracDelta", "Derivative", "Integral", "Subs", "AppliedUndef")
NEAR = 1e-9  # a side of a kink
ROUNDING = 1e-12  # rounding of what is 0
STEEP = 1e3  # a slope beside a kink that counts as unbounded
MOST_KINKS = 32
GRIDS = (20_001, 14_143)
UNRESOLVED = 1e-2  # by how much means of squares over two grids may differ: of poles they have nothing in common


@dataclass(frozen=True)
class Form:
    """What is evaluated of an activation.

    Attributes:
        value, slope, curvature: expressions in z: the activation and its first two derivatives between kinks; cases as
            Piecewise, constants as floats.
        kinks: where it is not smooth, in order.
        straight: |z| beyond which it is a straight line, and is to be evaluated as one, since the expression would
            overflow; None where it is safe everywhere.
    """

    value: sympy.Expr
    slope: sympy.Expr
    curvature: sympy.Expr
    kinks: tuple[float, ...]
    straight: float | None


def symbol() -> sympy.Symbol:
    """The z that activations are written in."""
    import sympy

    return sympy.Symbol("z", real=True)


@lru_cache(maxsize=256)
def form(activation: Activation) -> Form:
    """What is evaluated of an activation, or of the gate of a gated one.

    Example:
        >>> from propagate.activations import as_activation
        >>> elu = form(as_activation("elu"))
        >>> elu.slope, elu.kinks, elu.straight
        (Piecewise((1, z > 0), (exp(z), True)), (0.0,), 36.0)
    """
    import sympy

    expression = activation.expression
    if isinstance(expression, str):
        expression = sympy.parse_expr(expression, local_dict={"z": symbol()})
    return _form(activation.name, expression)


def checked(name: str, expression: Any) -> sympy.Expr:
    """The expression, in the symbol of `symbol`.

    Raises:
        ModelError: in words, for what is no activation; see `Activation`.

    Example:
        >>> import sympy
        >>> checked("wave", sympy.sympify("sin(2*z)"))
        sin(2*z)
        >>> checked("step", sympy.Heaviside(symbol()))
        Traceback (most recent call last):
        propagate.checks.ModelError: activation 'step' must be continuous, got Heaviside(z), which jumps at z = 0
    """
    import sympy

    if not isinstance(expression, sympy.Expr):
        raise ModelError(f"expression of activation {name!r} must be a SymPy expression in z, got {shown(expression)}")
    free = sorted(expression.free_symbols, key=str)
    if [str(one) for one in free] != ["z"]:
        got = ", ".join(map(str, free)) or "none"
        raise ModelError(f"expression of activation {name!r} must have z for its only free symbol, got {got}")
    expression = expression.subs(free[0], symbol())
    _form(name, expression)
    return expression


def _form(name: str, expression: sympy.Expr) -> Form:
    import sympy

    z = symbol()

    def refused(must: str, got: str = "") -> ModelError:
        return ModelError(f"activation {name!r} must {must}, got {expression}{got}")

    try:
        cases = sympy.piecewise_fold(expression.rewrite(sympy.Piecewise))
        first = [_with_floats(each) for each in (cases, sympy.diff(cases, z), sympy.diff(cases, z, 2))]
    except (NotImplementedError, TypeError, ValueError) as error:
        raise refused("be an expression that SymPy can differentiate", f" ({error})") from None
    rough = {type(part).__name__ for each in first for part in sympy.preorder_traversal(each)} & set(ROUGH)
    undefined = {str(part.func) for each in first for part in each.atoms(sympy.core.function.AppliedUndef)}
    if rough or undefined:
        raise refused("be made of smooth functions and cases", f", which has {', '.join(sorted(rough | undefined))}")
    value, slope, curvature = first
    try:
        functions = [_on_arrays(each) for each in first]
        kinks = _kinks(value, functions[0])
        straight = _straight(functions, value)
    except (NameError, TypeError, SyntaxError, AttributeError, NotImplementedError) as error:
        raise refused("be real and finite for every real z", f", which cannot be evaluated ({error})") from None
    found = Form(value, slope, curvature, kinks, straight)
    if len(kinks) > MOST_KINKS:
        raise refused(f"have at most {MOST_KINKS} kinks", f", which has {len(kinks)}")
    at = np.unique([*np.linspace(-FARTHEST, FARTHEST, 6001), *np.linspace(-8, 8, 1601)])
    between = at[np.abs(at[:, None] - np.array([*kinks, np.inf])).min(axis=1) > NEAR]
    safe = [_clipped(function, straight) for function in functions]
    for where, function in ((at, safe[0]), (between, safe[1]), (between, safe[2])):
        wrong = where[~np.isfinite(function(where))]
        if len(wrong):
            nearest = float(wrong[np.argmin(abs(wrong))])
            if abs(nearest) > 1 and _grows(functions[0]):
                raise refused(f"have a mean square over Gaussians of every variance up to {LARGEST_VARIANCE:g}")
            raise refused("be real and finite for every real z", f", which as written is not at z = {nearest:g}")
    if straight is None and _grows(functions[0]):
        raise refused(f"have a mean square over Gaussians of every variance up to {LARGEST_VARIANCE:g}")
    with np.errstate(over="ignore"):
        single = np.abs(safe[0](at.astype(np.float32)))
    if not np.isfinite(single).all():
        raise refused(f"not overflow in single precision within |z| = {FARTHEST:g}")
    if not np.abs(safe[0](at)).max() > ROUNDING:
        raise refused("differ from 0 somewhere")
    for kink in kinks:
        sides = np.array([kink - NEAR, kink + NEAR])
        left, right = functions[0](sides)
        bounded = np.abs(functions[1](sides)).max() <= STEEP
        if bounded and abs(right - left) > 1e-6 * max(1.0, abs(left)):
            raise refused("be continuous", f", which jumps at z = {kink:g}")
        if not bounded:
            raise refused("have a bounded slope", f", whose slope is not at z = {kink:g}")
    for variance in (1e-2, 1.0, 100.0):
        for function in safe[:2]:
            means = [_mean_square(function, variance, points) for points in GRIDS]
            if not abs(means[0] - means[1]) <= UNRESOLVED * means[0]:
                raise refused("change slowly enough to be averaged over Gaussians, and have no poles")
    return found


def _clipped(function: Callable[[Any], Any], end: float | None) -> Callable[[Any], Any]:
    return function if end is None else lambda z: function(z.clip(-end, end))


def _mean_square(function: Callable[[Any], Any], variance: float, points: int) -> float:
    """Over a Gaussian."""
    at = np.linspace(-8.5, 8.5, points)
    weight = np.exp(-at * at / 2)
    return float(weight @ function(math.sqrt(variance) * at) ** 2 / weight.sum())


def _with_floats(expression: sympy.Expr) -> sympy.Expr:
    """With roots and other constants as numbers, which not every printer knows."""
    import sympy

    return expression.replace(lambda e: e.is_number and not e.is_Rational, lambda e: sympy.N(e, 17))


def _on_arrays(expression: sympy.Expr) -> Callable[[Any], Any]:
    import sympy

    function = sympy.lambdify(symbol(), expression, ["scipy", "numpy"])

    def at(z: Any) -> Any:
        with np.errstate(all="ignore"):
            found = np.asarray(function(z))
        if np.iscomplexobj(found):
            found = np.where(found.imag == 0, found.real, np.nan)
        return found * np.ones_like(z)

    return at


def _kinks(value: sympy.Expr, function: Callable[[Any], Any]) -> tuple[float, ...]:
    """Where one of the conditions changes."""
    import sympy
    from scipy.optimize import brentq

    z, found = symbol(), []
    for relation in value.atoms(sympy.core.relational.Relational):
        difference = relation.lhs - relation.rhs
        if difference.is_polynomial(z):
            polynomial = sympy.Poly(sympy.nsimplify(difference, rational=True), z)
            found += [float(root) for root in sympy.real_roots(polynomial)]
            continue
        at, side = np.linspace(-FARTHEST, FARTHEST, 60_002), _on_arrays(difference)
        sides = side(at)
        for i in np.flatnonzero(np.sign(sides[1:]) != np.sign(sides[:-1])):
            found.append(float(brentq(side, at[i], at[i + 1], xtol=1e-14)))
    inside = sorted(round(kink, 12) + 0.0 for kink in found if abs(kink) < FARTHEST)
    return tuple(kink for i, kink in enumerate(inside) if i == 0 or kink > inside[i - 1] + 10 * NEAR)


def _straight(functions: list[Callable[[Any], Any]], value: sympy.Expr) -> float | None:
    """The first of `SAFE` that will do, where something would overflow in single precision, in any case of it."""
    import mpmath
    import sympy

    z = symbol()
    parts = [sympy.lambdify(z, part, ["scipy", "numpy"]) for part in (value, sympy.diff(value, z))]

    def overflows(part: Callable[[Any], Any], farthest: float) -> bool:
        try:
            with np.errstate(over="raise", invalid="raise", divide="raise"):
                part(np.linspace(-farthest, farthest, 1201, dtype=np.float32))
        except FloatingPointError:
            return True
        return False

    def straight(end: float) -> bool:
        for side in (-1, 1):
            height, rise = (float(function(np.array(side * end))) for function in functions[:2])
            for far in (1.2 * end, 2 * end, FARTHEST):
                with mpmath.workdps(50):
                    exact = float(exactly(mpmath.mpf(side * far)))
                if not abs(height + rise * side * (far - end) - exact) <= 1e-9 * (1 + abs(exact)):
                    return False
        return True

    if not any(overflows(part, FARTHEST) for part in parts):
        return None
    exactly = sympy.lambdify(z, value, "mpmath")
    return next((end for end in SAFE if not overflows(parts[0], end) and straight(end)), None)


def _grows(function: Callable[[Any], Any]) -> bool:
    """Whether the square's mean over the widest Gaussian comes from beyond what is reached, or is infinite."""
    deviation = math.sqrt(LARGEST_VARIANCE)
    at = np.linspace(-8.5, 8.5, 20_001)
    with np.errstate(all="ignore"):
        part = function(deviation * at) ** 2 * np.exp(-at * at / 2)
    return not (np.isfinite(part).all() and max(part[0], part[-1]) <= 1e-6 * part.max())
