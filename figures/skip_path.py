"""Gradient gain of the skip path alone beside the total gain, against depth, for PostNorm and SpanNorm."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import numpy as np
import xarray as xr

from figures.networks import (
    DEPTH,
    DRAWS,
    LARGER,
    SCALINGS,
    SEED,
    SETTING,
    START,
    WIDTH,
    Run,
    columns,
    counts,
    digits,
    grid,
    labelled,
    measure,
    predict,
    unscaled,
)
from propagate import plots

SIMULATED = (1, 2, 4, 8, 16, 32, 128)
PLACEMENTS = ("PostNorm", "SpanNorm")

FULL = LARGER
CAPTION = (
    """\
**Skip-path gain beside total gain.** Gradient variance at the embedding, for a gradient of variance 1 that enters at
the stream that leaves the last block, independent over tokens, against the depth L of the network.

Dash-dotted: the gain if the gradient returned along the skips alone (theory; each norm divides by the size of its
sum). Without scaling it approaches a factor of 1/4 a block for PostNorm, which has two norms on a block's skip path,
and is 1/2 for SpanNorm, which has one: in amplitude 2^(-L) and 2^(-L/2). This is the argument that structure alone
allows networks "twice as deep" (claim C3). Solid and dashed: the total gain, theory in the limit of infinite width;
the shaded band is its stated allowance for the finite width of the simulation. Points: simulation, geometric mean
over {draws} independent networks of each depth (ScaleInit: {light}), bars ±1.96 standard errors of the mean
logarithm. ScaleInit(0.5) multiplies the output matrices of attention and FFN by depth^(-1/2); the SpanNorm paper's
own formula is not known to us.

What it shows: without scaling (left) the total gain does not follow the skip path. The branches bring back what the
skip loses, and the gain ends on a floor of order 1/tokens (dotted: 1/16), for ReLU and a gradient independent over
tokens: 0.15 for PostNorm, 0.08 for SpanNorm (simulated, at {longest} blocks: {end_postnorm:.2f} and
{end_spannorm:.2f}; finite width lowers the mean logarithm by an order of blocks/width, the band). SpanNorm's falls
later and ends lower. With ScaleInit (right) the total gain tends to 1.00 for SpanNorm and 0.71 for PostNorm, although
the skips alone would keep 0.37 and 0.22. So claim C2 (the scaling prevents vanishing) holds, and C3 holds for the
skip path and for rank collapse (see rank_collapse), not for the total gradient of a ReLU network. We have not seen
the paper's figures nor its Eq. 11; the claim is known to us from public reviews.

"""
    + SETTING
    + " The networks of depth 128 are those of gradient_variance.\n"
)


def data(
    draws: int = DRAWS,
    seed: int = SEED,
    executor: Executor | None = None,
    depth: int = DEPTH,
    width: int = WIDTH,
    backend: str = "numpy",
) -> xr.Dataset:
    """Four kinds of network at every depth of a grid; simulations where `SIMULATED` says so."""
    depths = sorted({*np.unique(np.geomspace(1, depth, 24).round()).astype(int).tolist(), *SIMULATED})
    depths = [length for length in depths if length <= depth]
    runs = [grid(START, draws, seed, length, PLACEMENTS, width=width, backend=backend) for length in depths]
    wanted = [run for row in runs for run in row if run.model.depth in SIMULATED]
    measured = dict(zip(wanted, measure(wanted, executor), strict=True))
    rows = [xr.concat([_embedding(run, measured.get(run)) for run in row], "network") for row in runs]
    found = labelled(
        xr.concat(rows, xr.Variable("depth", depths), join="exact"), runs[-1], next(iter(measured.values()))
    )
    found["seed"] = ("network", "depth"), np.array([[run.seed for run in row] for row in runs]).T
    simulated = found.isel(depth=np.isfinite(found.log_grad_variance).all("network"))
    ends = {
        f"end_{name.lower()}": float(digits(np.exp(unscaled(simulated, name).log_grad_variance[-1])))
        for name in PLACEMENTS
    }
    return found.assign_attrs(counts(draws), first_seed=seed, longest=int(simulated.depth[-1]), **ends)


def _embedding(run: Run, measured: xr.Dataset | None) -> xr.Dataset:
    """What the figure shows of one network: its gradient at the embedding, NaN where it is not simulated."""
    theory = predict(run)
    here = columns(theory, theory if measured is None else measured, ["grad_variance"], measured is not None)
    here["skip_gain"] = "block", digits(theory.skip_gain)
    return here.isel(block=0, drop=True)


def draw(data: xr.Dataset) -> Any:
    """A panel for each scaling, one vertical scale."""
    with plots.style():
        figure, axes = plots.panels(1, 2, height=3.0, sharey=True)
        for index in range(data.sizes["network"]):
            one = data.isel(network=index)
            name, scaled = str(one.placement.item()), str(one.scaling.item()) != "none"
            axis = axes[0, list(SCALINGS).index(str(one.scaling.item()))]
            look: dict[str, Any] = {"placement": name, "scaled": scaled}
            plots.theory_line(axis, one.depth, one.skip_gain, **look | {"linestyle": "-.", "linewidth": 0.9})
            plots.theory_line(axis, one.depth, one.theory_grad_variance, allowance=one.grad_variance_allowance, **look)
            points = one.isel(depth=np.flatnonzero(np.isfinite(one.log_grad_variance)))
            plots.simulation_points(
                axis, points.depth, points.log_grad_variance, points.log_grad_variance_se, logarithmic=True, **look
            )
        for axis, title in zip(axes[0], ("no scaling", "ScaleInit(0.5)"), strict=True):
            axis.axhline(1 / int(data.tokens[0]), color="0.35", linestyle=":", linewidth=0.9)
            axis.set(xscale="log", yscale="log", xlabel="depth L, blocks", title=title, ylim=(1e-6, 4))
            axis.set_xticks(SIMULATED, [str(length) for length in SIMULATED])
            axis.minorticks_off()
        axes[0, 0].set_ylabel("gradient variance at the embedding,\ngeometric mean (per coordinate)")
        more = [plots.entry("skip path alone", linestyle="-."), plots.entry("1 / tokens", linestyle=":")]
        plots.legend(figure, [*plots.key(PLACEMENTS, prefix="total, "), *more], columns=4)
    return figure
