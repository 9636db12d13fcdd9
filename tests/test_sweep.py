"""Sweeps: one table, whatever the workers; finished cells are not run again; bad cells are refused before any work."""

import errno
import os
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from pickle import PicklingError
from typing import Any

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import propagate as pg
from propagate.cli import app
from propagate.kept_tables import write_table

MODEL = pg.Model("prenorm", depth=2, width=32, tokens=4, heads=2, scaling=pg.ScaleInit(0.0))
OVER: dict[str, Any] = {"placement": ["prenorm", "siamesenorm"], "depth": (1, 2), "scaling.exponent": (0.5,)}
PROCESSES = partial(pg.process_pool, 2)
RUN: dict[str, Any] = {"predict": {"covariance": 0.3}, "simulate": {"covariance": 0.3, "draws": 3, "backend": "numpy"}}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, xr.Dataset]:
    folder = tmp_path_factory.mktemp("sweep")
    return folder, pg.sweep(MODEL, OVER, RUN, to=folder)


def test_every_cell_is_what_its_verb_says(kept: tuple[Path, xr.Dataset]) -> None:
    _, found = kept
    assert dict(found.sizes) == {"placement": 2, "depth": 2, "exponent": 1, "block": 3, "stream": 3}
    assert found["stream"].values.tolist() == ["1", "2", "joined"]
    one = pg.predict(pg.Model("siamesenorm", 2, width=32, tokens=4, heads=2, scaling=pg.ScaleInit(0.5)), covariance=0.3)
    cell = found.sel(placement="siamesenorm", depth=2, exponent=0.5)
    np.testing.assert_array_equal(cell.predict_variance, one.variance)
    short = replace(MODEL, depth=1, scaling=pg.ScaleInit(0.5))
    other = pg.simulate(short, covariance=0.3, draws=3, backend="numpy", progress=False)
    cell = found.sel(placement="prenorm", depth=1, exponent=0.5)
    np.testing.assert_array_equal(cell.simulate_variance.sel(stream="joined")[:2], other.variance)
    assert bool(np.isnan(cell.simulate_variance[2]).all())  # a block that it lacks
    assert bool(np.isnan(cell.simulate_variance.sel(stream="1")).all())
    assert found.attrs["verbs"].startswith("predict(covariance=0.3); simulate(")
    assert found.predict_variance.attrs["long_name"] == one.variance.attrs["long_name"]


def test_tokens_and_matrices_are_dimensions_as_well() -> None:
    found = pg.sweep(MODEL, {"causal": (False, True), "tokens": (2, 3)}, {"predict": {"include": {"param_grad"}}})
    told = found.token_variance.sel(causal="True")
    assert "token" not in found.coords
    assert told.notnull().all("block").values.tolist() == [[True, True, False], [True, True, True]]
    assert bool(found.token_variance.sel(causal="False").isnull().all())  # alike: they have none of their own
    assert "query" in found["matrix"].values


