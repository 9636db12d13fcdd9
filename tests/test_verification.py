"""The agreement matrix: a few cells of it, resumed, judged, refused; and a wrong theory that it must find."""

import dataclasses
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import propagate as pg
from propagate import variants, verification
from propagate.calibration import calibration
from propagate.cells import ACTIVATIONS, verifiable
from propagate.verification import Cell, Settings, cells_of, verify

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
SETTINGS = Settings(width=128, depth=3, tokens=4, heads=2, draws=32, backend="numpy")
SCALINGS = ["none", "ScaleInit 1/2"]
FAST = [
    *cells_of(["spannorm", "postnorm"], ["gelu"], ["bidirectional"], SCALINGS),
    *cells_of(["residual"], ["gelu"], ["causal"], ["none"]),
]
SMALL = dataclasses.replace(SETTINGS, width=32, depth=2, tokens=4, draws=4)


@pytest.fixture(scope="module")
def report() -> verification.Report:
    return verify(FAST, SETTINGS)


def test_the_matrix_has_every_placement_and_activation() -> None:
    cells = cells_of(variants=["plain"])
    assert {cell.activation for cell in cells} == set(ACTIVATIONS)
    assert {cell.placement for cell in cells} >= {"spannorm", "rezero", "tfixup"}
    assert len(cells) == len(set(cells)) == len(verifiable()) * len(ACTIVATIONS) * 4


def test_the_fast_subset_agrees_and_wrong_theories_do_not(report: verification.Report) -> None:
    assert report.disagreeing == []
    assert {row["mask"] for row in report.rows} == {"causal", "bidirectional"}
    assert all(0 < abs(row["z"]) < 4 and row["by_quantity"]["deviation"]["scores"] > 2 for row in report.rows)
    told = {name: [c["rejected"] for c in report.controls if c["theory"] == name] for name in _names(report)}
    assert all(told["another placement"]), report.controls
    assert all(told["ScaleInit 1/4"]), report.controls


@pytest.mark.slow
def test_so_do_all_masks_and_scalings_of_them() -> None:
    """32 draws cannot tell a neighbour apart in every cell."""
    more = dataclasses.replace(SETTINGS, draws=48)
    report = verify(cells_of(["spannorm", "postnorm", "residual"], ["gelu"], scalings=SCALINGS), more)
    assert report.disagreeing == []
    assert all(c["rejected"] for c in report.controls if c["theory"] in ("another placement", "ScaleInit 1/4"))


def _names(report: verification.Report) -> set[str]:
    return {control["theory"] for control in report.controls}


