"""Gradient variance against block, for PreNorm, PostNorm and SpanNorm with and without ScaleInit."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import numpy as np
import xarray as xr

from figures.networks import (
    DEPTH,
    DRAWS,
    LARGER,
    PLACEMENTS,
    SEED,
    SETTING,
    START,
    WIDTH,
    counts,
    digits,
    grid,
    records,
    unscaled,
)
from propagate import plots

FULL = LARGER
CAPTION = (
    """\
**Gradient variance against block.** Second moment per coordinate of the loss gradient with respect to the stream, E
g², in a network of 128 blocks at random initialisation. The gradient enters at the stream that leaves the last block,
with variance 1 and independent over tokens, and travels to the left.

Lines: theory in the limit of infinite width, where the arithmetic and the geometric mean over networks are one; the
shaded band is its stated allowance for the finite width of the simulation. No line is a prediction of the geometric
mean at this width: the theory's bias of the mean logarithm (`include={{"bias"}}`) is refused for unscaled PostNorm
and SpanNorm, whose tokens become one within these blocks, and not drawn for the others. Points: simulation, geometric
mean over {draws} independent networks of unscaled PostNorm and SpanNorm each, which vary most, and over {light} of the
others, bars ±1.96 standard errors of the mean logarithm. The geometric
mean is the exponential of the mean logarithm: at depth the gradient of a norm-after-sum network is close to
log-normal, and its arithmetic mean lies higher. Points of one line come from the same networks, so they stray
together. Towards block 0 those of unscaled PostNorm and SpanNorm lie below the line, on the first half of the blocks
by factors of {below_postnorm:.2f} and {below_spannorm:.2f}: no more than the error bars allow by chance, and what is
expected of finite width, which lowers the mean logarithm by an order of blocks/width ({drift:.2f} at block 0; the
band). ScaleInit(0.5) multiplies the output matrices of attention and FFN by depth^(-1/2); the SpanNorm paper's own
formula is not known to us.

Bears on claim C2 (SpanNorm with scaling prevents PostNorm's vanishing gradient). With ScaleInit all three placements
hold their gradient within about a factor of 2 of 1 (at the embedding PreNorm 2.1, PostNorm 0.71, SpanNorm 1.00),
PostNorm too: the cure is the scaling as much as the placement. Unscaled PostNorm does not vanish with ReLU either:
within a few blocks it falls to a floor near 1/tokens (dotted) and stays there, up to finite width; unscaled SpanNorm
takes about twice as many blocks to the same floor. We have not seen the paper's figures, and know of none that
corresponds to this one.

"""
    + SETTING
    + " The networks are those of forward_variance.\n"
)


def data(
    draws: int = DRAWS,
    seed: int = SEED,
    executor: Executor | None = None,
    depth: int = DEPTH,
    width: int = WIDTH,
    backend: str = "numpy",
) -> xr.Dataset:
    """The same six networks as forward_variance."""
    found = records(grid(START, draws, seed, depth, width=width, backend=backend), ["grad_variance"], executor)
    factors = {}
    for name in ("PostNorm", "SpanNorm"):
        half = unscaled(found, name).isel(block=slice(0, depth // 2 + 1))
        factor = np.exp((np.log(half.theory_grad_variance) - half.log_grad_variance).mean())
        factors[f"below_{name.lower()}"] = float(digits(factor))
    return found.assign_attrs(counts(draws), first_seed=seed, drift=depth / width, **factors)


def draw(data: xr.Dataset) -> Any:
    """A panel for each placement, one vertical scale."""
    with plots.style():
        figure, axes = plots.panels(1, 3, height=2.8, sharey=True)
        for index in range(data.sizes["network"]):
            one = data.isel(network=index)
            name, scaled = str(one.placement.item()), str(one.scaling.item()) != "none"
            axis = axes[0, PLACEMENTS.index(name)]
            look: dict[str, Any] = {"placement": name, "scaled": scaled}
            plots.theory_line(axis, one.block, one.theory_grad_variance, allowance=one.grad_variance_allowance, **look)
            points = one.isel(block=slice(4 if scaled else 0, None, 8))
            plots.simulation_points(
                axis, points.block, points.log_grad_variance, points.log_grad_variance_se, logarithmic=True, **look
            )
        depth, tokens = data.sizes["block"] - 1, int(data.tokens[0])
        for axis, name in zip(axes[0], PLACEMENTS, strict=True):
            axis.set(yscale="log", xlabel=plots.BLOCK_AXIS, title=name, xlim=(-3, depth + 3))
            if name != "PreNorm":
                axis.axhline(1 / tokens, color="0.35", linestyle=":", linewidth=0.9)
        axes[0, 0].set_ylabel("gradient variance\n(second moment per coordinate)")
        plots.legend(figure, [*plots.key(), plots.entry("1 / tokens", linestyle=":")])
    return figure
