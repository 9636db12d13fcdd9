"""What the command line prints and writes: tables for people, JSON for programs, netCDF for later."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from propagate.model import ModelError

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
    from propagate.files import check_writable

    check_writable(out, option)


def show(dataset: xr.Dataset, json: bool, out: Path | None) -> None:
    """A table of second moments: printed, at some of the blocks or as JSON, then written where `out` says."""
    from propagate.readable import moments

    if json:
        print_json(dataset)
    else:
        print_table(*moments(dataset))
    write(dataset, out)


def print_verdict(judged: xr.Dataset) -> None:
    """The worst place of each quantity, and whether theory and simulation agree."""
    from propagate.readable import VERDICT, verdict_in_words, verdict_rows

    print_table(VERDICT, verdict_rows(judged))
    typer.echo(verdict_in_words(judged))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of text; those that begin with a number stand right."""
    from rich.console import Console

    from propagate.readable import in_columns

    Console(width=None if sys.stdout.isatty() else 160).print(in_columns(columns, rows))


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
    from propagate.files import replace_or_keep

    try:
        replace_or_keep(out, content)
    except ModelError as error:
        refuse(error)
