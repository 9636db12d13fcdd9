"""A run that is killed, at whatever moment, goes on from its checkpoint to the very bytes of a run that never was."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import propagate as pg

RUN = """
import sys
import propagate as pg
if __name__ == "__main__":
    checkpoint, workers = sys.argv[1], int(sys.argv[2])
    model = pg.Model("spannorm", depth=2, width=16, tokens=4, heads=2)
    run = {"draws": 96, "backend": "numpy", "memory": 1, "covariance": 0.3, "checkpoint": checkpoint}
    print("begins", flush=True)
    if workers > 1:
        with pg.process_pool(workers) as pool:
            found = pg.simulate(model, executor=pool, **run)
    else:
        found = pg.simulate(model, **run)
    sys.stdout.buffer.write(b"".join(found[name].to_numpy().tobytes() for name in found.variables))
"""


def undisturbed(**changes: object) -> bytes:
    """The same in this process, whole and without a checkpoint."""
    model = pg.Model("spannorm", depth=2, width=16, tokens=4, heads=2)
    found = pg.simulate(model, **{"draws": 96, "backend": "numpy", "covariance": 0.3} | changes)
    return b"".join(found[name].to_numpy().tobytes() for name in found.variables)


def started(folder: Path, checkpoint: str, workers: int) -> subprocess.Popen[bytes]:
    script = folder / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), checkpoint, str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def finished(folder: Path, checkpoint: str, workers: int) -> bytes:
    out, error = started(folder, checkpoint, workers).communicate(timeout=300)
    assert b"Traceback" not in error, error.decode()
    return out


def killed(folder: Path, checkpoint: str, workers: int, share: float, seconds: float) -> bool:
    """Whether it was still at work after this share of the seconds that it takes."""
    process = started(folder, checkpoint, workers)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(share * seconds)
    at_work = process.poll() is None
    with contextlib.suppress(ProcessLookupError):  # it is done, and so are its workers
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return at_work


def seconds_of(folder: Path, workers: int) -> float:
    process = started(folder, str(folder / "timed.npz"), workers)
    assert process.stdout is not None
    process.stdout.readline()
    began = time.monotonic()
    process.communicate()
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("workers", "moments"),
    [(1, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 20), (2, 2), (2, 20)))],
)
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, workers: int, moments: int) -> None:
    """Moments are drawn over the time that the run takes; most hit it at work, some with draws already kept."""
    whole, seconds = undisturbed(), seconds_of(tmp_path, workers)
    random_, at_work, kept = random.Random(workers), 0, 0
    for moment in range(moments):
        checkpoint = tmp_path / f"{moment}.npz"
        share = (moment + random_.random()) / moments
        at_work += killed(tmp_path, str(checkpoint), workers, share, seconds)
        kept += checkpoint.exists()
        assert finished(tmp_path, str(checkpoint), workers).removeprefix(b"begins\n") == whole
    assert at_work >= moments // 2
    assert kept >= moments // 10  # a loaded machine is slower now than when it was timed
    left = {path.name for path in tmp_path.iterdir() if path.suffix != ".npz"}
    assert {name for name in left if not name.startswith(".")} == {"run.py"}


def test_another_seed_has_other_bytes() -> None:
    """Else nothing above could fail."""
    assert undisturbed() == undisturbed()
    assert undisturbed(seed=1) != undisturbed()
