"""`propagate solve`: the inverse problem on the command line."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from propagate.cli_coordcheck import optimizer_of
from propagate.cli_output import DISAGREE, check_target, print_json, print_table, write
from propagate.model import Model, ModelError
from propagate.scaling import ScaleInit

ASKED, STEP, OUTPUT = "Conditions, each LOW:HIGH, one of them left out where there is none", "First step", "Output"


def _asked(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=ASKED, metavar="LOW:HIGH")


def _step(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=STEP)


def _output(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=OUTPUT)


def solve(
    *,
    model: Model,
    start: dict[str, Any],
    unknown: Annotated[
        str, typer.Option(help="Path of a number, such as scaling.exponent, placement.alpha, depth, optimizer.lr.")
    ],
    between: Annotated[str, typer.Option(help="Where it is looked for.", metavar="LOW:HIGH")],
    gradient_gain: Annotated[str | None, _asked("The gradient's variance, from the last block to the first.")] = None,
    stream_gain: Annotated[str | None, _asked("The stream's variance, from the first block to the last.")] = None,
    distinct: Annotated[str | None, _asked("1 - correlation of two tokens behind the last block.")] = None,
    attention_share: Annotated[str | None, _asked("Share of a token's gradient that attention carries.")] = None,
    first_step: Annotated[str | None, _asked("Relative change of the stream by the optimizer's first step.")] = None,
    optimizer: Annotated[str, _step("adam, sign, sgd or muon.")] = "adam",
    lr: Annotated[float, _step("Learning rate.")] = 1e-3,
    momentum: Annotated[float, _step("Of all but adam.")] = 0.0,
    transfer: Annotated[str | None, _step("A rule of transfer, as in coordcheck.")] = None,
    json: Annotated[bool, _output("Print JSON instead of a table.", "--json")] = False,
    out: Annotated[Path | None, _output("Also write the trade-off to this netCDF file.", "--out")] = None,
) -> None:
    """Which value of a number meets conditions on gradient, collapse, attention and first step: by theory, in seconds.

    Exit code 1 if no value meets them all: then the table is the trade-off.
    """
    import propagate as pg
    from propagate.inverse.words import rows

    check_target(out)
    given: list[tuple[Any, str, str | None]] = [
        (pg.GradientGain, "--gradient-gain", gradient_gain),
        (pg.StreamGain, "--stream-gain", stream_gain),
        (pg.Distinct, "--distinct", distinct),
        (pg.AttentionShare, "--attention-share", attention_share),
        (pg.FirstStep, "--first-step", first_step),
    ]
    conditions = [kind(*range_of(option, text)) for kind, option, text in given if text is not None]
    if not conditions:
        raise ModelError("a condition must be given, such as --gradient-gain 0.5:2")
    if unknown.startswith("scaling.") and model.scaling is None:
        model = dataclasses.replace(model, scaling=ScaleInit(0.0))
    low, high = range_of("--between", between)
    if low is None or high is None:
        raise ModelError(f"--between must be LOW:HIGH, such as 0:1, got {between!r}")
    rule = optimizer_of(optimizer, lr, momentum) if first_step is not None or unknown.startswith("optimizer.") else None
    found = pg.solve(
        model, unknown, conditions, between=(low, high), start=pg.Start(**start), optimizer=rule, transfer=transfer
    )
    if json:
        print_json(found.table)
    else:
        print_table(*rows(found.table))
        typer.echo(f"(in brackets: not met)\n{found.verdict}")
    write(found.table, out)
    raise typer.Exit(0 if found.met else DISAGREE)


def range_of(name: str, text: str) -> tuple[float | None, float | None]:
    """Two numbers with a colon between; either may be left out, not both.

    Raises:
        ModelError: for anything else.

    Example:
        >>> range_of("--distinct", "0.1:"), range_of("--between", "1:64")
        ((0.1, None), (1, 64))
    """
    parts = text.split(":")
    try:
        low, high = (_number(part) if part.strip() else None for part in parts)
    except ValueError:
        raise ModelError(f"{name} must be LOW:HIGH, such as 0.5:2, 0.5: or :2, got {text!r}") from None
    if low is high is None:
        raise ModelError(f"{name} must be LOW:HIGH with a number on either side, got {text!r}")
    return low, high


def _number(text: str) -> float:
    if text.strip().isascii() and text.strip().isdecimal():
        return int(text)
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
