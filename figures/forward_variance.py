"""Forward variance against block, for PreNorm, PostNorm and SpanNorm with and without ScaleInit."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import xarray as xr

from figures.networks import DEPTH, DRAWS, LARGER, PLACEMENTS, SEED, SETTING, START, WIDTH, counts, grid, records
from propagate import plots

FULL = LARGER
CAPTION = (
    """\
**Forward variance against block.** Second moment per coordinate of the residual stream, E x², in a network of 128
blocks at random initialisation. Left: at the output of each block. PostNorm and SpanNorm end every block with a norm,
so theirs is 1 to rounding whatever the branches do; PreNorm's adds up the branches. Right: what happens inside
PostNorm and SpanNorm: the sum, skip + FFN, that the block's last norm divides, measured in networks of the same seeds
cut before that norm. Theory gives 2 without scaling (half of it the skip, half the FFN) and 1 + 1/128 with ScaleInit,
for both placements.

Lines: theory in the limit of infinite width; the shaded band, at this width hardly wider than the line, is its stated
allowance for the finite width of the simulation. Points: simulation, arithmetic mean over independent networks (left:
{draws} of unscaled PostNorm and SpanNorm each, {light} of the others; right: {light} of each), bars ±1.96 standard
errors, hidden by the point where they are smaller than it. ScaleInit(0.5) multiplies the output matrices of attention
and FFN by depth^(-1/2); the SpanNorm paper's own formula is not known to us.

Bears on claim C1 (with the scaling, signal variance is bounded through the network). It holds: by the norm for
PostNorm and SpanNorm, with or without scaling; by ScaleInit for PreNorm, 2.5 in place of 247 after 128 blocks. We
have not seen the paper's figures, and know of none that corresponds to this one.

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
    """Six networks, and the four normed ones again, cut before their last norm."""
    runs = [
        run
        for placements in (PLACEMENTS, ("PostNormSum", "SpanNormSum"))
        for run in grid(START, draws, seed, depth, placements, width=width, backend=backend)
    ]
    found = records(runs, ["variance"], executor)
    # a norm forgets what fluctuated before it: its output is exact, and its input is allowed one block's drift, not all
    one_block = found.variance_allowance.diff("block").reindex(block=found.block, fill_value=0.0)
    allowance = found.variance_allowance.where(~found.placement.str.endswith("Sum"), one_block)
    found["variance_allowance"] = allowance.where(~found.placement.isin(PLACEMENTS[1:]), 0.0)
    return found.assign_attrs(counts(draws), first_seed=seed)


def draw(data: xr.Dataset) -> Any:
    """Left: the stream; right: the sums before the last norm."""
    with plots.style():
        figure, axes = plots.panels(1, 2, height=3.1, width_ratios=[1.25, 1])
        stream, inside = axes[0]
        depth = data.sizes["block"] - 1
        for index in range(data.sizes["network"]):
            one = data.isel(network=index)
            name, scaled = str(one.placement.item()), str(one.scaling.item()) != "none"
            look: dict[str, Any] = {"placement": name.removesuffix("Sum"), "scaled": scaled}
            # the points of lines that coincide are set apart
            start = 4 + 4 * (2 * PLACEMENTS.index(look["placement"]) - 2 + scaled)
            axis, shown = (inside, slice(1, None)) if name.endswith("Sum") else (stream, slice(None))
            theory = one.isel(block=shown)
            plots.theory_line(axis, theory.block, theory.theory_variance, allowance=theory.variance_allowance, **look)
            points = one.isel(block=slice(4, None, 8) if name == "PreNorm" else slice(start, None, 16))
            plots.simulation_points(axis, points.block, points.variance, points.variance_se, **look)
        stream.set(yscale="log", ylim=(0.4, 500), title="stream at a block's output")
        stream.text(depth / 2, 0.78, "exactly 1", ha="center", va="top", fontsize=7)
        inside.set(ylim=(0.8, 2.6), title="sum before a block's last norm")
        for axis in (stream, inside):
            axis.set(xlabel=plots.BLOCK_AXIS, xlim=(-2, depth + 2))
        stream.set_ylabel("variance\n(second moment per coordinate)")
        plots.legend(figure, plots.key(PLACEMENTS))
    return figure
