"""A grid of networks, every verb in every cell, as one table; finished cells are kept and not run again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, as_completed
from contextlib import contextmanager
from pathlib import Path
from pickle import PicklingError
from typing import TYPE_CHECKING, Any

from propagate.checks import ModelError, check_flag, shown
from propagate.files import check_folder, replace
from propagate.identity import described, digest, text_digest
from propagate.kept_tables import content_of, read_sealed, write_table
from propagate.model import Model, check_model, check_norms
from propagate.own_functions import functions_of
from propagate.progress import Advance, progress_bar
from propagate.sweeps.assemble import assembled
from propagate.sweeps.cells import Cell, axes_of, cells_of
from propagate.sweeps.verbs import Verb, verbs_of
from propagate.table import provenance

if TYPE_CHECKING:
    import xarray as xr

WHOLE = "sweep.nc"
CELL = "cell_digest"


def sweep(
    model: Model,
    over: Mapping[str, Sequence[Any]],
    verbs: Any = "predict",
    *,
    executor: Executor | None = None,
    to: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Every network of a grid, and in each every verb, as one table.

    Args:
        model: what the networks have in common.
        over: the axes of the grid: by the path of a field ("placement", "depth", "scaling.exponent",
            "attention.logit_std"), the values that it takes.
        verbs: "predict", "predict_calls", "predict_step", "simulate", "simulate_steps", "compare" (predict, simulate
            and judge), or a function of one's own from a model to a Dataset; several of them; or a mapping from them
            to their options, which are the same in every cell. So is a seed: cells of one shape draw the same matrices,
            and their differences are paired.
        executor: any `concurrent.futures.Executor`, whose workers run one verb of one cell at a time; without one all
            run here. The table is the same to the bit, whatever the workers.
        to: a folder, made if need be, with a file for every verb of every cell, written as soon as it is done: the
            same call, or one of a larger grid, goes on from there. Edited placements, other options and other versions
            have files of their own. At the end all of it is in `sweep.nc` there.
        progress: show a progress bar on standard error; by default only on a terminal.

    Returns:
        A Dataset over the axes, named by the last part of their paths, and the verbs' own dimensions: of one verb with
        its own columns, of several with `<verb>_` before them. Shorter networks have NaN at the blocks that they lack.
        Where some placements have several streams, those of one have it under "joined".

    Raises:
        ModelError: before any work for a network that cannot be made, an unknown verb, a bad option or a folder that
            cannot be written into, naming cell and field; and, with the finished cells kept, for a cell that a verb
            refuses, for workers that were ended, for a verb that cannot be sent to them, or for a full disk. An error
            of another kind, as of a verb of one's own, has the cell in its notes.

    Example:
        >>> from propagate.scaling import ScaleInit
        >>> model = Model("prenorm", depth=2, scaling=ScaleInit(0.0))
        >>> over = {"placement": ["prenorm", "postnorm"], "depth": (2, 4), "scaling.exponent": (0.0, 0.5)}
        >>> found = sweep(model, over, {"predict": {"covariance": 0.3}})
        >>> found.variance.sel(placement="postnorm", depth=2, exponent=0.5).values.round(9).tolist()
        [1.0, 1.0, 1.0, nan, nan]
    """
    check_model(model)
    if not isinstance(executor, Executor | None):
        raise ModelError(f"executor must be a concurrent.futures.Executor, got {shown(executor)}")
    if progress is not None:
        check_flag("progress", progress)
    axes, asked = axes_of(over), verbs_of(verbs)
    cells = cells_of(model, axes)
    for cell in cells:
        _check(cell)
    folder = _folder(to)
    tasks = [(verb, cell) for verb in asked for cell in cells]
    files = [None if folder is None else folder / "cells" / f"{name_of(*task)}.nc" for task in tasks]
    with progress_bar(progress, len(tasks), 0, "cells") as advance:
        tables = _tables(tasks, files, executor, advance)
    parts = []
    for i, verb in enumerate(asked):
        own = tables[i * len(cells) : (i + 1) * len(cells)]
        parts.append(assembled(axes, cells, own, f"{verb.name}_" if len(asked) > 1 else ""))
    found = _merged(parts, model, asked)
    if folder is not None:
        with _kept(folder):
            replace(folder / WHOLE, content_of(found))
    return found


def _check(cell: Cell) -> None:
    try:
        check_norms(cell.model)
    except ModelError as error:
        raise ModelError(f"cell {cell.label}: {error}") from None


