"""Claims: verdicts follow from tables, and other tables turn them."""

import dataclasses
from collections.abc import Callable, Sequence
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


def never(numbers: Sequence[str]) -> bool:
    return False


@pytest.fixture(scope="module")
def sources() -> Sources:
    """Without proofs, which have tests of their own."""
    return dataclasses.replace(here(), proved=never)


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
    """The widest networks' losses three octaves further on."""
    wide, found = table.width.values == table.width.values.max(), table.copy(deep=True)
    found.held_out_loss[wide] = np.roll(found.held_out_loss.values[wide], 3, axis=1)
    return found


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
        table = sources.trained(name)
        return None if table is None else turn(table)

    return Sources(other(sources.predict), other(sources.simulate), never, trained)


@pytest.mark.parametrize("name", TURNED)
def test_a_claim_has_numbers_and_other_tables_turn_it(name: str, sources: Sources) -> None:
    [found], [control] = audit([name], sources=sources), audit([name], sources=wrong(sources, TURNED[name]))
    assert found.evidence
    assert all(any(c.isdigit() for c in one.said) for one in found.evidence), "a sentence without a number"
    assert found.verdict != control.verdict


def test_every_claim_with_evidence_has_a_control() -> None:
    assert {claim.name for claim in claims() if claim.tests} == {*TURNED, "LongCat 2", "Lite 2"}


def test_latent_attention_is_turned_by_a_theory_without_the_correction(sources: Sources) -> None:
    def uncorrected(model: pg.Model, **options: Any) -> xr.Dataset:
        kind = dataclasses.replace(model.attention, scale_correction=False)
        return sources.predict(dataclasses.replace(model, attention=kind), **options)

    [found], [control] = (audit(["LongCat 2"], sources=s) for s in (sources, _with(sources, predict=uncorrected)))
    assert (found.verdict, control.verdict) == ("holds at initialisation", "fails")


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
    bare = _with(sources, trained=lambda name: None)
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
