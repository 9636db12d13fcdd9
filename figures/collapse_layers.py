"""Collapse at layers 1, 12 and 24 against the gain of the output matrices, for PreNorm, PostNorm and SpanNorm."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import numpy as np
import xarray as xr

import propagate as pg
from figures.networks import (
    DRAWS,
    HEADS,
    LARGER,
    LOGIT_STD,
    PLACEMENTS,
    SEED,
    SETTING,
    START,
    TOKENS,
    WIDTH,
    Run,
    columns,
    counts,
    digits,
    labelled,
    measure,
    predict,
)
from propagate import plots

DEPTH = 24
FORWARD, BACKWARD = "deviation", "grad_variance"
SHADES = ("#E69F00", "#56B4E9", "#000000")

FULL = LARGER
CAPTION = (
    """\
**Collapse without scaling, layer by layer.** A network of {depth} blocks at random initialisation; the output matrices
of attention and FFN have entries of standard deviation gain/√fan-in, the same gain in every block. Against that gain:
how far two tokens still differ in the stream that leaves layers {layers}, 1 - correlation (upper panels), and the
gradient variance per coordinate that arrives at the input of the same layers, for a gradient of variance 1, independent
over tokens, that enters at the stream that leaves the last block (lower panels). Vertical lines: gain 1, no scaling,
and gain depth^(-1/2) = {scaled:.2f}, which is ScaleInit(0.5).

Lines: theory in the limit of infinite width; the shaded band is its stated allowance for the finite width of the
simulation. Points: simulation, geometric mean over {light} independent networks for each gain, bars ±1.96 standard
errors of the mean logarithm.

Bears on claim C8. The SpanNorm paper's Fig. 3 is said to show, by public reviews, that training collapses without the
scaling, traced at layers 1, 12 and 24. We have not seen it, and nothing here trains: this is the same question put to
the initialisation alone. The last layer goes first: without scaling 1 - correlation at layer {last} has fallen from 0.7
to {post:.0e} in PostNorm, to {span:.0e} in SpanNorm and to {pre:.2f} in PreNorm, and with ScaleInit(0.5) to
{post_scaled:.2f}, {span_scaled:.2f} and {pre_scaled:.2f}; the first layer hardly notices. Without scaling the gradient
at layer 1 is {post_grad:.2f} in PostNorm and {span_grad:.2f} in SpanNorm: a floor of order 1/tokens, no vanishing. So
at initialisation what goes without scaling is the difference between tokens. Whether that is why training collapses,
this figure cannot say.

