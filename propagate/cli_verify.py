"""`propagate verify`: the agreement matrix on the command line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from propagate.cli_output import CANNOT_TELL, DISAGREE, check_target, print_table, refuse
from propagate.model import ModelError

if TYPE_CHECKING:
    from propagate.verification import Report

WHICH, SIZE, RUN = "Which cells", "Networks", "Simulation"


def _which(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=WHICH)


def _size(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=SIZE)


def _run(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=RUN)


def verify(
    placements: Annotated[
        list[str] | None, typer.Argument(help="Placements; all that are registered if none is named.")
    ] = None,
    activation: Annotated[list[str] | None, _which("One or more, each with -a; all by default.", "-a")] = None,
    mask: Annotated[list[str] | None, _which("bidirectional or causal; both by default.", "--mask")] = None,
    scaling: Annotated[list[str] | None, _which("none or 'ScaleInit 1/2'; both by default.", "--scaling")] = None,
    variant: Annotated[
        list[str] | None, _which("plain, experts, growth and others, each with --variant; all by default.", "--variant")
    ] = None,
    width: Annotated[int, _size("Coordinates of the stream.")] = 256,
    depth: Annotated[int, _size("Blocks.")] = 12,
    tokens: Annotated[int, _size("Tokens in the sequence.")] = 16,
    heads: Annotated[int, _size("Attention heads; they divide the width.")] = 4,
    norm: Annotated[str, _size("rms or layer.")] = "rms",
    logit_std: Annotated[float, _size("Standard deviation of an attention logit.")] = 1.0,
    covariance: Annotated[float, _size("Second moment between two input tokens.")] = 0.3,
    grad_covariance: Annotated[float, _size("The same of the gradient at the last block.")] = 0.0,
    draws: Annotated[int, _run("Independent random networks a cell.")] = 32,
    seed: Annotated[int, _run("The same seed gives the same networks.")] = 0,
    backend: Annotated[str, _run("auto, numpy or cupy.")] = "auto",
    sampler: Annotated[str, _run("auto, dense or weightless.")] = "auto",
    precision: Annotated[str, _run("float32 or float64.")] = "float64",
    workers: Annotated[int, _run("Processes that share the cells; with GPUs, in turn.")] = 1,
    out: Annotated[
        Path | None, _run("JSON file of results, written after each cell: the same command goes on from it.")
    ] = None,
    tables: Annotated[
        Path | None, _run("Folder of measured tables: those it holds are judged again, others are added.")
    ] = None,
) -> None:
    """Theory against simulation, and wrong theories too, for every placement, activation, mask, scaling and variant.

    A cell that disagrees is measured once more, with four times the draws. Exit code 1 if it disagrees again, 3 if none
    does and some cannot tell.
    """
    from propagate.progress import progress_bar
    from propagate.verification import Settings, cells_of
    from propagate.verification import verify as verify_cells

    given = locals()
    settings = Settings(**{field.name: given[field.name] for field in fields(Settings) if field.name in given})
    try:
        check_target(out)
        cells = cells_of(placements, activation, mask, scaling, variant)
        with _pool(workers) as pool, progress_bar(True, len(cells), 0, "cells") as advance:

            def report(row: dict[str, Any]) -> None:
                advance(1, _label(row))

            found = verify_cells(cells, settings, out=out, tables=tables, executor=pool, report=report)
    except ModelError as error:
        refuse(error)
    _print(found)
    raise typer.Exit(DISAGREE if found.disagreeing else CANNOT_TELL if found.undecided else 0)


@contextmanager
def _pool(workers: int) -> Iterator[Any]:
    """None, or processes with one thread each."""
    from propagate.checks import integer
    from propagate.figures import one_thread
    from propagate.montecarlo.workers import MOST_WORKERS, ended_at_once

    integer("workers", workers, at_most=MOST_WORKERS)
    if workers == 1:
        yield None
        return
    import propagate as pg

    with one_thread(), pg.process_pool(workers) as pool, ended_at_once(pool):
        yield pool


def _print(found: Report) -> None:
    labels = ("placement", "activation", "variant", "mask", "scaling")
    cells = {tuple(row[name] for name in labels): row for row in found.rows}
    lines = dict.fromkeys(key[:3] for key in cells)
    columns = list(dict.fromkeys(key[3:] for key in cells))
    rows = [(*line, *(_cell(cells.get(line + column)) for column in columns)) for line in lines]
    print_table((*labels[:3], *(", ".join(column) for column in columns)), rows)
    for row in found.disagreeing:
        what = row.get("refused") or f"{row['quantity']} at block {row['block']}, z = {row['z']:+.2f}"
        typer.echo(f"DISAGREES: {_label(row)}: {what}")
    for row in itertools.islice(found.undecided, 20):
        typer.echo(f"cannot tell: {_label(row)}: {row['cannot_tell']}")
    for row in found.rows:
        if "first_z" in row:
            typer.echo(f"measured again: {_label(row)}: first z = {row['first_z']:+.2f}, then {row['z']:+.2f}")
    for control in itertools.islice((c for c in found.controls if not c["rejected"]), 20):
        typer.echo(f"not rejected: {_label(control)}: {control['theory']}")
    total = found.summary
    for by in ("placement", "variant", "quantity"):
        _print_calibration(by, total["calibration"][by])
    rows = [(name, *(f"{100 * share:.2g} %" for share in one.values())) for name, one in total["detects"].items()]
    print_table(("errors that would have shown", "median cell", "19 of 20 cells", "worst cell"), rows)
    typer.echo(
        f"{total['agree']} of {total['cells']} cells agree, {total['cannot_tell']} cannot tell, largest |z| "
        f"{total['largest_z']:.2f}, measured again {total['measured_again']}; "
        f"controls rejected {total['controls_rejected']} of {total['controls']}; "
        f"|z| > 3 in {total['far']} of {total['scores']} scores (of one cell correlated), "
        f"by chance {total['far_by_chance']:g}."
    )


def _print_calibration(by: str, groups: dict[str, dict[str, Any]]) -> None:
    from propagate.calibration import COLUMNS

    rows = [(name, *(f"{one[column]:g}" for column in COLUMNS), str(one["cells"])) for name, one in groups.items()]
    print_table((by, *(column.replace("_", " ") for column in COLUMNS), "cells"), rows)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "refused" in row:
        return "[bold red]refused[/]"
    text = f"{abs(row['z']):.2f} {row['quantity']} {row['block']}"
    return text if row["agrees"] else f"[bold red]{text}[/]"


def _label(row: dict[str, Any]) -> str:
    return " ".join(row[name] for name in ("placement", "activation", "mask", "scaling", "variant"))
