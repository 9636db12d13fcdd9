"""`propagate grow`: a network stacked on itself, on the command line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from propagate.cli_output import EXIT_CODE, check_target, print_json, print_table, write
from propagate.model import Model
from propagate.table import STREAM

if TYPE_CHECKING:
    import xarray as xr

GROWTH, RUN, OUTPUT = "Growth", "Simulation", "Output"
SHOWN = {"variance": "stream", "grad_variance": "gradient"}
LINES = 13


def _growth(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=GROWTH)


def _run(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=RUN)


def grow(
    *,
    model: Model,
    start: dict[str, Any],
    times: Annotated[int, _growth("Copies that are stacked.")] = 2,
    rescaled: Annotated[bool, _growth("Give branches the gains of the new depth.", "--rescaled")] = False,
    through_readout: Annotated[
        bool, _growth("The gradient enters behind the final norm.", "--through-readout")
    ] = False,
    draws: Annotated[int, _run("Also simulate so many random networks, and judge; 0 is none.")] = 0,
    seed: Annotated[int, _run("The same seed gives the same networks.")] = 0,
    backend: Annotated[str, _run("auto, numpy or cupy.")] = "auto",
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of a table.", rich_help_panel=OUTPUT)
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write the table to this netCDF file.", rich_help_panel=OUTPUT)
    ] = None,
) -> None:
    """A network of --depth blocks stacked on itself: stream and gradient before, after, and were all weights fresh.

    With --draws, exit code 1 if theory and simulation disagree, 3 if the simulation cannot tell.
    """
    import propagate as pg

    check_target(out)
    ends = pg.Start(**start)
    options: dict[str, Any] = {"times": times, "rescaled": rescaled, "through_readout": through_readout}
    after = pg.predict_growth(model, ends, **options)
    found = _beside(after, pg.predict(model, ends, through_readout=through_readout), "before")
    code, words = 0, ""
    if draws:
        from propagate.readable import verdict_in_words

        run: dict[str, Any] = {"draws": draws, "seed": seed, "backend": backend}
        seen = pg.simulate_growth(model, ends, **options, **run)
        judged = pg.compare(after, seen)
        code, words = EXIT_CODE[judged.attrs["verdict"]], verdict_in_words(judged)
        found = _beside(found, seen, "measured").assign_attrs(verdict=judged.attrs["verdict"], draws=draws)
    if json:
        print_json(found)
    else:
        print_table(*_lines(found, model.depth))
        if words:
            typer.echo(words)
    write(found, out)
    raise typer.Exit(code)


def _beside(found: xr.Dataset, other: xr.Dataset, what: str) -> xr.Dataset:
    """With the moments of another table, which may have fewer blocks."""
    names = [name for name in found if name in other and f"{name}_fresh" in found]
    there = other[names].reindex(block=found.block)
    columns = {f"{name}_{what}": there[name] for name in names}
    if what == "measured":
        columns |= {f"{name}_measured_se": other[f"{name}_se"] for name in names}
    return found.assign(columns)


def _lines(found: xr.Dataset, depth: int) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """At the ends of all copies and between them, at up to `LINES` blocks."""
    last = found.sizes["block"] - 1
    seams = set(range(0, last + 1, depth)) if last // depth < LINES else {0, last}
    blocks = sorted(seams | {round(last * i / (LINES - 1)) for i in range(LINES)})
    streams = [{STREAM: str(name)} for name in found[STREAM].values] if STREAM in found.dims else [{}]
    kinds = [kind for kind in ("before", "", "fresh", "measured") if _column("variance", kind) in found]
    columns = (
        "block",
        "copy",
        *streams[0],
        *(f"{word} {kind or 'after'}" for word in SHOWN.values() for kind in kinds),
    )
    rows = []
    for stream in streams:
        for block in blocks:
            at = found.isel(block=block).sel(stream)
            if math.isnan(float(at.variance)):  # between its ends "joined" is nowhere
                continue
            cells = [_cell(at, name, kind) for name in SHOWN for kind in kinds]
            rows.append((str(block), str(math.ceil(block / depth) or 1), *stream.values(), *cells))
    return columns, rows


def _column(name: str, kind: str) -> str:
    return f"{name}_{kind}" if kind else name


def _cell(at: xr.Dataset, name: str, kind: str) -> str:
    value = float(at[_column(name, kind)])
    if math.isnan(value):
        return "-"
    error = f" ± {float(at[f'{name}_measured_se']):.2g}" if kind == "measured" else ""
    return f"{value:.5g}{error}"
