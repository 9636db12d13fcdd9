"""A network stacked on itself: streams and gradients at the moment of growth, and what a trained one's loss does."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import numpy as np
import xarray as xr

import propagate as pg
from figures import measure_growth
from figures.networks import digits
from propagate import plots
from propagate.figures import workers

DEPTH, WIDTH, TOKENS, DRAWS, SEED = 12, 128, 8, 24, 0
NETWORKS: dict[str, tuple[str, bool]] = {  # label: placement, whether branches are rescaled for the new depth
    "PreNorm": ("prenorm", False),
    "PreNorm, rescaled": ("prenorm", True),
    "SpanNorm": ("spannorm", False),
    "SpanNorm, rescaled": ("spannorm", True),
}
START = pg.Start(covariance=0.3)
RATIOS = ["variance", "grad_gain", "variance, rescaled", "grad_gain, rescaled"]
QUANTITIES = ("variance", "deviation", "grad_variance")
PLACEMENTS = (
    *("prenorm", "layernormscaling", "layerscale", "subln", "periln", "olmo2"),
    *("postnorm", "spannorm", "b2t", "deepnorm", "keel", "hybridnorm", "residual"),
)
EPS_DEPTHS, EPS_BATCH = (2, 4, 8, 16, 32, 64), 4096
TRAINED = ("prenorm", "spannorm", "postnorm", "deepnorm", "layernormscaling", "periln")
LINES = {  # of (d), and their words in the legend, as short as a column wants; the caption says them in full
    "copy 1": ("-", "stacked"),
    "copy 0": ("--", "quiet copy"),
    "adjacent 0.5": (":", "twice, halved"),
    "shallow, on": ("-.", "shallow"),
    "deep, from scratch": ("-", "from scratch"),
}

FULL = {"draws": 64, "width": 512}
CAPTION = """\
**Growth: a network stacked on itself.** {depth} blocks with ScaleInit(0.5), stacked to {twice}: the second copy has the
first one's weights. Lines: theory of copies with the same weights. Dotted: theory of the same network with fresh
weights in every block. Points: simulation with the same matrices in both copies, geometric means and 95 % intervals
over {draws} networks of width {width}. Largest |z| of simulation against theory, its allowance counted: {worst:.1f};
against fresh weights {worst_fresh:.0f}.

(a) Stream of PreNorm: what the second copy writes points where the first wrote, so that the variance at the end is
{stream:.2f} times that of fresh weights, and with branches rescaled for the new depth {stream_rescaled:.2f} times. (b)
Gradient from the last block to the first; squares: rescaled. The gradient's gain is {pre:.2f} times that of fresh
weights in PreNorm and {span:.2f} times in SpanNorm, where it is least at the seam. Over {count} placements the ratio of
the end variances is between {low:.2f} and {high:.2f}, that of the gains between {grad_low:.2f} and {grad_high:.2f}
(`table` in the data).

(c) Trained language models (4 blocks of width 64, bytes, {steps} steps of Adam, seeds {seeds}; all but DeepNorm with
ScaleInit(0.5)), stacked to 8: held-out loss at the moment of growth less that before, against a factor on the output
matrices of the second copy; points: seeds. Where these write nothing the loss rises by {quiet:.3f} nats at most (in
PreNorm by 0, being the same function), but for DeepNorm, by {quiet_deepnorm:.3f}: its skips have another weight at the
new depth. Peri-LN's norm behind a branch undoes factors. Copied as they are, branches raise the loss by
{pre_rise:.2f} in PreNorm, {span_rise:.2f} in SpanNorm and {post_rise:.2f} in PostNorm. So a rule that keeps the loss
from rising is a second copy with output matrices of 0, which then learn first; in PreNorm a factor of 1/4 does no harm
either. (d) Trained on for {more} steps, means of the seeds: stacked as it is; with a quiet copy, its output matrices 0;
with each block twice, one behind the other, and both with output matrices halved; beside the shallow network, which
does not grow, and one of 8 blocks from scratch, which began at its own initialisation and has had as many steps in all.
At this size, with two seeds, none is told from going on with the shallow network: whether growth pays in the long run
is not measured here.

(e) Width beyond which an eps of 1e-8 takes more than a tenth of Adam's step at the smallest gradient of all matrices
(`propagate diagnose`), of a batch of {batch} sequences of 32 tokens, without scaling. In PostNorm and SpanNorm no width
is small enough beyond some 12 and 24 blocks: gradients of queries and keys fall with the square of what is left between
tokens.

