"""The full agreement matrix: every placement, activation, mask and scaling, and variants of the network, theory judged
by simulation.

Each cell of the matrix is one network with draws of its own. In every cell deliberately wrong theories are judged by
the same measurement, so that agreement means something: another exponent of ScaleInit, another placement, and what is
near the variant (of the plain network, uniform attention in place of softmax). A wrong theory counts where it differs
from the right one by 10 % or more.

Among the several hundred thousand scores of the whole matrix a right theory has a few beyond 4 by chance. So a cell
that disagrees is measured once more, with other draws and four times as many: chance does not come twice, and an error
shows the more. The second verdict is the cell's; the first score is kept beside it. A cell agrees only if it could have
told: see `compare`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from propagate.calibration import beyond, calibration, detected, scores_of
from propagate.cells import AS_VERIFIED, SCALINGS
from propagate.cells import Cell as Cell
from propagate.cells import Settings as Settings
from propagate.cells import cells_of as cells_of
from propagate.checks import shown
from propagate.files import check_writable, is_folder
from propagate.identity import described, digest
from propagate.kept_tables import write_table
from propagate.model import ModelError, as_placement
from propagate.own_functions import functions_of_placement
from propagate.quantities import QUANTITIES
from propagate.scaling import ScaleInit
from propagate.table import provenance
from propagate.variants import VARIANTS, Theory
from propagate.verdicts import CANNOT_TELL, DISAGREES
from propagate.verification_files import read_results, read_table, write_results

if TYPE_CHECKING:
    import xarray as xr

APART = 0.1  # relative difference from which on a wrong theory must be told from the right one
ROUTERS = 8  # of the theory, for every network that is drawn
AGAIN = 10**6  # added to the seed for a second measurement
OTHERS = ("spannorm", "postnorm", "siamesenorm", "residual")  # wrong placements: the first with as many streams


@dataclass(frozen=True)
class Report:
    """Verdicts of the cells that were asked for.

    Attributes:
        rows: one dictionary a cell: its labels, `verdict`, `agrees`, the largest z with its `quantity` and `block`,
            the largest |z| of every quantity in `worst`, what `scores_of` says `by_quantity`, its `controls`, and, if
            it was measured twice, `first_z`.
    """

    settings: Settings
    rows: tuple[dict[str, Any], ...]

    @property
    def disagreeing(self) -> list[dict[str, Any]]:
        """Cells that disagree; a network that the theory refuses is one of them."""
        return [row for row in self.rows if row["verdict"] == DISAGREES]

    @property
    def undecided(self) -> list[dict[str, Any]]:
        """Cells whose measurement cannot tell."""
        return [row for row in self.rows if row["verdict"] == CANNOT_TELL]

    @property
    def controls(self) -> list[dict[str, Any]]:
        """Wrong theories that differ by 10 % or more, each with its cell's labels and whether it was rejected."""
        labels = [field.name for field in dataclasses.fields(Cell)]
        return [
            {name: row[name] for name in labels} | control
            for row in self.rows
            for control in row.get("controls", ())
            if control["differs"]
        ]

    @property
    def summary(self) -> dict[str, Any]:
        """Totals. `far`: scores beyond 3; `far_by_chance`: how many there would be, were all of them normal;
        `calibration` of them by placement, variant and quantity; `detects`: what errors would have shown (see
        `detected`).
        """
        rejected = [control["rejected"] for control in self.controls]
        groups = {
            "quantity": calibration(self.rows, lambda row, quantity: quantity),
            "placement": calibration(self.rows, lambda row, quantity: str(row["placement"])),
            "variant": calibration(self.rows, lambda row, quantity: str(row["variant"])),
            "placement, quantity": calibration(self.rows, lambda row, quantity: f"{row['placement']}, {quantity}"),
        }
        scores = sum(group["scores"] for group in groups["quantity"].values())
        return {
            "cells": len(self.rows),
            "agree": sum(row["agrees"] for row in self.rows),
            "cannot_tell": len(self.undecided),
            "largest_z": max((abs(row["z"]) for row in self.rows if "z" in row), default=math.nan),
            "measured_again": sum("first_z" in row for row in self.rows),
            "controls": len(rejected),
            "controls_rejected": sum(rejected),
            "scores": scores,
            "far": sum(group["beyond_3"] for group in groups["quantity"].values()),
            "far_by_chance": round(scores * beyond(3.0), 1),
            "detects": detected(self.rows),
            "calibration": groups,
            "seconds": round(sum(row["seconds"] for row in self.rows), 1),
        }


