"""Where symbols live: their ranges, and random admissible points from the whole of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import mpmath
import sympy as sp

from proofs.names import unfold

DIGITS = 100
DECADES = 6  # how far out points are drawn: to 10^6 from an end, and as near as 10^-6
Point = Mapping[sp.Symbol, object]


@dataclass(frozen=True)
class Quantity:
    """A symbol, what it means, and the closed interval it ranges over."""

    symbol: sp.Symbol
    meaning: str
    low: sp.Expr | int = 0
    high: sp.Expr | int = sp.oo
    integer: bool = False

    def fault(self) -> str | None:
        """What is wrong with the range itself, or what SymPy would assume of the symbol that the range does not give.

        A real range's ends count only by continuity, so a positive symbol may range over [0, 1]; an integer's ends are
        values like any other.
        """
        low, high, name = sp.sympify(self.low), sp.sympify(self.high), self.symbol
        if low.has(sp.Float) or high.has(sp.Float):
            return f"the range of {name} has a rounded end"
        if not (low.is_extended_real and high.is_extended_real and low < high):
            return f"the range of {name} is empty: {low} to {high}"
        zero_inside = (low <= 0 <= high) if self.integer else (low < 0 < high)
        given = {
            "positive": low > 0 or (low == 0 and not self.integer),
            "negative": high < 0 or (high == 0 and not self.integer),
            "nonnegative": low >= 0,
            "nonpositive": high <= 0,
            "nonzero": not zero_inside,
            "zero": False,
            "integer": self.integer,
        }
        for property_, shown in given.items():
            if getattr(name, f"is_{property_}") and not shown:
                return f"{name} is declared {property_}, but ranges from {low} to {high}"
        if any(getattr(name, f"is_{p}") for p in ("even", "odd", "prime", "composite", "irrational", "imaginary")):
            return f"{name} is declared with a property that no range gives"
        if (name.is_integer is False and self.integer) or name.is_extended_real is False:
            return f"{name} is declared to be no such number as its range has"
        return None

    def near(self, rng: random.Random) -> object:
        """A value within 5 of the lower end, for routes whose cost grows with the value."""
        low, high = sp.sympify(self.low), sp.sympify(self.high)
        low = (high - 9 if high.is_finite else sp.Integer(-4)) if low == -sp.oo else low
        top = sp.Min(high, low + 5)
        if self.integer:
            return rng.randint(int(low), int(top))
        return value_at(low + (top - low) * sp.Rational(rng.randint(1, 996), 997), {})

    def draw(self, rng: random.Random) -> object:
        """A value from anywhere in the range: logarithmically from an end, near it or 10^6 away, or evenly between."""
        low, high = sp.sympify(self.low), sp.sympify(self.high)
        away = mpmath.mpf(10) ** (mpmath.mpf(rng.randint(-1000 * DECADES, 1000 * DECADES)) / 1000)
        if low == -sp.oo and high == sp.oo:
            value = away * rng.choice((-1, 1))
            return int(mpmath.floor(value)) if self.integer else value
        if low == -sp.oo or high == sp.oo:
            value = value_at(low, {}) + away if high == sp.oo else value_at(high, {}) - away
            return int(mpmath.floor(value) if high == sp.oo else mpmath.ceil(value)) if self.integer else value
        if self.integer:
            return rng.randint(int(low), int(high))
        share = mpmath.mpf(rng.randint(1, 996)) / 997
        if rng.random() < 0.5:
            small = mpmath.mpf(10) ** (-mpmath.mpf(rng.randint(300, 1000 * DECADES)) / 1000)
            share = small if rng.random() < 0.5 else 1 - small
        bottom, top = value_at(low, {}), value_at(high, {})
        return bottom + (top - bottom) * share

    def chart(self, positive: sp.Symbol) -> sp.Expr:
        """The interval's interior, written as the image of the half-line `positive` > 0 (its lower end at 0)."""
        low, high = sp.sympify(self.low), sp.sympify(self.high)
        if low == -sp.oo:
            return positive - 1 / positive if high == sp.oo else high - positive
        return low + positive if high == sp.oo else (low + high * positive) / (1 + positive)

    def interval(self) -> str:
        """The range in LaTeX."""
        low, high = sp.latex(sp.sympify(self.low)), sp.latex(sp.sympify(self.high))
        if self.integer:
            return rf"\{{{low}, {sp.latex(sp.sympify(self.low) + 1)}, \dots\}}"
        if self.low == -sp.oo:
            return r"\mathbb R" if self.high == sp.oo else rf"(-\infty, {high}]"
        return rf"[{low}, {high})" if self.high == sp.oo else f"[{low}, {high}]"