class Counting(ThreadPoolExecutor):
    """Counts what it is given; stops taking tasks after `most`."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__(1)
        self.given, self.most = 0, most

    def submit(self, task: Any, /, *args: Any, **options: Any) -> Future[Any]:
        self.given += 1
        if self.given > self.most:
            failed: Future[Any] = Future()
            failed.set_exception(KeyboardInterrupt())
            return failed
        return super().submit(task, *args, **options)


def test_finished_cells_are_not_run_again(kept: tuple[Path, xr.Dataset], tmp_path: Path) -> None:
    folder, found = kept
    with Counting() as pool:
        assert pg.sweep(MODEL, OVER, RUN, to=folder, executor=pool).equals(found)
        assert pool.given == 0
        more = pg.sweep(MODEL, OVER | {"depth": (1, 2, 3)}, RUN, to=folder, executor=pool)
        assert pool.given == 4  # of the new depth alone
        assert more.sel(depth=[1, 2]).isel(block=slice(0, 3)).equals(found)
        pg.sweep(MODEL, OVER, RUN | {"predict": {"covariance": 0.2}}, to=folder, executor=pool)
        assert pool.given == 4 + 4  # other options are other cells
    with Counting(most=3) as pool, pytest.raises(KeyboardInterrupt):
        pg.sweep(MODEL, OVER, RUN, to=tmp_path, executor=pool)
    ended = len(list((tmp_path / "cells").iterdir()))
    with Counting() as pool:
        resumed = pg.sweep(MODEL, OVER, RUN, to=tmp_path, executor=pool)
        assert pool.given == 8 - ended
    assert resumed.identical(found)


@pytest.mark.parametrize("make", [partial(ThreadPoolExecutor, 2), pytest.param(PROCESSES, marks=pytest.mark.slow)])
def test_the_bytes_are_the_same_whatever_the_workers(make: Any, tmp_path: Path) -> None:
    over = {"placement": OVER["placement"], "depth": (1, 2)}
    found = pg.sweep(MODEL, over, RUN, to=tmp_path / "here")
    with make() as pool:
        assert pg.sweep(MODEL, over, RUN, to=tmp_path / "there", executor=pool).identical(found)
    here = (tmp_path / "here" / "sweep.nc").read_bytes()
    assert (tmp_path / "there" / "sweep.nc").read_bytes() == here
    other = RUN | {"simulate": RUN["simulate"] | {"seed": 1}}
    pg.sweep(MODEL, over, other, to=tmp_path / "other")
    assert (tmp_path / "other" / "sweep.nc").read_bytes() != here


def test_a_damaged_or_swapped_cell_is_refused(tmp_path: Path) -> None:
    over = {"depth": (1, 2)}
    pg.sweep(MODEL, over, to=tmp_path)
    one, other = sorted((tmp_path / "cells").iterdir())
    whole = one.read_bytes()
    one.write_bytes(other.read_bytes())
    with pytest.raises(pg.ModelError, match="is of another cell"):
        pg.sweep(MODEL, over, to=tmp_path)
    one.write_bytes(whole[:200] + b"?" + whole[201:])
    with pytest.raises(pg.ModelError, match="damaged"):
        pg.sweep(MODEL, over, to=tmp_path)
    one.unlink()
    pg.sweep(MODEL, over, to=tmp_path)
    assert one.read_bytes() == whole


def first_gain(model: pg.Model, times: float = 1.0) -> xr.Dataset:
    """A verb of one's own."""
    return xr.Dataset({"gain": float(pg.predict(model).grad_variance[0]) * times})


def test_verbs_of_ones_own_verdicts_and_steps() -> None:
    start = pg.Start(covariance=0.3)
    verbs = {
        first_gain: {"times": 2.0},
        "compare": {"start": start, "draws": 3, "backend": "numpy"},
        "predict_step": {"optimizer": pg.SGD(lr=0.1)},
    }
    found = pg.sweep(MODEL, {"depth": (1, 2), "attention_gain": (0.5, 1.0)}, verbs)
    assert found.first_gain_gain.dims == ("depth", "attention_gain")
    assert float(found.first_gain_gain[1, 1]) == 2 * float(pg.predict(MODEL).grad_variance[0])
    assert set(np.unique(found.compare_verdict)) <= {"agrees", "disagrees", "cannot tell"}
    assert found.predict_step_own_change.dims[-1] == "matrix"


@pytest.mark.parametrize(
    ("over", "verbs", "words"),
    [
        ({"depth": (2, 0)}, "predict", "cell depth=0 of over: depth must be at least 1"),
        ({"placement": ["prenorm", "nonorm"]}, "predict", "cell placement=nonorm of over: unknown placement"),
        ({"heads": (2, 3)}, "predict", "cell heads=3 of over: heads"),
        (
            {"placement": ["periln"], "ffn_gain": (1.0, 0.0)},
            "simulate",
            "placement=periln, ffn_gain=0.0: ffn_gain",
        ),
        ({"scaling.power": (1, 2)}, "predict", "ScaleInit has the fields exponent, per"),
        ({"depth": (2, 2)}, "predict", "no value twice"),
        ({"depth": 2}, "predict", "depth of over must be several values"),
        ({}, "predict", "over must map"),
        ({"depth": (2,)}, "solve", "verbs must be one of"),
        ({"depth": (2,)}, {"predict": {"seed": 1}}, "options of predict: got an unexpected keyword argument 'seed'"),
        ({"depth": (2,)}, {"simulate": {"draws": 1}}, "draws must be at least 2"),
        ({"depth": (2,)}, {"simulate": {"executor": None}}, "executor must be given to sweep"),
        ({"depth": (2,)}, "predict_step", "missing a required argument: 'optimizer'"),
        ({"depth": (2,)}, [], "verbs must be names"),
    ],
)
def test_bad_cells_are_refused_before_any_work(over: Any, verbs: Any, words: str, tmp_path: Path) -> None:
    with Counting() as pool:
        with pytest.raises(pg.ModelError, match=words):
            pg.sweep(MODEL, over, verbs, executor=pool, to=tmp_path)
        assert pool.given == 0
    assert not list(tmp_path.rglob("*.nc"))


