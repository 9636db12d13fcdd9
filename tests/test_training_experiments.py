"""The scripts that measure training: resumable, nothing lost by a mistake; the rule that was written down first."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import propagate as pg
from propagate import figures

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
figures.names()
figures.load("skip_path")  # puts the checkout on the path

from figures import measure_training, training_rule, training_text  # noqa: E402
from figures.training_cells import FULL, SMALL, Cell, Size, cells  # noqa: E402
from figures.training_record import Record, read  # noqa: E402

TINY = Size(
    width=8,
    heads=2,
    tokens=8,
    batch=2,
    steps=20,
    depths=(1, 2, 3, 4),
    widths=(8, 16),
    transfer_steps=4,
    rates=(1e-3, 1e-2),
    seeds=(0, 1),
)
SETTING = measure_training.Setting(TINY, pg.corpus(), "cpu", "float32")


def test_every_cell_is_a_network_under_a_name_of_its_own() -> None:
    for size in (FULL, SMALL, TINY):
        named = [cell for part in measure_training.SWEEPS for cell in cells(part, size)]
        assert len({cell.name for cell in named if len(cell.seeds) == len(size.seeds)}) == len({*named}) - 1
        assert all(cell.model(size).causal for cell in named)
    dense, sparse = (next(c for c in cells("experts", FULL) if c.experts == kind) for kind in (False, True))
    assert dense.model(FULL).at(1).ffn.units == 2 * sparse.model(FULL).at(1).mixture.expert.units


def test_what_is_done_is_left_out_and_what_fails_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (cell, *_), asked = cells("main", TINY), []
    once = measure_training._train(cell, SETTING, cell.rates, cell.seeds, probes=(2, 4, 7, 10, 15), traces=())

    def counted(model: pg.Model, *given: Any, **options: Any) -> Any:
        asked.append(model.placement)
        if len(asked) == 2:
            raise RuntimeError("a planted mistake")
        return once

    monkeypatch.setattr(pg, "train", counted)
    monkeypatch.setattr(measure_training, "cells", lambda part, size: cells(part, size)[:3])
    assert measure_training.run(["main"], SETTING, tmp_path, 1e9) == 1
    assert "a planted mistake" in capsys.readouterr().err
    assert len(asked) == 3
    assert measure_training.run(["main"], SETTING, tmp_path, 1e9) == 0
    assert len(asked) == 4
    assert measure_training.run(["main"], SETTING, tmp_path, 0.0) == 0
    assert len(asked) == 4
    kept = read(tmp_path / "training_sweeps.nc")
    assert sorted(kept.architecture.values) == ["postnorm+0.5", "prenorm", "prenorm+0.5"]
    assert kept.sizes["lr"] == 2
    assert np.isfinite(kept.held_out_loss).all()
    assert measure_training.run(["shuffled"], SETTING, tmp_path, 0.0) == 0
    assert "later" in capsys.readouterr().out


def test_a_diverged_run_counts_at_its_first_loss() -> None:
    losses = np.array([[[6.0, 3.0], [6.0, 3.2]], [[6.0, np.nan], [6.0, 2.0]], [[6.0, 5.0], [6.0, 5.0]]])
    coordinates = {"lr": [1e-3, 2e-3, 4e-3], "seed": [0, 1], "share": [0.0, 1.0]}
    table = xr.Dataset({"held_out_loss": (("lr", "seed", "share"), losses)}, coordinates)
    assert measure_training.final_loss(table).values.tolist() == [[3.0, 3.2], [6.0, 2.0], [5.0, 5.0]]
    assert measure_training.best_rate(table) == 1e-3  # and not 2e-3, where the run that is left did best


def test_a_profile_is_traced_at_one_rate_and_tells_what_each_block_is_for() -> None:
    cell = Cell("spannorm", 0.5, 2, 0.1, 8, (1e-2,), (0, 1))
    seen = measure_training.profile(cell, 1e-2, SETTING)
    assert seen.decorrelation.dims == ("seed", "share", "block")
    assert np.isfinite(seen.decorrelation.isel(share=-1)).all()
    np.testing.assert_allclose(seen.loss_without.isel(block=0), seen.held_out_loss.isel(share=-1), rtol=1e-4)
    assert (abs(seen.loss_without.isel(block=slice(1, None)) - seen.loss_without.isel(block=0)) > 1e-4).all()


def test_records_of_other_sizes_stand_side_by_side(tmp_path: Path) -> None:
    for name, rates in (("a", [1.0]), ("a longer name", [1.0, 2.0])):
        table = xr.Dataset({"x": ("lr", np.ones(len(rates)))}, {"lr": rates}, {"device": "CPU"})
        Record(tmp_path / "r.nc").add(name, table, depth=len(rates))
    kept = read(tmp_path / "r.nc")
    assert kept.x.values.tolist()[1] == [1.0, 1.0]
    assert np.isnan(kept.x.values[0, 1])
    assert kept.depth.values.tolist() == [1, 2]


def test_text_is_kept_as_it_is_and_shuffled_text_has_its_frequencies(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("It is so. " * 400)
    (tmp_path / "b.txt").write_text("But is it so? " * 400)
    text = training_text.store(tmp_path, tmp_path / "text.npz", vocabulary=256)
    assert text.digest == pg.corpus(tmp_path).digest
    other = training_text.shuffled(text)
    assert other.digest != text.digest
    assert other.unigram_loss == pytest.approx(text.unigram_loss)


PILOTS = {  # 24 blocks, width 256, 128 tokens: which rates trained, and which did not
    ("spannorm", 0.5): ((1e-3, 2e-3, 3e-3), (5e-3, 8e-3, 1.2e-2)),
    ("spannorm", 1.0): ((1e-3, 2e-3, 3e-3), (5e-3, 8e-3, 1.2e-2)),
    ("spannorm", 0.25): ((1e-3, 3e-3), (1e-2,)),
    ("postnorm", 0.5): ((1e-3, 2e-3), (3e-3, 5e-3, 8e-3, 1.2e-2)),
    ("prenorm", 0.5): ((1e-3, 2e-3, 3e-3, 5e-3, 8e-3, 1.2e-2), ()),
    ("prenorm", 0.0): ((1e-3, 2e-3, 3e-3, 5e-3, 8e-3, 1.2e-2), ()),
    ("spannorm", 0.0): ((), (1e-3, 3e-3, 1e-2)),
    ("postnorm", 0.0): ((), (1e-3, 3e-3, 1e-2)),
}


def test_the_rule_is_the_one_that_was_written_down() -> None:
    assert (training_rule.GAIN, training_rule.DISTINCT, training_rule.MOVES, training_rule.MARGIN) == (
        35,
        1e-3,
        10,
        0.1,
    )
    missed = []
    for (placement, k), (trained, lost) in PILOTS.items():
        scaling = pg.ScaleInit(k) if k else None
        model = pg.Model(placement, depth=24, width=256, heads=4, tokens=128, activation="swiglu", scaling=scaling)
        for lr in (*trained, *lost):
            if training_rule.judged(model, lr)["trains"] != (lr in trained):
                missed.append((placement, lr))
    assert missed == [("postnorm", 3e-3)]
