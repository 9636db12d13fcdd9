"""The kinds of step that stand alone: equality, inequality, limit, series. `proofs.induction` has those that compose.

Each step states its `claims`, relations of SymPy from which it is printed and compared, and is discharged twice: by
`symbolic`, in general, and by `numeric`, at points from the whole of every range. Either returns why it is not
discharged, or nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import mpmath
import sympy as sp

from proofs.domain import DIGITS, Domain, Point, Quantity, value_at
from proofs.names import Named, unfold
from proofs.signs import grows_from_nonnegative, nonnegative, reduced, regular, vanishes

if TYPE_CHECKING:
    from proofs.vocabulary import Use

TEDIOUS = 240  # characters of LaTeX
TINY = mpmath.mpf(10) ** -40
ROUNDING = mpmath.mpf(10) ** (20 - DIGITS)  # what is left of a difference of numbers of order one


def side(expression: sp.Expr) -> str:
    """One side of a claim: a name is followed by its definition, unless that is too long to help a reader."""
    if isinstance(expression, Named) and len(expression.definition) <= TEDIOUS:
        return rf"{expression.name} := {expression.definition}"
    return sp.latex(expression)


def costly(*expressions: sp.Expr) -> bool:
    """Whether evaluation takes quadrature or finite differences, which only see a neighbourhood."""
    return any(unfold(e).has(sp.Integral, sp.Derivative) for e in expressions)


@dataclass(frozen=True)
class Witness:
    """Another route to a number (brute-force expectation, quadrature), to so many digits.

    It reads the quantities `needs`; `sizes` are put in for those that make it expensive.
    """

    route: Callable[[Point], object]
    needs: tuple[sp.Symbol, ...] = ()
    sizes: Mapping[sp.Symbol, int] = field(default_factory=dict, hash=False)
    digits: int = 30
    points: int = 1


@dataclass(frozen=True)
class Equality:
    """left = right throughout the domain. Witnesses compute the left side's number by other routes.

    Two sides that are one and the same expression are rejected as vacuous, unless there is a witness or the left side
    was `derived`: composed by code from maps proved elsewhere, so that it might have come out otherwise.
    """

    left: sp.Expr
    right: sp.Expr
    reason: str
    name: str = ""
    uses: tuple[Use, ...] = ()
    witnesses: tuple[Witness, ...] = ()
    derived: bool = False
    points: int = 24

    @property
    def claims(self) -> tuple[sp.Basic, ...]:
        """What is claimed."""
        return (sp.Eq(self.left, self.right, evaluate=False),)

    def latex(self) -> str:
        """The claim, the left side's definition spelt out."""
        left, right = unfold(self.left), sp.sympify(self.right)
        shown = sp.latex(self.left) if left == right and self.left != left else side(self.left)
        return f"{shown} = {sp.latex(right)}"

    def symbolic(self, domain: Domain) -> str | None:
        """Why SymPy does not discharge the step, or nothing."""
        left, right = unfold(self.left), unfold(self.right)
        if left == right:
            return None if self.witnesses or self.derived else "vacuous: both sides are the same expression"
        if not regular(left, domain.of(left)) or not regular(right, domain.of(right)):
            return "an integrand may have a pole between its limits"
        if left.has(sp.Integral):  # convergence: let SymPy see that d >= 4, say, by writing d = 4 + (a positive symbol)
            above = {
                q.symbol: q.chart(sp.Dummy(positive=True)) for q in domain.of(left) if q.low > 0 and q.high == sp.oo
            }
            left, right = left.subs(above), right.subs(above)
        return None if vanishes(left.doit() - right.doit()) else f"SymPy does not reduce {left} - ({right}) to zero"

    def numeric(self, domain: Domain, rng: random.Random) -> str | None:
        """Where the numbers disagree, or nothing."""
        quantities = domain.of(self.left, self.right)
        dear = costly(self.left, self.right)
        for _ in range(min(self.points, 4) if dear else self.points):
            point = domain.near(quantities, rng) if dear else domain.point(quantities, rng)
            if gap := _apart(value_at(self.left, point), value_at(self.right, point), 30, TINY, point):
                return gap
        for witness in self.witnesses:
            read = domain.of(self.left, self.right, *witness.needs)
            for _ in range(witness.points):
                point = {**domain.near(read, rng), **witness.sizes}
                found = mpmath.mpmathify(witness.route(point))
                if gap := _apart(
                    found, value_at(self.right, point), witness.digits, mpmath.mpf(10) ** -witness.digits, point
                ):
                    return f"another route: {gap}"
        return None


