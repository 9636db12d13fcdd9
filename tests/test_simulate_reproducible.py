"""A simulation is a function of its arguments: not of batches, of interruptions, or of what ran before."""

import importlib
import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import propagate as pg
from propagate.montecarlo import run as module
from propagate.montecarlo.cores import threads_for
from propagate.montecarlo.starts import ends_of
from propagate.start import Start

verb = importlib.import_module("propagate.montecarlo.simulate")
BACKENDS = ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)]
SAMPLERS = ("dense", "weightless")
MODEL = pg.Model("spannorm", depth=2, width=16, tokens=4, heads=2)


def same(left: xr.Dataset, right: xr.Dataset) -> bool:
    return set(left.data_vars) == set(right.data_vars) and all(
        left[name].to_numpy().tobytes() == right[name].to_numpy().tobytes() for name in left.data_vars
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_seed_one_result(sampler: str, backend: str) -> None:
    where = {"backend": backend, "sampler": sampler}
    first = pg.simulate(MODEL, draws=5, seed=3, **where)
    assert same(first, pg.simulate(MODEL, draws=5, seed=3, **where))
    assert not same(first, pg.simulate(MODEL, draws=5, seed=4, **where))
    assert not same(first, pg.simulate(MODEL, draws=6, seed=3, **where))


@pytest.mark.parametrize("width", [16, 96])
@pytest.mark.parametrize("activation", ["relu", "swiglu"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batches_leave_no_trace(sampler: str, activation: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "threads_for", lambda *_: 1)
    model = pg.Model("spannorm", depth=3, width=width, tokens=8, heads=2, activation=activation)
    together = pg.simulate(model, draws=7, backend="numpy", sampler=sampler)
    for memory in (1, 3 * 2**20):
        assert same(together, pg.simulate(model, draws=7, backend="numpy", sampler=sampler, memory=memory))


@pytest.mark.parametrize("count", [2, 3])
def test_threads_leave_no_trace(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for threads in (1, count):
        monkeypatch.setattr(verb, "threads_for", lambda *_, threads=threads: threads)
        found.append(pg.simulate(MODEL, draws=19, backend="numpy", memory=1))
    assert same(*found)


def test_as_many_threads_as_there_is_work_and_memory_for() -> None:
    assert threads_for("numpy", 8, taken=2**20, most=2**21) == 1
    assert threads_for("numpy", 1, taken=1, most=2**40) == 1
    assert threads_for("numpy", 8, taken=1, most=2**40) >= 1
    assert threads_for("cupy", 8, taken=1, most=2**40) == 1


def test_memory_bounds_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "threads_for", lambda *_: 1)
    sizes = watched(monkeypatch)
    pg.simulate(MODEL, draws=7, backend="numpy", memory=1)
    assert sizes == [1] * 7
    sizes.clear()
    pg.simulate(MODEL, draws=7, backend="numpy")
    assert sizes == [7]


def watched(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[int]:
    """Sizes of the batches that are run; the one of number `fail_at` is interrupted."""
    sizes: list[int] = []
    run = module.run

    def watching(*arguments, **options):
        sizes.append(next(len(a) for a in arguments if isinstance(a, range)))
        if len(sizes) == fail_at:
            raise KeyboardInterrupt
        return run(*arguments, **options)

    monkeypatch.setattr(module, "run", watching)
    return sizes


@pytest.mark.parametrize("fail_at", [1, 2, 4])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    arguments = {"draws": 5, "seed": 9, "backend": "numpy", "memory": 1, "checkpoint": tmp_path / "run.npz"}
    whole = pg.simulate(MODEL, **arguments | {"checkpoint": None})
    with monkeypatch.context() as patch:
        watched(patch, fail_at)
        with pytest.raises(KeyboardInterrupt):
            pg.simulate(MODEL, **arguments)
    sizes = watched(monkeypatch)
    assert same(whole, pg.simulate(MODEL, **arguments))
    assert len(sizes) == 5 - (fail_at - 1)  # finished draws are not run again
    assert os.listdir(tmp_path) == ["run.npz"]


def test_a_finished_run_goes_on_to_more_draws(tmp_path: Path) -> None:
    arguments = {"seed": 9, "backend": "numpy", "checkpoint": tmp_path / "run.npz"}
    pg.simulate(MODEL, draws=3, **arguments)
    longer = pg.simulate(MODEL, draws=6, **arguments)
    assert same(longer, pg.simulate(MODEL, draws=6, seed=9, backend="numpy"))


def test_a_checkpoint_with_more_draws_than_asked_for_says_how_many_it_holds(tmp_path: Path) -> None:
    """Either exactly the draws asked for, or an error: not a silent other number."""
    arguments = {"seed": 9, "backend": "numpy", "checkpoint": tmp_path / "run.npz"}
    pg.simulate(MODEL, draws=6, **arguments)
    caught = None
    try:
        fewer = pg.simulate(MODEL, draws=3, **arguments)
    except pg.ModelError as error:
        caught = str(error)
    if caught is None:
        assert same(fewer, pg.simulate(MODEL, draws=3, seed=9, backend="numpy"))
    else:
        assert "6" in caught


OTHERS = {
    "seed": {"seed": 1},
    "start": {"covariance": 0.2},
    "cotangent": {"grad_covariance": 0.2},
    "readout": {"through_readout": True},
    "inputs": {"inputs": np.ones((4, 16))},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, change: dict) -> None:
    file = tmp_path / "run.npz"
    arguments = {"draws": 2, "seed": 9, "backend": "numpy", "checkpoint": file}
    pg.simulate(MODEL, **arguments)
    before = file.read_bytes()
    with pytest.raises(pg.ModelError, match="another run"):
        pg.simulate(MODEL, **arguments | change)
    with pytest.raises(pg.ModelError, match="another run"):
        pg.simulate(pg.Model("spannorm", depth=2, width=16, tokens=4, heads=2, ffn_gain=1.1), **arguments)
    assert file.read_bytes() == before


def spoiled(whole: bytes) -> dict[str, bytes]:
    middle = len(whole) // 2
    return {
        "empty": b"",
        "text": b"not an archive",
        "cut short": whole[:middle],
        "overwritten": whole[:middle] + bytes(64) + whole[middle + 64 :],
        "last bytes gone": whole[:-10],
    }


@pytest.mark.parametrize("damage", spoiled(bytes(200)))
def test_a_corrupt_checkpoint_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "run.npz"
    arguments = {"draws": 2, "seed": 9, "backend": "numpy", "checkpoint": file}
    pg.simulate(MODEL, **arguments)
    file.write_bytes(spoiled(file.read_bytes())[damage])
    with pytest.raises(pg.ModelError, match=r"run\.npz") as caught:
        pg.simulate(MODEL, **arguments)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_is_another_archive_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.npz"
    np.savez(file, a=np.ones(3))
    with pytest.raises(pg.ModelError, match="checkpoint"):
        pg.simulate(MODEL, draws=2, backend="numpy", checkpoint=file)


def test_a_checkpoint_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = watched(monkeypatch)
    with pytest.raises(pg.ModelError, match="checkpoint"):
        pg.simulate(MODEL, draws=2, backend="numpy", checkpoint=tmp_path / "missing" / "run.npz")
    assert sizes == []


def test_means_and_standard_errors_are_over_draws() -> None:
    """Against the draws one by one: a draw's number is its identity."""
    whole = pg.simulate(MODEL, draws=6, seed=2, backend="numpy", sampler="dense")
    host = module.choose_backend("numpy")
    start = ends_of(MODEL, Start(covariance=0.0, grad_covariance=0.0))
    single = [module.run(MODEL, host, "dense", 2, range(k, k + 1), start, through_readout=False) for k in range(6)]
    for name in ("variance", "deviation", "grad_variance", "grad_covariance"):
        values = np.concatenate([draw[name] for draw in single])
        assert np.allclose(whole[name], values.mean(axis=0), rtol=1e-12)
        assert np.allclose(whole[f"{name}_se"], values.std(axis=0, ddof=1) / np.sqrt(6), rtol=1e-9, atol=1e-15)
    logs = np.log(np.concatenate([draw["grad_variance"] for draw in single]))
    assert np.allclose(whole.log_grad_variance, logs.mean(axis=0), rtol=1e-12)
    assert whole.attrs["draws"] == 6
    assert whole.attrs["seed"] == 2


def test_a_progress_bar_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = pg.simulate(MODEL, draws=3, backend="numpy", progress=False)
    assert capsys.readouterr() == ("", "")
    assert same(quiet, pg.simulate(MODEL, draws=3, backend="numpy", progress=True))
    assert capsys.readouterr().out == ""