@dataclass(frozen=True)
class Domain:
    """The quantities of one proposition: where points are drawn, and what signs may be assumed."""

    quantities: tuple[Quantity, ...]

    def fault(self) -> str | None:
        """What is wrong with a range, or a symbol declared twice, or nothing."""
        symbols = [q.symbol for q in self.quantities]
        twice = {str(s) for s in symbols if [str(t) for t in symbols].count(str(s)) > 1}
        if twice:
            return f"declared twice: {sorted(twice)}"
        return next((fault for q in self.quantities if (fault := q.fault())), None)

    def of(self, *expressions: sp.Expr, beside: tuple[sp.Symbol, ...] = ()) -> tuple[Quantity, ...]:
        """The quantities that occur; an undeclared symbol is an error, so that none ranges over an unknown set.

        Those `beside` are no quantities: a sequence's previous value.
        """
        free = set().union(*(unfold(e).free_symbols for e in expressions)) - set(beside)
        unknown = free - {q.symbol for q in self.quantities}
        if unknown:
            raise LookupError(f"symbols without a declared range: {sorted(map(str, unknown))}")
        return tuple(q for q in self.quantities if q.symbol in free)

    def point(self, quantities: tuple[Quantity, ...], rng: random.Random) -> dict[sp.Symbol, object]:
        """One random admissible value for each quantity, from anywhere in its range."""
        return {q.symbol: q.draw(rng) for q in quantities}

    def near(self, quantities: tuple[Quantity, ...], rng: random.Random) -> dict[sp.Symbol, object]:
        """The same near the lower ends."""
        return {q.symbol: q.near(rng) for q in quantities}


def misdeclared(expression: sp.Expr) -> str | None:
    """A bound variable whose declared sign its own limits contradict: integrals and sums are ranges too."""
    for bound in unfold(expression).atoms(sp.Integral, sp.Sum, sp.Product):
        for variable, *ends in bound.limits:
            low, high = (ends[0], ends[-1]) if len(ends) == 2 else (-sp.oo, sp.oo)
            if variable.is_nonnegative and not sp.sympify(low).is_extended_nonnegative:
                return f"{variable} is declared without negative values, but summed or integrated from {low}"
            if variable.is_nonpositive and not sp.sympify(high).is_extended_nonpositive:
                return f"{variable} is declared without positive values, but summed or integrated to {high}"
    return None


def value_at(expression: sp.Expr, point: Point) -> mpmath.mpf:
    """The expression's value by mpmath alone: SymPy only prints it as a function.

    An unevaluated derivative is taken by finite differences, an unevaluated integral by quadrature.
    """
    values = {s: mpmath.mpmathify(v) for s, v in point.items()}
    expression = unfold(expression)
    for derivative in expression.atoms(sp.Derivative):
        stand_in = sp.Dummy("derivative")
        values[stand_in] = _numeric_derivative(derivative, values)
        expression = expression.subs(derivative, stand_in)
    symbols, function = _compiled(expression)
    return mpmath.mpmathify(function(*(values[s] for s in symbols)))


@lru_cache(maxsize=1024)
def _compiled(expression: sp.Expr) -> tuple[tuple[sp.Symbol, ...], Callable[..., object]]:
    """The expression's symbols and its function of them; a symbol called gamma must not hide the function gamma."""
    symbols = tuple(expression.free_symbols)
    names = {symbol: sp.Dummy() for symbol in symbols}
    return symbols, sp.lambdify(list(names.values()), expression.xreplace(names), "mpmath")


def _numeric_derivative(derivative: sp.Derivative, values: Mapping[sp.Symbol, mpmath.mpf]) -> mpmath.mpf:
    """A first derivative by mpmath's finite differences at raised precision."""
    variable = derivative.variables[0]
    rest = (
        derivative.expr if len(derivative.variables) == 1 else sp.Derivative(derivative.expr, *derivative.variables[1:])
    )
    return mpmath.diff(lambda at: value_at(rest, {**values, variable: at}), values[variable])
