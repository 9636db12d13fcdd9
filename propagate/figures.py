"""The checkout's figures: which there are, and making them again.

Each script in `figures/` has `data(draws=, seed=, executor=, backend=)`, `draw(data)` and a `CAPTION`; one that
simulates also has `FULL`, the arguments of `data` for a larger run. The package never imports them; they are loaded by
name when asked for, from the checkout that the package lies in.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from propagate import figure_index
from propagate.checks import integer
from propagate.files import check_folder, is_folder, replace
from propagate.model import ModelError
from propagate.progress import Advance, progress_bar

P = ParamSpec("P")
T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def names() -> list[str]:
    """The figures there are, in alphabetical order.

    Raises:
        ModelError: where the package does not lie in a checkout.
    """
    folder = ROOT / "figures"
    found = [p.stem for p in folder.glob("*.py") if "\ndef draw(" in p.read_text(encoding="utf-8")]
    if not found:
        raise ModelError(
            "figures must be run from a checkout, and this propagate is installed without one: "
            "clone the repository and install it with pip install --editable"
        )
    return sorted(found)


def regenerate(
    names: Sequence[str] | None = None,
    *,
    draws: int | None = None,
    seed: int | None = None,
    full: bool = False,
    backend: str = "numpy",
    to: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    progress: bool | None = None,
) -> list[Path]:
    """Make figures again: `<name>.png`, `.svg`, `.nc` (the data shown) and `.md` (the caption), and `README.md`.

    `propagate.figure_comparison.compared` tells how the data differ from those that are committed.

    Simulations run in two processes; networks that several figures show are simulated once. Each file is replaced in
    one step, and the same seed gives the same bytes.

    Args:
        names: which figures; all of them by default.
        draws, seed: in place of the scripts' own.
        full: more draws and a larger width, as the scripts' `FULL` says; on a CPU that takes about ten times as long.
        backend: "numpy", "cupy" or "auto", of the simulations. The committed figures are made on "numpy"; networks of
            another backend have the same law and other numbers.
        to: the folder that files are written to; by default the checkout's `build/figures`, beside which nothing that
            is committed changes.
        executor: where simulations run; by default a pool of two processes with one thread each.
        progress: show a progress bar on standard error; by default only on a terminal.

    Returns:
        The files written.

    Raises:
        ModelError: for an unknown name, a backend that is not there or where there is no checkout; before any work.
    """
    chosen, folder = _known(names), _folder(to)
    given = (("draws", draws, 2), ("seed", seed, 0))
    settings: dict[str, Any] = {
        key: integer(key, value, at_least=least) for key, value, least in given if value is not None
    }
    from propagate.montecarlo.workers import ended_at_once

    settings |= _backend(backend)
    scripts = {name: load(name) for name in chosen}
    _import_what_writes()
    written: list[Path] = []
    with (
        workers(executor) as pool,
        progress_bar(progress, 0, 0, "networks") as advance,
        ThreadPoolExecutor(len(scripts)) as callers,
    ):
        counted = _Counted(pool, advance)
        # one thread a figure, which only waits: so the pool always has the next figure's networks to go on with
        tables = {
            name: callers.submit(script.data, executor=counted, **(_larger(script, full) | settings))
            for name, script in scripts.items()
        }
        own = pool if executor is None and isinstance(pool, ProcessPoolExecutor) else None
        with ended_at_once(own):
            for name, script in scripts.items():
                written += _write(folder, name, script, tables[name].result())
    return [*written, figure_index.write(folder)]


def at_column_width(names: Sequence[str] | None = None, *, to: str | os.PathLike[str] | None = None) -> list[Path]:
    """Draw the committed data at the width of a column, 3.3 inches, with text of 7 points: `<name>_column.png`, `.svg`.

    Nothing is simulated.

    Args:
        names: which figures; all of them by default.
        to: the folder that files are written to; by default the checkout's `build/figures`.

    Returns:
        The files written.

    Raises:
        ModelError: for an unknown name, a folder that is none, or where there is no checkout.
    """
    import xarray as xr

    from propagate.columns import column
    from propagate.plots import render

    chosen, folder = _known(names), _folder(to)
    written = []
    for name in chosen:
        with column():
            picture = load(name).draw(xr.load_dataset(ROOT / "figures" / f"{name}.nc", engine="scipy"))
            contents = {f"_column.{kind}": render(picture, kind) for kind in ("png", "svg")}
        written += [replace(folder / f"{name}{suffix}", content) for suffix, content in contents.items()]
    return written


def load(name: str) -> Any:
    """The module of a figure's script.

    Raises:
        ModelError: for an unknown name, or where there is no checkout.
    """
    (name,) = _known([name])
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return importlib.import_module(f"figures.{name}")


@contextmanager
def workers(executor: Executor | None = None, count: int = 2) -> Iterator[Executor]:
    """The executor itself, or a pool of `count` fresh processes with one thread each."""
    if executor is not None:
        yield executor
        return
    import multiprocessing

    with one_thread(), ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@contextmanager
def one_thread() -> Iterator[None]:
    """Processes that start within it use one thread each for linear algebra: they read it when they load NumPy."""
    before = {key: os.environ.get(key) for key in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def _known(chosen: Sequence[str] | None) -> list[str]:
    known = names()
    if chosen is None:
        return known
    if isinstance(chosen, str):
        raise ModelError(f"names must be a list of figures, got {chosen!r}")
    for name in chosen:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=2, cutoff=0.4)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ModelError(f"figure must be one of {', '.join(known)}, got {name!r}{hint}")
    return list(dict.fromkeys(chosen)) or known


def _larger(script: Any, full: bool) -> dict[str, Any]:
    return dict(getattr(script, "FULL", {})) if full else {}


def _folder(to: str | os.PathLike[str] | None) -> Path:
    folder = ROOT / "build" / "figures" if to is None else check_folder(to, "to")
    if to is None:
        folder.mkdir(parents=True, exist_ok=True)
    if not is_folder(folder):
        raise ModelError(f"to must be a folder, got {str(to)!r}")
    return folder


def _backend(name: str) -> dict[str, str]:
    from propagate.montecarlo.backend import choose_backend

    return {"backend": choose_backend(name, "float64").name}


def _import_what_writes() -> None:
    """What xarray imports when it first writes a table (dask, where it is installed): before there are threads, since
    two that import it at once find it half there.
    """
    import xarray as xr

    xr.Dataset().to_netcdf(engine="scipy")


def _write(folder: Path, name: str, script: Any, data: Any) -> list[Path]:
    from propagate.plots import render

    picture = script.draw(data)
    contents = {
        ".nc": bytes(data.to_netcdf(engine="scipy", format="NETCDF3_64BIT")),
        ".png": render(picture, "png"),
        ".svg": render(picture, "svg"),
        ".md": caption_of(name, script, data).encode(),
    }
    return [replace(folder / f"{name}{suffix}", content) for suffix, content in contents.items()]


def caption_of(name: str, script: Any, data: Any) -> str:
    """The page beside a picture: where it comes from, and the script's caption with the data's attributes filled in."""
    made = f"[Script]({name}.py), [data]({name}.nc), made by `propagate figures {name}`."
    return f"![{name}]({name}.png)\n\n{made}\n\n{script.CAPTION.strip().format(**data.attrs)}\n"


class _Counted(Executor):
    """Passes work on, and reports how much there is and how much is done."""

    def __init__(self, inner: Executor, advance: Advance) -> None:
        self.inner, self.advance = inner, advance

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future = self.inner.submit(fn, *args, **kwargs)
        self.advance(0, more=1)
        future.add_done_callback(lambda _: self.advance(1))
        return future
