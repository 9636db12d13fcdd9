"""The command line: one command a verb, with the names of the Python interface.

Exit codes: 0 all is well, 1 theory and simulation disagree or a matrix departs, 2 bad input, 3 it cannot be told.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from propagate.cli_commands import Commands, command
from propagate.cli_coordcheck import DEPTH as FEW
from propagate.cli_coordcheck import coordcheck
from propagate.cli_diagnose import diagnose
from propagate.cli_explore import explore
from propagate.cli_figures import figures
from propagate.cli_grow import grow
from propagate.cli_options import (
    DEPTH,
    PLACEMENT,
    START,
    experts_of,
    model_of,
    network_options,
    parameter,
    start_options,
)
from propagate.cli_output import (
    BAD_INPUT,
    DISAGREE,
    EXIT_CODE,
    INTERRUPTED,
    check_target,
    print_json,
    print_table,
    print_verdict,
    refuse,
    show,
    write,
)
from propagate.cli_solve import solve
from propagate.cli_sweep import sweep
from propagate.cli_trace import corpus, trace, weights
from propagate.cli_train import TRAINING_OPTIONS, run
from propagate.cli_verify import verify
from propagate.model import Model, ModelError
from propagate.version import __version__

if TYPE_CHECKING:
    import xarray as xr

app = typer.Typer(
    name="propagate",
    cls=Commands,
    help="Where does the signal go in a deep Transformer, and the gradient? Exact theory, checked by simulation.",
    epilog="Start with: propagate compare spannorm --depth 24 --scale-init 0.5",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

EXTRAS = ("torch", "transformers", "safetensors", "tokenizers")  # what the extras torch and text install


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _before(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options of no command."""


OUTPUT, RUN = "Output", "Simulation"
JSON = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.", rich_help_panel=OUTPUT)]
OUT = Annotated[
    Path | None, typer.Option("--out", help="Also write the table to this netCDF file.", rich_help_panel=OUTPUT)
]
BIAS = Annotated[bool, typer.Option("--bias", help="Also what the finite width does to the means, to first order.")]
READOUT = Annotated[
    bool,
    typer.Option("--through-readout", help="The gradient enters behind the final norm.", rich_help_panel=START),
]


_RUN_OPTIONS = [
    parameter(name, Annotated[kind, typer.Option(help=text, rich_help_panel=RUN)], default)
    for name, kind, text, default in (
        ("draws", int, "Independent random networks.", 64),
        ("seed", int, "The same seed gives the same networks.", 0),
        ("backend", str, "auto, numpy or cupy.", "auto"),
        ("sampler", str, "auto, dense or weightless.", "auto"),
        ("checkpoint", Path | None, "File of finished draws: an interrupted run goes on from it.", None),
        ("workers", int, "Processes that share the draws; with GPUs, one GPU each.", 1),
    )
]


def _on_a_network(function: Callable[..., None], depth: int = DEPTH) -> Callable[..., None]:
    """Give a command the options of a network, as `model`, of what enters it, as `start`, of a `run` or `training`.

    A network has `depth` blocks unless the options say another number.
    """
    own = inspect.signature(function, eval_str=True).parameters
    groups = {"model": network_options(depth), "start": start_options()}
    groups |= {"run": _RUN_OPTIONS, "training": TRAINING_OPTIONS}
    groups = {name: options for name, options in groups.items() if name in own}

    @functools.wraps(function)
    def with_network(context: typer.Context, **options: Any) -> None:
        from propagate.cli_systems import check_name, of_system, said
        from propagate.systems import known_as

        given = {name: {p.name: options.pop(p.name) for p in group} for name, group in groups.items()}
        network = given["model"]
        try:
            if known_as(network["placement"]):
                made = of_system(given, said(context))
            else:
                check_name(network["placement"])
                made = {"model": model_of(**network), "system": None}
            function(**{name: one for name, one in (given | made).items() if name in own}, **options)
        except ValueError as error:  # ModelError and ScaleInit's own
            refuse(error)

    within = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    rest = [p for p in own.values() if p.name not in (*groups, "system")]
    parameters = [within, *(p for group in groups.values() for p in group), *rest]
    with_network.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_network.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_network


