"""`propagate sweep`: grids of networks on the command line."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from propagate.cli_output import check_target, print_table, write
from propagate.model import Model, ModelError
from propagate.start import Start

GRID, RUN, OUTPUT = "Grid", "Simulation", "Output"
VERBS = ("predict", "simulate", "compare")
SHOWN = ("variance", "deviation", "grad_variance", "verdict")
"""What is printed of a cell: at the last block, of gradients at the first; of verdicts how many there are of each."""


def _grid(text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=GRID, **more)


def _run(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=RUN)


def sweep(
    *,
    model: Model,
    start: dict[str, Any],
    over: Annotated[
        list[str],
        _grid("An axis, such as depth=4,8 or placement=prenorm,postnorm.", "--over"),
    ],
    verb: Annotated[list[str] | None, _grid("predict, simulate or compare; predict by default.", "--verb")] = None,
    draws: Annotated[int, _run("Independent random networks a cell.")] = 64,
    seed: Annotated[int, _run("The same in every cell.")] = 0,
    backend: Annotated[str, _run("auto, numpy or cupy.")] = "auto",
    sampler: Annotated[str, _run("auto, dense or weightless.")] = "auto",
    workers: Annotated[int, _run("Processes that share the cells; with GPUs, in turn.")] = 1,
    to: Annotated[
        Path | None,
        typer.Option(help="Folder of finished cells: the same command goes on from it.", rich_help_panel=OUTPUT),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write the table to this netCDF file.", rich_help_panel=OUTPUT)
    ] = None,
) -> None:
    """Every network of a grid: predicted, simulated or both and judged, as one table."""
    import dataclasses

    import propagate as pg
    from propagate.checks import choice, integer
    from propagate.montecarlo.workers import MOST_WORKERS, ended_at_once
    from propagate.scaling import ScaleInit

    check_target(out)
    axes = dict(map(axis_of, over))
    if len(axes) < len(over):
        raise ModelError("--over must name every axis once")
    if model.scaling is None and any(path.startswith("scaling.") for path in axes):
        model = dataclasses.replace(model, scaling=ScaleInit(0.0))
    given = Start(**start)
    run = {"draws": draws, "seed": seed, "backend": backend, "sampler": sampler}
    for name in verb or ():
        choice("--verb", name, VERBS)
    verbs = {name: {"start": given} | ({} if name == "predict" else run) for name in verb or ("predict",)}
    integer("workers", workers, at_most=MOST_WORKERS)
    with nullcontext() if workers == 1 else pg.process_pool(workers) as pool, ended_at_once(pool):
        found = pg.sweep(model, axes, verbs, executor=pool, to=to, progress=True)
    _print(found, [path.rpartition(".")[2] if path.rpartition(".")[2] in found.dims else path for path in axes])
    write(found, out)


def axis_of(text: str) -> tuple[str, list[Any]]:
    """A path and its values, from words.

    Raises:
        ModelError: for anything else.

    Example:
        >>> axis_of("scaling.exponent=0,0.5"), axis_of("placement=prenorm")
        (('scaling.exponent', [0, 0.5]), ('placement', ['prenorm']))
    """
    path, sign, values = text.partition("=")
    words = [word.strip() for word in values.split(",")]
    if not path.strip() or not sign or not all(words):
        raise ModelError(f"--over must be PATH=VALUE,VALUE, such as depth=4,8, got {text!r}")
    return path.strip(), [_value(word) for word in words]


def _value(word: str) -> Any:
    if word in ("true", "false"):
        return word == "true"
    try:
        return int(word)
    except ValueError:
        pass
    try:
        value = float(word)
    except ValueError:
        return word
    return value if math.isfinite(value) else word


def _print(found: Any, axes: list[str]) -> None:
    names = [str(name) for name in found.data_vars if str(name).split("_", 1)[-1] in SHOWN or str(name) in SHOWN]
    rows = []
    for index in itertools.product(*(range(found.sizes[axis]) for axis in axes)):
        at = found.isel(dict(zip(axes, index, strict=True)))
        rows.append((*(str(at[axis].item()) for axis in axes), *(_shown(at[name]) for name in names)))
    print_table((*axes, *names), rows)


def _shown(values: Any) -> str:
    values = values.sel(stream="joined") if "stream" in values.dims else values
    if values.dtype.kind in "OUST":
        counts = Counter(word for word in values.to_numpy().ravel().tolist() if word)
        return ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
    numbers = values.to_numpy()
    numbers = numbers[numbers == numbers]
    return f"{numbers[0 if 'grad_' in str(values.name) else -1]:.5g}" if numbers.size else ""