def _apart(found: mpmath.mpf, right: mpmath.mpf, digits: int, floor: mpmath.mpf, point: Point) -> str | None:
    """How two numbers differ beyond so many digits and beyond the floor, or nothing."""
    if abs(found - right) <= mpmath.mpf(10) ** -digits * max(abs(found), abs(right)) + floor:
        return None
    return f"{mpmath.nstr(found, 20)} is not {mpmath.nstr(right, 20)} at {point}"


@dataclass(frozen=True)
class Inequality:
    """smaller <= larger (or <) throughout the domain; `along` proves it by the derivative in that quantity.

    Proved on the interior of the domain; the closed domain follows by continuity (not for the strict form).
    """

    smaller: sp.Expr
    larger: sp.Expr
    reason: str
    name: str = ""
    uses: tuple[Use, ...] = ()
    strict: bool = False
    along: sp.Symbol | None = None
    points: int = 40

    @property
    def claims(self) -> tuple[sp.Basic, ...]:
        """What is claimed."""
        return ((sp.Lt if self.strict else sp.Le)(self.smaller, self.larger, evaluate=False),)

    def latex(self) -> str:
        """The claim, definitions spelt out."""
        relation = "<" if self.strict else r"\le"
        if isinstance(self.larger, Named) and len(self.larger.definition) <= TEDIOUS:
            return rf"{side(self.smaller)} {relation} {self.larger.name},\qquad {side(self.larger)}"
        if isinstance(self.smaller, Named) and len(self.smaller.definition) <= TEDIOUS:
            return rf"{self.smaller.name} {relation} {sp.latex(self.larger)},\qquad {side(self.smaller)}"
        return f"{sp.latex(self.smaller)} {relation} {sp.latex(self.larger)}"

    def symbolic(self, domain: Domain) -> str | None:
        """Why SymPy does not discharge the step, or nothing."""
        difference = reduced(unfold(self.larger) - unfold(self.smaller))
        if difference == 0:
            return "vacuous: both sides are equal"
        quantities = domain.of(self.smaller, self.larger)
        if self.along is None:
            proved = nonnegative(difference, quantities, self.strict)
        else:
            proved = grows_from_nonnegative(difference, self.along, quantities, self.strict)
        return None if proved else f"SymPy cannot tell the sign of {difference}"

    def numeric(self, domain: Domain, rng: random.Random) -> str | None:
        """A counterexample, or nothing."""
        quantities = domain.of(self.smaller, self.larger)
        draw = domain.near if costly(self.smaller, self.larger) else domain.point
        for _ in range(self.points):
            point = draw(quantities, rng)
            smaller, larger = value_at(self.smaller, point), value_at(self.larger, point)
            gap, noise = larger - smaller, TINY * max(abs(smaller), abs(larger)) + ROUNDING
            if not (gap >= -noise) or (self.strict and not gap > 0):
                return f"violated by {mpmath.nstr(gap, 10)} at {point}"
        return None


def _others(variable: sp.Symbol, domain: Domain, *expressions: sp.Expr) -> tuple[Quantity, ...]:
    """The quantities that occur beside the variable of a limit."""
    return tuple(q for q in domain.of(*expressions) if q.symbol != variable)