@command(_on_a_network)
def predict(
    *,
    model: Model,
    start: dict[str, Any],
    bias: BIAS = False,
    through_readout: READOUT = False,
    json: JSON = False,
    out: OUT = None,
) -> None:
    """Exact second moments at every block, as the width goes to infinity."""
    import propagate as pg

    check_target(out)
    show(pg.predict(model, **start, include={"bias"} if bias else (), through_readout=through_readout), json, out)


@command(_on_a_network)
def simulate(
    *,
    model: Model,
    start: dict[str, Any],
    run: dict[str, Any],
    through_readout: READOUT = False,
    json: JSON = False,
    out: OUT = None,
) -> None:
    """The same moments, measured on random networks, with standard errors over networks."""
    check_target(out)
    show(_simulated(model, start, run, through_readout), json, out)


@command(_on_a_network)
def compare(
    *,
    model: Model,
    start: dict[str, Any],
    run: dict[str, Any],
    threshold: Annotated[float, typer.Option(help="Largest |z| that agrees.", rich_help_panel=RUN)] = 4.0,
    resolution: Annotated[
        float, typer.Option(help="Relative error that must be one that would show.", rich_help_panel=RUN)
    ] = 0.2,
    bias: BIAS = False,
    through_readout: READOUT = False,
    json: JSON = False,
    out: OUT = None,
) -> None:
    """Predict, simulate, and judge one by the other. Exit code 1 if they disagree, 3 if the simulation cannot tell."""
    import propagate as pg
    from propagate.checks import checked_threshold, number

    check_target(out)
    checked_threshold(threshold)
    number("resolution", resolution, positive=True)
    predicted = pg.predict(model, **start, include={"bias"} if bias else (), through_readout=through_readout)
    measured = _simulated(model, start, run, through_readout)
    judged = pg.compare(predicted, measured, threshold=threshold, resolution=resolution)
    if json:
        print_json(judged)
    else:
        print_verdict(judged)
    write(judged, out)
    raise typer.Exit(EXIT_CODE[judged.attrs["verdict"]])


def _simulated(model: Model, start: dict[str, Any], run: dict[str, Any], through_readout: bool) -> xr.Dataset:
    """`simulate`, in this process or, with more than one worker, in processes of its own."""
    from contextlib import nullcontext

    import propagate as pg
    from propagate.checks import integer
    from propagate.montecarlo.workers import MOST_WORKERS, ended_at_once

    options = {**start, **run, "through_readout": through_readout}
    workers = options.pop("workers")
    integer("workers", workers, at_most=MOST_WORKERS)
    with nullcontext() if workers == 1 else pg.process_pool(workers) as pool, ended_at_once(pool):
        return pg.simulate(model, **options, executor=pool, progress=True)


@command(_on_a_network)
def train(*, model: Model, training: dict[str, Any], json: JSON = False, out: OUT = None) -> None:
    """Train language models on text, an arm for every rate and seed; the network is made causal."""
    run(dataclasses.replace(model, causal=True), training, json=json, out=out)


@command()
def placements() -> None:
    """Every placement: its equations, the norms that the skip path of a block meets, and its source."""
    from rich.markup import escape

    import propagate as pg
    from propagate.text import norms_on_skip

    rows = []
    for name, kind in pg.placements().items():
        try:
            rows.append((name, escape(pg.equations(name)), norms_on_skip(name), kind.citation))
        except (ModelError, NotImplementedError, TypeError):  # a field has no default, or `block` is not right
            rows.append((name, "", "", kind.citation))
    print_table(("name", "equations of a block", "norms on the skip", "source"), rows)


@command()
def citation(placement: PLACEMENT) -> None:
    """The paper that a placement comes from, as BibTeX."""
    import propagate as pg

    try:
        typer.echo(pg.citation(placement))
    except ModelError as error:
        refuse(error)


