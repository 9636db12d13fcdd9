"""Claims: verdicts follow from tables, and other tables turn them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

import propagate as pg
from propagate.claims.audit import audit, claims, here
from propagate.claims.claim import Evidence, Sources, verdict_of
from propagate.claims.runs import best
from propagate.claims.text import text_of

pytestmark = pytest.mark.claims


@pytest.fixture(scope="module")
def sources() -> Sources:
    """Proofs are taken as proved: they have tests of their own."""
    return dataclasses.replace(here(), proved=lambda numbers: True)


def swapped(one: str, other: str) -> Callable[[xr.Dataset], xr.Dataset]:
    """Runs under one another's names: what was measured of one architecture is the other's."""
    names = {one: other, other: one}

    def turned(table: xr.Dataset) -> xr.Dataset:
        split = [str(name).partition("+") for name in table.architecture.values]
        return table.assign_coords(architecture=("cell", [names.get(a, a) + b + c for a, b, c in split]))

    return turned


def lowered(placement: str) -> Callable[[xr.Dataset], xr.Dataset]:
    """A placement two nats better than it was."""

    def turned(table: xr.Dataset) -> xr.Dataset:
        its = np.array([str(name).startswith(placement) for name in table.architecture.values])
        return table.assign(held_out_loss=table.held_out_loss - 2 * xr.DataArray(its.astype(float), dims="cell"))

    return turned


def moved(table: xr.Dataset) -> xr.Dataset:
    """The wider networks' losses three octaves further on."""
    wide, found = table.width.values > table.width.values.min(), table.copy(deep=True)
    found.held_out_loss[wide] = np.roll(found.held_out_loss.values[wide], 3, axis=1)
    return found


def at_one_width(table: xr.Dataset) -> xr.Dataset:
    """Wider networks' losses are those of the smallest."""
    first = table.held_out_loss[np.zeros(table.sizes["cell"], dtype=int)]
    return table.assign(held_out_loss=first.assign_coords(cell=table.cell))


def along_skips(sources: Sources) -> Sources:
    """The textbook's theory: gradients go along the skips alone, and tokens' differences with them."""

    def told(model: pg.Model, **options: Any) -> xr.Dataset:
        said = sources.predict(model, **options)
        left = said.skip_gain.copy(data=said.skip_gain.values[::-1])
        return said.assign(grad_variance=said.skip_gain, deviation=said.variance * left)

    return _with(sources, predict=told)


def as_prenorm(sources: Sources) -> Sources:
    return _with(sources, predict=lambda m, **o: sources.predict(dataclasses.replace(m, placement="prenorm"), **o))


def of_runs_turned(turn: Callable[[xr.Dataset], xr.Dataset]) -> Callable[[Sources], Sources]:
    return lambda sources: _with(sources, trained=lambda name: turn(_runs(sources, name)))


def _runs(sources: Sources, name: str) -> xr.Dataset:
    found = sources.trained(name)
    assert found is not None
    return found


FINDINGS: dict[str, Callable[[Sources], Sources]] = {
    "C2": along_skips,
    "C3": along_skips,
    "C6": of_runs_turned(lowered("prenorm")),
    "C7": of_runs_turned(at_one_width),
    "C8": as_prenorm,
}
"""What turns those findings that the control of the whole claim leaves as they are."""


TURNED: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "C1": swapped("spannorm", "prenorm"),
    "C2": swapped("spannorm", "prenorm"),
    "C3": swapped("spannorm", "prenorm"),
    "C4": swapped("spannorm", "prenorm"),
    "C5": lowered("postnorm"),
    "C6": lowered("spannorm"),
    "C7": moved,
    "C8": swapped("spannorm", "prenorm"),
    "LongCat 1": moved,
    "Lite 1": swapped("spannorm", "prenorm"),
    "Doubt 1": swapped("spannorm", "prenorm"),
    "Doubt 2": swapped("spannorm", "postnorm"),
}


def wrong(sources: Sources, turn: Callable[[xr.Dataset], xr.Dataset]) -> Sources:
    """Every network predicted and simulated as another one, and runs turned."""

    def other(verb: Any) -> Any:
        def asked(model: pg.Model, *args: Any, **options: Any) -> xr.Dataset:
            name = {"SpanNorm": "postnorm", "PostNorm": "prenorm"}.get(type(model.placement).__name__, "spannorm")
            return verb(dataclasses.replace(model, placement=name, scaling=None), *args, **options)

        return asked

    def trained(name: str) -> xr.Dataset | None:
        return turn(_runs(sources, name))

    return Sources(other(sources.predict), other(sources.simulate), lambda numbers: False, trained)


@pytest.mark.parametrize("name", TURNED)
def test_a_claim_has_numbers_and_other_tables_turn_it(name: str, sources: Sources) -> None:
    """The verdict, and each finding that it rests on."""
    [found], [control] = audit([name], sources=sources), audit([name], sources=wrong(sources, TURNED[name]))
    assert len(found.evidence) == len(found.claim.tests)
    assert all(any(c.isdigit() for c in one.said) for one in found.evidence), "a sentence without a number"
    assert all(one.device for one in found.evidence if one.witness in ("simulation", "training"))
    assert found.verdict != control.verdict
    for test, one, other in zip(found.claim.tests, found.evidence, control.evidence, strict=True):
        if one.holds == other.holds:
            turned = test(FINDINGS[name](sources))
            assert turned is not None
            assert turned.holds != one.holds, one.said