def verify(
    cells: Sequence[Cell] | None = None,
    settings: Settings | None = None,
    *,
    out: Path | None = None,
    tables: Path | None = None,
    executor: Executor | None = None,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Report:
    """Judge each cell's prediction, and wrong ones, by its simulation.

    Args:
        cells: by default the whole matrix.
        settings: sizes, draws, seed, backend.
        out: a JSON file of results, written after each cell. Cells that it already holds are not run again. It keeps
            the placements' and scalings' texts, too: with an edited one, or another version, it is refused.
        tables: a folder of measured tables, one netCDF file a cell and seed: those that it holds are judged as they
            are, the others are measured and added. So a changed theory is judged again in minutes, without a GPU. An
            edited placement or scaling, or another version, is measured anew, into another file.
        executor: where cells are run, one a task; by default here, one after another.
        report: called with each new row.

    Raises:
        ModelError: for settings that make no network, or a file that holds results of other settings or other texts.

    Example:
        >>> small = Settings(width=256, depth=2, tokens=4, heads=4, draws=128, backend="numpy")
        >>> verify(cells_of(["postnorm"], ["relu"], ["bidirectional"]), small).summary["agree"]
        2
    """
    cells, settings = cells_of() if cells is None else cells, Settings() if settings is None else settings
    if not isinstance(settings, Settings):
        raise ModelError(f"settings must be Settings, got {shown(settings)}")
    if not isinstance(cells, list | tuple) or not all(isinstance(cell, Cell) for cell in cells):
        raise ModelError(f"cells must be a list of cells, such as cells_of() gives, got {shown(cells)}")
    for name, path in (("out", out), ("tables", tables)):
        if not isinstance(path, Path | None):
            raise ModelError(f"{name} must be a pathlib.Path, got {shown(path)}")
    check_writable(out, "out")
    if tables is not None and not is_folder(tables):
        raise ModelError(f"tables must be an existing folder, got {str(tables)!r}")
    for cell in cells:
        cell.model(settings)  # refuses before any work starts
    texts = {name: text for cell in cells for name, text in _text_of(cell).items()} if out else {}
    known: dict[Cell, dict[str, Any]] = {}
    if out:
        known, texts = read_results(out, settings, texts)
    todo = [cell for cell in cells if cell not in known]
    for cell, row in _rows(todo, settings, tables, executor):
        known[cell] = row
        if out:
            _write(out, Report(settings, tuple(known.values())), texts)
        report(row)
    if out and known:
        _write(out, Report(settings, tuple(known.values())), texts)
    return Report(settings, tuple(known[cell] for cell in cells))


def _rows(
    cells: Sequence[Cell], settings: Settings, tables: Path | None, executor: Executor | None
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    task = partial(judged, settings, tables=tables)
    yield from zip(cells, executor.map(task, cells) if executor else map(task, cells), strict=True)


def judged(settings: Settings, cell: Cell, tables: Path | None = None) -> dict[str, Any]:
    """One row of the matrix: of a second measurement, where the first disagrees."""
    row = _judged_once(settings, cell, tables)
    if row["verdict"] != DISAGREES or "refused" in row:
        return row
    more = dataclasses.replace(settings, draws=4 * settings.draws, seed=settings.seed + AGAIN)
    return _judged_once(more, cell, tables) | {"first_z": row["z"]}


def measured(settings: Settings, cell: Cell, tables: Path | None = None) -> xr.Dataset:
    """The cell's simulation, from the folder of tables if it is there."""
    path = None if tables is None else tables / table_name(settings, cell)
    if path and path.exists():
        return read_table(path, settings.depth)
    found = VARIANTS[cell.variant].measured(cell.model(settings), settings, cell.seed(settings.seed))
    if path:
        write_table(path, found)
    return found


def table_name(settings: Settings, cell: Cell) -> str:
    """Of the file in which a measured table is kept: other settings or seeds, another version, and another text of the
    placement or the scaling, have another.

    Example:
        >>> cell = Cell("prenorm", "relu", "causal", "none")
        >>> table_name(Settings(seed=1), cell).rpartition("_")[0]
        'prenorm_relu_causal'
        >>> table_name(Settings(seed=1), cell) == table_name(Settings(), cell)
        False
    """
    label = digest([asdict(settings), cell.labels, _text_of(cell)])
    return f"{cell.placement}_{cell.activation}_{cell.mask}_{label}.nc"


def _text_of(cell: Cell) -> dict[str, Any]:
    """What a cell's network is drawn from, but for the settings."""
    placement = AS_VERIFIED.get(cell.placement) or as_placement(cell.placement)
    texts = {cell.placement: described(placement), cell.scaling: described(SCALINGS[cell.scaling])}
    return {"propagate": provenance()["propagate"]} | texts | functions_of_placement(placement)


def _judged_once(settings: Settings, cell: Cell, tables: Path | None) -> dict[str, Any]:
    import propagate as pg

    began = time.perf_counter()
    try:
        right = _best_prediction(cell, settings)
    except ModelError as error:
        return asdict(cell) | {"verdict": DISAGREES, "agrees": False, "refused": str(error), "seconds": 0.0}
    seen = measured(settings, cell, tables)
    controls = [
        {"theory": name, "differs": _differ(right, wrong), "rejected": _rejected(wrong, seen)}
        for name, wrong in _wrong_predictions(cell, settings, right)
    ]
    provenance = {key: seen.attrs[key] for key in ("sampler", "backend", "device", "propagate", "revision")}
    seconds = round(time.perf_counter() - began, 2)
    found = pg.compare(right, seen)
    return asdict(cell) | _verdict(found) | {"controls": controls, "seconds": seconds} | provenance


def _rejected(wrong: xr.Dataset, seen: xr.Dataset) -> bool:
    import propagate as pg

    return bool(pg.compare(wrong, seen).attrs["verdict"] == DISAGREES)


def _verdict(found: xr.Dataset) -> dict[str, Any]:
    """What `compare` says, where theory and simulation lie farthest apart, and how far apart they lie how often."""
    size = abs(found.z).fillna(-1.0)
    at = found.z.isel(size.argmax(list(found.z.dims)))
    place = {str(name): at.coords[name].item() for name in found.z.dims}
    return {
        "verdict": found.attrs["verdict"],
        "agrees": bool(found.attrs["agrees"]),
        **({"cannot_tell": found.attrs["cannot_tell"]} if found.attrs["cannot_tell"] else {}),
        "z": round(float(at), 3),
        **place,
        "worst": {str(name): round(float(found.worst_z.sel(quantity=name)), 3) for name in found["quantity"].values},
        "by_quantity": scores_of(found),
    }


def _best_prediction(cell: Cell, settings: Settings) -> xr.Dataset:
    """With the bias of networks of this width, where it is covered; else with the stated allowance; and of so many
    routers, where they are drawn, that what these are off by, the same in every cell, is small beside the measurement's
    error.
    """
    model, predicted = cell.model(settings), VARIANTS[cell.variant].predicted
    if model.uneven:
        return predicted(model, settings, samples=ROUTERS * settings.draws)
    limit = predicted(model, settings)
    try:
        return predicted(model, settings, include={"bias"})
    except ModelError:
        return limit


def _wrong_predictions(cell: Cell, settings: Settings, right: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    model, variant = cell.model(settings), VARIANTS[cell.variant]

    def of(**changes: Any) -> Theory:
        return lambda model, settings: variant.predicted(dataclasses.replace(model, **changes), settings)

    wrong = {name: [theory] for name, theory in variant.wrong.items()} | {
        "ScaleInit 1/4": [of(scaling=ScaleInit(0.25))],
        "another placement": [of(placement=name) for name in OTHERS if name != cell.placement],
    }
    for name, candidates in wrong.items():
        for theory in candidates:
            try:
                prediction = theory(model, settings)
            except ModelError:  # the wrong network may lie where the theory does not reach
                continue
            if prediction.sizes.get("stream") == right.sizes.get("stream"):
                yield name, prediction
                break


def _differ(one: xr.Dataset, other: xr.Dataset) -> bool:
    """Whether two predictions are 10 % or more apart somewhere, but for deviations that rounding swallows."""
    for name in {"variance", "deviation", "grad_variance"} & set(one):  # one token has no deviation
        seen = one[name] > 1e-12 * one[QUANTITIES[name].relative_to or name]
        if bool((abs(other[name] / one[name] - 1).where(seen) >= APART).any()):
            return True
    return False


def _write(path: Path, report: Report, texts: dict[str, Any]) -> None:
    content = {
        "settings": asdict(report.settings),
        "summary": report.summary,
        "drawn from": texts,
        "rows": report.rows,
    }
    write_results(path, content)
