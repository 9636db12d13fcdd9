"""The full agreement matrix: every placement, activation, mask and scaling, theory judged by simulation.

Each cell of the matrix is one network with draws of its own. In every cell three deliberately wrong theories are judged
by the same measurement, so that agreement means something: uniform attention in place of softmax, another exponent
of ScaleInit, and another placement. A wrong theory counts where it differs from the right one by 10 % or more.

Among the several hundred thousand scores of the whole matrix a right theory has a few beyond 4 by chance. So a cell
that disagrees is measured once more, with other draws and four times as many: chance does not come twice, and an error
shows the more. The second verdict is the cell's; the first score is kept beside it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from propagate.files import replace
from propagate.model import ACTIVATIONS, Model, ModelError, as_placement
from propagate.placement import Placement, placements
from propagate.placements import ReZero
from propagate.scaling import ScaleInit
from propagate.table import FURTHER

if TYPE_CHECKING:
    import xarray as xr

MASKS = {"bidirectional": False, "causal": True}
SCALINGS = {"none": None, "ScaleInit 1/2": ScaleInit(0.5)}
APART = 0.1  # relative difference from which on a wrong theory must be told from the right one
FAR = 3.0  # |z| whose frequency is set beside what chance gives
AGAIN = 10**6  # added to the seed for a second measurement
OTHERS = ("spannorm", "postnorm", "siamesenorm", "residual")  # wrong placements: the first with as many streams
AS_VERIFIED: dict[str, Placement] = {"rezero": ReZero(a=0.2)}  # its own a = 0 leaves nothing to measure


@dataclass(frozen=True)
class Settings:
    """What all cells have in common. The first seven fields are those of `Model`, the rest those of `simulate`."""

    width: int = 256
    depth: int = 12
    tokens: int = 16
    heads: int = 4
    norm: str = "rms"
    logit_std: float = 1.0
    weights: str = "normal"
    covariance: float = 0.3
    grad_covariance: float = 0.0
    draws: int = 32
    seed: int = 0
    backend: str = "auto"
    sampler: str = "auto"
    precision: str = "float64"

    @property
    def network(self) -> dict[str, Any]:
        """Fields of the model."""
        names = ("width", "depth", "tokens", "heads", "norm", "logit_std", "weights")
        return {name: getattr(self, name) for name in names}

    @property
    def start(self) -> dict[str, Any]:
        """What enters the network at both ends."""
        return {"covariance": self.covariance, "grad_covariance": self.grad_covariance}

    @property
    def run(self) -> dict[str, Any]:
        """How it is simulated, but for the seed."""
        return {name: getattr(self, name) for name in ("draws", "backend", "sampler", "precision")}


@dataclass(frozen=True)
class Cell:
    """One network of the matrix.

    Example: a cell's seed depends on its name alone, so any selection of cells draws the same networks.
        >>> Cell("prenorm", "relu", "causal", "none").seed(0)
        2706395512
    """

    placement: str
    activation: str
    mask: str
    scaling: str

    def seed(self, seed: int) -> int:
        """Of the cell's draws, from the matrix's own."""
        return zlib.crc32(" ".join(dataclasses.astuple(self)).encode()) + seed * 2**32

    def model(self, settings: Settings) -> Model:
        """The cell's network."""
        return Model(
            AS_VERIFIED.get(self.placement, self.placement),
            activation=self.activation,
            causal=MASKS[self.mask],
            scaling=SCALINGS[self.scaling],
            **settings.network,
        )


@dataclass(frozen=True)
class Report:
    """Verdicts of the cells that were asked for.

    Attributes:
        rows: one dictionary a cell: its labels, `agrees`, the largest z with its `quantity` and `block`, the largest
            |z| of every quantity in `worst`, `scores` and how many of them lie `far` out, its `controls`, and, if it
            was measured twice, `first_z`.
    """

    settings: Settings
    rows: tuple[dict[str, Any], ...]

    @property
    def disagreeing(self) -> list[dict[str, Any]]:
        """Cells that do not agree; a network that the theory refuses is one of them."""
        return [row for row in self.rows if not row["agrees"]]

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
        """Totals. `far_by_chance`: how many scores beyond 3 a right theory would show, were all of them normal."""
        rejected = [control["rejected"] for control in self.controls]
        scores = sum(row.get("scores", 0) for row in self.rows)
        return {
            "cells": len(self.rows),
            "agree": len(self.rows) - len(self.disagreeing),
            "largest_z": max((abs(row["z"]) for row in self.rows if "z" in row), default=math.nan),
            "measured_again": sum("first_z" in row for row in self.rows),
            "controls": len(rejected),
            "controls_rejected": sum(rejected),
            "scores": scores,
            "far": sum(row.get("far", 0) for row in self.rows),
            "far_by_chance": round(scores * math.erfc(FAR / math.sqrt(2)), 1),
            "seconds": round(sum(row["seconds"] for row in self.rows), 1),
        }