"""
    + SETTING
    + "\n"
)


def data(
    draws: int = DRAWS,
    seed: int = SEED,
    executor: Executor | None = None,
    depth: int = DEPTH,
    width: int = WIDTH,
    backend: str = "numpy",
) -> xr.Dataset:
    """Three placements at every gain of a grid; simulations at some of them."""
    scaled = depth**-0.5
    simulated = sorted({0.1, scaled, 0.5, 1.0, 2.0})
    gains = sorted({*np.geomspace(1 / 16, 4, 25).tolist(), *simulated})
    size: dict[str, Any] = {"depth": depth, "width": width, "tokens": TOKENS, "heads": HEADS, "logit_std": LOGIT_STD}
    light = counts(draws)["light"]
    runs = [
        Run(
            placement,
            f"gain {gain:.4g}",
            START,
            pg.Model(placement, attention_gain=gain, ffn_gain=gain, activation="relu", **size),
            light,
            1_000_000 * seed + 500_000 + 1000 * row + column,
            backend,
        )
        for row, placement in enumerate(PLACEMENTS)
        for column, gain in enumerate(gains)
    ]
    wanted = [run for run in runs if run.model.ffn_gain in simulated]
    measured = dict(zip(wanted, measure(wanted, executor), strict=True))
    layers = sorted({1, depth // 2, depth})
    blocks = sorted({*layers, *(layer - 1 for layer in layers)})
    rows = [_layers(run, measured.get(run), blocks) for run in runs]
    found = labelled(xr.concat(rows, "network"), runs, next(iter(measured.values())))
    found["gain"] = "network", digits([run.model.ffn_gain for run in runs])
    said = {"depth": depth, "scaled": float(digits(scaled)), "layers": ", ".join(map(str, layers)), "last": depth}
    for label, placement in (("pre", "PreNorm"), ("post", "PostNorm"), ("span", "SpanNorm")):
        own = found.isel(network=np.flatnonzero(found.placement == placement))
        for suffix, gain in (("", 1.0), ("_scaled", scaled)):
            one = own.isel(network=int(np.argmin(abs(own.gain.to_numpy() - gain))))
            said[label + suffix] = float((one.theory_deviation / one.theory_variance).sel(block=depth))
            said[f"{label}_grad{suffix}"] = float(one.theory_grad_variance.sel(block=0))
    return found.assign_attrs(counts(draws), first_seed=seed, **said)


def _layers(run: Run, measured: xr.Dataset | None, blocks: list[int]) -> xr.Dataset:
    """What the figure shows of one network, NaN where it is not simulated."""
    theory = predict(run)
    names = ["variance", FORWARD, BACKWARD]
    return columns(theory, theory if measured is None else measured, names, measured is not None).sel(block=blocks)


def draw(data: xr.Dataset) -> Any:
    """A column for each placement: tokens' difference above, gradient below; a colour for each layer."""
    layers = [int(layer) for layer in data.attrs["layers"].split(", ")]
    with plots.style():
        figure, axes = plots.panels(2, 3, height=4.3, sharex=True, sharey="row")
        for column, placement in zip(axes.T, PLACEMENTS, strict=True):
            own = data.isel(network=np.flatnonzero(data.placement == placement))
            points = own.isel(network=np.flatnonzero(np.isfinite(own.log_deviation.isel(block=0))))
            for layer, shade in zip(layers, SHADES, strict=False):
                look: dict[str, Any] = {"placement": placement, "color": shade}
                there, seen = own.sel(block=layer), points.sel(block=layer)
                line = there.theory_deviation / there.theory_variance
                plots.theory_line(column[0], own.gain, line, allowance=there.deviation_allowance, **look)
                error = np.hypot(seen.log_deviation_se, seen.log_variance_se)
                difference = seen.log_deviation - seen.log_variance
                plots.simulation_points(column[0], seen.gain, difference, error, logarithmic=True, shade=shade)
                there, seen = own.sel(block=layer - 1), points.sel(block=layer - 1)
                line = there.theory_grad_variance
                plots.theory_line(column[1], own.gain, line, allowance=there.grad_variance_allowance, **look)
                plots.simulation_points(
                    column[1],
                    seen.gain,
                    seen.log_grad_variance,
                    seen.log_grad_variance_se,
                    logarithmic=True,
                    shade=shade,
                )
            for axis in column:
                axis.set(xscale="log", yscale="log")
                for gain in (1.0, data.attrs["scaled"]):
                    axis.axvline(gain, color="0.6", linewidth=0.7, zorder=0)
            column[0].set_title(placement)
            column[1].set_xlabel("gain of the output matrices")
            column[1].set_xticks([0.1, data.attrs["scaled"], 0.5, 1, 2, 4], ["0.1", "0.2", "0.5", "1", "2", "4"])
            column[1].minorticks_off()
        axes[0, 0].set(ylim=(1e-9, 3), ylabel="1 - correlation of the stream\nthat leaves the layer")
        axes[1, 0].set(ylabel="gradient variance at the\nlayer's input (per coordinate)")
        handles = [
            plots.entry(f"layer {layer}", color=shade, linewidth=2.0)
            for layer, shade in zip(layers, SHADES, strict=False)
        ]
        more = [plots.entry("ScaleInit(0.5), no scaling", color="0.6", linewidth=0.7)]
        plots.legend(figure, [*handles, *plots.key(scalings=False), *more])
    return figure