def faulty(model: pg.Model) -> xr.Dataset:
    """A verb of one's own with a fault in its third cell."""
    if model.depth == 3:
        raise ValueError("a fault of one's own")
    return pg.predict(model)


@pytest.mark.parametrize("pool", [False, True])
def test_a_fault_names_its_cell_and_leaves_the_finished_ones(pool: bool, tmp_path: Path) -> None:
    with Counting() as executor, pytest.raises(ValueError, match="of one's own") as raised:
        pg.sweep(MODEL, {"depth": (1, 2, 3, 4)}, faulty, to=tmp_path, executor=executor if pool else None)
    assert raised.value.__notes__ == ["in faulty of cell depth=3"]
    assert len(list((tmp_path / "cells").iterdir())) >= 2


def test_a_full_disk_leaves_the_finished_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pg.sweep(MODEL, {"depth": (1, 2, 3)}, to=tmp_path / "whole")
    left = iter((True, True))

    def until_full(path: Path, table: xr.Dataset) -> None:
        if not next(left, False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_table(path, table)

    with monkeypatch.context() as patch:
        patch.setattr("propagate.sweeps.sweep.write_table", until_full)
        with pytest.raises(pg.ModelError, match="No space left on device"):
            pg.sweep(MODEL, {"depth": (1, 2, 3)}, to=tmp_path / "full")
    with Counting() as executor:
        assert pg.sweep(MODEL, {"depth": (1, 2, 3)}, to=tmp_path / "full", executor=executor).identical(whole)
        assert executor.given == 1


class Failing(ThreadPoolExecutor):
    """Of which every task fails with the same error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(1)
        self.error = error

    def submit(self, task: Any, /, *args: Any, **options: Any) -> Future[Any]:
        failed: Future[Any] = Future()
        failed.set_exception(self.error)
        return failed


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (BrokenExecutor("terminated abruptly"), "a worker was ended"),
        (PicklingError("Can't pickle <lambda>"), "from the top of a module: Can't pickle"),
        (AttributeError("Can't pickle local object"), "from the top of a module"),
    ],
)
def test_what_an_executor_says_is_said_in_words(error: Exception, words: str) -> None:
    with Failing(error) as executor, pytest.raises(pg.ModelError, match=words):
        pg.sweep(MODEL, {"depth": (1, 2)}, executor=executor)
    with Failing(AttributeError("no such thing")) as executor, pytest.raises(AttributeError, match="no such thing"):
        pg.sweep(MODEL, {"depth": (1, 2)}, executor=executor)


def test_what_a_verb_refuses_names_its_cell() -> None:
    with pytest.raises(pg.ModelError, match=r"predict of cell depth=2, logit_std=1000\.0: attention"):
        pg.sweep(MODEL, {"depth": (2,), "logit_std": (1.0, 1e3)})
    with pytest.raises(pg.ModelError, match="executor must be"):
        pg.sweep(MODEL, {"depth": (2,)}, executor=1)  # type: ignore[arg-type]
    for to in ("", "no\0name", "/dev/null/there", "/proc/there", 3):
        with pytest.raises(pg.ModelError, match=r"^to must be a folder"):
            pg.sweep(MODEL, {"depth": (2,)}, to=to)  # type: ignore[arg-type]


def test_the_command_line(tmp_path: Path) -> None:
    small = ["--tokens", "4", "--heads", "2", "--width", "32"]
    command = ["sweep", "prenorm", *small, "--over", "placement=prenorm,postnorm", "--over", "scaling.exponent=0,0.5"]
    done = CliRunner().invoke(app, [*command, "--over", "depth=2", "--verb", "predict", "--to", str(tmp_path)])
    assert done.exit_code == 0, done.stderr
    found = xr.load_dataset(tmp_path / "sweep.nc", engine="scipy")
    assert dict(found.sizes) == {"placement": 2, "exponent": 2, "depth": 1, "block": 3}
    assert "postnorm" in done.stdout
    assert CliRunner().invoke(app, [*command, "--over", "depth"]).exit_code == 2
    assert CliRunner().invoke(app, [*command, "--over", "depth=0"]).exit_code == 2