Device: CPU. Seed {first_seed}. (c) and (d) are read from `figures/measured/growth.json` (`measure_growth.py`).
"""


def data(
    draws: int = DRAWS,
    seed: int = SEED,
    executor: Executor | None = None,
    backend: str = "numpy",
    width: int = WIDTH,
) -> xr.Dataset:
    """Moments of stacks, predicted and simulated, ratios over placements, losses, and widths at which eps is felt."""
    found: dict[str, Any] = {}
    scores: list[list[float]] = [[], []]
    for at, (placement, rescaled) in enumerate(NETWORKS.values()):
        model = small(placement, width)
        said = pg.predict_growth(model, START, rescaled=rescaled)
        seen = pg.simulate_growth(
            model,
            START,
            rescaled=rescaled,
            draws=draws,
            seed=1_000_000 * seed + 930_000 + at,
            backend=backend,
            progress=False,
        )
        for name in QUANTITIES:
            for column, values in ((name, said), (f"{name}_fresh", said), (f"{name}_allowance", said)):
                found.setdefault(f"theory_{column}", []).append(values[column].values)
            for column in (f"log_{name}", f"log_{name}_se"):
                found.setdefault(column, []).append(seen[column].values)
        fresh = said.assign({name: said[f"{name}_fresh"] for name in QUANTITIES})
        for kept, table in zip(scores, (said, fresh), strict=True):
            kept.append(float(pg.compare(table, seen).worst_z.max()))
    table = xr.Dataset({name: (("network", "block"), digits(np.array(values))) for name, values in found.items()})
    table = table.assign_coords(network=list(NETWORKS), block=range(2 * DEPTH + 1))
    with workers(executor) as pool:
        ratios = [one.result() for one in [pool.submit(ratios_of, placement) for placement in PLACEMENTS]]
        widths = [one.result() for one in [pool.submit(widths_of, placement) for placement in TRAINED]]
    table["table"] = ("placement", "ratio"), digits(np.array(ratios), 4)
    table = table.assign_coords(placement=list(PLACEMENTS), ratio=RATIOS)
    table["eps_width"] = (("eps_placement", "eps_depth"), digits(np.array(widths), 4))
    table = table.assign_coords(eps_placement=list(TRAINED), eps_depth=list(EPS_DEPTHS))
    table = table.assign(_of_training())
    return table.assign_attrs(_told(table, scores), draws=draws, width=width, first_seed=seed)


def small(placement: str, width: int = WIDTH) -> pg.Model:
    scaling = pg.ScaleInit(0.5)
    return pg.Model(placement, depth=DEPTH, width=width, tokens=TOKENS, heads=8, scaling=scaling)


def ratios_of(placement: str) -> list[float]:
    """Of the stack over fresh weights: end variance and gradient gain, as the weights are and rescaled."""
    found = []
    for rescaled in (False, True):
        said = pg.predict_growth(small(placement), START, rescaled=rescaled)
        said = said.sel(stream="joined") if "stream" in said.dims else said
        found += [
            float(said[name][end] / said[f"{name}_fresh"][end])
            for name, end in (("variance", -1), ("grad_variance", 0))
        ]
    return found


def widths_of(placement: str) -> list[float]:
    """At which an eps of 1e-8 takes a tenth of Adam's step of some matrix."""
    found = []
    for depth in EPS_DEPTHS:
        rms = pg.diagnose(pg.Model(placement, depth=depth, width=512, tokens=32), batch=EPS_BATCH).table.grad_rms
        found.append(512 * (float(rms.where(rms > 0).min()) / 9e-8) ** 2)
    return found


def _of_training() -> dict[str, Any]:
    record, seeds = measure_growth.load(), measure_growth.SEEDS
    rises = [
        [
            [
                np.nan if (one := record["moments"][f"{name} {seed}"][f"copy {factor:g}"]) is None
                else one["loss"] - record["before"][f"{name} {seed}"]["loss"]
                for seed in seeds
            ]
            for factor in measure_growth.FACTORS
        ]
        for name in TRAINED
    ]  # fmt: skip
    last = measure_growth.MORE // measure_growth.EVERY + 1
    on = [
        [np.mean([record["on"][f"{name} {seed} {way}"][-last:] for seed in seeds], axis=0) for way in LINES]
        for name in measure_growth.TRAINED_ON
    ]
    return {
        "rise": (("trained", "factor", "seed"), digits(np.array(rises))),
        "loss_on": (("trained_on", "way", "probe"), digits(np.array(on))),
        "trained": list(TRAINED),
        "factor": list(measure_growth.FACTORS),
        "trained_on": list(measure_growth.TRAINED_ON),
        "way": list(LINES),
    }


