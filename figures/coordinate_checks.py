"""Coordinate checks: what the first step of a matrix makes of its own input, against the width, rule by rule."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.ticker import NullFormatter, NullLocator

import propagate as pg
from propagate import plots
from propagate.figures import workers

TOKENS, HEADS, DEPTH, VOCABULARY, LR = 8, 4, 2, 64, 1e-3
WIDTHS = (64, 128, 256, 512)
WIDE = (128, 512, 2048, 8192, 32768, 131072)
SHOWN = ("query", "attention_out", "ffn_in", "ffn_out", "unembedding", "logits")
SHOWN_WIDE = ("query", "value", "attention_out", "ffn_in", "ffn_out", "stream")
REACH = 6.0  # factor that a vertical axis covers to either side
NAMES = tuple(dict.fromkeys((*SHOWN, *SHOWN_WIDE)))
TITLES = {
    "query": "query",
    "value": "value",
    "attention_out": "attention's output",
    "ffn_in": "FFN's input",
    "ffn_out": "FFN's output",
    "unembedding": "unembedding",
    "logits": "all: logits",
    "stream": "all: stream",
}


class Case(NamedTuple):
    """One curve a panel.

    Attributes:
        row: of panels.
        label: in the legend.
        shade: its colour.
        placement, rule, muon, logit_std: of the networks.
    """

    row: str
    label: str
    shade: str
    placement: str
    rule: str
    muon: bool = False
    logit_std: float = 1.0


RULES = {"standard": "#D55E00", "mup": "#0072B2", "longcat": "#009E73"}
ADAM = tuple(
    Case(f"{name}, Adam", rule, shade, name, rule) for name in ("PreNorm", "SpanNorm") for rule, shade in RULES.items()
)
MUON = (
    Case("Muon, spectral", "PreNorm", "#56B4E9", "PreNorm", "spectral", muon=True),
    Case("Muon, spectral", "SpanNorm", "#CC79A7", "SpanNorm", "spectral", muon=True),
    Case("Muon, spectral", "PreNorm, uniform attention", "#000000", "PreNorm", "spectral", muon=True, logit_std=0.0),
)
CASES = ADAM + MUON

FULL = {"widths": (*WIDTHS, 1024, 2048), "draws": 16}
CAPTION = """\
**Coordinate checks.** Response of a matrix: root mean square of what its first update makes of its own input at
initialisation, per unit of that input, against the width; the last column is the change of the logits, or of the stream
that leaves the last block, by the first step of all matrices together. The smallest network is the base of every rule.
A rule that transfers keeps each curve level. Points: simulation of {draws} networks a width, geometric means, bars 1.96
standard errors. Lines: the slope that the rule's own factors give by the law of the optimiser, through the first point;
in the last column level.

Upper rows: Adam (rate 1e-3) and cross-entropy on {vocabulary} tokens, with entries drawn and trained alike at every
width (standard), under muP, and with LongCat's rule, variance and rate over the width in the head too
(arXiv:2509.01322). Lowest row: Muon with the exact orthogonal factor (rate 1e-3), the spectral condition and a linear
loss, without weights, to width {widest}.

What it shows: under the standard rule each hidden matrix's response grows as the width ({standard_low:.2f} to
{standard_high:.2f} measured, 1 by the factors), under muP and LongCat's rule none does ({right_low:.2f} to
{right_high:.2f}). The logits' change then goes as width^{mup_logits:.2f} under muP and as width^{longcat_logits:.2f}
under LongCat's rule in PreNorm: there the head's initial entries, of variance 1 / width, meet a change of the stream
whose signs came through them, and add up in step to the root of the width in the limit. Under Muon every matrix is
level to {muon:.3f} over three decades, but the stream is not, width^{muon_stream:.2f} in PreNorm: queries and keys
turn towards one another, which logits over the root of a growing head add up. With uniform attention it is level
({uniform_stream:.3f}).

Depth 2, {tokens} tokens, {heads} heads, ReLU. Source: `propagate.coordinate_check`; first seed {first_seed}.
"""


def data(
    draws: int = 6,
    seed: int = 0,
    executor: Executor | None = None,
    widths: Sequence[int] = WIDTHS,
    wide: Sequence[int] = WIDE,
    backend: str = "numpy",
) -> xr.Dataset:
    """Curves and slopes of every case and name; NaN where a case has no such matrix or width."""
    every = sorted({*widths, *wide})
    with workers(executor) as pool:
        waiting = [pool.submit(check, case, wide if case.muon else widths, draws, seed) for case in CASES]
        rows = [_row(one.result(), every) for one in waiting]
    found = xr.concat(rows, "case", combine_attrs="drop")
    for key in ("row", "label"):
        found[key] = "case", [getattr(case, key) for case in CASES]
    said = {"draws": draws, "first_seed": seed, "tokens": TOKENS, "heads": HEADS, "vocabulary": VOCABULARY}
    return found.assign_attrs(said | {"widest": max(every)} | _told(found))


def check(case: Case, widths: Sequence[int], draws: int, seed: int) -> xr.Dataset:
    """The table of one case's coordinate check."""
    fields: dict[str, Any] = {"depth": DEPTH, "tokens": TOKENS, "heads": HEADS, "logit_std": case.logit_std}
    optimizer: Any = pg.Muon(lr=LR) if case.muon else pg.Adam(lr=LR)
    loss: Any = pg.Linear() if case.muon else pg.CrossEntropy(VOCABULARY)
    settings = {"transfer": case.rule, "widths": widths, "steps": 1, "draws": draws, "seed": seed}
    return pg.coordinate_check(pg.Model(case.placement, **fields), optimizer=optimizer, loss=loss, **settings).table


