"""The argument that SpanNorm may be twice as deep as PostNorm, put to four quantities at equal numbers of norms."""

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
    SEED,
    SETTING,
    START,
    TOKENS,
    WIDTH,
    Run,
    counts,
    digits,
    labelled,
    measure,
    predict,
)
from propagate import plots

DEPTH = 32  # of the deepest PostNorm; SpanNorm is twice as deep
NORMS = {"PostNorm": 2, "SpanNorm": 1}  # norms that the skip path of a block meets
DEPTHS, SIMULATED = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32), (2, 4, 8, 16, 32)
PANELS = {
    "skip_gain": "gradient at embedding,\nskips alone",
    "grad_variance": "gradient at embedding,\nin all, no mask",
    "last_token": "the same, last token,\ncausal mask",
    "collapse": "1 - correlation at the\noutput, no mask",
}

FULL = LARGER
CAPTION = (
    """\
**"Twice as deep".** Unscaled PostNorm has two norms on the skip path of a block, unscaled SpanNorm one. Each norm
halves the gradient variance that returns along the skips, so SpanNorm's skip path loses as much in twice as many
blocks: the argument, as we know it from public reviews, that structure alone allows networks twice as deep (claim C3,
the paper's Eq. 11). Here both placements are drawn against the number of norms on the skip path. Where the argument
holds, the two fall on one line.

Panels: for a gradient of variance 1, independent over tokens, that enters at the stream that leaves the last block, the
gradient variance at the embedding that returns along the skips alone; all of it; that of the last token under a causal
mask; and 1 - correlation of two tokens in the stream that leaves the last block. Lines: theory in the limit of infinite
width; the shaded band, hardly wider than the line, is its stated allowance for the finite width of the simulation.
Points: simulation, geometric mean over {light} independent networks of each depth, bars ±1.96 standard errors of the
mean logarithm, hidden by the points.

What it shows: along the skips alone the argument is right (the lines differ by the first blocks, where attention's
output is not yet as large as the skip). For the total gradient without a mask it is not: the branches bring back what
the skip loses, both placements end on a floor of order 1/tokens, and SpanNorm's is the lower. Under a causal mask the
last token, which no later token helps, does lose its gradient: from {near} to {deep} norms it falls by a factor of
{fall_post:.2f} a norm in PostNorm and {fall_span:.2f} in SpanNorm (theory), so that SpanNorm may be {causal:.1f}
times as deep. Tokens become alike by a factor of {collapse_post:.2f} a norm in PostNorm and {collapse_span:.2f} in
SpanNorm, which may be {twice:.1f} times as deep. Where something vanishes or collapses at all, twice is a cautious
word. All this is without scaling, with ReLU, at initialisation.

"""
    + SETTING
    + " We have not seen the paper's figures.\n"
)


def data(
    draws: int = DRAWS,
    seed: int = SEED,
    executor: Executor | None = None,
    depth: int = DEPTH,
    width: int = WIDTH,
    backend: str = "numpy",
) -> xr.Dataset:
    """PostNorm and SpanNorm, with and without a causal mask, at depths with equal numbers of norms."""
    depths = [length for length in DEPTHS if length <= depth]
    grid = {
        (name, causal, length): _run(name, causal, length, draws, seed, width, backend)
        for name in NORMS
        for causal in (False, True)
        for length in depths
    }
    wanted = [run for (_, _, length), run in grid.items() if length in SIMULATED]
    measured = dict(zip(wanted, measure(wanted, executor), strict=True))
    rows = []
    for name in NORMS:
        places = []
        for length in depths:
            plain, masked = (grid[name, causal, length] for causal in (False, True))
            places.append(_ends(plain, measured.get(plain)) | _last_token(masked, measured.get(masked)))
        found = {key: ("norms", digits([place[key] for place in places])) for key in places[0]}
        rows.append(xr.Dataset(found, {"norms": [2 * length for length in depths]}))
    runs = [grid[name, False, depths[-1]] for name in NORMS]
    found = labelled(xr.concat(rows, "network"), runs, next(iter(measured.values())))
    found["seed"] = ("network", "norms"), [[grid[name, False, length].seed for length in depths] for name in NORMS]
    return found.assign_attrs(counts(draws), first_seed=seed, **_falls(found))


