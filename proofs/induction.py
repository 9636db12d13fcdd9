"""The kinds of step that compose: a closed form by induction, bounds by induction over blocks, a chain of bounds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import mpmath
import sympy as sp

from proofs.domain import Domain, Quantity, value_at
from proofs.names import unfold
from proofs.signs import definite, nonnegative, vanishes
from proofs.steps import TINY, Inequality

if TYPE_CHECKING:
    from proofs.vocabulary import Use

PREVIOUS = sp.Symbol("y_previous", nonnegative=True)  # a sequence's value before the block, in an `update`


def _law(sequence: sp.IndexedBase, index: sp.Symbol, update: sp.Expr) -> str:
    """y_{n+1} = update, in LaTeX."""
    name, n = sp.latex(sequence), sp.latex(index)
    return rf"{name}_{{{n}+1}} = {sp.latex(update.subs(PREVIOUS, sp.Symbol(f'{name}_{{{n}}}')))}"


def _no_index(index: sp.Symbol, domain: Domain) -> str | None:
    """Why induction over this quantity proves nothing, or nothing: it must count 0, 1, 2, ... without end."""
    [quantity] = domain.of(index)
    counts = quantity.integer and quantity.low == 0 and quantity.high == sp.oo
    return None if counts else f"{index} does not count from zero"


def _singular(closed_form: sp.Expr, domain: Domain) -> str | None:
    """A denominator that may vanish, or nothing."""
    _, denominator = sp.fraction(sp.together(unfold(closed_form)))
    fine = denominator.is_number or definite(denominator, domain.of(denominator))
    return None if fine else f"{denominator} may vanish in the closed form"


def _rest(domain: Domain, index: sp.Symbol, *expressions: sp.Expr) -> tuple[Quantity, ...]:
    """The quantities that occur, the index and the previous value aside."""
    return tuple(q for q in domain.of(*expressions, beside=(PREVIOUS,)) if q.symbol != index)


@dataclass(frozen=True)
class Recurrence:
    """The sequence with y(0) = initial and y(n+1) = update, in PREVIOUS and n, is closed_form(n), by induction on n.

    With `solve`, SymPy's `rsolve` must find the closed form by itself as well.
    """

    index: sp.Symbol
    update: sp.Expr
    initial: sp.Expr
    closed_form: sp.Expr
    reason: str
    sequence: sp.IndexedBase
    name: str = ""
    uses: tuple[Use, ...] = ()
    solve: bool = False

    @property
    def claims(self) -> tuple[sp.Basic, ...]:
        """What is claimed."""
        return (sp.Eq(self.sequence[self.index], self.closed_form, evaluate=False),)

    def latex(self) -> str:
        """The law and the claim."""
        start = f"{sp.latex(self.sequence)}_0 = {sp.latex(self.initial)}"
        law = _law(self.sequence, self.index, self.update)
        return rf"{law},\quad {start} \;\Longrightarrow\; {claim_latex(*self.claims)}"

    def symbolic(self, domain: Domain) -> str | None:
        """Why the induction does not go through, or nothing."""
        if fault := _no_index(self.index, domain) or _singular(self.closed_form, domain):
            return fault
        start = self.closed_form.subs(self.index, 0) - self.initial
        if not vanishes(start):
            return f"the closed form starts {start} away"
        step = self._induction()
        if not vanishes(step):
            return f"induction fails: SymPy does not reduce {step} to zero"
        if self.solve:
            y = sp.Function("y")
            equation = sp.expand(y(self.index + 1) - self.update.subs(PREVIOUS, y(self.index)))
            found = sp.rsolve(equation, y(self.index), {y(0): self.initial})
            if found is None or not vanishes(found - self.closed_form):
                return f"rsolve finds {found}"
        return None

    def _induction(self) -> sp.Expr:
        """closed_form(n+1) less what the law makes of closed_form(n)."""
        return self.closed_form.subs(self.index, self.index + 1) - self.update.subs(PREVIOUS, self.closed_form)

    def numeric(self, domain: Domain, rng: random.Random) -> str | None:
        """Iterates the recurrence and compares."""
        quantities = _rest(domain, self.index, self.closed_form, self.update, self.initial)
        for _ in range(3):
            point = domain.near(quantities, rng)
            value = value_at(self.initial, point)
            for n in range(8):
                value = value_at(self.update, {**point, self.index: mpmath.mpf(n), PREVIOUS: value})
                closed = value_at(self.closed_form, {**point, self.index: mpmath.mpf(n + 1)})
                if not abs(value - closed) <= TINY * (1 + abs(closed)):
                    return f"differs at n = {n + 1}: {mpmath.nstr(value, 20)}, {mpmath.nstr(closed, 20)} at {point}"
        return None


@dataclass(frozen=True)
class Bounds:
    """lower(n) <= y(n) <= upper(n) for y(0) = initial and y(n+1) = update, whatever `varying` does from block to block.

    By induction over the blocks. `update` is in PREVIOUS and in quantities of which those in `varying` are free in
    every block anew; it must not fall as PREVIOUS grows, and no value may be negative. The inductive steps
    update(lower(n)) >= lower(n+1) and update(upper(n)) <= upper(n+1) are instances of the inequalities for one block
    that `below` and `above` name: the gap must be such an inequality's own gap times something that is not negative. A
    side without one is proved alone.
    """

    index: sp.Symbol
    update: sp.Expr
    initial: sp.Expr
    lower: sp.Expr | None
    upper: sp.Expr | None
    varying: tuple[sp.Symbol, ...]
    reason: str
    sequence: sp.IndexedBase
    name: str = ""
    uses: tuple[Use, ...] = ()
    below: Inequality | Chain | None = None
    above: Inequality | Chain | None = None

    @property
    def claims(self) -> tuple[sp.Basic, ...]:
        """What is claimed, from below and from above."""
        term = self.sequence[self.index]
        below = () if self.lower is None else (sp.Le(self.lower, term, evaluate=False),)
        return below + (() if self.upper is None else (sp.Le(term, self.upper, evaluate=False),))

    def latex(self) -> str:
        """The law and the claim."""
        start = f"{sp.latex(self.sequence)}_0 = {sp.latex(self.initial)}"
        law = _law(self.sequence, self.index, self.update)
        return rf"{law},\quad {start} \;\Longrightarrow\; {claim_latex(*self.claims)}"

    def sides(self) -> tuple[tuple[sp.Expr, int, Inequality | Chain | None], ...]:
        """The bounds, each with the sign of its gap and the inequality for one block."""
        both = ((self.lower, 1, self.below), (self.upper, -1, self.above))
        return tuple((unfold(bound), sign, one) for bound, sign, one in both if bound is not None)

    def symbolic(self, domain: Domain) -> str | None:
        """Why the induction does not go through, or nothing."""
        if not self.sides():
            return "vacuous: neither bound is given"
        if fault := _no_index(self.index, domain):
            return fault
        update = unfold(self.update)
        everything = domain.of(update, *(b for b, _, _ in self.sides()), self.index, beside=(PREVIOUS,))
        if not nonnegative(sp.diff(update, PREVIOUS), everything, False):
            return "SymPy cannot tell that a larger value before the block gives a larger one after it"
        if self.lower is None:  # else it is the lower bound that keeps every value from falling below zero
            for value in (unfold(self.initial), update):
                if not nonnegative(value, domain.of(value, beside=(PREVIOUS,)), False):
                    return f"SymPy cannot tell that {value} is not negative, as a value before a block must be"
        for bound, sign, one in self.sides():
            if bound.free_symbols & set(self.varying):
                return f"the bound {bound} depends on what varies from block to block"
            start = sign * (unfold(self.initial) - bound.subs(self.index, 0))
            if not (vanishes(start) or nonnegative(start, domain.of(start), False)):
                return f"the bound {bound} does not hold at the start"
            if not nonnegative(bound, domain.of(bound), False):
                return f"SymPy cannot tell that the bound {bound} is not negative"
            gap = sign * (update.subs(PREVIOUS, bound) - bound.subs(self.index, self.index + 1))
            if one is not None:
                gap = sp.cancel(gap / (unfold(one.larger) - unfold(one.smaller)))
                if gap.free_symbols & set(self.varying):
                    return f"the induction's step is no instance of: {one.reason}"
            if not (gap == 0 or nonnegative(gap, domain.of(gap), False)):
                return f"induction fails: {gap} may be negative"
        return None

    def numeric(self, domain: Domain, rng: random.Random) -> str | None:
        """Iterates over blocks drawn anew, from the whole range, and compares."""
        bounds = [b for b, _, _ in self.sides()]
        quantities = _rest(domain, self.index, self.update, self.initial, *bounds)
        kept = tuple(q for q in quantities if q.symbol not in self.varying)
        anew = tuple(q for q in quantities if q.symbol in self.varying)
        for _ in range(6):
            point = domain.point(kept, rng)
            value = value_at(self.initial, point)
            for n in range(1, 9):
                at = {**point, **domain.point(anew, rng), self.index: mpmath.mpf(n - 1), PREVIOUS: value}
                value = value_at(self.update, at)
                for bound, sign, _ in self.sides():
                    limit = value_at(bound, {**at, self.index: mpmath.mpf(n)})
                    if not sign * (value - limit) >= -TINY * (1 + abs(limit)):
                        return f"{mpmath.nstr(value, 20)} passes the bound {mpmath.nstr(limit, 20)} at {point}, n = {n}"
        return None


@dataclass(frozen=True)
class Chain:
    """smaller <= larger because smaller <= x <= ... <= larger: inequalities proved before, each put at a substitution.

    Every link names its inequality; where one ends the next must begin.
    """

    smaller: sp.Expr
    larger: sp.Expr
    reason: str
    links: tuple[Inequality | Chain, ...]
    name: str = ""
    uses: tuple[Use, ...] = ()
    at: tuple[Mapping[sp.Symbol, sp.Expr], ...] = field(default=(), hash=False)

    @property
    def claims(self) -> tuple[sp.Basic, ...]:
        """What is claimed."""
        return (sp.Le(self.smaller, self.larger, evaluate=False),)

    def latex(self) -> str:
        """The claim with what stands between."""
        return claim_latex(*self.claims)

    def ends(self) -> list[tuple[sp.Expr, sp.Expr]]:
        """Both ends of every link, as it is used."""
        places = self.at or ({},) * len(self.links)
        return [
            (unfold(link.smaller).subs(at, simultaneous=True), unfold(link.larger).subs(at, simultaneous=True))
            for link, at in zip(self.links, places, strict=True)
        ]

    def symbolic(self, domain: Domain) -> str | None:
        """Where the chain is broken, or nothing."""
        if not self.links:
            return "a chain without links holds nothing"
        for link, at in zip(self.links, self.at or ({},) * len(self.links), strict=True):
            if outside := _outside(at, domain):
                return f"{outside} in {link.reason}"
        so_far = unfold(self.smaller)
        for low, high in self.ends():
            if not vanishes(low - so_far):
                return f"the chain is broken between {so_far} and {low}"
            so_far = high
        last = so_far - unfold(self.larger)
        return None if vanishes(last) else f"the chain ends at {so_far}, not at {self.larger}"

    def numeric(self, domain: Domain, rng: random.Random) -> str | None:
        """A counterexample, or nothing."""
        return Inequality(self.smaller, self.larger, self.reason).numeric(domain, rng)


def _outside(at: Mapping[sp.Symbol, sp.Expr], domain: Domain) -> str | None:
    """A substitution that may leave the range over which a claim was proved, or nothing."""
    for symbol, value in at.items():
        [quantity] = domain.of(symbol)
        if quantity.integer and not _whole(unfold(value), domain):
            return f"{value} may be no integer, as {symbol} is"
        room = [value - quantity.low] if quantity.low != -sp.oo else []
        room += [quantity.high - value] if quantity.high != sp.oo else []
        if not all(nonnegative(r, domain.of(r), False) for r in map(unfold, room)):
            return f"{value} may lie outside the range of {symbol}"
    return None


def _whole(value: sp.Expr, domain: Domain) -> bool:
    """Whether a value of quantities of which some are integers is one."""
    integers = {q.symbol: sp.Dummy(integer=True) for q in domain.of(value) if q.integer}
    return bool(sp.sympify(value).subs(integers).is_integer)


@dataclass(frozen=True)
class Instance:
    """Claims written out by hand that are those of a step proved before, at a substitution.

    Hypotheses that are equations are put in on both sides.
    """

    claims: tuple[sp.Basic, ...]
    of: Bounds | Recurrence
    at: Mapping[sp.Symbol, sp.Expr] = field(hash=False)
    reason: str = ""
    name: str = ""
    uses: tuple[Use, ...] = ()

    def latex(self) -> str:
        """The claims."""
        return claim_latex(*self.claims)

    def symbolic(self, domain: Domain) -> str | None:
        """Which claim differs from the step's, or nothing."""
        if outside := _outside(self.at, domain):
            return outside
        theirs = tuple(claim.subs(self.at) for claim in self.of.claims)
        if [type(c) for c in theirs] != [type(c) for c in self.claims]:
            return f"these are not the claims of the step that it instantiates: {theirs}"
        for mine, other in zip(self.claims, theirs, strict=True):
            for a, b in zip(mine.args, other.args, strict=True):
                if not vanishes(unfold(a) - unfold(b)):
                    return f"{a} is not {b}"
        return None

    def numeric(self, domain: Domain, rng: random.Random) -> str | None:
        """Where a side differs from the step's, or nothing."""
        for mine, other in zip(self.claims, self.of.claims, strict=True):
            for a, b in zip(mine.args, other.subs(self.at).args, strict=True):
                if a.has(sp.Indexed):
                    continue
                for _ in range(4):
                    point = domain.point(domain.of(a, b), rng)
                    left, right = value_at(a, point), value_at(b, point)
                    if not abs(left - right) <= TINY * (1 + abs(right)):
                        return f"{mpmath.nstr(left, 20)} is not {mpmath.nstr(right, 20)} at {point}"
        return None


def claim_latex(*claims: sp.Basic) -> str:
    """Claims as they are stated; two bounds of one thing are written as one line."""
    if len(claims) == 2 and all(isinstance(c, sp.Le) for c in claims) and claims[0].args[1] == claims[1].args[0]:
        return r" \le ".join(map(sp.latex, (*claims[0].args, claims[1].args[1])))
    return r",\qquad ".join(map(_one_latex, claims))


def _one_latex(claim: sp.Basic) -> str:
    left, right = claim.args
    if isinstance(right, sp.Add) and (orders := [a for a in right.args if isinstance(a, sp.Order)]):
        [order] = orders
        rest = sp.Add(*(a for a in right.args if a is not order))
        return rf"{sp.latex(left)} = {sp.latex(rest)} + O({sp.latex(order.args[0])})"
    relation = {sp.Eq: "=", sp.Le: r"\le", sp.Lt: "<"}[type(claim)]
    return f"{sp.latex(left)} {relation} {sp.latex(right)}"
