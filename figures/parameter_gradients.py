"""Gradient norm of the weight matrices against block, for PreNorm, PostNorm and SpanNorm with and without ScaleInit."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import numpy as np
import xarray as xr

import propagate as pg
from figures.networks import (
    DRAWS,
    LARGER,
    PLACEMENTS,
    SAMPLER,
    SCALINGS,
    SEED,
    SETTING,
    START,
    WIDTH,
    Run,
    counts,
    digits,
    grid,
    labelled,
)
from propagate import plots
from propagate.figures import workers

DEPTH = 24
SHOWN = {"query": "#CC79A7", "value": "#E69F00", "ffn_in": "#56B4E9", "ffn_out": "#000000"}

FULL = LARGER
CAPTION = (
    """\
**Gradient norm of the weight matrices against block.** Root of the expected squared Frobenius norm of dLoss/dW, in
units of √tokens · width, at random initialisation and for a network of {depth} blocks. W is the matrix as a network
stores it, its entries of standard deviation gain/√fan-in. The loss's gradient enters behind the readout (PreNorm's
final norm), with variance 1 a coordinate and independent over tokens.

Lines: theory in the limit of infinite width, from the token Gram matrices of each matrix's input and of its output's
cotangent; shaded: its stated allowance for finite width. Points: simulation, root of the arithmetic mean over
independent networks ({draws} of unscaled PostNorm and SpanNorm, {light} of the others), bars ±1.96 standard errors; no
geometric means are shown, of which the theory has none for matrices. Where tokens have collapsed, the
queries' gradient varies between networks by factors, and its mean, led by the largest, lies above the line: finite
width, beyond the band in the last blocks of unscaled PostNorm and SpanNorm. Keys behave like queries and the
attention's output matrix like the values; they are in the data. ScaleInit(0.5) multiplies the output matrices of
attention and FFN by depth^(-1/2), and a smaller matrix has a larger gradient by as much: its ffn_out lies above
ffn_in. The SpanNorm paper's own formula is not known to us.

Bears on claim C2 and on arXiv:2002.04745, Theorem 1: at the last block PreNorm's ffn_out gradient is smaller than
PostNorm's, {last_ratio:.2f} of it here, by the root of the variance that its stream has gathered. Queries see almost
nothing once tokens have collapsed onto one another: in the last block of unscaled PostNorm {collapsed:.0e} of the
values' gradient. We have not seen the SpanNorm paper's figures, and know of none that corresponds to this one.

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
    """Theory and simulation of `param_grad` of six networks."""
    runs = grid(START, draws, seed, depth, width=width, backend=backend)
    with workers(executor) as pool:
        measured = [future.result() for future in [pool.submit(simulate, run) for run in runs]]
    found = labelled(
        xr.concat([_columns(predict(run), seen) for run, seen in zip(runs, measured, strict=True)], "network"),
        runs,
        measured[0],
    )
    last = {
        (run.placement, run.scaling): np.sqrt(found.theory_param_grad.isel(network=i, block=-1))
        for i, run in enumerate(runs)
    }
    pre, post = last["PreNorm", "none"], last["PostNorm", "none"]
    ratio = pre.sel(matrix="ffn_out") / post.sel(matrix="ffn_out")
    collapsed = post.sel(matrix="query") / post.sel(matrix="value")
    said = {"last_ratio": float(digits(ratio)), "collapsed": float(digits(collapsed)), "depth": depth}
    return found.assign_attrs(counts(draws), first_seed=seed, **said)


def predict(run: Run) -> xr.Dataset:
    """The theory of a run."""
    return pg.predict(run.model, **run.moments(), through_readout=True, include={"param_grad"})


def simulate(run: Run) -> xr.Dataset:
    """The simulation of a run, in the process that calls it."""
    return pg.simulate(
        run.model,
        draws=run.draws,
        seed=run.seed,
        **run.moments(),
        through_readout=True,
        include={"param_grad"},
        backend=run.backend,
        sampler=SAMPLER,
        progress=False,
    )


def _columns(theory: xr.Dataset, seen: xr.Dataset) -> xr.Dataset:
    found = {
        "theory_param_grad": theory.param_grad,
        "param_grad_allowance": theory.param_grad_allowance,
        "param_grad": seen.param_grad,
        "param_grad_se": seen.param_grad_se,
    }
    coords = {"block": np.arange(theory.sizes["block"]), "matrix": theory.matrix.to_numpy()}
    return xr.Dataset({key: (("block", "matrix"), digits(value.to_numpy())) for key, value in found.items()}, coords)


def draw(data: xr.Dataset) -> Any:
    """Placements beside one another, without scaling above and with it below; one vertical scale."""
    unit = int(data.tokens[0]) ** 0.5 * data.attrs["width"]
    with plots.style():
        figure, axes = plots.panels(2, 3, height=4.2, sharey=True, sharex=True)
        for index in range(data.sizes["network"]):
            one = data.isel(network=index)
            name, scaling = str(one.placement.item()), str(one.scaling.item())
            axis = axes[list(SCALINGS).index(scaling), PLACEMENTS.index(name)]
            for matrix, colour in SHOWN.items():
                row = one.sel(matrix=matrix).isel(block=slice(1, None))
                line = np.sqrt(row.theory_param_grad) / unit
                half = row.param_grad_allowance / 2  # of the root
                plots.theory_line(axis, row.block, line, placement=name, allowance=half, color=colour)
                points = row.isel(block=slice(0, None, 4))
                root = np.sqrt(points.param_grad)
                error = points.param_grad_se / (2 * root)
                plots.simulation_points(axis, points.block, root / unit, error / unit, shade=colour)
            label = "no scaling" if scaling == "none" else "ScaleInit(0.5)"
            axis.set(yscale="log", title=f"{name}, {label}", xlim=(0, data.sizes["block"]), ylim=(1e-5, 10))
        for axis in axes[1]:
            axis.set_xlabel("block")
        for axis in axes[:, 0]:
            axis.set_ylabel(r"$\|\partial\,\mathrm{Loss}/\partial W\|_F$" + "\n" + r"($\sqrt{\mathrm{tokens}}$ width)")
        handles = [plots.entry(matrix, color=colour, linewidth=2.0) for matrix, colour in SHOWN.items()]
        plots.legend(figure, [*handles, *plots.key(scalings=False)])
    return figure
