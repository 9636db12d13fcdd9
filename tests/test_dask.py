"""Dask's executor runs what any executor runs: on two workers, one of them killed midway, the table is the same."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import propagate as pg
from propagate.verification import Settings, cells_of

distributed = pytest.importorskip("distributed", reason="distributed is absent: install the extra [dev]")

MODEL = pg.Model("postnorm", depth=2, width=32, tokens=4, heads=2, causal=True)
SETTINGS = Settings(width=64, depth=2, tokens=4, heads=2, draws=8, backend="numpy")
CELLS = cells_of(["postnorm", "prenorm"], ["relu"], ["causal"])
DRAWS = {"draws": 64, "backend": "numpy", "progress": False}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Of two processes, one task each at a time."""
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def kill_one(client: Any) -> int:
    """A worker, without a word to it. Returns the process that it was."""
    pid: int = next(iter(client.run(os.getpid).values()))
    os.kill(pid, signal.SIGKILL)
    return pid


@contextmanager
def killing(client: Any, when: Callable[[], bool]) -> Iterator[list[int]]:
    """One worker is killed as soon as something is so, while the body runs."""
    killed: list[int] = []

    def watch() -> None:
        until = time.monotonic() + 120
        while not when() and time.monotonic() < until:
            time.sleep(0.005)
        killed.append(kill_one(client))

    thread = threading.Thread(target=watch)
    thread.start()
    yield killed
    thread.join()


def test_workers_in_this_process_simulate() -> None:
    with distributed.Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None) as here:
        found = pg.simulate(MODEL, executor=here.get_executor(), **DRAWS)
    assert found.equals(pg.simulate(MODEL, **DRAWS))


@pytest.mark.slow
def test_a_killed_worker_changes_no_simulation(client: Any, tmp_path: Path) -> None:
    checkpoint = tmp_path / "draws.npz"
    with killing(client, checkpoint.exists) as killed:
        found = pg.simulate(MODEL, checkpoint=checkpoint, executor=client.get_executor(), **(DRAWS | {"draws": 1024}))
    assert killed
    assert killed[0] not in client.run(os.getpid).values()
    assert found.equals(pg.simulate(MODEL, **(DRAWS | {"draws": 1024})))


@pytest.mark.slow
def test_a_killed_worker_changes_no_verdict(client: Any, tmp_path: Path) -> None:
    killed: list[int] = []

    def first(row: dict[str, Any]) -> None:
        if not killed:
            killed.append(kill_one(client))

    found = pg.verify(CELLS, SETTINGS, out=tmp_path / "v.json", executor=client.get_executor(), report=first)
    alone = pg.verify(CELLS, SETTINGS)
    assert killed
    assert [row["z"] for row in found.rows] == [row["z"] for row in alone.rows]


@pytest.mark.slow
def test_a_killed_worker_changes_no_sweep(client: Any, tmp_path: Path) -> None:
    over = {"depth": (1, 2), "placement": ["postnorm", "prenorm"], "ffn_gain": (0.5, 1.0)}
    verbs: Any = {"predict": {}, "simulate": {name: DRAWS[name] for name in ("draws", "backend")}}
    cells = tmp_path / "there" / "cells"
    with killing(client, lambda: cells.exists() and any(cells.iterdir())) as killed:
        found = pg.sweep(MODEL, over, verbs, executor=client.get_executor(), to=tmp_path / "there")
    assert killed
    assert killed[0] not in client.run(os.getpid).values()
    assert found.identical(pg.sweep(MODEL, over, verbs, to=tmp_path / "here"))
    assert (tmp_path / "there" / "sweep.nc").read_bytes() == (tmp_path / "here" / "sweep.nc").read_bytes()


@pytest.mark.slow
def test_a_killed_worker_loses_no_arm_that_has_ended(client: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
    settings: Any = {"lrs": (0.01, 0.1), "seeds": (0, 1, 2), "steps": 20, "batch": 2, "progress": False}
    text = pg.corpus()
    with killing(client, lambda: any(tmp_path.iterdir())) as killed:
        found = pg.train(MODEL, text, pg.Adam(0.01), executor=client.get_executor(), to=tmp_path, every=5, **settings)
    assert killed
    assert len(list(tmp_path.iterdir())) == 6
    assert found.equals(pg.train(MODEL, text, pg.Adam(0.01), **settings))
