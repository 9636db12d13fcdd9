"""Files are written whole or not at all, nothing but regular files is replaced, and no finished result is lost."""

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray as xr
from typer.testing import CliRunner

import propagate as pg
from propagate import files
from propagate.cli import app
from propagate.files import check_writable, replace

PREDICT = ["predict", "prenorm", "--depth", "2", "--logit-std", "0"]


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_link_is_followed_and_a_mode_is_kept(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o600)
    link.symlink_to(real)
    replace(link, b"new")
    assert (real.read_bytes(), link.is_symlink(), stat.S_IMODE(real.stat().st_mode)) == (b"new", True, 0o600)


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "table.nc"
    target.write_bytes(b"old")
    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        replace(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("/dev/full", "must be a regular file or a new one"),
        (".", "must be a regular file or a new one"),
        ("nowhere/table.nc", "must lie in an existing folder"),
        ("a\0b", "must name a file"),
        ("x" * 300, "must be a file that can be written"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(given: str, message: str) -> None:
    with pytest.raises(pg.ModelError, match=message):
        check_writable(given, "--out")
    with pytest.raises(pg.ModelError, match=message):
        pg.simulate(pg.Model("prenorm", depth=1, width=16, tokens=2, heads=1), draws=2, checkpoint=given)


def test_a_finished_result_survives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "table.nc"
    assert CliRunner().invoke(app, [*PREDICT, "--out", str(out)]).exit_code == 0
    monkeypatch.setattr(files.os, "replace", full)
    found = CliRunner().invoke(app, [*PREDICT, "--out", str(tmp_path / "other.nc")])
    assert found.exit_code == 2
    assert "grad_variance" in found.stdout  # printed first
    last = found.stderr.strip().splitlines()[-1]
    assert "No space left on device" in last
    kept = Path(last.rpartition(" ")[2])
    with xr.open_dataset(out, engine="scipy") as wanted, xr.open_dataset(kept, engine="scipy") as seen:
        assert seen.equals(wanted)
    kept.unlink()


def test_letters_that_a_terminal_has_not_are_no_error() -> None:
    run = [sys.executable, "-m", "propagate.cli", "simulate", "prenorm", "--depth", "1", "--width", "16"]
    run += ["--tokens", "2", "--heads", "1", "--draws", "4", "--backend", "numpy"]
    done = subprocess.run(run, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=False)
    assert (done.returncode, b"?" in done.stdout) == (0, True)


def alive(group: int) -> list[str]:
    """States of the processes of a group, without those that have ended and nobody waited for (Z)."""
    rows = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat")]
    return [" ".join(row[:3]) for row in rows if int(row[2]) == group and row[0] != "Z"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_workers_and_says_how_to_go_on(asked: signal.Signals, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "propagate.cli", "simulate", "prenorm", "--width", "1024", "--draws", "100000"]
    run += ["--backend", "numpy", "--workers", "2", "--checkpoint", str(tmp_path / "draws.npz")]
    process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "draws.npz").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(asked)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"the same command goes on" in said
    assert b"Traceback" not in said
    time.sleep(1)
    assert not alive(process.pid)
