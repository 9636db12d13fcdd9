"""The words a proof is written in: propositions, steps, axioms, reports.

A derivation is a chain of steps. Each step is a claim with a reason, and is discharged twice:

* by SymPy, in general: the two sides simplify to the same expression, the sign follows from the declared ranges, the
  limit or the series is computed, the closed form satisfies the recurrence;
* by numbers: both sides are evaluated with mpmath, 60 digits, at random admissible points drawn from an explicit seed.

A step that either of them cannot discharge fails the proof. Facts that are used without proof are axioms: they carry a
reference, and every report lists them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import mpmath
import sympy as sp

from proofs.domain import DIGITS, grows_from_nonnegative, nonnegative, vanishes
from proofs.domain import Domain as Domain
from proofs.domain import Point as Point
from proofs.domain import Quantity as Quantity
from proofs.domain import value_at as value_at

SEED = 26_01_22580
TEDIOUS = 240  # characters of LaTeX


@dataclass(frozen=True)
class Axiom:
    """A fact used without proof, with the place where its proof can be read."""

    name: str
    statement: str
    reference: str


def _show(label: str, *sides: object) -> str:
    """Sides joined by equality signs, the label first when there is one."""
    return " = ".join(([label] if label else []) + [s if isinstance(s, str) else sp.latex(s) for s in sides])


@dataclass(frozen=True)
class Equality:
    """left = right throughout the domain. `label` names the left side on paper.

    `witness` computes the left side's number by another route (brute-force expectation, quadrature) at a point; it is
    compared with the right side to `digits` digits, at small dimensions `sizes` where the route is expensive.

    Two sides that are one and the same expression are rejected as vacuous, unless there is a witness or the left side
    was `derived`: composed by code from maps proved elsewhere, so that it might have come out otherwise.
    """

    left: sp.Expr
    right: sp.Expr
    reason: str
    name: str = ""
    label: str = ""
    witness: Callable[[Point], object] | None = None
    witness_needs: tuple[sp.Symbol, ...] = ()
    sizes: Mapping[sp.Symbol, int] = field(default_factory=dict)
    derived: bool = False
    digits: int = 30
    points: int = 4

    def latex(self, short: bool = False) -> str:
        """The claim; the label alone stands for the left side in short, or where that is too long to help a reader."""
        tedious = len(sp.latex(self.left)) > TEDIOUS
        left: tuple[object, ...] = () if self.label and (short or tedious or self.left == self.right) else (self.left,)
        return _show(self.label, *left, self.right)

    def symbolic(self, domain: Domain) -> str | None:
        """Why SymPy does not discharge the step, or nothing."""
        left, right = sp.sympify(self.left), sp.sympify(self.right)
        if left == right:
            return None if self.witness or self.derived else "vacuous: both sides are the same expression"
        if left.has(sp.Integral):  # convergence: let SymPy see that d >= 4, say, by writing d = 4 + (a positive symbol)
            above = {
                q.symbol: q.chart(sp.Dummy(positive=True)) for q in domain.of(left) if q.low > 0 and q.high == sp.oo
            }
            left, right = left.subs(above), right.subs(above)
        return None if vanishes(left.doit() - right.doit()) else f"SymPy does not reduce {left} - ({right}) to zero"

    def numeric(self, domain: Domain, rng: random.Random) -> str | None:
        """Where the numbers disagree, or nothing."""
        quantities = domain.of(self.left, self.right, *self.witness_needs)
        for _ in range(self.points):
            point = domain.point(quantities, rng)
            routes: list[tuple[Callable[[Point], object], Point]] = [(lambda at: value_at(self.left, at), point)]
            if self.witness:
                routes.append((self.witness, {**point, **self.sizes}))
            for route, at in routes:
                found, right = mpmath.mpmathify(route(at)), value_at(self.right, at)
                if not abs(found - right) <= mpmath.mpf(10) ** -self.digits * (1 + abs(right)):
                    return f"{mpmath.nstr(found, 20)} is not {mpmath.nstr(right, 20)} at {at}"
        return None


@dataclass(frozen=True)
class Inequality:
    """smaller <= larger (or <) throughout the domain; `along` proves it by the derivative in that quantity.

    Proved on the interior of the domain; the closed domain follows by continuity (not for the strict form).
    """

    smaller: sp.Expr
    larger: sp.Expr
    reason: str
    name: str = ""
    strict: bool = False
    along: sp.Symbol | None = None
    points: int = 60
    smaller_label: str = ""
    larger_label: str = ""

    def latex(self, short: bool = False) -> str:
        """The claim."""
        small = _show(self.smaller_label, *(() if short and self.smaller_label else (self.smaller,)))
        large = _show(self.larger_label, *(() if short and self.larger_label else (self.larger,)))
        return " ".join((small, "<" if self.strict else r"\le", large))

    def symbolic(self, domain: Domain) -> str | None:
        """Why SymPy does not discharge the step, or nothing."""
        difference = sp.simplify(sp.sympify(self.larger) - sp.sympify(self.smaller))
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
        for _ in range(self.points):
            point = domain.point(quantities, rng)
            gap = value_at(self.larger, point) - value_at(self.smaller, point)
            if gap < -(mpmath.mpf(10) ** -40) or (self.strict and gap <= 0):
                return f"violated by {mpmath.nstr(gap, 10)} at {point}"
        return None


@dataclass(frozen=True)
class Limit:
    """expression -> value as variable -> point (infinity, or zero from above)."""

    expression: sp.Expr
    variable: sp.Symbol
    point: sp.Expr | int
    value: sp.Expr
    reason: str
    name: str = ""
    label: str = ""

    def latex(self, short: bool = False) -> str:
        """The claim."""
        inside = self.label if short and self.label else sp.latex(self.expression)
        to = sp.latex(sp.sympify(self.point))
        return rf"\lim_{{{sp.latex(self.variable)} \to {to}}} {inside} = {sp.latex(self.value)}"

    def symbolic(self, domain: Domain) -> str | None:
        """Why SymPy does not discharge the step, or nothing."""
        found = sp.limit(self.expression, self.variable, self.point, "+" if self.point == 0 else "-")
        value = sp.sympify(self.value)
        agrees = found == value if value.is_infinite or found.is_infinite else vanishes(found - value)
        return None if agrees else f"SymPy finds the limit {found}, not {value}"

    def numeric(self, domain: Domain, rng: random.Random) -> str | None:
        """Whether the distance to the value keeps falling along 10^8, 10^16, ..., and ends small."""
        others = tuple(q for q in domain.of(self.expression, self.value) if q.symbol != self.variable)
        sign = -1 if self.point == 0 else 1
        for _ in range(3):
            point = domain.point(others, rng)
            with mpmath.workdps(5 * DIGITS):  # small differences of large numbers
                values = [
                    value_at(self.expression, {**point, self.variable: mpmath.mpf(10) ** (sign * 8 * j)})
                    for j in (1, 2, 4)
                ]
            if sp.sympify(self.value).is_infinite:
                sizes = [v if self.value == sp.oo else -v for v in values]
                if not (sizes[0] < sizes[1] < sizes[2] and sizes[2] > 10):
                    return f"does not diverge: {[mpmath.nstr(v, 8) for v in values]} at {point}"
                continue
            errors = [abs(v - value_at(self.value, point)) for v in values]
            if not (errors[2] < 1e-3 and (errors[2] <= errors[0] / 2 or errors[2] < mpmath.mpf(10) ** -40)):
                return f"distance from the limit does not fall: {[mpmath.nstr(e, 8) for e in errors]} at {point}"
        return None


@dataclass(frozen=True)
class Series:
    """expression = polynomial + O(variable^order) at zero."""

    expression: sp.Expr
    variable: sp.Symbol
    polynomial: sp.Expr
    order: int
    reason: str
    name: str = ""
    label: str = ""

    def latex(self, short: bool = False) -> str:
        """The claim."""
        left = self.label if self.label else sp.latex(self.expression)
        return rf"{left} = {sp.latex(self.polynomial)} + O({sp.latex(self.variable)}^{{{self.order}}})"

    def symbolic(self, domain: Domain) -> str | None:
        """Why SymPy does not discharge the step, or nothing."""
        found = sp.series(self.expression, self.variable, 0, self.order).removeO()
        return None if vanishes(found - self.polynomial) else f"SymPy finds the series {found}"

    def numeric(self, domain: Domain, rng: random.Random) -> str | None:
        """Whether the remainder falls like variable^order."""
        others = tuple(q for q in domain.of(self.expression, self.polynomial) if q.symbol != self.variable)
        for _ in range(3):
            point = domain.point(others, rng)
            remainders = []
            for small in (mpmath.mpf(10) ** -6, mpmath.mpf(10) ** -7):
                at = {**point, self.variable: small}
                remainders.append(abs(value_at(self.expression, at) - value_at(self.polynomial, at)))
            if remainders[1] > 3 * remainders[0] * mpmath.mpf(10) ** -self.order + mpmath.mpf(10) ** -50:
                return f"remainder does not fall like order {self.order}: {remainders} at {point}"
        return None


@dataclass(frozen=True)
class Recurrence:
    """The sequence with y(0) = initial and y(n+1) = update(n, y(n)) is closed_form(n), by induction on n.

    With `solve`, SymPy's `rsolve` must find the closed form by itself as well.
    """

    index: sp.Symbol
    update: Callable[[sp.Expr, sp.Expr], sp.Expr]
    initial: sp.Expr
    closed_form: sp.Expr
    reason: str
    symbol: str
    name: str = ""
    solve: bool = False

    def latex(self, short: bool = False) -> str:
        """The claim."""
        n = sp.latex(self.index)
        base, step = f"{self.symbol}_{{{n}}}", f"{self.symbol}_{{{n}+1}}"
        claim = f"{base} = {sp.latex(self.closed_form)}"
        if short:
            return claim
        law = sp.latex(self.update(self.index, sp.Symbol(base)))
        return rf"{step} = {law},\quad {self.symbol}_0 = {sp.latex(self.initial)} \;\Longrightarrow\; {claim}"

    def symbolic(self, domain: Domain) -> str | None:
        """Why the induction does not go through, or nothing."""
        start = self.closed_form.subs(self.index, 0) - self.initial
        if not vanishes(start):
            return f"the closed form starts {start} away"
        step = self.closed_form.subs(self.index, self.index + 1) - self.update(self.index, self.closed_form)
        if not vanishes(step):
            return f"induction fails: SymPy does not reduce {step} to zero"
        if self.solve:
            y = sp.Function("y")
            equation = sp.expand(y(self.index + 1) - self.update(self.index, y(self.index)))
            found = sp.rsolve(equation, y(self.index), {y(0): self.initial})
            if found is None or not vanishes(found - self.closed_form):
                return f"rsolve finds {found}"
        return None

    def numeric(self, domain: Domain, rng: random.Random) -> str | None:
        """Iterates the recurrence and compares."""
        previous = sp.Symbol("y_previous")
        law = self.update(self.index, previous)
        quantities = tuple(
            q for q in domain.of(self.closed_form, law.subs(previous, 0), self.initial) if q.symbol != self.index
        )
        for _ in range(3):
            point = domain.point(quantities, rng)
            value = value_at(self.initial, point)
            for n in range(8):
                value = value_at(law, {**point, self.index: mpmath.mpf(n), previous: value})
                closed = value_at(self.closed_form, {**point, self.index: mpmath.mpf(n + 1)})
                if abs(value - closed) > mpmath.mpf(10) ** -40 * (1 + abs(closed)):
                    return f"differs at n = {n + 1}: {mpmath.nstr(value, 20)}, {mpmath.nstr(closed, 20)} at {point}"
        return None


Step = Equality | Inequality | Limit | Series | Recurrence


@dataclass(frozen=True)
class Proposition:
    """A statement with its hypotheses, and a derivation whose steps can fail.

    In `statement`, `<<name>>` stands for the equation of the step of that name, so that what is stated is what is
    checked. `setting` introduces the objects in words and equations.
    """

    name: str
    number: str
    title: str
    quantities: tuple[Quantity, ...]
    setting: str
    hypotheses: tuple[str, ...]
    statement: str
    source: str
    derivation: Callable[[], tuple[Step, ...]]
    axioms: tuple[Axiom, ...] = ()
    remark: str = ""
    confronted: str = ""


@dataclass(frozen=True)
class Report:
    """What became of one proposition."""

    name: str
    number: str
    title: str
    proved: bool
    steps: int
    axioms: tuple[Axiom, ...]
    seconds: float
    failure: str = ""


@cache
def steps_of(proposition: Proposition) -> tuple[Step, ...]:
    """The proposition's steps. Deriving them can take seconds (contractions), so it is done once."""
    return proposition.derivation()