@command()
def recursion(
    placement: PLACEMENT,
    activation: Annotated[str, typer.Option("--activation", "-a", help="As in predict.")] = "relu",
    finite_logits: Annotated[bool, typer.Option(help="Softmax attention instead of uniform.")] = False,
    norm: Annotated[str, typer.Option("--norm", help="rms or layer.")] = "rms",
    index: Annotated[int | None, typer.Option(help="The block's number; by default the symbol l.")] = None,
    depth: Annotated[int | None, typer.Option(help="Blocks; by default the symbol L.")] = None,
    experts: Annotated[str | None, typer.Option(help="A mixture of experts, COUNT:TOP_K.")] = None,
    latex: Annotated[bool, typer.Option(help="Print LaTeX.")] = False,
) -> None:
    """One block's moment map as equations, derived from the placement's own text."""
    import propagate as pg

    try:
        logits: float | str = "symbol" if finite_logits else 0.0
        mixture = None if experts is None else experts_of(experts)
        fields: dict[str, Any] = {"activation": activation, "norm": norm, "logit_std": logits, "experts": mixture}
        found = pg.recursion(placement, index=index, depth=depth, **fields)
    except ModelError as error:
        refuse(error)
    typer.echo(found._repr_latex_() if latex else str(found))


@command()
def prove(
    names: Annotated[list[str] | None, typer.Argument(help="Names or numbers; all if none is given.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Also write the pages of proofs/rendered/ anew.")] = False,
) -> None:
    """Prove the propositions of proofs/, every step checked by SymPy and numerically. Exit code 1 if one fails."""
    from rich.console import Console

    from propagate.checkout import folder, importable

    try:
        importable("proofs")
        if write:
            folder("proofs")  # pages are a checkout's
        from proofs import runner

        chosen = [proposition.name for proposition in runner.select(names)]
    except LookupError as error:
        refuse(ModelError(str(error)))
    except ModelError as error:
        refuse(error)
    reports = []
    with Console(stderr=True).status("") as status:
        for name in chosen:
            status.update(f"proving {name}")
            reports += runner.prove([name])
    rows = [
        (r.number, r.title, str(r.steps), str(len(r.axioms)), f"{r.seconds:.1f}", r.failure or "proved")
        for r in reports
    ]
    print_table(("no.", "proposition", "steps", "axioms", "seconds", "verdict"), rows)
    for axiom in runner.axioms_used(reports):
        typer.echo(f"axiom: {axiom.name}. {axiom.reference}")
    if write:
        typer.echo(f"wrote {len(runner.write())} pages")
    raise typer.Exit(0 if all(r.proved for r in reports) else DISAGREE)


@command()
def audit(
    names: Annotated[list[str] | None, typer.Argument(help="Claims, such as C1; all if none is named.")] = None,
) -> None:
    """What papers claim, word by word: the statement tested, evidence with its numbers, the verdict that follows."""
    from propagate.claims.audit import chosen, here
    from propagate.claims.claim import judged

    try:
        asked = chosen(names)
    except ModelError as error:
        refuse(error)
    for place, claim in enumerate(asked):  # each as soon as it is judged
        typer.echo(("\n" if place else "") + str(judged(claim, here())))


command(functools.partial(_on_a_network, depth=FEW))(coordcheck)
for on_a_network in (solve, grow, diagnose, sweep):
    command(_on_a_network)(on_a_network)
for alone in (explore, figures, trace, weights, corpus, verify):
    command()(alone)


def main() -> None:
    """Entry point of the `propagate` command: bad input is one line on standard error.

    An interrupt or a request to end (SIGTERM) stops work and its processes, and says how to go on.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Greek letters is told the rest
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        typer.echo(f"error: this command needs {error.name}: pip install 'propagate[torch,text]'", err=True)
        code = BAD_INPUT
    except Exception as error:
        if not hasattr(error, "format_message"):  # Click's usage errors have it; anything else is a defect
            raise
        typer.echo(f"error: {' '.join(error.format_message().split())}", err=True)
        code = BAD_INPUT
    if code == INTERRUPTED:  # newer versions of Typer make this code of an interrupt themselves
        on = "where a command has --checkpoint FILE (sweep, train: --to FOLDER; verify: --out FILE), with it the same"
        typer.echo(f"interrupted; {on} command goes on from there", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
