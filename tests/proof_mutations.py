"""Single changes to a proposition, each of which makes what it states false or unsupported."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import TypeAlias

import sympy as sp

from proofs.names import Named
from proofs.vocabulary import (
    Bounds,
    Chain,
    Conclusion,
    Equality,
    Inequality,
    Limit,
    Proposition,
    Recurrence,
    Series,
    Step,
    conclusion_of,
    foundation,
    parts,
    steps_of,
)

Mutant: TypeAlias = tuple[str, Proposition]
Path: TypeAlias = tuple[int, ...]
SIDES = {  # what of a step is claimed, and so may not change
    Equality: ("right",),
    Inequality: ("smaller", "larger"),
    Limit: ("value",),
    Series: ("polynomial",),
    Recurrence: ("closed_form", "update", "initial"),
    Bounds: ("lower", "upper", "update"),
    Chain: ("smaller", "larger"),
}


def places(expression: sp.Basic, path: Path = ()) -> Iterator[tuple[Path, sp.Basic]]:
    """Every part of an expression that is no definition and no limit of integration, with the way to it."""
    yield path, expression
    if isinstance(expression, Named | sp.Integral | sp.Derivative | sp.Limit | sp.Order | sp.Indexed):
        return
    for index, part in enumerate(expression.args):
        yield from places(part, (*path, index))


def changed(expression: sp.Basic, path: Path, new: sp.Basic) -> sp.Basic:
    """The expression with one part exchanged."""
    if not path:
        return new
    arguments = list(expression.args)
    arguments[path[0]] = changed(arguments[path[0]], path[1:], new)
    return expression.func(*arguments)


def coefficients(e: sp.Expr) -> list[sp.Expr]:
    """With one number changed, or, where there is none, the whole multiplied."""
    numbers = [(path, part) for path, part in places(e) if part.is_Rational]
    return [changed(e, path, part + 1) for path, part in numbers] or [3 * e]


def exponents(e: sp.Expr) -> list[sp.Expr]:
    """With one exponent doubled, that of an exponential included."""
    powers = [(path, part) for path, part in places(e) if isinstance(part, sp.Pow | sp.exp)]
    return [
        changed(e, path, part.func(2 * part.args[0]) if isinstance(part, sp.exp) else part.base ** (2 * part.exp))
        for path, part in powers
    ]


def signs(e: sp.Expr) -> list[sp.Expr]:
    """With the sign of one summand turned, or of the whole."""
    sums = [(path, part) for path, part in places(e) if part.is_Add]
    return [changed(e, path, part - 2 * part.args[0]) for path, part in sums] or [-e - 1]


def loosened(e: sp.Expr) -> list[sp.Expr]:
    """A bound moved, either way."""
    return [e + 1, e - 1]


KINDS: dict[str, Callable[[sp.Expr], list[sp.Expr]]] = {
    "coefficient": coefficients,
    "exponent": exponents,
    "sign": signs,
    "bound loosened": loosened,
}


def with_steps(p: Proposition, steps: tuple[Step, ...]) -> Proposition:
    """The proposition with another derivation, the conclusion as it was."""
    stated = conclusion_of(p)
    return dataclasses.replace(p, derivation=lambda: steps, conclusion=lambda: stated)


def with_conclusion(p: Proposition, conclusion: tuple[Conclusion, ...]) -> Proposition:
    """The proposition with another conclusion."""
    return dataclasses.replace(p, conclusion=lambda: conclusion)


def binding(p: Proposition) -> list[int]:
    """The steps of which no claim can change: equalities, what is stated, and what composing steps are made of.

    Another inequality may be weakened without harm to the statement, as long as it is true.
    """
    steps = steps_of(p)
    stated = {name for c in conclusion_of(p) for name in c.uses}
    composing = [part for step in steps for part in parts(step)]
    return [
        i for i, s in enumerate(steps) if s.name in stated or s in composing or isinstance(s, Equality | Recurrence)
    ]


def in_steps(p: Proposition, kind: str, among: list[int]) -> Iterator[Mutant]:
    """One expression of one of these steps changed."""
    steps = steps_of(p)
    for index in among:
        step = steps[index]
        if kind == "bound loosened" and not isinstance(step, Inequality | Bounds | Chain):
            continue
        for side in SIDES.get(type(step), ()):
            expression = getattr(step, side)
            if expression is None:
                continue
            for new in KINDS[kind](expression):
                if new != expression and not new.has(sp.nan, sp.zoo):
                    mutated = (*steps[:index], dataclasses.replace(step, **{side: new}), *steps[index + 1 :])
                    yield f"{kind} in step {index + 1}, {side}", with_steps(p, mutated)


def in_conclusion(p: Proposition, kind: str) -> Iterator[Mutant]:
    """One side of one claim of the conclusion changed."""
    conclusions = conclusion_of(p)
    for index, conclusion in enumerate(conclusions):
        for which, claim in enumerate(conclusion.claims):
            for new in KINDS[kind](claim.args[1] if not claim.args[1].has(sp.Indexed) else claim.args[0]):
                at = 1 if not claim.args[1].has(sp.Indexed) else 0
                if new == claim.args[at] or new.has(sp.nan, sp.zoo):
                    continue
                sides = (claim.args[0], new) if at else (new, claim.args[1])
                claims = tuple(
                    claim.func(*sides, evaluate=False) if w == which else c for w, c in enumerate(conclusion.claims)
                )
                mutated = dataclasses.replace(conclusion, claims=claims)
                yield (
                    f"{kind} in conclusion {conclusion.name}",
                    with_conclusion(p, (*conclusions[:index], mutated, *conclusions[index + 1 :])),
                )


def hypothesis_dropped(p: Proposition) -> Iterator[Mutant]:
    """One hypothesis fewer, or one used without being mentioned."""
    for index, hypothesis in enumerate(p.hypotheses):
        yield (
            f"hypothesis {index + 1} dropped",
            dataclasses.replace(p, hypotheses=p.hypotheses[:index] + p.hypotheses[index + 1 :]),
        )
        unmentioned = tuple(
            dataclasses.replace(c, given=tuple(g for g in c.given if g != hypothesis)) for c in conclusion_of(p)
        )
        yield f"hypothesis {index + 1} not mentioned", with_conclusion(p, unmentioned)


def label_changed(p: Proposition) -> Iterator[Mutant]:
    """One name exchanged for another of the proposition, or for one that nobody knows, in the conclusion."""
    conclusions = conclusion_of(p)
    known = list(dict.fromkeys(n for s in steps_of(p) for c in s.claims for n in c.atoms(Named)))
    known.sort(key=str)
    for index, conclusion in enumerate(conclusions):
        for name in sorted({n for c in conclusion.claims for n in c.atoms(Named)}, key=str):
            others = [n for n in known if n.name != name.name][:1]
            for other in (*others, Named("X", name.value)):
                claims = tuple(c.xreplace({name: other}) for c in conclusion.claims)
                mutated = dataclasses.replace(conclusion, claims=claims)
                yield (
                    f"label {name} changed to {other} in {conclusion.name}",
                    with_conclusion(p, (*conclusions[:index], mutated, *conclusions[index + 1 :])),
                )


def step_deleted(p: Proposition) -> Iterator[Mutant]:
    """One step fewer, of those that the conclusion rests on."""
    steps = steps_of(p)
    bearing = foundation(steps, {name for c in conclusion_of(p) for name in c.uses})
    for index, step in enumerate(steps):
        if step in bearing:
            yield f"step {index + 1} deleted", with_steps(p, steps[:index] + steps[index + 1 :])


def axiom_removed(p: Proposition) -> Iterator[Mutant]:
    """One axiom no longer named: by a step that used it, or by all of them."""
    steps = steps_of(p)
    for axiom in sorted({u for s in steps for u in s.uses if hasattr(u, "reference")}, key=lambda a: a.name):
        without = tuple(dataclasses.replace(s, uses=tuple(u for u in s.uses if u != axiom)) for s in steps)
        yield f"axiom {axiom.name} no longer used", with_steps(p, without)


def quantity_dropped(p: Proposition) -> Iterator[Mutant]:
    """One range fewer, of a symbol that a claim of the conclusion contains."""
    free = {s for c in conclusion_of(p) for claim in c.claims for s in claim.free_symbols}
    for index, quantity in enumerate(p.quantities):
        if quantity.symbol in free:
            yield (
                f"range of {quantity.symbol} dropped",
                dataclasses.replace(p, quantities=p.quantities[:index] + p.quantities[index + 1 :]),
            )


def mutants(p: Proposition, among: list[int]) -> dict[str, list[Mutant]]:
    """All single changes, by kind; of the steps, those of these."""
    found = {f"{kind} of a step": list(in_steps(p, kind, among)) for kind in KINDS}
    found |= {f"{kind} of the conclusion": list(in_conclusion(p, kind)) for kind in KINDS}
    rest = (hypothesis_dropped, label_changed, step_deleted, axiom_removed, quantity_dropped)
    return found | {f.__name__: list(f(p)) for f in rest}


def sample(p: Proposition, count: int, seed: int) -> list[Mutant]:
    """So many of each kind, drawn with a seed."""
    rng = random.Random(f"{seed} {p.name}")
    bound = binding(p)
    among = rng.sample(bound, min(4 + 2 * count, len(bound)))
    return [m for kind in mutants(p, among).values() for m in rng.sample(kind, min(count, len(kind)))]
