"""Where symbols live: their ranges, random admissible points, and what SymPy can tell about signs there."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mpmath
import sympy as sp

DIGITS = 60
Point = Mapping[sp.Symbol, object]


@dataclass(frozen=True)
class Quantity:
    """A symbol, what it means, and the closed interval it ranges over."""

    symbol: sp.Symbol
    meaning: str
    low: sp.Expr | int = 0
    high: sp.Expr | int | float = sp.oo
    integer: bool = False

    def draw(self, rng: random.Random) -> object:
        """A random admissible value: an integer, or a rational strictly inside the interval as an mpmath number."""
        low, high = sp.sympify(self.low), sp.sympify(self.high)
        low = sp.Integer(-4) if low == -sp.oo else low
        top = low + 5 if high == sp.oo else high
        if self.integer:
            return rng.randint(int(low), int(top))
        share = sp.Rational(rng.randint(1, 996), 997)
        value = low + (top - low) * share
        return value_at(value, {})

    def chart(self, positive: sp.Symbol) -> sp.Expr:
        """The interval's interior, written as the image of the half-line `positive` > 0 (its lower end at 0)."""
        low, high = sp.sympify(self.low), sp.sympify(self.high)
        if low == -sp.oo:
            return positive - 1 / positive
        return low + positive if high == sp.oo else (low + high * positive) / (1 + positive)

    def interval(self) -> str:
        """The range in LaTeX."""
        low, high = sp.latex(sp.sympify(self.low)), sp.latex(sp.sympify(self.high))
        if self.integer:
            return rf"\{{{low}, {sp.latex(sp.sympify(self.low) + 1)}, \dots\}}"
        if self.low == -sp.oo:
            return r"\mathbb R"
        return rf"[{low}, {high})" if self.high == sp.oo else f"[{low}, {high}]"


@dataclass(frozen=True)
class Domain:
    """The quantities of one proposition: where points are drawn, and what signs may be assumed."""

    quantities: tuple[Quantity, ...]

    def of(self, *expressions: sp.Expr) -> tuple[Quantity, ...]:
        """The quantities that occur; an undeclared symbol is an error, so that none ranges over an unknown set."""
        free = set().union(*(sp.sympify(e).free_symbols for e in expressions))
        unknown = free - {q.symbol for q in self.quantities}
        if unknown:
            raise LookupError(f"symbols without a declared range: {sorted(map(str, unknown))}")
        return tuple(q for q in self.quantities if q.symbol in free)

    def point(self, quantities: tuple[Quantity, ...], rng: random.Random) -> dict[sp.Symbol, object]:
        """One random admissible value for each quantity."""
        return {q.symbol: q.draw(rng) for q in quantities}


def value_at(expression: sp.Expr, point: Point) -> mpmath.mpf:
    """The expression's value by mpmath alone: SymPy only prints it as a function.

    An unevaluated derivative is taken by finite differences, an unevaluated integral by quadrature.
    """
    values = {s: mpmath.mpmathify(v) for s, v in point.items()}
    expression = sp.sympify(expression)
    for derivative in expression.atoms(sp.Derivative):
        stand_in = sp.Dummy("derivative")
        values[stand_in] = _numeric_derivative(derivative, values)
        expression = expression.subs(derivative, stand_in)
    names = {symbol: sp.Dummy() for symbol in values}  # a symbol called gamma must not hide the function gamma
    function = sp.lambdify(list(names.values()), expression.xreplace(names), "mpmath")
    return mpmath.mpmathify(function(*values.values()))


def _numeric_derivative(derivative: sp.Derivative, values: Mapping[sp.Symbol, mpmath.mpf]) -> mpmath.mpf:
    """A first derivative by mpmath's finite differences at raised precision."""
    variable = derivative.variables[0]
    rest = (
        derivative.expr if len(derivative.variables) == 1 else sp.Derivative(derivative.expr, *derivative.variables[1:])
    )
    return mpmath.diff(lambda at: value_at(rest, {**values, variable: at}), values[variable])


def vanishes(expression: sp.Expr) -> bool:
    """Whether SymPy reduces the expression to zero, cheapest rewriting first."""
    rewritings: tuple[Callable[[sp.Expr], sp.Expr], ...] = (
        sp.expand,
        lambda e: sp.cancel(sp.together(e)),
        lambda e: sp.simplify(e.rewrite(sp.asin)) if e.has(sp.acos) else e,
        sp.simplify,
        lambda e: sp.simplify(sp.gammasimp(sp.expand_func(e))),
        lambda e: sp.simplify(sp.expand_log(sp.powdenest(e, force=True), force=True)),
    )
    return any(rewrite(expression) == 0 for rewrite in rewritings)


def nonnegative(expression: sp.Expr, quantities: tuple[Quantity, ...], strict: bool) -> bool:
    """The sign inside the domain: in the charts' positive variables, numerator and denominator show their signs."""
    # An integer's range includes its lower end even in a strict claim: its chart's variable may be zero.
    signs = [{"nonnegative": True} if q.integer else {"positive": True} for q in quantities]
    charts = {q.symbol: q.chart(sp.Symbol(f"u_{i}", **signs[i])) for i, q in enumerate(quantities)}
    inside = sp.together(sp.sympify(expression).subs(charts, simultaneous=True))
    candidates = [inside, sp.factor(inside)]
    numerator, denominator = sp.fraction(sp.cancel(inside) if inside.is_rational_function() else inside)
    if denominator.is_negative:
        numerator, denominator = -numerator, -denominator
    if denominator.is_positive:
        candidates += [sp.expand(numerator), sp.factor(numerator)]
    return any(bool(e.is_positive if strict else e.is_nonnegative) for e in candidates)


def grows_from_nonnegative(
    f: sp.Expr, along: sp.Symbol, quantities: tuple[Quantity, ...], strict: bool, depth: int = 4
) -> bool:
    """f >= 0 because f is so at the low end of `along` and its derivative is so everywhere, the same way if need be."""
    if nonnegative(f, quantities, strict):
        return True
    if depth == 0:
        return False
    low = next(q.low for q in quantities if q.symbol == along)
    rest = tuple(q for q in quantities if q.symbol != along)
    start = sp.simplify(f.subs(along, low))
    return nonnegative(start, rest, False) and grows_from_nonnegative(
        sp.simplify(sp.diff(f, along)), along, quantities, strict, depth - 1
    )
