"""What it is to prove a proposition: its steps discharged, what they use at hand, its conclusion borne out by them."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import sympy as sp

from proofs.names import names_in, unfold
from proofs.signs import vanishes
from proofs.vocabulary import (
    Axiom,
    Conclusion,
    Domain,
    Hypothesis,
    Lemma,
    Proposition,
    Step,
    axioms_of,
    conclusion_of,
    expressions,
    foundation,
    parts,
    premises,
    steps_of,
    verdict,
)


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


def unsupported(step: Step, proposition: Proposition, before: tuple[Step, ...], known: tuple[Axiom, ...]) -> str | None:
    """What the step uses without having it, or nothing."""
    names = {s.name for s in before}
    for use in step.uses:
        match use:
            case str() if use not in names:
                return f"it uses {use!r}, which no earlier step is called"
            case Hypothesis() if use not in proposition.hypotheses:
                return f"it uses a hypothesis that is not stated: {use.words}"
            case Axiom() if use not in known:
                return f"it uses an axiom that is not in the list of axioms: {use.name}"
            case Lemma() if use.name not in {c.name for c in conclusion_of(use.proposition)}:
                return f"proposition {use.proposition.number} states nothing called {use.name!r}"
            case str() | Hypothesis() | Axiom() | Lemma():
                pass
            case _:
                return f"{use!r} is nothing that a step can use"
    missing = [part for part in parts(step) if part not in before]
    return f"it is composed of a step that was not proved: {missing[0].reason}" if missing else None


def same(claim: sp.Basic, other: sp.Basic, equations: dict[sp.Symbol, sp.Expr]) -> bool:
    """Whether two claims are the same relation between the same sides, once names are unfolded and equations put in."""
    if type(claim) is not type(other):
        return False

    def plain(side: sp.Basic) -> sp.Basic:
        return unfold(side).subs(equations)

    def alike(one: sp.Basic, two: sp.Basic) -> bool:
        if one == two:
            return True
        if one.has(sp.Limit, sp.Order) or two.has(sp.Limit, sp.Order):
            return False
        difference = sp.expand(one - two)
        return difference == 0 or (difference.is_rational_function() and sp.cancel(difference) == 0)

    return [str(n) for n in names_in(claim)] == [str(n) for n in names_in(other)] and all(
        alike(plain(a), plain(b)) for a, b in zip(claim.args, other.args, strict=True)
    )


def unproved(conclusion: Conclusion, proposition: Proposition) -> str | None:
    """Why the conclusion does not follow from the steps that it names, or nothing."""
    steps = {s.name: s for s in steps_of(proposition)}
    absent = [name for name in conclusion.uses if name not in steps]
    if absent or not conclusion.uses or not conclusion.claims:
        return f"it rests on no step, or on one that is not there: {absent}"
    hypotheses = tuple(p for p in conclusion.given if isinstance(p, Hypothesis))
    dropped = [h.words for h in hypotheses if h not in proposition.hypotheses]
    if dropped:
        return f"it needs a hypothesis that is not stated: {dropped[0]}"
    needed = set(premises(foundation(steps_of(proposition), conclusion.uses)))
    if not needed <= set(conclusion.given):
        return "its steps rest on what it does not mention"
    if {p for p in conclusion.given if isinstance(p, Axiom)} != {p for p in needed if isinstance(p, Axiom)}:
        return "it mentions an axiom that its steps do not rest on"
    equations = {e.lhs: e.rhs for h in hypotheses for e in h.equations}
    borne = [claim for name in conclusion.uses for claim in steps[name].claims]
    for claim in conclusion.claims:
        if not any(same(claim, other, equations) for other in borne):
            return f"no step that it names claims {claim}"
    return None


def two_meanings(proposition: Proposition) -> str | None:
    """A name that stands for two things, or nothing."""
    claims = [c for conclusion in conclusion_of(proposition) for c in conclusion.claims]
    meanings: dict[str, sp.Basic] = {sp.latex(q.symbol): q.symbol for q in proposition.quantities}
    for found in names_in(*(e for s in steps_of(proposition) for e in expressions(s)), *claims):
        value = unfold(found)
        first = meanings.setdefault(found.name, value)
        if first != value and not vanishes(first - value):
            return f"{found.name} stands for {first} and for {value}"
    return None


def contradicted(proposition: Proposition) -> str | None:
    """A hypothesis that no value in a range can meet, or that another denies, or nothing: from it anything follows."""
    ranges = {q.symbol: q for q in proposition.quantities}
    values: dict[sp.Basic, sp.Basic] = {}
    for hypothesis in proposition.hypotheses:
        for equation in hypothesis.equations:
            if not isinstance(equation, sp.Eq):
                return f"a hypothesis says {equation}: {hypothesis.words}"
            symbol, value = equation.args
            if values.setdefault(symbol, value) != value:
                return f"hypotheses say that {symbol} is {values[symbol]} and {value}"
            quantity = ranges.get(symbol)
            if quantity is None:
                continue
            outside = (value - quantity.low).is_negative or (quantity.high - value).is_negative
            if outside or (quantity.integer and value.is_integer is False):
                return f"a hypothesis puts {symbol} at {value}, outside its range"
    return None


def misquoted(proposition: Proposition) -> str | None:
    """A conclusion that the statement quotes and that is not there, or the other way round, or nothing."""
    names = [c.name for c in conclusion_of(proposition)]
    quoted = re.findall(r"<<(\w+)(\*?)>>", proposition.statement)
    for name, star in quoted:
        if not any(n.startswith(name) if star else n == name for n in names):
            return f"the statement quotes {name}, which is not concluded"
    left = [n for n in names if not any(n.startswith(name) if star else n == name for name, star in quoted)]
    return f"the statement leaves out what is concluded: {left[0]}" if left else None


def idle(proposition: Proposition) -> str | None:
    """A hypothesis that no conclusion rests on, or nothing."""
    used = {premise for conclusion in conclusion_of(proposition) for premise in conclusion.given}
    left = [h.words for h in proposition.hypotheses if h not in used]
    return f"a hypothesis that no conclusion rests on: {left[0]}" if left else None


def disconnected(proposition: Proposition, known: tuple[Axiom, ...]) -> str:
    """What is missing between hypotheses, axioms, steps, conclusion and statement, or the empty string.

    Nothing is computed here: this is the skeleton of the proof.
    """
    steps, conclusion = steps_of(proposition), conclusion_of(proposition)
    if not steps or not conclusion:
        return "a proposition without steps, or without a conclusion, proves nothing"
    names = [s.name for s in steps if s.name]
    if len(set(names)) < len(names):
        return f"two steps of one name: {sorted(n for n in set(names) if names.count(n) > 1)}"
    for position, step in enumerate(steps):
        problem = unsupported(step, proposition, steps[:position], known)
        if problem:
            return f"step {position + 1} ({step.reason}): {problem}"
    for stated_ in conclusion:
        problem = unproved(stated_, proposition)
        if problem:
            return f"conclusion {stated_.name}: {problem}"
    return contradicted(proposition) or misquoted(proposition) or two_meanings(proposition) or idle(proposition) or ""


def failure_of(proposition: Proposition, known: tuple[Axiom, ...]) -> str:
    """What keeps the proposition from being proved, or the empty string."""
    failure = disconnected(proposition, known)
    if failure:
        return failure
    domain = Domain(proposition.quantities)
    for position, step in enumerate(steps_of(proposition), start=1):
        problem = verdict(step, domain)
        if problem:
            return f"step {position} ({step.reason}): {problem}"
    return ""


def prove(proposition: Proposition, known: tuple[Axiom, ...]) -> Report:
    """Checks all of it and stops at the first failure; an error is a failure too. `known` are the axioms admitted."""
    started = time.perf_counter()
    steps: tuple[Step, ...] = ()
    used: tuple[Axiom, ...] = ()
    try:
        failure = failure_of(proposition, known)
        steps, used = steps_of(proposition), axioms_of(proposition)
    except Exception as error:  # a derivation that raises has derived nothing
        failure = f"{type(error).__name__}: {error}"
    return Report(
        name=proposition.name,
        number=proposition.number,
        title=proposition.title,
        proved=not failure,
        steps=len(steps),
        axioms=used,
        seconds=time.perf_counter() - started,
        failure=failure,
    )
