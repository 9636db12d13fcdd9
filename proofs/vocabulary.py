"""What a proof consists of: hypotheses, axioms, steps, a conclusion; and what it is to prove it.

A derivation is a chain of steps. Each step is a claim with a reason, and is discharged twice:

* by SymPy, in general: the two sides simplify to the same expression, the sign follows from the declared ranges, the
  limit or the series is computed, the induction goes through;
* by numbers: both sides are evaluated with mpmath, 100 digits, at random admissible points from the whole of every
  range, near its ends and far from them, drawn from an explicit seed.

A step names what it uses: earlier steps, hypotheses of the proposition, axioms, conclusions of other propositions. The
conclusion is made of claims that steps must bear out, and is printed from them. Whatever is not discharged, not stated
or not known fails the proof. Facts that are used without proof are axioms: they carry a reference, and every report
lists those that the steps use.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import mpmath
import sympy as sp

from proofs.domain import DIGITS, misdeclared
from proofs.domain import Domain as Domain
from proofs.domain import Point as Point
from proofs.domain import Quantity as Quantity
from proofs.domain import value_at as value_at
from proofs.induction import PREVIOUS as PREVIOUS
from proofs.induction import Bounds as Bounds
from proofs.induction import Chain as Chain
from proofs.induction import Instance as Instance
from proofs.induction import Recurrence as Recurrence
from proofs.names import Named as Named
from proofs.steps import Equality as Equality
from proofs.steps import Inequality as Inequality
from proofs.steps import Limit as Limit
from proofs.steps import Series as Series
from proofs.steps import Witness as Witness

SEED = 26_01_22580


@dataclass(frozen=True)
class Axiom:
    """A fact used without proof, with the place where its proof can be read."""

    name: str
    statement: str
    reference: str


@dataclass(frozen=True)
class Hypothesis:
    """What a proposition supposes: in words, and as equations `symbol = value` where it can be so written.

    A step that uses it is checked with the equations put in. Words alone are prose: they say what the objects are, and
    no step computes with them.
    """

    words: str
    equations: tuple[sp.Eq, ...] = ()


@dataclass(frozen=True)
class Conclusion:
    """What is stated: claims, each borne out by one of the steps named, under the hypotheses and the axioms in `given`.

    The hypotheses' equations are put in. `given` must be what those steps rest on, no less.
    """

    name: str
    claims: tuple[sp.Basic, ...]
    uses: tuple[str, ...]
    given: tuple[Hypothesis | Axiom, ...] = ()


@dataclass(frozen=True)
class Lemma:
    """A conclusion of another proposition, used as it was proved there."""

    proposition: Proposition
    name: str


Step: TypeAlias = Equality | Inequality | Limit | Series | Recurrence | Bounds | Chain | Instance
Use: TypeAlias = str | Hypothesis | Axiom | Lemma


@dataclass(frozen=True)
class Proposition:
    """A statement with its hypotheses, and a derivation whose steps can fail.

    `setting`, `remark` and the words of `statement` are prose. In `statement`, `<<name>>` stands for the conclusion of
    that name: what is stated in formulas is what is checked.
    """

    name: str
    number: str
    title: str
    quantities: tuple[Quantity, ...]
    setting: str
    hypotheses: tuple[Hypothesis, ...]
    statement: str
    source: str
    derivation: Callable[[], tuple[Step, ...]]
    conclusion: Callable[[], tuple[Conclusion, ...]]
    remark: str = ""
    confronted: str = ""


def resting_on(uses: Iterable[Use], *groups: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps, each of them also using these; what they are composed of likewise."""
    added = tuple(uses)

    def put(value: object) -> object:
        if isinstance(value, Step):
            changed = {f.name: put(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name != "uses"}
            return dataclasses.replace(value, uses=tuple(dict.fromkeys((*value.uses, *added))), **changed)
        return tuple(map(put, value)) if isinstance(value, tuple) else value

    return tuple(put(step) for group in groups for step in group)  # type: ignore[misc]


def concluded(
    derivation: Callable[[], tuple[Step, ...]], name: str, *claims: sp.Basic, uses: tuple[str, ...]
) -> Conclusion:
    """A conclusion written out by itself, under all that the steps it uses rest on."""
    return Conclusion(name, claims, uses, premises(foundation(derivation(), uses)))


def stated(derivation: Callable[[], tuple[Step, ...]], *names: str) -> tuple[Conclusion, ...]:
    """Conclusions that are the claims of the steps of these names, as they stand."""
    claims = {step.name: step.claims for step in derivation()}
    return tuple(concluded(derivation, name, *claims[name], uses=(name,)) for name in names)


def foundation(steps: tuple[Step, ...], names: Iterable[str]) -> tuple[Step, ...]:
    """The steps of these names and those that they rest on, directly or through what they use, in order."""
    wanted, needed, found = set(names), [], []  # type: ignore[var-annotated]
    for step in reversed(steps):
        if (step.name and step.name in wanted) or step in needed:
            found.append(step)
            wanted |= {use for use in step.uses if isinstance(use, str)}
            needed += parts(step)
    return tuple(reversed(found))


def premises(steps: tuple[Step, ...]) -> tuple[Hypothesis | Axiom, ...]:
    """The hypotheses and the axioms that these steps use, each once."""
    return tuple(dict.fromkeys(u for s in steps for use in s.uses for u in _premises(use)))


def _premises(use: Use) -> tuple[Hypothesis | Axiom, ...]:
    if isinstance(use, Lemma):
        return axioms_of(use.proposition)
    return (use,) if isinstance(use, Hypothesis | Axiom) else ()


def axioms_of(proposition: Proposition) -> tuple[Axiom, ...]:
    """The axioms that the steps use, those of lemmas from other propositions included, each once."""
    return tuple(p for p in premises(steps_of(proposition)) if isinstance(p, Axiom))


@cache
def steps_of(proposition: Proposition) -> tuple[Step, ...]:
    """The proposition's steps. Deriving them can take seconds (contractions), so it is done once."""
    return proposition.derivation()


@cache
def conclusion_of(proposition: Proposition) -> tuple[Conclusion, ...]:
    """What the proposition states."""
    return proposition.conclusion()


def step_of(proposition: Proposition, name: str) -> Step:
    """The step of that name."""
    return {step.name: step for step in steps_of(proposition) if step.name}[name]


def parts(step: Step) -> tuple[Step, ...]:
    """The steps that a composing step is made of."""
    match step:
        case Chain():
            return step.links
        case Bounds():
            return tuple(one for one in (step.below, step.above) if one is not None)
        case Instance():
            return (step.of,)
    return ()


def expressions(step: Step) -> tuple[sp.Basic, ...]:
    """Every expression of the step."""
    values = [getattr(step, f.name) for f in dataclasses.fields(step)]
    flat = (v for value in values for v in (value if isinstance(value, tuple) else (value,)))
    return tuple(v for v in flat if isinstance(v, sp.Basic))


def given(step: Step) -> dict[sp.Symbol, sp.Expr]:
    """What the hypotheses that the step uses put in for symbols; a composing step inherits those of its parts."""
    inherited = {symbol: value for part in parts(step) for symbol, value in given(part).items()}
    return inherited | {e.lhs: e.rhs for u in step.uses if isinstance(u, Hypothesis) for e in u.equations}


def under(step: Step, equations: dict[sp.Symbol, sp.Expr]) -> Step:
    """The step with these put in, and its parts likewise."""

    def put(value: object) -> object:
        if isinstance(value, Step):
            return under(value, equations)
        if isinstance(value, tuple):
            return tuple(map(put, value))
        return value.subs(equations) if isinstance(value, sp.Basic) and value not in equations else value

    if not equations:
        return step
    return dataclasses.replace(step, **{f.name: put(getattr(step, f.name)) for f in dataclasses.fields(step)})


@cache
def verdict(step: Step, domain: Domain) -> str | None:
    """Why the step is not discharged, or nothing, at points that depend on the step's name alone: found once."""
    return check(step, domain, random.Random(f"{SEED} {step.name}"))


def check(step: Step, domain: Domain, rng: random.Random) -> str | None:
    """Why the step is not discharged, or nothing. Errors are failures: a proof may not crash its way to truth."""
    with mpmath.workdps(DIGITS):
        try:
            fault = domain.fault() or next((m for e in expressions(step) if (m := misdeclared(e))), None)
            if fault:
                return f"ranges: {fault}"
            step = under(step, given(step))
            numeric = step.numeric(domain, rng)
            if numeric:  # first, because SymPy takes longest over what is false
                return f"numeric: {numeric}"
            symbolic = step.symbolic(domain)
        except Exception as error:  # whatever SymPy or mpmath raise, the step is not discharged
            return f"{type(error).__name__}: {error}"
        return f"symbolic: {symbolic}" if symbolic else None