def verifiable() -> list[str]:
    """Names of the registered placements, without those that need fields to be given.

    Example:
        >>> "spannorm" in verifiable()
        True
    """
    found = []
    for name in placements():
        try:
            as_placement(name)
        except ModelError:
            continue
        found.append(name)
    return found


def cells_of(
    placements: Sequence[str] | None = None,
    activations: Sequence[str] | None = None,
    masks: Sequence[str] | None = None,
    scalings: Sequence[str] | None = None,
) -> list[Cell]:
    """The cells of a selection; by default all.

    Raises:
        ModelError: for an unknown name.

    Example:
        >>> len(cells_of(["prenorm", "postnorm"], ["relu"]))
        8
    """
    names = [_name_of(name) for name in placements] if placements else verifiable()
    kinds = [
        _known(field, given, allowed)
        for field, given, allowed in (
            ("activation", activations, ACTIVATIONS),
            ("mask", masks, tuple(MASKS)),
            ("scaling", scalings, tuple(SCALINGS)),
        )
    ]
    return [Cell(*labels) for labels in itertools.product(names, *kinds)]


def _name_of(name: str) -> str:
    kind = type(as_placement(name))
    return next(key for key, registered in placements().items() if registered is kind)


def _known(field: str, given: Sequence[str] | None, allowed: tuple[str, ...]) -> tuple[str, ...]:
    for value in given or ():
        if value not in allowed:
            raise ModelError(f"{field} must be one of {', '.join(allowed)}, got {value!r}")
    return tuple(given or allowed)


