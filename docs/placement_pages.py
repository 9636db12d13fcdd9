"""A page for each placement that comes with the package, made from the registry: nothing on it is written by hand."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import sympy

import propagate as pg
from docs import diagram
from propagate.placement import EQUATIONS, Placement
from propagate.text import DEPTH, norms_on_skip
from propagate.theory.legend import KEY
from propagate.theory.predict import INCLUDE
from propagate.theory.printed import notes

ROOT = Path(__file__).resolve().parent.parent
VERIFIED = ROOT / "benchmarks" / "results" / "verify_h200.json"
START = {"covariance": 0.3}
SHOWN, DEPTHS = 64, (12, 48, 192)
SCALINGS = {"none": None, "ScaleInit(0.5)": pg.ScaleInit(0.5)}


def names() -> list[str]:
    """The placements that have a page: those of the package."""
    return [name for name, kind in pg.placements().items() if kind.__module__ == EQUATIONS]


def index() -> str:
    """All of them in a table, and the table of contents."""
    told = gain_and_collapse()
    rows = [
        f"| [{type(pg.placement(name)).__name__}]({name}.md) | {_lines(name)} | {norms_on_skip(name)} |"
        f" {_cited(name)} | {told.get(type(pg.placement(name)).__name__, ' | ')} |"
        for name in names()
    ]
    return "\n".join(
        [
            "# Placements",
            "",
            "Made from the registry when these pages are built. `N` is the norm, `l` the block's index, `L` the depth;",
            "norms on the skip are those on the way through a block that meets no sublayer. The last columns are of a",
            f"random network of {SHOWN} blocks without further scaling: by what factor the gradient's variance changes",
            "on its way to the embedding, and what is left of 1 - correlation of two tokens, 0.7 at the start, as in",
            "[the phase diagram](../../../figures/phase_diagram.md). A click on a head sorts.",
            "",
            "| placement | equations of a block | norms on the skip | year | paper | gradient gain | 1 - correlation |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            "```{toctree}",
            ":hidden:",
            "",
            *names(),
            "```",
            "",
        ]
    )


def _lines(name: str) -> str:
    """Its equations, each on a line of its own in a cell."""
    readings = [reading.split("; ") for reading in pg.equations(name).split("; or: ")]
    return "<br>or:<br>".join("<br>".join(f"`{line}`" for line in lines) for lines in readings)


def _cited(name: str) -> str:
    """Year and paper, as two cells."""
    found = pg.citation(name)
    title, year = (re.search(rf"{key} = \{{+(.*?)\}}+,", found) for key in ("title", "year"))
    number = re.search(r"eprint = \{(.*?)\}", found)
    named = _cell(title[1]) if title else ""
    paper = f"[{named}](https://arxiv.org/abs/{number[1]})" if number else named
    return f"{year[1] if year else ''} | {paper}"


def gain_and_collapse() -> dict[str, str]:
    """Gradient gain and collapse of each, as two cells, from the data of the phase diagram: by its name as a class."""
    import xarray as xr

    with xr.open_dataset(ROOT / "figures" / "phase_diagram.nc", engine="scipy") as data:
        deep = data.sel(exponent=0.0, depth=SHOWN).load()
    columns = deep.placement.values, deep.theory_gain.values, deep.theory_distinct.values
    return {str(name): f"{gain:.2g} | {left:.2g}" for name, gain, left in zip(*columns, strict=True)}


def page(name: str, folder: Path) -> str:
    """One placement; its figure is written beside the page."""
    placement = pg.placement(name)
    figure(name, folder / f"{name}.svg")
    parts = [f"# {type(placement).__name__}", *_introduction(placement), "## Equations", *_equations(name, placement)]
    parts += ["## Dataflow", *_dataflow(name), "## Recursion", *_recursion(name), "## With depth", *_depth(name)]
    parts += ["## Limits", *_limits(name), "## Citation", f"```bibtex\n{pg.citation(name).strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def outline(name: str) -> str:
    """A page without its recursion, its figure, its numbers and its limits."""
    placement = pg.placement(name)
    parts = [f"# {type(placement).__name__}", *_introduction(placement), "## Equations", *_equations(name, placement)]
    parts += ["## Dataflow", *_dataflow(name), "## Citation", f"```bibtex\n{pg.citation(name).strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def _introduction(placement: Placement) -> Iterator[str]:
    yield inspect.getdoc(type(placement)) or ""
    also = [f"`{name}`" for name in type(placement).also]
    yield f"`propagate.Model({type(placement).__name__.lower()!r}, depth=...)`" + (
        f", also {', '.join(also)}" * bool(also)
    )


def _equations(name: str, placement: Placement) -> Iterator[str]:
    for reading in pg.equations(name).split("; or: "):
        yield "```text\n" + "\n".join(reading.split("; ")) + "\n```"
    yield f"Norms that a path of skips through one block meets: {norms_on_skip(name)}."
    yield "The text that every witness reads:"
    yield f"```python\n{_source(type(placement))}\n```"
    gains = placement.gains(sympy.Symbol("l", positive=True), sympy.Symbol("L", positive=True))
    own = {f.name: getattr(gains, f.name) for f in dataclasses.fields(gains)}
    factors = [f"${sympy.latex(sympy.nsimplify(g, rational=True))}$ on `{m}`" for m, g in own.items() if g != 1]
    if factors:
        yield f"Its own gains on the initial weights: {', '.join(factors)}."


def _source(kind: type) -> str:
    """Its code without the docstring, which the page has already."""
    lines = inspect.getsource(kind).strip().splitlines()
    (body,) = ast.parse("\n".join(lines)).body
    assert isinstance(body, ast.ClassDef)
    docstring = body.body[0]
    kept = [*lines[: docstring.lineno - 1], *lines[docstring.end_lineno :]]
    return "\n".join(line for k, line in enumerate(kept) if line or k > 1)


def _dataflow(name: str) -> Iterator[str]:
    yield (
        "Drawn by running these equations with streams that remember what they are made of. Thick: the skip path, which"
        " meets no sublayer. Numbers at an arrow multiply the stream."
    )
    found = diagram.flows(name)
    for flow, which in zip(found, ["The first blocks:", "The last blocks:"] if len(found) > 1 else [""], strict=True):
        yield which
        yield f"```{{raw}} html\n{diagram.svg(name, flow)}```"
        if flow.numbers:
            yield f"A number passes from block to block: {', '.join(flow.numbers)}."


def _recursion(name: str) -> Iterator[str]:
    yield (
        "One block's map of second moments, derived by SymPy from the same text, for uniform attention and a ReLU FFN:"
        f" {KEY} `propagate.recursion` gives it for any activation and for softmax attention."
    )
    try:
        found = {"": pg.recursion(name)}
    except pg.ModelError:  # its equations must know which block they are in
        found = {f"Block {i} of {DEPTH}:": pg.recursion(name, index=i, depth=DEPTH) for i in (1, DEPTH)}
    for which, recursion in found.items():
        yield which
        yield f"${recursion._repr_latex_()}$"
        yield from notes(recursion.equations())


def _predicted(name: str, depth: int, scaling: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the section on limits tells of them
        return pg.predict(pg.Model(name, depth=depth, scaling=scaling), **START)


def figure(name: str, path: Path) -> None:
    """Variance, 1 - correlation and gradient variance against block, by theory."""
    from propagate import plots

    with plots.style():
        picture, axes = plots.panels(1, 3, height=2.3)
        for label, scaling in SCALINGS.items():
            table = _predicted(name, SHOWN, scaling)
            for stream in ["1", "2"] if "stream" in table.dims else [None]:
                one = table if stream is None else table.sel(stream=stream)
                values = (one.variance, one.deviation / one.variance, one.grad_variance)
                for axis, value in zip(axes.flat, values, strict=True):
                    shown = {"linewidth": 2.2 if stream == "2" else 1.2, "alpha": 0.6 if stream == "2" else 1.0}
                    plots.theory_line(axis, value.block, value, placement=name, scaled=label != "none", **shown)
        labels = ("variance", "1 - correlation", "gradient variance")
        for axis, label in zip(axes.flat, labels, strict=True):
            axis.set(yscale="log", ylabel=label, xlabel=plots.BLOCK_AXIS)
            low, high = axis.get_ylim()
            if high / low < 10:  # so that a power of ten is among them
                axis.set_ylim((low * high) ** 0.5 / 10**0.5, (low * high) ** 0.5 * 10**0.5)
            axis.yaxis.set_major_formatter("{x:g}")  # as text and, below, placed by hand: three times as fast
            axis.yaxis.set_minor_formatter("")
        handles = plots.key((type(pg.placement(name)).__name__,), band=False)
        for handle in handles:
            handle.set_marker("")
        if "stream" in table.dims:
            handles.append(plots.entry("second stream", linewidth=2.2, alpha=0.6))
        plots.legend(picture, handles)
        picture.set_layout_engine("none")
        for column, axis in enumerate(axes.flat):
            axis.set_position([0.075 + 0.335 * column, 0.27, 0.25, 0.7])
    path.write_bytes(plots.render(picture, "svg"))


def _depth(name: str) -> Iterator[str]:
    yield f"![Variance, correlation and gradient variance of {name} against block]({name}.svg)"
    yield (
        f"Theory, as the width grows with heads of 64 coordinates: {SHOWN} blocks, ReLU, RMSNorm, 32 tokens,"
        " logits of standard deviation 1, start at variance 1 and covariance 0.3; a gradient of variance 1, independent"
        " over tokens, enters at the last block."
        " Dashed: both branches' output matrices times depth^(-1/2). The same for networks of other depths:"
    )
    rows = [
        "| depth | scaling | variance at the end | 1 - correlation at the end | gradient variance at the embedding |"
    ]
    rows += ["|---|---|---|---|---|"]
    for depth in DEPTHS:
        for label, scaling in SCALINGS.items():
            table = _predicted(name, depth, scaling)
            one = table.sel(stream="joined") if "stream" in table.dims else table
            end, deviation = float(one.variance[-1]), float(one.deviation[-1])
            rows.append(
                f"| {depth} | {label} | {end:.3g} | {deviation / end:.3g} | {float(one.grad_variance[0]):.3g} |"
            )
    yield "\n".join(rows)


def _limits(name: str) -> Iterator[str]:
    rows = json.loads(VERIFIED.read_text(encoding="utf-8"))
    cells = [row for row in rows["rows"] if row["placement"] == name]
    if cells:
        wrong = [control for cell in cells for control in cell["controls"] if control["differs"]]
        settings = rows["settings"]
        yield (
            f"`propagate verify`, width {settings['width']}, {settings['depth']} blocks, {settings['draws']} draws,"
            f" {cells[0]['device']}: {sum(cell['agrees'] for cell in cells)} of {len(cells)} cells (activation x mask x"
            f" scaling) agree with simulation, largest |z| {max(abs(cell['z']) for cell in cells):.2f};"
            f" {sum(control['rejected'] for control in wrong)} of {len(wrong)} wrong theories rejected."
        )
    else:
        yield "Not in the committed run of `propagate verify`."
    yield "What the package covers for it, asked of the package itself:"
    lines = ["| asked | answer |", "|---|---|"]
    for asked, work in _questions(name).items():
        lines.append(f"| {asked} | {_answer(work)} |")
    yield "\n".join(lines)


def _questions(name: str) -> dict[str, Callable[[], Any]]:
    def model(**fields: Any) -> pg.Model:
        return pg.Model(name, depth=1, **{"tokens": 8} | fields)

    return {
        "exchangeable tokens": lambda: pg.predict(model()),
        "causal mask, token by token": lambda: pg.predict(model(causal=True)),
        "mixture of experts": lambda: pg.predict(model(experts=pg.Experts(4, 2))),
        "mixture of experts under a causal mask": lambda: pg.predict(model(causal=True, experts=pg.Experts(4, 2))),
        **{f'`include={{"{what}"}}`': partial(pg.predict, model(tokens=2), include={what}) for what in INCLUDE},
        "torch module": lambda: pg.build(pg.Model(name, depth=1, width=16, heads=2)),
    }


def _answer(work: Callable[[], Any]) -> str:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            work()
        except pg.ModelError as error:
            return f"refused: {_cell(str(error))}"
    told = dict.fromkeys(_cell(str(warning.message)) for warning in heard if issubclass(warning.category, UserWarning))
    return "; ".join(["yes", *(f"warns: {text}" for text in told)])


def _cell(text: str) -> str:
    """Text that may stand in a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