def step_of(proposition: Proposition, name: str) -> Step:
    """The step of that name."""
    return {step.name: step for step in steps_of(proposition) if step.name}[name]


def check(step: Step, domain: Domain, rng: random.Random) -> str | None:
    """Why the step is not discharged, or nothing. Errors are failures: a proof may not crash its way to truth."""
    with mpmath.workdps(DIGITS):
        try:
            symbolic = step.symbolic(domain)
            if symbolic:
                return f"symbolic: {symbolic}"
            numeric = step.numeric(domain, rng)
        except Exception as error:  # whatever SymPy or mpmath raise, the step is not discharged
            return f"{type(error).__name__}: {error}"
        return f"numeric: {numeric}" if numeric else None


def prove(proposition: Proposition) -> Report:
    """Runs the derivation in order and stops at the first step that is not discharged."""
    started = time.perf_counter()
    rng = random.Random(f"{SEED} {proposition.name}")
    domain = Domain(proposition.quantities)
    steps = steps_of(proposition)
    failure = "" if steps else "a proposition without steps proves nothing"
    for position, step in enumerate(steps, start=1):
        problem = check(step, domain, rng)
        if problem:
            failure = f"step {position} ({step.reason}): {problem}"
            break
    return Report(
        name=proposition.name,
        number=proposition.number,
        title=proposition.title,
        proved=not failure,
        steps=len(steps),
        axioms=proposition.axioms,
        seconds=time.perf_counter() - started,
        failure=failure,
    )