def _row(table: xr.Dataset, widths: Sequence[int]) -> xr.Dataset:
    """Of one case: responses of matrices and changes of what leaves, at the first step, by name."""
    at, rows = table.sel(step=1), {}
    for name in NAMES:
        if name in table.name.values:
            one, quantity, rule = at.sel(name=name), "response", float(at.response_rule.sel(name=name))
        elif name in table.whole.values:
            one, quantity, rule = at.sel(whole=name), "change", 0.0
        else:
            rows[name] = (np.full((2, len(widths)), np.nan), np.full(3, np.nan))
            continue
        curve = [one[f"log_{quantity}{suffix}"].reindex(size=widths).to_numpy() for suffix in ("", "_se")]
        fitted = [float(one[f"{quantity}_slope"]), float(one[f"{quantity}_slope_error"]), rule]
        rows[name] = (np.array(curve), np.array(fitted))
    curves, fits = (np.array([rows[name][part] for name in NAMES]) for part in (0, 1))
    columns = {"log_size": curves[:, 0], "log_size_se": curves[:, 1]}
    found = {key: (("name", "width"), values) for key, values in columns.items()}
    found |= {key: ("name", fits[:, k]) for k, key in enumerate(("slope", "slope_se", "rule"))}
    return xr.Dataset(found, {"name": list(NAMES), "width": list(widths)})


def _told(found: xr.Dataset) -> dict[str, float]:
    """The exponents that the caption names."""

    def slopes(names: Sequence[str], **of: Any) -> Any:
        cases = [k for k, case in enumerate(CASES) if all(getattr(case, key) == value for key, value in of.items())]
        return found.slope.isel(case=cases).sel(name=list(names)).to_numpy()

    hidden = ("query", "attention_out", "ffn_in", "ffn_out")
    standard = slopes(hidden, rule="standard")
    right = np.concatenate([slopes((*hidden, "unembedding"), rule=rule).ravel() for rule in ("mup", "longcat")])
    muon = slopes(("query", "value", "attention_out", "ffn_in", "ffn_out"), muon=True)
    plain = {"placement": "PreNorm"}
    return {
        "standard_low": float(standard.min()),
        "standard_high": float(standard.max()),
        "right_low": float(right.min()),
        "right_high": float(right.max()),
        "mup_logits": float(slopes(("logits",), rule="mup", **plain).item()),
        "longcat_logits": float(slopes(("logits",), rule="longcat", **plain).item()),
        "muon": float(np.nanmax(np.abs(muon))),
        "muon_stream": float(slopes(("stream",), muon=True, logit_std=1.0, **plain).item()),
        "uniform_stream": float(slopes(("stream",), muon=True, logit_std=0.0).item()),
    }


def draw(data: xr.Dataset) -> Any:
    """A row of panels for each placement under Adam, and one for Muon; a column a matrix."""
    rows = list(dict.fromkeys(case.row for case in CASES))
    with plots.style():
        figure, axes = plots.panels(len(rows), len(SHOWN), height=4.8)
        for line, row in zip(axes, rows, strict=True):
            cases = [k for k, case in enumerate(CASES) if case.row == row]
            for axis, name in zip(line, SHOWN_WIDE if "Muon" in row else SHOWN, strict=True):
                there = [(k, one) for k in cases if np.isfinite((one := data.isel(case=k).sel(name=name)).slope)]
                for place, (k, one) in enumerate(there):
                    _curve(axis, one, CASES[k].shade, aside=place - (len(there) - 1) / 2)
                _scaled(axis, [one for _, one in there])
                axis.set_title(TITLES[name], fontsize=7)
            line[0].set_ylabel(f"{row}\nresponse or change")
        for axis in axes[-1]:
            axis.set_xlabel("width")
        curves = {case.label: case.shade for case in CASES}
        handles = [plots.entry(label, color=shade, linewidth=2.5) for label, shade in curves.items()]
        handles += [
            plots.entry("by the rule's factors"),
            plots.entry("simulation", linestyle="none", marker="o", markersize=3.4),
        ]
        plots.legend(figure, handles, columns=4)
    return figure


def _curve(axis: Any, one: xr.Dataset, shade: str, aside: float) -> None:
    """Points with bars, a little aside of one another, and the slope of the rule's factors through the first."""
    widths, logs, errors = _seen(one)
    line = np.exp(logs[0]) * (widths / widths[0]) ** float(one.rule)
    axis.plot(widths, line, color=shade, linewidth=1.0, alpha=0.6)
    step = (widths[1] / widths[0]) ** (0.16 * aside)
    plots.simulation_points(axis, widths * step, logs, errors, logarithmic=True, shade=shade)


def _scaled(axis: Any, curves: Sequence[xr.Dataset]) -> None:
    """Logarithmic axes whose vertical one covers as many decades in every panel."""
    widths, _, _ = _seen(curves[0])
    logs = np.concatenate([_seen(one)[1] for one in curves])
    middle, room = np.exp((logs.min() + logs.max()) / 2), (widths[1] / widths[0]) ** 0.4
    axis.set(xscale="log", yscale="log", xlim=(widths[0] / room, widths[-1] * room))
    axis.set_ylim(middle / REACH, middle * REACH)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_minor_formatter(NullFormatter())
    marked = widths[:: len(widths) - 1] if len(widths) < 5 else widths[::2]
    axis.set_xticks(marked, [f"{w:g}" if w < 1e4 else f"{w / 1024:.0f}k" for w in marked])


def _seen(one: xr.Dataset) -> tuple[Any, Any, Any]:
    """Widths, mean logarithms and their errors, where there are some."""
    there = np.isfinite(one.log_size.to_numpy())
    return one.width.to_numpy()[there], one.log_size.to_numpy()[there], one.log_size_se.to_numpy()[there]