def verify(
    cells: Sequence[Cell] | None = None,
    settings: Settings | None = None,
    *,
    out: Path | None = None,
    executor: Executor | None = None,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Report:
    """Judge each cell's prediction, and wrong ones, by its simulation.

    Args:
        cells: by default the whole matrix.
        settings: sizes, draws, seed, backend.
        out: a JSON file of results, written after each cell. Cells that it already holds are not run again.
        executor: where cells are run, one a task; by default here, one after another.
        report: called with each new row.

    Raises:
        ModelError: for settings that make no network, or a file that holds results of other settings.

    Example:
        >>> small = Settings(width=64, depth=2, tokens=4, heads=1, draws=16, backend="numpy")
        >>> verify(cells_of(["postnorm"], ["relu"], ["bidirectional"]), small).summary["agree"]
        2
    """
    cells, settings = cells_of() if cells is None else cells, settings or Settings()
    for cell in cells:
        cell.model(settings)  # refuses before any work starts
    known = _stored(out, settings) if out else {}
    todo = [cell for cell in cells if cell not in known]
    for cell, row in _rows(todo, settings, executor):
        known[cell] = row
        if out:
            _store(out, Report(settings, tuple(known.values())))
        report(row)
    if out and known:
        _store(out, Report(settings, tuple(known.values())))
    return Report(settings, tuple(known[cell] for cell in cells))


def _rows(
    cells: Sequence[Cell], settings: Settings, executor: Executor | None
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    task = partial(judged, settings)
    yield from zip(cells, executor.map(task, cells) if executor else map(task, cells), strict=True)


def judged(settings: Settings, cell: Cell) -> dict[str, Any]:
    """One row of the matrix: of a second measurement, where the first disagrees."""
    row = _judged_once(settings, cell)
    if row["agrees"] or "refused" in row:
        return row
    more = dataclasses.replace(settings, draws=4 * settings.draws, seed=settings.seed + AGAIN)
    return _judged_once(more, cell) | {"first_z": row["z"]}


def _judged_once(settings: Settings, cell: Cell) -> dict[str, Any]:
    import propagate as pg

    model, began = cell.model(settings), time.perf_counter()
    try:
        right = _best_prediction(model, settings)
    except ModelError as error:
        return asdict(cell) | {"agrees": False, "refused": str(error), "seconds": 0.0}
    measured = pg.simulate(model, seed=cell.seed(settings.seed), progress=False, **settings.start, **settings.run)
    found = pg.compare(right, measured)
    controls = [
        {"theory": name, "differs": _differ(right, wrong), "rejected": not pg.compare(wrong, measured).attrs["agrees"]}
        for name, wrong in _wrong_predictions(cell, settings, right)
    ]
    provenance = {key: measured.attrs[key] for key in ("sampler", "backend", "device", "propagate", "revision")}
    seconds = round(time.perf_counter() - began, 2)
    return asdict(cell) | _verdict(found) | {"controls": controls, "seconds": seconds} | provenance


def _verdict(found: xr.Dataset) -> dict[str, Any]:
    """Where theory and simulation lie farthest apart, and how often far apart.

    Scores are counted of moments over all tokens. Of a token's own only the largest is kept at each block; and what is
    exact on both sides, such as what enters, has score 0 and is not counted.
    """
    size = abs(found.z).fillna(-1.0)
    at = found.z.isel(size.argmax(list(found.z.dims)))
    whole = size.sel(quantity=[name for name in found["quantity"].values if name not in FURTHER])
    place = {str(name): at.coords[name].item() for name in found.z.dims}
    return {
        "agrees": bool(found.attrs["agrees"]),
        "z": round(float(at), 3),
        **place,
        "worst": {str(name): round(float(found.worst_z.sel(quantity=name)), 3) for name in found["quantity"].values},
        "scores": int((whole > 0).sum()),
        "far": int((whole > FAR).sum()),
    }


@lru_cache(maxsize=64)
def _prediction(model: Model, settings: Settings) -> xr.Dataset:
    import propagate as pg

    return pg.predict(model, **settings.start)


def _best_prediction(model: Model, settings: Settings) -> xr.Dataset:
    """With the bias of networks of this width, where it is covered; else with the stated allowance."""
    import propagate as pg

    limit = _prediction(model, settings)
    try:
        return pg.predict(model, bias=True, **settings.start)
    except ModelError:
        return limit


def _wrong_predictions(cell: Cell, settings: Settings, right: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    model = cell.model(settings)
    others = [dataclasses.replace(model, placement=name) for name in OTHERS if name != cell.placement]
    for name, wrong in (
        ("uniform attention", [dataclasses.replace(model, logit_std=0.0)]),
        ("ScaleInit 1/4", [dataclasses.replace(model, scaling=ScaleInit(0.25))]),
        ("another placement", others),
    ):
        for candidate in wrong:
            try:
                prediction = _prediction(candidate, settings)
            except ModelError:  # the wrong network may lie where the theory does not reach
                continue
            if prediction.sizes.get("stream") == right.sizes.get("stream"):
                yield name, prediction
                break


def _differ(one: xr.Dataset, other: xr.Dataset) -> bool:
    """Whether two predictions are 10 % or more apart somewhere, but for deviations that rounding swallows."""
    for name in ("variance", "deviation", "grad_variance"):
        seen = one[name] > 1e-12 * one[name.replace("deviation", "variance")]
        if bool((abs(other[name] / one[name] - 1).where(seen) >= APART).any()):
            return True
    return False


def _stored(path: Path, settings: Settings) -> dict[Cell, dict[str, Any]]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
        stored, rows = content["settings"], content["rows"]
        found = {Cell(*(row[field.name] for field in dataclasses.fields(Cell))): row for row in rows}
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"out must be a file of results, or a new one, got {str(path)!r}") from None
    if stored != asdict(settings):
        names = [name for name, value in asdict(settings).items() if stored.get(name) != value]
        raise ModelError(f"out must be a new file: {str(path)!r} holds results of another {', '.join(names)}")
    return found


def _store(path: Path, report: Report) -> None:
    content = {"settings": asdict(report.settings), "summary": report.summary, "rows": report.rows}
    replace(path, (json.dumps(content, indent=1) + "\n").encode())
