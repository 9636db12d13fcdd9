"""`propagate coordcheck`: a coordinate check on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from propagate.cli_output import EXIT_CODE, check_target, keep, print_json, print_table, write
from propagate.model import Model, ModelError

if TYPE_CHECKING:
    from propagate.coordinates.check import CoordinateCheck
    from propagate.optimizers import Optimizer

STEP, RUN, OUTPUT = "What is checked", "Networks", "Output"
DEPTH = 2  # blocks, of a command that does not say


def _step(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=STEP)


def _run(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=RUN)


def _output(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=OUTPUT)


def coordcheck(
    *,
    model: Model,
    optimizer: Annotated[str, _step("adam, sign, sgd or muon.")] = "adam",
    lr: Annotated[float, _step("Learning rate on the smallest network.")] = 1e-3,
    momentum: Annotated[float, _step("Of all but adam.")] = 0.0,
    transfer: Annotated[
        str | None, _step("standard, longcat, mup, depth-mup, complete-p or spectral; none by default.")
    ] = None,
    loss: Annotated[str, _step("cross-entropy or linear.")] = "cross-entropy",
    vocabulary: Annotated[int, _step("Tokens there are, of cross-entropy.")] = 64,
    steps: Annotated[int, _step("How many; the first is judged.")] = 3,
    widths: Annotated[str | None, _run("Separated by commas, in place of --width; 64,128,256,512 by default.")] = None,
    depths: Annotated[str | None, _run("The same of depths, in place of widths.")] = None,
    draws: Annotated[int, _run("Independent random networks of each size.")] = 8,
    seed: Annotated[int, _run("The same seed gives the same networks.")] = 0,
    tolerance: Annotated[float, _run("How far an exponent may lie from the wanted one.")] = 0.25,
    threshold: Annotated[float, _run("Normal score of what may be chance.")] = 3.0,
    plot: Annotated[Path | None, _output("Also draw it into this .png or .svg file.", "--plot")] = None,
    json: Annotated[bool, _output("Print JSON instead of a table.", "--json")] = False,
    out: Annotated[Path | None, _output("Also write the table to this netCDF file.", "--out")] = None,
) -> None:
    """Whether the first steps of every matrix keep their size as networks grow, and which departs.

    Exit code 1 if one departs, 3 if none does and some cannot be told.
    """
    import propagate as pg

    for name, target in (("--out", out), ("--plot", plot)):
        check_target(target, name)
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise ModelError(f"--plot must end in .png or .svg, got {str(plot)!r}")
    check = pg.coordinate_check(
        model,
        optimizer=optimizer_of(optimizer, lr, momentum),
        widths=_sizes("--widths", widths),
        depths=_sizes("--depths", depths),
        transfer=transfer,
        loss=_loss(loss, vocabulary),
        steps=steps,
        draws=draws,
        seed=seed,
        tolerance=tolerance,
        threshold=threshold,
    )
    if json:
        print_json(check.table)
    else:
        _print(check)
    write(check.table, out)
    if plot is not None:
        from propagate.plots import render

        keep(plot, render(check.plot(), plot.suffix[1:]))
    raise typer.Exit(EXIT_CODE[check.verdict])


def optimizer_of(name: str, lr: float, momentum: float) -> Optimizer:
    """An optimiser from words and numbers.

    Raises:
        ModelError: for an unknown name, numbers out of range, or momentum beside Adam, which has betas.

    Example:
        >>> optimizer_of("sgd", 0.1, 0.9)
        SGD(lr=0.1, momentum=0.9, decay=0.0)
    """
    from propagate.checks import choice
    from propagate.optimizers import SGD, Adam, Muon, Sign

    kinds: dict[str, type[Any]] = {"adam": Adam, "sign": Sign, "sgd": SGD, "muon": Muon}
    choice("--optimizer", name, tuple(kinds))
    if name == "adam":
        if momentum:
            raise ModelError(f"--momentum must be left out with --optimizer adam, got {momentum}")
        return Adam(lr=lr)
    made: Optimizer = kinds[name](lr=lr, momentum=momentum)
    return made


def _loss(name: str, vocabulary: int) -> Any:
    from propagate.checks import choice
    from propagate.losses import CrossEntropy, Linear

    choice("--loss", name, ("cross-entropy", "linear"))
    return Linear() if name == "linear" else CrossEntropy(vocabulary)


def _sizes(option: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    words = text.split(",")
    if not all(word.strip().isascii() and word.strip().isdecimal() and len(word) < 20 for word in words):
        raise ModelError(f"{option} must be whole numbers separated by commas, such as 64,128,256, got {text!r}")
    return [int(word) for word in words]


def _print(check: CoordinateCheck) -> None:
    from propagate.coordinates.text import COLUMNS, rows

    table = [tuple(f"[bold red]{cell}[/]" if cell == "DEPARTS" else cell for cell in row) for row in rows(check)]
    print_table(COLUMNS, table)
    typer.echo(check.summary)
    attrs, sizes = check.table.attrs, ", ".join(map(str, check.table["size"].values))
    typer.echo(f"{attrs['along']}s {sizes}, {attrs['draws']} networks each, intervals of 95 %.")