def _run(name: str, causal: bool, length: int, draws: int, seed: int, width: int, backend: str) -> Run:
    """The network with as many norms on its skip path as a PostNorm of `length` blocks."""
    size: dict[str, Any] = {"width": width, "tokens": TOKENS, "heads": HEADS, "logit_std": LOGIT_STD}
    model = pg.Model(name, depth=2 * length // NORMS[name], causal=causal, activation="relu", **size)
    own = 1_000_000 * seed + 600_000 + 1000 * length + 10 * NORMS[name] + causal
    return Run(name, "none", START, model, counts(draws)["light"], own, backend)


def _ends(run: Run, measured: xr.Dataset | None) -> dict[str, float]:
    """Gradient at the embedding and collapse at the output; NaN where it is not simulated."""
    theory = predict(run)
    first, last = theory.isel(block=0), theory.isel(block=-1)
    found = {"theory_skip_gain": first.skip_gain, "theory_grad_variance": first.grad_variance}
    found |= {"grad_variance_allowance": first.grad_variance_allowance, "collapse_allowance": last.deviation_allowance}
    found["theory_collapse"] = last.deviation / last.variance
    seen = {"log_grad_variance": np.nan, "log_collapse": np.nan}
    seen |= {f"{name}_se": np.nan for name in seen}
    if measured is not None:
        first, last = measured.isel(block=0), measured.isel(block=-1)
        seen["log_grad_variance"], seen["log_grad_variance_se"] = first.log_grad_variance, first.log_grad_variance_se
        seen["log_collapse"] = last.log_deviation - last.log_variance
        seen["log_collapse_se"] = np.hypot(last.log_deviation_se, last.log_variance_se)
    return {name: float(value) for name, value in (found | seen).items()}


def _last_token(run: Run, measured: xr.Dataset | None) -> dict[str, float]:
    """Gradient of the last token at the embedding; NaN where it is not simulated."""
    place = {"block": 0, "token": -1}
    theory = predict(run).isel(place)
    found = {"theory_last_token": theory.grad_token_variance}
    own = theory.grad_token_variance_se / theory.grad_token_variance  # of logits the theory drew
    found["last_token_allowance"] = np.hypot(theory.grad_token_variance_allowance, own)
    for suffix in ("", "_se"):
        seen = np.nan if measured is None else measured[f"log_grad_token_variance{suffix}"].isel(place)
        found[f"log_last_token{suffix}"] = seen
    return {name: float(value) for name, value in found.items()}


def _falls(found: xr.Dataset) -> dict[str, float]:
    """Factors a norm in the deeper half, and how many times as deep SpanNorm may be."""
    half, deep = int(found.norms[len(found.norms) // 2]), int(found.norms[-1])
    said: dict[str, float] = {"near": half, "deep": deep}
    for key, name, ratio in (("last_token", "fall", "causal"), ("collapse", "collapse", "twice")):
        line = np.log(found[f"theory_{key}"])
        post, span = ((line.sel(norms=deep) - line.sel(norms=half)) / max(deep - half, 1)).to_numpy()
        said |= {f"{name}_post": float(np.exp(post)), f"{name}_span": float(np.exp(span))}
        said[ratio] = float(digits(2 * post / span, 6)) if span else np.nan
    return said


def draw(data: xr.Dataset) -> Any:
    """A panel for each quantity, one vertical scale."""
    with plots.style():
        figure, axes = plots.panels(1, len(PANELS), height=2.7, sharey=True)
        for axis, (name, title) in zip(axes[0], PANELS.items(), strict=True):
            for index, placement in enumerate(NORMS):
                one = data.isel(network=index)
                allowance = one.get(f"{name}_allowance")
                plots.theory_line(axis, one.norms, one[f"theory_{name}"], placement=placement, allowance=allowance)
                if allowance is not None:
                    seen = one.isel(norms=np.flatnonzero(np.isfinite(one[f"log_{name}"])))
                    plots.simulation_points(
                        axis,
                        seen.norms,
                        seen[f"log_{name}"],
                        seen[f"log_{name}_se"],
                        logarithmic=True,
                        placement=placement,
                    )
            axis.set(yscale="log", title=title, xlim=(0, data.norms[-1] + 2), ylim=(1e-20, 10))
            axis.set_xlabel("norms on the skip path")
        axes[0, 0].set_ylabel("variance per coordinate")
        handles = [plots.entry("PostNorm, 2 norms a block", color=plots.colour("postnorm"), linewidth=2.5)]
        handles += [plots.entry("SpanNorm, 1 norm a block", color=plots.colour("spannorm"), linewidth=2.5)]
        plots.legend(figure, [*handles, *plots.key(scalings=False)])
    return figure