@dataclass(frozen=True)
class Limit:
    """expression -> value as variable -> point (infinity, or zero from above)."""

    expression: sp.Expr
    variable: sp.Symbol
    point: sp.Expr | int
    value: sp.Expr
    reason: str
    name: str = ""
    uses: tuple[Use, ...] = ()

    @property
    def claims(self) -> tuple[sp.Basic, ...]:
        """What is claimed."""
        limit = sp.Limit(self.expression, self.variable, self.point, "+" if self.point == 0 else "-")
        return (sp.Eq(limit, self.value, evaluate=False),)

    def latex(self) -> str:
        """The claim, the expression's definition spelt out."""
        claim = rf"{_approach(self.variable, self.point)} {sp.latex(self.expression)} = {sp.latex(self.value)}"
        if isinstance(self.expression, Named) and len(self.expression.definition) <= TEDIOUS:
            return rf"{claim},\qquad {side(self.expression)}"
        return claim

    def symbolic(self, domain: Domain) -> str | None:
        """Why SymPy does not discharge the step, or nothing."""
        if self.point not in (0, sp.oo):
            return f"a limit at {self.point} is not among those checked"
        reached = next((q for q in domain.quantities if q.symbol == self.variable), None)
        if reached is None or not (reached.high == sp.oo if self.point == sp.oo else reached.low == 0 < reached.high):
            return f"{self.variable} does not range up to {self.point}, from one side alone"
        found = sp.limit(unfold(self.expression), self.variable, self.point, "+" if self.point == 0 else "-")
        value = unfold(self.value)
        agrees = found == value if value.is_infinite or found.is_infinite else vanishes(found - value)
        return None if agrees else f"SymPy finds the limit {found}, not {value}"

    def numeric(self, domain: Domain, rng: random.Random) -> str | None:
        """Whether the distance to the value keeps falling along 10^8, 10^16, ..., and ends small."""
        others = _others(self.variable, domain, self.expression, self.value)
        sign = -1 if self.point == 0 else 1
        for _ in range(3):
            point = domain.near(others, rng)
            with mpmath.workdps(4 * DIGITS):  # small differences of large numbers
                values = [
                    value_at(self.expression, {**point, self.variable: mpmath.mpf(10) ** (sign * 8 * j)})
                    for j in (1, 2, 4)
                ]
            if unfold(self.value).is_infinite:
                sizes = [v if self.value == sp.oo else -v for v in values]
                if not (sizes[0] < sizes[1] < sizes[2] and sizes[2] > 10):
                    return f"does not diverge: {[mpmath.nstr(v, 8) for v in values]} at {point}"
                continue
            errors = [abs(v - value_at(self.value, point)) for v in values]
            if not (errors[2] < 1e-3 and (errors[2] <= errors[0] / 2 or errors[2] < TINY)):
                return f"distance from the limit does not fall: {[mpmath.nstr(e, 8) for e in errors]} at {point}"
        return None


def _approach(variable: sp.Symbol, point: sp.Expr | int) -> str:
    return rf"\lim_{{{sp.latex(variable)} \to {sp.latex(sp.sympify(point))}}}"


@dataclass(frozen=True)
class Series:
    """expression = polynomial + O(variable^order) at zero."""

    expression: sp.Expr
    variable: sp.Symbol
    polynomial: sp.Expr
    order: int
    reason: str
    name: str = ""
    uses: tuple[Use, ...] = ()

    @property
    def claims(self) -> tuple[sp.Basic, ...]:
        """What is claimed."""
        remainder = sp.Order(self.variable**self.order)
        return (sp.Eq(self.expression, sp.Add(self.polynomial, remainder, evaluate=False), evaluate=False),)

    def latex(self) -> str:
        """The claim, the expression's definition spelt out."""
        right = rf"{sp.latex(self.polynomial)} + O({sp.latex(self.variable)}^{{{self.order}}})"
        return f"{side(self.expression)} = {right}"

    def symbolic(self, domain: Domain) -> str | None:
        """Why SymPy does not discharge the step, or nothing."""
        sides = self._sides(domain)
        if not sides:
            return f"{self.variable} does not range up to zero"
        for side_ in sides:
            away = {self.variable: side_ * sp.Dummy(positive=True)}
            [small] = away[self.variable].free_symbols
            found = sp.series(unfold(self.expression).subs(away), small, 0, self.order).removeO()
            if not vanishes(found - unfold(self.polynomial).subs(away)):
                return f"SymPy finds the series {found}"
        return None

    def _sides(self, domain: Domain) -> tuple[int, ...]:
        """From which sides the variable comes to zero."""
        reached = next((q for q in domain.quantities if q.symbol == self.variable), None)
        if reached is None or reached.integer:
            return ()
        return tuple(
            side_
            for side_, there in ((1, reached.low <= 0 < reached.high), (-1, reached.low < 0 <= reached.high))
            if there
        )

    def numeric(self, domain: Domain, rng: random.Random) -> str | None:
        """Whether the remainder falls like variable^order."""
        others = _others(self.variable, domain, self.expression, self.polynomial)
        for side_ in self._sides(domain) * 3:
            point = domain.near(others, rng)
            remainders = []
            for small in (mpmath.mpf(10) ** -6, mpmath.mpf(10) ** -7):
                at = {**point, self.variable: side_ * small}
                remainders.append(abs(value_at(self.expression, at) - value_at(self.polynomial, at)))
            if not remainders[1] <= 3 * remainders[0] * mpmath.mpf(10) ** -self.order + mpmath.mpf(10) ** -50:
                return f"remainder does not fall like order {self.order}: {remainders} at {point}"
        return None