def _folder(to: Any) -> Path | None:
    if to is None:
        return None
    if not isinstance(to, str | os.PathLike):
        raise ModelError(f"to must be a folder's path, got {shown(to)}")
    cells = check_folder(to, "to") / "cells"
    check_folder(cells, "to")
    cells.mkdir(parents=True, exist_ok=True)
    return Path(to)


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Says what a full disk leaves."""
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"{str(folder)!r} could not be written ({error.strerror}); finished cells are kept there: the same call "
            "goes on from them"
        ) from error


def name_of(verb: Verb, cell: Cell) -> str:
    """Of the file of one verb in one cell: whatever decides its table has part in it.

    Example:
        >>> cells = cells_of(Model("prenorm", depth=2), axes_of({"depth": (2, 4)}))
        >>> names = {name_of(verb, cell) for verb in verbs_of(["predict", "simulate"]) for cell in cells}
        >>> len(names), min(names)[:8]
        (4, 'predict_')
    """
    versions = {name: provenance()[name] for name in ("propagate", "numpy", "scipy")}
    texts = {witness: text_digest(witness) for witness in ("theory", "montecarlo")}
    options = {name: _told(value) for name, value in verb.options.items()}
    decides = [described(cell.model), described(verb.function), described(options), functions_of(cell.model)]
    return f"{verb.name}_{digest([versions, texts, *decides])}"


def _told(value: Any) -> Any:
    """An array with coordinates, whose print leaves numbers out, as what it holds."""
    if hasattr(value, "dims") and hasattr(value, "to_numpy"):
        return {"dims": list(map(str, value.dims)), "values": value.to_numpy()}
    return value


def ran(verb: Verb, cell: Cell) -> xr.Dataset:
    """One verb in one cell; what a worker runs.

    Raises:
        ModelError: names the cell, as a note does of any other error.
    """
    try:
        return verb(cell.model)
    except ModelError as error:
        raise ModelError(f"{verb.name} of cell {cell.label}: {error}") from None
    except Exception as error:
        error.add_note(f"in {verb.name} of cell {cell.label}")
        raise


def _tables(
    tasks: list[tuple[Verb, Cell]], files: list[Path | None], executor: Executor | None, advance: Advance
) -> list[xr.Dataset]:
    """Of every task, from its file if there is one; each is kept as soon as it is done."""
    found: dict[int, xr.Dataset] = {}
    for place, path in enumerate(files):
        if path is not None and path.exists():
            found[place] = _read(path)
            advance(1)

    def keep(place: int, table: xr.Dataset) -> None:
        path = files[place]
        if path is not None:
            with _kept(path.parent.parent):
                write_table(path, table.assign_attrs({CELL: path.stem}))
            table = _read(path)  # as a run that finds it has it, types of attributes and all
        found[place] = table
        advance(1, tasks[place][1].label)

    todo = [place for place in range(len(tasks)) if place not in found]
    if executor is None:
        for place in todo:
            keep(place, ran(*tasks[place]))
    else:
        with _sent():
            futures = {executor.submit(ran, *tasks[place]): place for place in todo}
            try:
                for future in as_completed(futures):
                    keep(futures[future], future.result())
            finally:
                for future in futures:
                    future.cancel()
    return [found[place] for place in range(len(tasks))]


@contextmanager
def _sent() -> Iterator[None]:
    """Says what an executor's own errors come from."""
    try:
        yield
    except BrokenExecutor as error:
        raise ModelError(
            "a worker was ended before its work was (what `to` keeps is kept): is there too little memory, or is a "
            'script\'s pool not made under `if __name__ == "__main__":`?'
        ) from error
    except (PicklingError, AttributeError, TypeError) as error:
        if "pickle" not in str(error).lower():
            raise
        raise ModelError(
            "verbs and models must be such that workers can be sent them, with functions from the top of a module: "
            f"{error}"
        ) from error


def _read(path: Path) -> xr.Dataset:
    table = read_sealed(path)
    if table.attrs.pop(CELL, None) != path.stem:
        raise ModelError(f"table {str(path)!r} is of another cell: remove it, and it is made again")
    return table


def _merged(parts: list[xr.Dataset], model: Model, verbs: list[Verb]) -> xr.Dataset:
    import xarray as xr

    merged = xr.merge(parts, join="outer", combine_attrs="drop_conflicts") if len(parts) > 1 else parts[0]
    if "stream" in merged.dims:
        order = sorted(merged["stream"].values.tolist(), key=lambda label: (label == "joined", label))
        merged = merged.sel(stream=order)
    asked = "; ".join(f"{verb.name}({', '.join(f'{k}={v!r}' for k, v in verb.options.items())})" for verb in verbs)
    return merged.assign_attrs(witness="sweep", model=repr(model), verbs=asked)
