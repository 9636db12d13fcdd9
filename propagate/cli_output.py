"""What the command line prints and writes: tables for people, JSON for programs, netCDF for later."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from propagate.files import check_writable, replace_or_keep
from propagate.model import ModelError
from propagate.quantities import quantity_of
from propagate.table import STREAM

if TYPE_CHECKING:
    import xarray as xr

DISAGREE, BAD_INPUT, CANNOT_TELL, INTERRUPTED = 1, 2, 3, 130  # exit codes
EXIT_CODE = {"agrees": 0, "disagrees": DISAGREE, "cannot tell": CANNOT_TELL}


def refuse(error: Exception) -> NoReturn:
    """One line on standard error, and the exit code for bad input."""
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(BAD_INPUT) from None


def check_target(out: Path | None, option: str = "--out") -> None:
    """Before any work: the file must be one that can be written."""
    check_writable(out, option)


def show(dataset: xr.Dataset, json: bool, out: Path | None) -> None:
    """A table of second moments: printed, at some of the blocks or as JSON, then written where `out` says."""
    if json:
        print_json(dataset)
    else:
        _print_moments(dataset)
    write(dataset, out)


def _print_moments(dataset: xr.Dataset) -> None:
    names = [n for n in ("variance", "covariance", "deviation") if n in dataset]
    names += [f"grad_{n}" for n in names]
    depth = dataset.sizes["block"] - 1
    chosen = sorted({round(depth * i / 12) for i in range(13)})
    streams = [{STREAM: str(name)} for name in dataset[STREAM].values] if STREAM in dataset.dims else [{}]
    rows = []
    for stream in streams:
        for block in chosen:
            at = dataset.isel(block=block).sel(stream)
            if any(bool(at[name].notnull()) for name in names):  # between its ends "joined" is nowhere
                rows.append((str(block), *stream.values(), *(_cell(at, name) for name in names)))
    print_table(("block", *streams[0], *names), rows)


def _cell(at: xr.Dataset, name: str) -> str:
    of_error = quantity_of(name).column("se")
    error = f" ± {float(at[of_error]):.1g}" if of_error in at else ""
    value = float(at[name])
    return f"{0.0 if abs(value) < 1e-15 else value:.5g}{error}"


def print_verdict(judged: xr.Dataset) -> None:
    """The worst place of each quantity, and whether theory and simulation agree."""
    rows = []
    for name in judged.quantity.values:
        one = judged.sel(quantity=name)
        verdict = str(one.verdict.item())
        size = one.unresolved if verdict == "cannot tell" else abs(one.z)
        at = one.isel(size.fillna(-1.0).argmax(list(size.dims)))
        uncertain = (_uncertainty(at, str(name), key) for key in ("standard_error", "allowance", "detectable"))
        rows.append(
            (
                str(name),
                f"{float(at.predicted):.5g}",
                f"{float(at.measured):.5g}",
                *uncertain,
                " ".join(str(at[place].values) for place in one.z.dims),
                f"{float(at.z):+.2f}",
                "DISAGREES" if verdict == "disagrees" else verdict,
            )
        )
    columns = ("quantity", "predicted", "measured", "std. error", "allowance", "detects")
    print_table((*columns, "worst block", "z", "verdict"), rows)
    attrs = judged.attrs
    verdict = {"agrees": "Theory and simulation agree", "disagrees": "Theory and simulation disagree"}.get(
        attrs["verdict"], "The simulation cannot tell"
    )
    told = f"errors beyond {_percent(float(judged.unresolved.max()))} would show, "
    told = told if attrs["verdict"] == "agrees" else ""
    typer.echo(f"{verdict}: |z| < {attrs['threshold']:g}, {told}{attrs['draws']} draws, {attrs['device']}.")
    if attrs["first_divergence"]:
        typer.echo(f"First divergence: {attrs['first_divergence']}.")
    if attrs["cannot_tell"]:
        typer.echo(f"Least is known of {attrs['cannot_tell']}.")


def _uncertainty(at: xr.Dataset, name: str, key: str) -> str:
    """In percent; of a covariance, which may be next to nothing, as it is."""
    share = 0.0 if float(at[key]) < 1e-9 else float(at[key])
    return f"{share * float(at.scale):.2g}" if not quantity_of(name).positive else _percent(share)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 10 else "> 1000 %"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of text; those that begin with a number stand right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(header_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i and rows and rows[0][i][:1] in "0123456789+-n" else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def print_json(dataset: xr.Dataset) -> None:
    """All variables and attributes; what is no number becomes null."""
    import json

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and value != value else value

    content = {"attributes": {k: getattr(v, "item", lambda v=v: v)() for k, v in dataset.attrs.items()}}
    content |= {str(name): plain(array.values.tolist()) for name, array in dataset.variables.items()}
    typer.echo(json.dumps(content))


def write(dataset: xr.Dataset, out: Path | None) -> None:
    """The table as a netCDF file, where one was asked for; a table that cannot be written is kept elsewhere."""
    if out is not None:
        keep(out, bytes(dataset.to_netcdf(engine="scipy")))


def keep(out: Path, content: bytes) -> None:
    """Write a result; if that fails, say where it is and end with the exit code for bad input."""
    try:
        replace_or_keep(out, content)
    except ModelError as error:
        refuse(error)
