"""`propagate train`: arms of rates and seeds on the command line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from propagate.cli_options import parameter
from propagate.cli_output import check_target, print_json, print_table, write
from propagate.model import Model

if TYPE_CHECKING:
    import xarray as xr

TRAINING = "Training"
OPTIMIZERS = ("adam", "sgd", "sign", "muon")
RATE = 1e-3
TRAINING_OPTIONS: list[inspect.Parameter] = [
    parameter(name, Annotated[kind, typer.Option(*names, help=text, rich_help_panel=TRAINING)], default)
    for name, names, kind, text, default in (
        ("corpus", (), str, "python (its own documentation), a text file, or a folder of them.", "python"),
        ("vocabulary", (), int, "256 for bytes, more for byte pairs.", 256),
        ("optimizer", (), str, f"One of {', '.join(OPTIMIZERS)}.", "adam"),
        ("lrs", ("--lr",), list[float] | None, f"Peak rate; may be given more than once. By default {RATE:g}.", None),
        ("decay", (), float, "Decoupled weight decay.", 0.0),
        ("seeds", (), int, "How many seeds, from 0.", 1),
        ("steps", (), int, "Updates.", 500),
        ("batch", (), int, "Sequences a step.", 16),
        ("warmup", (), float, "Share of the steps over which the rate rises.", 0.1),
        ("schedule", (), str, "constant, linear or cosine.", "cosine"),
        ("clip", (), float, "Largest norm of the gradient; 0 does not clip.", 1.0),
        ("probes", ("--probe",), list[int] | None, "Updates after which to probe; may be given more than once.", None),
        ("traces", ("--trace",), list[int] | None, "Those of them at which to trace too, by default all.", None),
        ("transfer", (), str | None, "A rule of transfer; see `propagate coordcheck`.", None),
        ("base", (), tuple[int, int] | None, "Width and depth on which the rule changes nothing.", None),
        ("together", (), int | None, "Arms of one ensemble at most; by default 1, on cuda as many as fit.", None),
        ("device", (), str, "cpu or cuda.", "cpu"),
        ("precision", (), str, "float32, float64, bfloat16 or, on cuda, tf32.", "float32"),
        ("to", (), Path | None, "Folder of checkpoints: an interrupted run goes on from it.", None),
        ("workers", (), int, "Processes that share the arms.", 1),
    )
]


def run(model: Model, options: dict[str, Any], *, json: bool, out: Path | None) -> None:
    """Train, and print what became of each arm.

    Raises:
        ModelError: for options out of range.
    """
    import propagate as pg
    from propagate.checks import choice, integer
    from propagate.montecarlo.workers import MOST_WORKERS, ended_at_once

    check_target(out)
    choice("optimizer", options["optimizer"], OPTIMIZERS)
    seeds = range(integer("seeds", options["seeds"], at_most=10**6))
    workers = integer("workers", options["workers"], at_most=MOST_WORKERS)
    rates = options["lrs"] or [RATE]
    optimizer = _optimizer(options["optimizer"], rates[0], options["decay"])
    text = pg.corpus(options["corpus"], options["vocabulary"])
    names = (
        "steps",
        "batch",
        "warmup",
        "schedule",
        "device",
        "to",
        "traces",
        "transfer",
        "base",
        "together",
        "precision",
    )
    kept = {name: options[name] for name in names}
    kept |= {"clip": options["clip"] or None, "probes": options["probes"] or (), "seeds": seeds, "lrs": rates}
    with nullcontext() if workers == 1 else pg.process_pool(workers) as pool, ended_at_once(pool):
        seen = pg.train(model, text, optimizer, executor=pool, progress=True, **kept)
    if json:
        print_json(seen)
    else:
        _print(seen)
    write(seen, out)


def _optimizer(name: str, lr: float, decay: float) -> Any:
    """With the constants that are usual for language models."""
    from propagate.optimizers import SGD, Adam, Muon, Sign

    if name == "adam":
        return Adam(lr, betas=(0.9, 0.95), decay=decay)
    if name == "muon":
        return Muon(lr, momentum=0.95, nesterov=True, scale="original", decay=decay)
    return {"sgd": SGD, "sign": Sign}[name](lr, momentum=0.9, decay=decay)


def _collapse(probe: xr.Dataset) -> float:
    """Where the stream ends; NaN of a probe that was not traced."""
    if "decorrelation" not in probe:
        return math.nan
    return float(probe.decorrelation.values.reshape(probe.sizes["block"], -1)[-1, -1])


def _print(seen: xr.Dataset) -> None:
    rows: list[Sequence[str]] = []
    for lr in seen.lr.values:
        for seed in seen.seed.values:
            arm = seen.sel(lr=lr, seed=seed)
            first, last = arm.isel(probe=0), arm.isel(probe=-1)
            cells = (arm.loss[-1], first.held_out_loss, last.held_out_loss, arm.grad_norm[0])
            collapse = [_collapse(one) for one in (first, last)]
            end = "" if arm.diverged_at.isnull() else f"in step {int(arm.diverged_at)}"
            numbers = [f"{float(cell):.4g}" for cell in cells] + [f"{value:.3g}" for value in collapse]
            rows.append((f"{lr:g}", str(seed), *numbers, end))
    columns = ("lr", "seed", "loss", "held out, at first", "held out", "gradient, at first")
    print_table((*columns, "1 - correlation, at first", "at last", "diverged"), rows)
    attrs = seen.attrs
    typer.echo(
        f"{attrs['arms']} arms, {attrs['diverged']} diverged, {attrs['steps']} steps of {attrs['batch']} sequences of "
        f"{attrs['tokens']} tokens; the frequencies of tokens alone give {attrs['unigram_loss']:.4g}."
    )
