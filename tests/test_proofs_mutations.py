"""`prove` rejects every single change that makes a statement false or unsupported, in every proposition."""

from __future__ import annotations

import dataclasses

import pytest
import sympy as sp
from proof_mutations import Mutant, binding, in_conclusion, mutants, sample, step_deleted, with_conclusion, with_steps

from proofs import axioms, runner
from proofs.induction import Bounds
from proofs.propositions import p10_scale_init
from proofs.proving import disconnected, prove
from proofs.vocabulary import Domain, Proposition, conclusion_of, step_of, steps_of, verdict

PROPOSITIONS = runner.discover()
NAMES = [p.name for p in PROPOSITIONS]
LENGTHY = ("small_logits", "placements", "gelu", "prenorm")  # the steps of which take minutes all in all


def why(mutant: Proposition, original: Proposition) -> str:
    """Why the mutant is not proved, or the empty string.

    A step that was not touched is discharged, as it is in the original, which another test proves: only what changed
    is checked.
    """
    failure = disconnected(mutant, axioms.ALL)
    if failure:
        return failure
    same_ranges = mutant.quantities == original.quantities
    old = steps_of(original) if same_ranges else ()
    new = (step for step in steps_of(mutant) if step not in old)
    return next((reason for step in new if (reason := verdict(step, Domain(mutant.quantities)))), "")


def survivors(candidates: list[Mutant], original: Proposition) -> list[str]:
    """The changes that were not rejected."""
    return [change for change, mutant in candidates if not why(mutant, original)]


@pytest.mark.few(5)
@pytest.mark.parametrize(
    "proposition",
    [
        pytest.param(p, id=p.name, marks=[pytest.mark.slow] * (p.name in ("small_logits", "scale_init", "placements")))
        for p in PROPOSITIONS
    ],
)
def test_a_sample_of_changes_is_rejected(proposition: Proposition) -> None:
    """One of each kind; untouched, the skeleton holds."""
    assert disconnected(proposition, axioms.ALL) == ""
    candidates = sample(proposition, 1, 1)
    assert len(candidates) >= 7
    assert survivors(candidates, proposition) == []


@pytest.mark.parametrize("name", [pytest.param("small_logits", marks=pytest.mark.slow), "placements"])
def test_two_changes_of_the_lengthy_ones_are_rejected(name: str) -> None:
    """A claim that no step makes, a step gone: found by what rests on what, before any step is discharged."""
    [proposition] = runner.select([name])
    assert disconnected(proposition, axioms.ALL) == ""
    changes = [next(in_conclusion(proposition, "coefficient")), next(step_deleted(proposition))]
    assert survivors(changes, proposition) == []


@pytest.mark.slow
@pytest.mark.parametrize("proposition", PROPOSITIONS, ids=NAMES)
def test_many_changes_are_rejected(proposition: Proposition) -> None:
    assert survivors(sample(proposition, 4 if proposition.name in LENGTHY else 12, 2), proposition) == []


def test_all_kinds_of_change_are_tried() -> None:
    [proposition] = runner.select(["scale_init"])
    assert all(mutants(proposition, binding(proposition)).values())


def test_a_harmless_change_is_not_rejected() -> None:
    """Negative control: what is rejected is not change as such."""
    [proposition] = runner.select(["residual"])
    steps = steps_of(proposition)
    renamed = tuple(dataclasses.replace(s, reason=f"{s.reason}, in other words") for s in steps)
    assert why(with_steps(proposition, renamed), proposition) == ""
    rewritten = tuple(
        dataclasses.replace(
            c, claims=tuple(claim.func(claim.lhs, sp.expand(claim.rhs), evaluate=False) for claim in c.claims)
        )
        for c in conclusion_of(proposition)
    )
    assert why(with_conclusion(proposition, rewritten), proposition) == ""


P10 = p10_scale_init.PROPOSITION
B, s_f, L, k = p10_scale_init.B, p10_scale_init.s_f, p10_scale_init.L, p10_scale_init.k


def replaced(name: str, **fields: object) -> Proposition:
    """Proposition 10 with one step's fields changed, wherever that step is part of another."""
    old = step_of(P10, name)
    new = dataclasses.replace(old, **fields)  # type: ignore[arg-type]

    def put(value: object) -> object:
        if value == old:
            return new
        if dataclasses.is_dataclass(value) and not isinstance(value, type) and hasattr(value, "claims"):
            changed = {f.name: put(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return dataclasses.replace(value, **changed)
        return tuple(map(put, value)) if isinstance(value, tuple) else value

    return with_steps(P10, tuple(put(step) for step in steps_of(P10)))  # type: ignore[misc]


@pytest.mark.slow
def test_the_two_sided_bound_is_tied_to_what_it_was_derived_from() -> None:
    """Changes consistent over the whole derivation: weaker by a factor, another exponent, hypotheses gone."""
    weaker = why(replaced("upper", larger=1 + 5 * s_f * B), P10)
    assert "chain is broken" in weaker
    product = step_of(P10, "product")
    assert isinstance(product, Bounds)
    fivefold = why(replaced("product", upper=sp.exp(5 * s_f * B * product.index)), P10)
    assert "no instance" in fivefold or "not the claims" in fivefold or "is not" in fivefold
    wide = p10_scale_init.a_a * p10_scale_init.a_f * L ** (1 - 8 * k)
    stated = tuple(
        dataclasses.replace(
            c, claims=(sp.Le(sp.exp(-wide), c.claims[0].args[1]), sp.Le(c.claims[1].args[0], sp.exp(wide)))
        )
        if c.name == "two_sided"
        else c
        for c in conclusion_of(P10)
    )
    assert "no step that it names claims" in why(with_conclusion(P10, stated), P10)
    both = dataclasses.replace(replaced("two_sided", claims=stated[2].claims), conclusion=lambda: stated)
    assert "is not" in why(both, P10)
    assert "hypothesis that is not stated" in why(dataclasses.replace(P10, hypotheses=()), P10)
    assert "not in the list of axioms" in prove(P10, axioms.ALL[:3]).failure
