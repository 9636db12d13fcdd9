"""`propagate figures`: the checkout's figures, made again or drawn for a column."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from propagate.cli_output import print_table, refuse
from propagate.model import ModelError


def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all if none is named.")] = None,
    list_them: Annotated[bool, typer.Option("--list", help="Only list their names.")] = False,
    full: Annotated[bool, typer.Option("--full", help="More draws and a larger width; hours on a CPU.")] = False,
    column: Annotated[
        bool, typer.Option("--column", help="Only draw the committed data, 3.3 inches wide with text of 7 points.")
    ] = False,
    backend: Annotated[str, typer.Option(help="numpy or cupy; the committed figures are numpy's.")] = "numpy",
    to: Annotated[Path | None, typer.Option(help="Folder to write to; by default build/figures.")] = None,
) -> None:
    """Regenerate the figures: their data, their pictures and their captions, compared with those that are committed.

    With --to figures, in the checkout, they take their place.
    """
    from propagate import figures as scripts
    from propagate.figure_comparison import compared

    try:
        if list_them:
            typer.echo("\n".join(scripts.names()))
        elif column and (full or backend != "numpy"):
            raise ModelError("--column draws the committed data: it takes no --full and no --backend")
        elif column:
            typer.echo("\n".join(map(str, scripts.at_column_width(names or None, to=to))))
        else:
            chosen, committed = names or scripts.names(), scripts.ROOT / "figures"
            written = scripts.regenerate(chosen, full=full, backend=backend, to=to, progress=True)
            for path in written:
                typer.echo(path)
            data = [path for path in written if path.suffix == ".nc" and path.parent.resolve() != committed]
            if data:
                rows = [(path.stem, compared(path, committed / path.name)) for path in data]
                print_table(("figure", "beside the committed data"), rows)
    except ModelError as error:
        refuse(error)
