"""What the command line prints and writes: tables for people, JSON for programs, netCDF for later."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from propagate.files import replace
from propagate.model import ModelError
from propagate.table import STREAM

if TYPE_CHECKING:
    import xarray as xr

DISAGREE, BAD_INPUT = 1, 2  # exit codes


def refuse(error: Exception) -> NoReturn:
    """One line on standard error, and the exit code for bad input."""
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(BAD_INPUT) from None


def check_target(out: Path | None, option: str = "--out") -> None:
    """Before any work: the file's folder must exist."""
    if out is not None and not out.absolute().parent.is_dir():
        raise ModelError(f"{option} must lie in an existing folder, got {str(out)!r}")


def show(dataset: xr.Dataset, json: bool, out: Path | None) -> None:
    """A table of second moments: printed, at some of the blocks or as JSON, and written where `out` says."""
    write(dataset, out)
    if json:
        print_json(dataset)
        return
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
    error = f" ± {float(at[name + '_se']):.1g}" if f"{name}_se" in at else ""
    value = float(at[name])
    return f"{0.0 if abs(value) < 1e-15 else value:.5g}{error}"


def print_verdict(judged: xr.Dataset) -> None:
    """The worst place of each quantity, and whether theory and simulation agree."""
    rows = []
    for name in judged.quantity.values:
        one = judged.sel(quantity=name)
        at = one.isel(abs(one.z).fillna(-1).argmax(list(one.z.dims)))
        rows.append(
            (
                str(name),
                f"{float(at.predicted):.5g}",
                f"{float(at.measured):.5g}",
                _percent(float(at.standard_error)),
                _percent(float(at.allowance)),
                " ".join(str(at[place].values) for place in one.z.dims),
                f"{float(at.z):+.2f}",
                "agrees" if bool(one.agrees) else "DISAGREES",
            )
        )
    print_table(("quantity", "predicted", "measured", "std. error", "allowance", "worst block", "z", "verdict"), rows)
    attrs = judged.attrs
    verdict = "agree" if attrs["agrees"] else "disagree"
    typer.echo(
        f"Theory and simulation {verdict}: |z| < {attrs['threshold']:g}, {attrs['draws']} draws, {attrs['device']}."
    )
    if attrs["first_divergence"]:
        typer.echo(f"First divergence: {attrs['first_divergence']}.")


def _percent(share: float) -> str:
    return "0 %" if share < 1e-9 else f"{100 * share:.2g} %"


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
    """The table as a netCDF file, where one was asked for."""
    if out is not None:
        replace(out, bytes(dataset.to_netcdf(engine="scipy")))
