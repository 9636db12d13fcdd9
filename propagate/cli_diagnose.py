"""`propagate diagnose`: what large runs watch for their stability, on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from propagate.cli_output import DISAGREE, check_target, print_json, print_table, write
from propagate.model import Model

TRAINING, OUTPUT = "Loss and optimiser", "Output"


def _training(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=TRAINING)


def diagnose(
    *,
    model: Model,
    start: dict[str, Any],
    system: Any,  # a Configuration, or None
    eps: Annotated[float, _training("Of Adam.")] = 1e-8,
    batch: Annotated[int, _training("Sequences of a batch.")] = 1,
    vocabulary: Annotated[int, _training("Entries, which hardly matter.")] = 32768,
    unembedding: Annotated[
        float | None, _training("Gain of the unembedding; of a released system its own, else 1.")
    ] = None,
    z_weight: Annotated[float | None, _training("Of a hidden z-loss; by default how large it may be.")] = None,
    balance_weight: Annotated[float | None, _training("Of the load-balance loss, likewise.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.", rich_help_panel=OUTPUT)] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write the table to this netCDF file.", rich_help_panel=OUTPUT)
    ] = None,
) -> None:
    """Whether Adam's eps is felt, how large a hidden z-loss is, and whether routers are healthy, at initialisation.

    Exit code 1 if something is trouble.
    """
    import propagate as pg
    from propagate.diagnosis import COLUMNS, rows

    check_target(out)
    loss = pg.CrossEntropy(vocabulary, gain=1.0 if unembedding is None else unembedding)
    if system is not None and unembedding is None:
        loss = system.loss(vocabulary)
    found = pg.diagnose(
        model,
        pg.Adam(lr=1.0, eps=eps),
        start=pg.Start(**start),
        loss=loss,
        batch=batch,
        z_weight=z_weight,
        balance_weight=balance_weight,
    )
    if json:
        print_json(found.table)
    else:
        print_table(COLUMNS, rows(found))
        typer.echo(f"verdict: {found.verdict}")
    write(found.table, out)
    raise typer.Exit(DISAGREE if found.verdict == "trouble" else 0)
