"""1 - correlation against block: how alike the tokens become, from two synthetic starts and from English text."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import xarray as xr

import propagate as pg
from figures.networks import (
    DEPTH,
    DRAWS,
    LARGER,
    PLACEMENTS,
    SEED,
    WIDTH,
    Run,
    counts,
    digits,
    grid,
    predict,
    records,
    text,
)
from propagate import plots

FLOOR = 1e-20  # below it, 64-bit arithmetic loses the digits that two machines would agree on
TITLES = {
    "0": "start: correlation 0",
    "0.3": "start: correlation 0.3",
    "text": "start: text (correlation {:.3f})",
}

FULL = LARGER
CAPTION = """\
**Rank collapse.** 1 - correlation of two tokens (their mean squared difference over twice the variance) against
block, in a network of 128 blocks at random initialisation; at 0 all tokens have become the same vector. Above:
without scaling. Below, on a scale of their own: with ScaleInit, and once more PreNorm without it.

Three starts. Two synthetic: 16 tokens of variance 1 and covariance 0 or 0.3. One real: {text_tokens} consecutive
tokens of English text ({text_name}; the window of median correlation among {text_windows}) in the input embedding of
a trained Transformer ({text_model}), after its LayerNorm. Their measured Gram matrix, rescaled to mean variance 1, is
the exact Gram matrix of the simulation's input. The numbers are those stored in `measured/text_embedding.json`,
whether or not the model itself is at hand; `make measure-text` measures them afresh. The theory starts from the same
matrix and follows every pair of tokens (in closed form for the synthetic starts, whose tokens are alike; for the text
with averages over attention logits that it draws itself, whose error, at most {text_error:.1f} % here, is part of its
allowance). Shown are means over tokens and pairs. The tokens of a text are not alike: from the mean variance and the
mean covariance ({text_correlation:.3f}) alone, 1 - correlation would come out up to {text_pair:.0f} % off.

Lines: theory in the limit of infinite width; the shaded band, at this width seldom wider than the line, is its stated
allowance for the finite width of the simulation. Points: simulation, geometric mean over independent networks
(correlation 0.3: {draws} of unscaled PostNorm and SpanNorm each, {light} of the others; other starts: {draws} of
each), bars ±1.96 standard errors of the mean logarithm (of deviation and variance, in quadrature), hidden by the
point where they are smaller than it. Nothing is shown below 1e-20, where the rounding of 64-bit numbers begins to
count. ScaleInit(0.5) multiplies the output matrices of attention and FFN by depth^(-1/2); the SpanNorm paper's own
formula is not known to us.

Bears on claims C3 and C4. C3 (structure alone allows networks twice as deep as PostNorm) holds in this sense: 1 -
correlation falls to 1/2 a block in unscaled PostNorm and to about 3/4 in unscaled SpanNorm, which so takes 2.4 times
as many blocks to the same collapse. C4 (SpanNorm alleviates PreNorm's representation collapse) does not hold at
initialisation without scaling: unscaled PreNorm falls as a power of the depth, unscaled SpanNorm exponentially. With
ScaleInit no placement collapses (128 blocks take it from 0.7 to 0.55 in SpanNorm, 0.46 in PreNorm, 0.33 in PostNorm).
We have not seen the paper's figures; its Fig. 6 is said to show heat maps of similarity between layers, which is
another quantity.

Width {width}, {heads} heads, ReLU FFN of ratio {ffn_ratio:g}, RMSNorm, logit standard deviation {logit_std:g}, 16
tokens (text: {text_tokens}). Sampler {sampler}, exact in law at every width. Device: {device}. Seed
{first_seed}; each network has its own (`seed` in the data). The networks of start 0.3 are those of forward_variance.
"""


def data(
    draws: int = DRAWS,
    seed: int = SEED,
    executor: Executor | None = None,
    depth: int = DEPTH,
    width: int = WIDTH,
    backend: str = "numpy",
) -> xr.Dataset:
    """Six networks for each of three starts; those that start from correlation 0.3 are those of forward_variance."""
    runs = [run for start in TITLES for run in grid(start, draws, seed, depth, width=width, backend=backend)]
    found = records(runs, ["variance", "deviation"], executor)
    hidden = found.theory_deviation < FLOOR * found.theory_variance
    for name in found:
        if str(name).removeprefix("log_").removesuffix("_se") == "deviation":
            found[name] = found[name].where(~hidden)
    error, pair = idealised([run for run in runs if run.start == "text"])
    stored = text()
    return found.assign_attrs(
        counts(draws),
        first_seed=seed,
        text_name=stored["text"]["name"],
        text_model=stored["model"]["name"],
        text_tokens=stored["tokens_per_window"],
        text_windows=stored["windows"],
        text_correlation=stored["median_window"]["correlation"],
        text_error=float(digits(100 * error, 2)),
        text_pair=float(digits(100 * pair, 2)),
    )


def idealised(runs: Sequence[Run]) -> tuple[float, float]:
    """Of networks that start from text: the largest relative error of the theory's own draws, and the largest relative
    change of deviation over variance that the theory of tokens with the mean moments would make.
    """
    errors, changes = [], []
    for run in runs:
        full, mean = predict(run), pg.predict(run.model, **run.moments())
        seen = full.deviation > FLOOR * full.variance
        ratio = (mean.deviation / mean.variance) / (full.deviation / full.variance)
        errors.append((full.deviation_se / full.deviation).where(seen).max())
        changes.append(abs(ratio - 1).where(seen).max())
    return float(max(errors)), float(max(changes))


def draw(data: xr.Dataset) -> Any:
    """A column for each start; above what is not scaled, below what does not collapse, on a scale of its own."""
    with plots.style():
        figure, axes = plots.panels(2, 3, height=4.6, sharey="row", sharex=True, height_ratios=[1.35, 1])
        for index in range(data.sizes["network"]):
            one = data.isel(network=index)
            name, scaled = str(one.placement.item()), str(one.scaling.item()) != "none"
            look: dict[str, Any] = {"placement": name, "scaled": scaled}
            shift = 4 * PLACEMENTS.index(name) if scaled else 8
            points = one.isel(block=slice(shift, None, 16 if name == "PreNorm" or scaled else 8))
            rows = ([0] if not scaled else []) + ([1] if name == "PreNorm" or scaled else [])
            for axis in axes[rows, list(TITLES).index(str(one.start.item()))]:
                shown = one.theory_deviation / one.theory_variance
                plots.theory_line(axis, one.block, shown, allowance=one.deviation_allowance, **look)
                plots.simulation_points(
                    axis,
                    points.block,
                    points.log_deviation - points.log_variance,
                    np.hypot(points.log_deviation_se, points.log_variance_se),
                    logarithmic=True,
                    **look,
                )
        for (upper, lower), title in zip(axes.T, TITLES.values(), strict=True):
            upper.set(yscale="log", title=title.format(data.attrs["text_correlation"]), ylim=(FLOOR, 5))
            lower.set(yscale="log", xlabel=plots.BLOCK_AXIS, xlim=(-3, data.sizes["block"] + 2), ylim=(0.03, 1.3))
        axes[0, 0].set_ylabel("no scaling:\n1 - correlation, geometric mean")
        axes[1, 0].set_ylabel("ScaleInit(0.5),\nand PreNorm again")
        plots.legend(figure, plots.key(PLACEMENTS))
    return figure