def _told(table: xr.Dataset, scores: list[list[float]]) -> dict[str, Any]:
    rise = table.rise.mean("seed")
    quiet = rise.sel(factor=0.0).drop_sel(trained=["deepnorm", "periln"])
    ratios = table["table"]

    def ratio(network: str, name: str, end: int) -> float:
        one = table.sel(network=network)
        return float(one[f"theory_{name}"][end] / one[f"theory_{name}_fresh"][end])

    told = {
        "worst": max(scores[0]),
        "worst_fresh": max(scores[1]),
        "stream": ratio("PreNorm", "variance", -1),
        "stream_rescaled": ratio("PreNorm, rescaled", "variance", -1),
        "pre": ratio("PreNorm", "grad_variance", 0),
        "span": ratio("SpanNorm", "grad_variance", 0),
        "low": float(ratios.sel(ratio="variance").min()),
        "high": float(ratios.sel(ratio="variance").max()),
        "grad_low": float(ratios.sel(ratio="grad_gain").min()),
        "grad_high": float(ratios.sel(ratio="grad_gain").max()),
        "quiet": float(quiet.max()),
        "quiet_deepnorm": float(rise.sel(factor=0.0, trained="deepnorm")),
        "pre_rise": float(rise.sel(factor=1.0, trained="prenorm")),
        "span_rise": float(rise.sel(factor=1.0, trained="spannorm")),
        "post_rise": float(rise.sel(factor=1.0, trained="postnorm")),
    }
    sizes = {"depth": DEPTH, "twice": 2 * DEPTH, "count": len(PLACEMENTS), "batch": EPS_BATCH}
    run = {
        "steps": measure_growth.STEPS,
        "more": measure_growth.MORE,
        "seeds": " and ".join(map(str, measure_growth.SEEDS)),
    }
    return {key: float(digits(value, 4)) for key, value in told.items()} | sizes | run


def draw(data: xr.Dataset) -> Any:
    """Five panels."""
    with plots.style():
        figure, axes = plots.panels(2, 3, height=5.2)
        first, second, third = axes[0]
        fourth, fifth, last = axes[1]
        for axis, quantity, some in (
            (first, "variance", list(NETWORKS)[:2]),
            (second, "grad_variance", list(NETWORKS)),
        ):
            for label in some:
                placement, rescaled = NETWORKS[label]
                one = data.sel(network=label)
                look: dict[str, Any] = {"placement": placement, "scaled": rescaled}
                allowed = one[f"theory_{quantity}_allowance"]
                plots.theory_line(axis, data.block, one[f"theory_{quantity}"], allowance=allowed, **look)
                axis.plot(
                    data.block, one[f"theory_{quantity}_fresh"], ":", color=plots.colour(placement), linewidth=0.9
                )
                points = one.isel(block=slice(None, None, 3))
                plots.simulation_points(
                    axis,
                    points.block,
                    points[f"log_{quantity}"],
                    points[f"log_{quantity}_se"],
                    logarithmic=True,
                    **look,
                )
            axis.axvline(DEPTH, color="0.8", linewidth=0.8, zorder=0)
            axis.set(xlabel="block", yscale="log")
            axis.set_yticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
            axis.minorticks_off()
        first.set(ylabel="variance", title="(a) stream, PreNorm")
        second.set(ylabel="gradient variance", title="(b) gradient")
        for name in TRAINED:
            values, shade = data.rise.sel(trained=name), plots.colour(name)
            third.plot(data.factor, values.mean("seed"), "-", color=shade)
            for seed in range(values.sizes["seed"]):
                third.plot(data.factor, values.isel(seed=seed), ".", color=shade, markersize=3)
        third.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        third.set(xlabel="factor on the copy's outputs", ylabel="rise of the loss, nats", title="(c) moment of growth")
        steps = np.arange(data.sizes["probe"]) * measure_growth.EVERY
        for axis, name in ((fourth, "prenorm"), (fifth, "spannorm")):
            for way, (dashes, _) in LINES.items():
                axis.plot(steps, data.loss_on.sel(trained_on=name, way=way), dashes, color=_shade(way, name))
            axis.set(xlabel="steps after growth", title=f"(d) {_name(name)}, trained on")
        fourth.set_ylabel("held-out loss, nats")
        for name in TRAINED:
            last.plot(data.eps_depth, data.eps_width.sel(eps_placement=name), "-", color=plots.colour(name))
        last.set(xscale="log", yscale="log", xlabel="depth", ylabel="beyond this width", title="(e) eps takes a tenth")
        last.set_ylim(10, 1e8)
        last.set_yticks([1e2, 1e4, 1e6, 1e8])
        last.set_xticks(EPS_DEPTHS, [str(depth) for depth in EPS_DEPTHS])
        last.minorticks_off()
        plots.legend(figure, _handles(), columns=5)
    return figure


def _handles() -> list[Any]:
    """One legend for all panels: colours, and what dashes mean in those that share them."""
    plain, rescaled = plots.key(band=False)
    plain.set_label("(a, b) as it is")
    rescaled.set_label("(a, b) rescaled")
    fresh = plots.entry("(a, b) fresh weights", linestyle=":", linewidth=0.9)
    ways = [plots.entry(f"(d) {words}", linestyle=dashes, color=_shade(way)) for way, (dashes, words) in LINES.items()]
    colours = plots.key(tuple(map(_name, TRAINED)), scalings=False, band=False)
    return [*colours, plain, rescaled, fresh, *ways, *plots.key(scalings=False)]


def _shade(way: str, placement: str = "") -> str:
    """Of a line of (d): its placement's, but grey for the one network that did not grow out of another."""
    return "0.6" if way == "deep, from scratch" else plots.colour(placement)


def _name(placement: str) -> str:
    return type(pg.placement(placement)).__name__
