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
    log_biases,
    records,
    unscaled,
)
from propagate import plots
from propagate.figures import workers

FULL = LARGER
PAIRS, VARYING = 16, 64  # of samples of the bias: of networks that vary little, and much
EVERY = 8  # blocks from one point drawn to the next
CAPTION = (
    """\
**Gradient variance against block.** Second moment per coordinate of the loss gradient with respect to the stream, E
g², in a network of 128 blocks at random initialisation. The gradient enters at the stream that leaves the last block,
with variance 1 and independent over tokens, and travels to the left.

Solid and dashed lines: theory in the limit of infinite width, where the arithmetic and the geometric mean over
networks are one; the shaded band is its stated allowance for the finite width of the simulation. Dash-dotted, without
scaling: the geometric mean that theory predicts at this width. Its logarithm is the limit's and the bias of the mean
logarithm to first order in 1/width, from {pairs} pairs of samples or more (standard error at most {bias_error:.2f});
with ScaleInit that bias is at most {scaled:.3f}, and not drawn. Points: simulation, geometric mean over {draws}
independent networks of unscaled PostNorm and SpanNorm each, which vary most, and over {light} of the others, bars ±1.96
standard errors of the mean logarithm. The geometric mean is the exponential of the mean logarithm: at depth the
gradient of a norm-after-sum network is close to log-normal, and its arithmetic mean lies higher. Points of one line
come from the same networks, so they stray together. Those of unscaled PostNorm and SpanNorm lie below the limit, on the
first half of the blocks by factors of {below_postnorm:.2f} and {below_spannorm:.2f}, where {said_postnorm:.2f} and
{said_spannorm:.2f} are predicted; bars of {held} of the {shown} points drawn of these two hold the predicted geometric
mean. ScaleInit(0.5) multiplies the output matrices of attention and FFN by depth^(-1/2); the SpanNorm paper's own
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
    runs = grid(START, draws, seed, depth, width=width, backend=backend)
    pairs = [VARYING if run.draws == draws else PAIRS for run in runs]
    with workers(executor) as pool:
        waiting = [pool.submit(log_biases, run, count) for run, count in zip(runs, pairs, strict=True)]
        found = records(runs, ["grad_variance"], pool)
        biases = [one.result() for one in waiting]
    for name in biases[0]:
        found[name] = ("network", "block"), np.array([of[name] for of in biases])
    factors: dict[str, float] = {"pairs": PAIRS, "bias_error": float(digits(found.log_bias_se.max(), 2))}
    factors["scaled"] = float(digits(abs(found.log_bias).where(found.scaling == "ScaleInit").max(), 2))
    held = shown = 0
    for name in ("PostNorm", "SpanNorm"):
        half = unscaled(found, name).isel(block=slice(0, depth // 2 + 1))
        factor = np.exp((np.log(half.theory_grad_variance) - half.log_grad_variance).mean())
        factors[f"below_{name.lower()}"] = float(digits(factor))
        factors[f"said_{name.lower()}"] = float(digits(np.exp(-half.log_bias.mean())))
        drawn = unscaled(found, name).isel(block=slice(0, depth, EVERY))
        off = np.log(drawn.theory_grad_variance) + drawn.log_bias - drawn.log_grad_variance
        held += int((abs(off) <= plots.CONFIDENCE * drawn.log_grad_variance_se).sum())
        shown += drawn.sizes["block"]
    return found.assign_attrs(counts(draws), first_seed=seed, held=held, shown=shown, **factors)


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
            if not scaled:
                geometric = one.theory_grad_variance * np.exp(one.log_bias)
                axis.plot(one.block, geometric, color=plots.colour(name), linestyle="-.", linewidth=0.9)
            points = one.isel(block=slice(EVERY // 2 if scaled else 0, None, EVERY))
            plots.simulation_points(
                axis, points.block, points.log_grad_variance, points.log_grad_variance_se, logarithmic=True, **look
            )
        depth, tokens = data.sizes["block"] - 1, int(data.tokens[0])
        for axis, name in zip(axes[0], PLACEMENTS, strict=True):
            axis.set(yscale="log", xlabel=plots.BLOCK_AXIS, title=name, xlim=(-3, depth + 3))
            if name != "PreNorm":
                axis.axhline(1 / tokens, color="0.35", linestyle=":", linewidth=0.9)
        axes[0, 0].set_ylabel("gradient variance\n(second moment per coordinate)")
        more = (("geometric mean at this width", "-."), ("1 / tokens", ":"))
        plots.legend(figure, [*plots.key(), *(plots.entry(label, linestyle=dashes) for label, dashes in more)], 5)
    return figure