def test_equal_rates_everywhere_are_no_larger_ones(sources: Sources) -> None:
    def alike(name: str) -> xr.Dataset:
        """What was measured of PostNorm with ScaleInit is SpanNorm's too."""
        found, (post, span) = _runs(sources, name).copy(deep=True), ("postnorm+0.5", "spannorm+0.5")
        for cell in np.flatnonzero((found.architecture == span) & (found.text == "text")):
            same = [found[c] == found[c][cell] for c in ("depth", "warmup", "experts", "text")]
            [twin] = np.flatnonzero(np.logical_and.reduce([found.architecture == post, *same]))
            found.held_out_loss[cell] = found.held_out_loss[twin].values
        return found

    [found] = audit(["C5"], sources=_with(sources, trained=alike))
    assert [one.holds for one in found.evidence if one.under.startswith("ScaleInit")] == [False]


def test_every_claim_with_evidence_has_a_control() -> None:
    assert {claim.name for claim in claims() if claim.tests} == {*TURNED, "LongCat 2", "Lite 2"}


def test_latent_attention_is_turned_by_a_theory_without_the_correction(sources: Sources) -> None:
    def uncorrected(model: pg.Model, **options: Any) -> xr.Dataset:
        kind = dataclasses.replace(model.attention, scale_correction=False)
        return sources.predict(dataclasses.replace(model, attention=kind), **options)

    [found], [control] = (audit(["LongCat 2"], sources=s) for s in (sources, _with(sources, predict=uncorrected)))
    assert (found.verdict, control.verdict) == ("holds at initialisation", "fails")
    [unproved] = audit(["LongCat 2"], sources=_with(sources, proved=lambda numbers: False))
    assert unproved.verdict == "fails"
    assert "NOT proved" in str(unproved)


def test_drowning_is_turned_by_embeddings_of_other_sizes(sources: Sources) -> None:
    def of_one_size(model: pg.Model, **options: Any) -> xr.Dataset:
        return sources.predict(model, **options | {"variance": 1.0})

    def backwards(name: str) -> xr.Dataset | None:
        table = sources.trained(name)
        return None if table is None else table.assign_coords(arm=table.arm.values[::-1])

    [found], [control] = (
        audit(["Lite 2"], sources=s) for s in (sources, _with(sources, predict=of_one_size, trained=backwards))
    )
    assert (found.verdict, control.verdict) == ("holds", "fails")


def _with(sources: Sources, **changes: Any) -> Sources:
    return dataclasses.replace(sources, **changes)


def test_without_a_checkout_what_training_says_is_not_said(sources: Sources) -> None:
    bare = _with(sources, trained=lambda name: None, proved=lambda numbers: None)
    found = audit(["C5", "C6", "Doubt 2"], sources=bare)
    assert {one.verdict for one in found} == {"not testable here"}
    assert all(f"what {len(one.claim.tests)} more test" in str(one) for one in found), "why not is not said"


def test_with_all_records_at_hand_none_is_said_to_be_missing(sources: Sources) -> None:
    [found] = audit(["C5"], sources=sources)
    assert "Not at hand" not in str(found)


def test_verdicts_follow_from_evidence() -> None:
    yes, no = Evidence("training", "1", True), Evidence("theory", "2", False)
    under = Evidence("theory", "3", True, under="a mask")
    assert verdict_of([yes]) == "holds"
    assert verdict_of([yes, no]) == "fails"
    assert verdict_of([no, under]) == "only under a mask"
    assert verdict_of([no, under, dataclasses.replace(under, holds=False)]) == "fails"


def test_the_best_rate_is_that_of_runs_that_were_made() -> None:
    last = np.full((1, 4, 2), np.nan)
    last[0, 1:] = [[5.0, 5.2], [4.0, 4.4], [5.95, 5.95]]
    both = np.stack([np.full((1, 4, 2), 6.0), last], axis=-1)
    cell = xr.Dataset(
        {"held_out_loss": (("cell", "lr", "seed", "share"), both), "unigram_loss": ("cell", [5.95])},
        {"lr": [1.0, 2.0, 4.0, 8.0], "seed": [0, 1], "share": [0.0, 1.0]},
    ).isel(cell=0)
    found = best(cell)
    assert (found.lr, round(found.loss, 6), found.stable) == (4.0, 4.2, 4.0)
    assert round(found.error, 6) == 0.2


def test_a_page_says_all_of_it(sources: Sources) -> None:
    page = text_of(audit(["C3", "Lite 1"], sources=sources))
    for words in ("C3  ONLY UNDER", "twice as deep", "What would change it", "Lite 1  HOLDS"):
        assert words in page


@pytest.mark.parametrize("names", ["C1", ["C99"], 3])
def test_an_unknown_claim_is_refused(names: Any) -> None:
    with pytest.raises(pg.ModelError, match="names must be"):
        audit(names)