def test_a_wrong_theory_is_a_disagreement(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix judges what `predict` says: of PostNorm in SpanNorm's place, no cell agrees."""
    right = pg.predict

    def wrong(model: pg.Model, **start: float) -> object:
        return right(dataclasses.replace(model, placement="postnorm"), **start)

    monkeypatch.setattr(pg, "predict", wrong)
    settings = dataclasses.replace(SETTINGS, seed=1)  # of no other test: predictions are kept by settings
    found = verify(cells_of(["spannorm"], ["gelu"], ["bidirectional"], ["none"]), settings)
    assert found.summary["agree"] == 0


@pytest.mark.parametrize("second", [True, False])
def test_a_cell_that_disagrees_is_measured_again(second: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def once(settings: Settings, cell: Cell, tables: Path | None) -> dict[str, object]:
        asked.append((settings.draws, settings.seed))
        return {"z": 4.1 + len(asked), "verdict": "agrees" if len(asked) == 2 and second else "disagrees"}

    monkeypatch.setattr(verification, "_judged_once", once)
    assert verification.judged(SETTINGS, FAST[0]) == {
        "z": 6.1,
        "verdict": "agrees" if second else "disagrees",
        "first_z": 5.1,
    }
    assert [draws for draws, _ in asked] == [32, 128]
    assert asked[0][1] != asked[1][1]


def test_cells_in_the_file_are_not_run_again(tmp_path: Path) -> None:
    out, ran = tmp_path / "found.json", []
    settings = SMALL
    verify(FAST[:2], settings, out=out, report=ran.append)
    whole = verify(FAST[:3], settings, out=out, report=ran.append)
    assert len(ran) == 3
    assert [row["placement"] for row in whole.rows] == [cell.placement for cell in FAST[:3]]
    assert len(json.loads(out.read_bytes())["rows"]) == 3
    with pytest.raises(pg.ModelError, match=r"out must be a new file: .* of another seed"):
        verify(FAST[:1], dataclasses.replace(settings, seed=1), out=out)
    out.write_text("[]")
    with pytest.raises(pg.ModelError, match="out must be a file of results"):
        verify(FAST[:1], settings, out=out)


def test_measured_tables_are_judged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is simulated twice, and a changed theory gets another verdict from the same tables."""
    settings, cells = (
        dataclasses.replace(SETTINGS, draws=16),
        cells_of(["deepnorm"], ["relu"], ["bidirectional"], ["none"]),
    )
    first = verify(cells, settings, tables=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(cells)
    monkeypatch.setattr(pg, "simulate", None)
    again = verify(cells, settings, tables=tmp_path)
    assert [row | {"seconds": 0} for row in again.rows] == [row | {"seconds": 0} for row in first.rows]
    right = pg.predict
    monkeypatch.setattr(pg, "predict", lambda *args, **options: 1.3 * right(*args, **options))
    variants._limit.cache_clear()
    assert all(verification._judged_once(settings, cell, tmp_path)["verdict"] == "disagrees" for cell in cells)
    variants._limit.cache_clear()


def test_few_draws_cannot_tell_and_the_summary_says_so() -> None:
    found = verify(FAST[:2], dataclasses.replace(SETTINGS, draws=3))
    assert found.summary["agree"] == 0
    assert found.summary["cannot_tell"] == len(found.undecided) == 2
    assert found.summary["detects"]["deviation"]["worst"] > 0.25


def test_calibration_finds_errors_that_are_stated_too_wide(report: verification.Report) -> None:
    """Of normal scores the root mean square is 1; halved they are found out, by quantity and by placement."""
    rng = np.random.default_rng(0)

    def rows(scale: float) -> list[dict[str, object]]:
        z = scale * rng.standard_normal((200, 13))
        quantity = {"scores": 13, "detects": 0.1}
        return [
            {"by_quantity": {"variance": quantity | {"squares": (c**2).sum(), **{
                f"beyond_{k}": int((abs(c) > k).sum()) for k in (2, 3)}}}}
            for c in z
        ]  # fmt: skip

    right, narrow = (calibration(rows(scale), lambda row, name: name)["variance"] for scale in (1.0, 0.5))
    assert right["rms"] == pytest.approx(1, abs=0.05)
    assert right["beyond_2"] == pytest.approx(right["beyond_2_by_chance"], rel=0.3)
    assert narrow["rms"] == pytest.approx(0.5, abs=0.03)
    assert narrow["beyond_2"] < right["beyond_2_by_chance"] / 10
    assert right["independent"] == pytest.approx(200 * 13, rel=0.4)
    assert abs(right["rms"] - 1) < 4 * right["rms_se"] < 1 - narrow["rms"]
    groups = report.summary["calibration"]
    assert set(groups["placement"]) == {"spannorm", "postnorm", "residual"}
    assert sum(group["scores"] for group in groups["quantity"].values()) == report.summary["scores"]


def test_scores_that_share_their_draws_count_for_one() -> None:
    """Thirteen times the same score in each cell: no more is known than from one, and counts are as uncertain."""
    z = np.random.default_rng(1).standard_normal(2000)
    cells = [{"scores": 13, "squares": 13 * x * x, "beyond_2": 13 * (abs(x) > 2), "beyond_3": 0} for x in z]
    found = calibration([{"by_quantity": {"variance": cell}} for cell in cells], lambda row, name: name)["variance"]
    assert found["independent"] == pytest.approx(2000, rel=0.2)
    assert found["beyond_2_sd"] == pytest.approx(13 * math.sqrt(2000 * 0.0455), rel=0.2)
    assert abs(found["beyond_2"] - found["beyond_2_by_chance"]) < 4 * found["beyond_2_sd"]


@pytest.mark.parametrize("by", ["placement", "quantity"])
def test_errors_of_the_grid_are_stated_of_the_right_size(by: str) -> None:
    """In no group of the committed grid are scores larger than chance makes them; were errors stated 40 % too
    small, they would be in each. (DyT's are smaller: its allowance is wide.)"""
    rows = json.loads((RESULTS / "verify_h200.json").read_text())["rows"]

    def scores(scale: float) -> list[float]:
        scaled = [
            {"by_quantity": {q: c | {"squares": scale**2 * c["squares"]} for q, c in row["by_quantity"].items()},
             "placement": row["placement"]}
            for row in rows
        ]  # fmt: skip
        groups = calibration(scaled, lambda row, quantity: row["placement"] if by == "placement" else quantity)
        return [(one["rms"] - 1) / one["rms_se"] for name, one in groups.items() if name != "dyt"]

    assert max(scores(1.0)) < 3
    assert min(scores(1.0)) > -4
    assert min(scores(1 / 0.6)) > 3


def test_workers_change_nothing() -> None:
    with ThreadPoolExecutor(2) as pool:
        shared = verify(FAST[:2], SMALL, executor=pool)
    alone = verify(FAST[:2], SMALL)
    timeless = [[row | {"seconds": 0} for row in found.rows] for found in (shared, alone)]
    assert timeless[0] == timeless[1]


def test_a_network_that_theory_refuses_is_not_an_agreement() -> None:
    settings = dataclasses.replace(SETTINGS, logit_std=100.0)
    found = verify([Cell("postnorm", "relu", "bidirectional", "none")], settings)
    assert "standard deviation" in found.rows[0]["refused"]
    assert len(found.disagreeing) == 1


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"placements": ["spanorm"]}, "did you mean spannorm"),
        ({"activations": ["relo"]}, "activation must be one of"),
        ({"masks": ["none"]}, "mask must be one of bidirectional, causal"),
        ({"scalings": ["half"]}, "scaling must be one of none, ScaleInit 1/2"),
    ],
)
def test_unknown_names_are_refused(selection: dict[str, list[str]], message: str) -> None:
    with pytest.raises(pg.ModelError, match=message):
        cells_of(**selection)


def test_settings_that_make_no_network_are_refused_before_any_work() -> None:
    with pytest.raises(pg.ModelError, match="heads must divide the width"):
        verify(FAST, dataclasses.replace(SETTINGS, heads=7))


class MirroredSpanNorm(pg.Placement):
    """A placement of a user's own file: SpanNorm with the two sublayers' order turned around."""

    def block(self, x, block):
        y = block.norm(x + block.ffn(x))
        return block.norm(x + block.attention(y))


def test_a_placement_of_ones_own_is_verified() -> None:
    found = verify(cells_of(["mirrored spannorm"], ["relu"], ["bidirectional"], SCALINGS), SETTINGS)
    assert found.disagreeing == []
    assert found.summary["controls_rejected"] > 2
