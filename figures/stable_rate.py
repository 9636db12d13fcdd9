"""The largest stable learning rate, foretold from the first step, against the one that training networks find."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.ticker import NullFormatter
from scipy import stats

import propagate as pg
from figures.networks import PLACEMENTS, SCALINGS, SEED, digits
from propagate import plots
from propagate.figures import workers
from propagate.montecarlo.steps.run import run_steps
from propagate.montecarlo.steps.simulate import plan
from propagate.transfer import Factors, Kind

DRAWS, WIDTH, TOKENS, HEADS, VOCABULARY, STEPS = 12, 64, 8, 4, 64, 8
DEPTHS = (2, 8)
OPTIMIZERS: dict[str, pg.SGD | pg.Adam] = {"SGD": pg.SGD(1.0), "Adam": pg.Adam(1.0, eps=1e-12)}
FACTOR = 1.4  # from one rate to the next
FURTHEST = 20  # rates up or down from the one foretold
FULL = {"draws": 24, "width": 256}
CAPTION = """\
**The largest stable rate.** Foretold from the first step, and found by training random networks of {depths} blocks for
{steps} steps of SGD and of Adam on the cross-entropy of one sequence.

The rule, set down before any network was trained, has no constant to fit: the rate at which the first-order fall of the
loss in the first step, by `predict_step`, is all of the loss that there is at first, log {vocabulary} + 1/2. Found is,
for each network by itself, the first rate at which the loss rises in any of the {steps} steps, going up by factors of
{factor} from a rate at which it falls in all of them for all networks. (That the loss be lower in the end than at
first, which was asked at first, asks for nothing: behind norms PreNorm passes at a thousand times the rate foretold.)
Points: geometric mean over {draws} networks of width {width}, bars 95 % intervals; line: found as foretold; grey:
within a factor of 2.

What it shows: under SGD the first step tells the order of magnitude and no more. Found over foretold is {ratio_sgd:.2g}
(geometric mean; from {low_sgd:.2g} to {high_sgd:.2g}), {deep_sgd:.2g} for networks of {deepest} blocks without
ScaleInit and {rest_sgd:.2g} for the others, so that the rule does not see what ScaleInit does for depth. Under Adam it
is too careful, by {ratio_adam:.2g} times (from {low_adam:.2g} to {high_adam:.2g}), and hardly follows: the slope of the
logarithms is {slope_adam:.2f}, under SGD {slope_sgd:.2f}, where 1 would be right. A network whose loss rises at no rate
up to {factor}^{furthest} times the one foretold counts with that: behind norms a huge step may lead to a plateau.

{heads} heads, ReLU FFN of ratio 2, RMSNorm, logit standard deviation 1, {tokens} tokens; embedding and unembedding are
not trained. ScaleInit has exponent 1/2. Dense networks, float64. Device: {device}. Seed {first_seed}.
"""


class BlocksAlone:
    """A rule of transfer that leaves the two ends of a network as they are at first."""

    def factors(self, kind: Kind, width: Any, depth: Any) -> Factors:
        return Factors(lr=1e-12) if kind in ("embedding", "unembedding") else Factors()


def data(
    draws: int = DRAWS,
    seed: int = SEED,
    executor: Executor | None = None,
    width: int = WIDTH,
    backend: str = "numpy",
    depths: tuple[int, ...] = DEPTHS,
    placements: tuple[str, ...] = PLACEMENTS,
) -> xr.Dataset:
    """Rates over (optimizer, placement, scaling, depth), foretold and found."""
    shape = len(OPTIMIZERS), len(placements), len(SCALINGS), len(depths)
    arms = list(np.ndindex(*shape))
    with workers(executor) as pool:
        tasks = [
            pool.submit(
                arm,
                list(OPTIMIZERS)[one],
                placements[two].lower(),
                list(SCALINGS)[three],
                depths[four],
                width,
                draws,
                1_000_000 * seed + 970_000 + 1000 * number,
                backend,
            )
            for number, (one, two, three, four) in enumerate(arms)
        ]
        found = [task.result() for task in tasks]
    dims = ("optimizer", "placement", "scaling", "depth")
    coords = {
        "optimizer": list(OPTIMIZERS),
        "placement": list(placements),
        "scaling": list(SCALINGS),
        "depth": list(depths),
    }
    columns = {
        name: (dims, digits(np.array([one[name] for one in found]).reshape(shape)))
        for name in ("foretold", "found", "half_width")
    }
    table = xr.Dataset(columns, coords)
    return table.assign_attrs(
        **told(table),
        draws=draws,
        width=width,
        heads=HEADS,
        tokens=TOKENS,
        steps=STEPS,
        vocabulary=VOCABULARY,
        factor=FACTOR,
        furthest=FURTHEST,
        deepest=max(depths),
        depths=" and ".join(map(str, depths)),
        device=found[0]["device"],
        first_seed=seed,
        propagate=pg.__version__,
    )


def arm(
    optimizer: str, placement: str, scaling: str, depth: int, width: int, draws: int, seed: int, backend: Any
) -> dict[str, Any]:
    """One network under one optimiser: the rate foretold, that found and the half-width of its logarithm's interval."""
    model = network(placement, SCALINGS[scaling], depth, width)
    rate = foretold(model, OPTIMIZERS[optimizer])
    planned = plan(
        model,
        OPTIMIZERS[optimizer],
        None,
        STEPS,
        seed,
        pg.CrossEntropy(VOCABULARY),
        BlocksAlone(),
        None,
        backend,
        "dense",
    )

    def stable(step: int) -> Any:
        """Of which networks the loss falls in every step, at a rate so many factors above the one foretold."""
        trained = replace(planned.course.optimizer, lr=rate * FACTOR**step)
        loss = run_steps(replace(planned.course, optimizer=trained), range(draws))["loss"]
        return (loss[:, 1:] < loss[:, :-1]).all(axis=-1)  # what is no number is not less

    lowest = next(step for step in range(0, -FURTHEST, -1) if stable(step).all())
    last = np.full(draws, FURTHEST)
    for step in range(lowest + 1, FURTHEST):
        failed = ~stable(step) & (last == FURTHEST)
        last[failed] = step - 1
        if (last < FURTHEST).all():
            break
    logs = math.log(rate) + (last + 0.5) * math.log(FACTOR)
    half = stats.t.ppf(0.975, draws - 1) * np.hypot(logs.std(ddof=1), math.log(FACTOR) / 12**0.5) / draws**0.5
    return {"foretold": rate, "found": math.exp(logs.mean()), "half_width": half, "device": planned.where.device}


def network(placement: str, scaling: Any, depth: int, width: int) -> pg.Model:
    """A network of the figure."""
    return pg.Model(placement, depth, width=width, tokens=TOKENS, heads=HEADS, ffn_ratio=2.0, scaling=scaling)


def foretold(model: pg.Model, optimizer: Any) -> float:
    """The rate at which the first-order fall of the loss by all blocks is all of the loss."""
    step = pg.predict_step(model, replace(optimizer, lr=1.0), loss=pg.CrossEntropy(VOCABULARY))
    of_blocks = step.first_order_fall.drop_sel(matrix=["embedding", "unembedding"])
    return (math.log(VOCABULARY) + 0.5) / float(of_blocks.sum())


def told(table: xr.Dataset) -> dict[str, Any]:
    """What the caption says of found over foretold."""
    said: dict[str, float] = {}
    logs = np.log(table.found / table.foretold)
    deep = (table.depth == table.depth.max()) & (table.scaling == "none")
    for name in OPTIMIZERS:
        one, key, rates = logs.sel(optimizer=name), name.lower(), table.sel(optimizer=name)
        x, y = (np.log(rates[which].to_numpy().ravel()) for which in ("foretold", "found"))
        values = {"ratio": one.mean(), "low": one.min(), "high": one.max()}
        values |= {"deep": one.where(deep).mean(), "rest": one.where(~deep).mean()}
        said |= {f"{which}_{key}": float(np.exp(value)) for which, value in values.items()}
        said[f"slope_{key}"] = float(stats.linregress(x, y).slope) if len(x) > 1 else math.nan
    return {name: float(digits(np.array(value), 3)) for name, value in said.items()}


def draw(found: xr.Dataset) -> Any:
    """Optimisers side by side."""
    with plots.style():
        figure, axes = plots.panels(1, len(OPTIMIZERS), height=3.4)
        for axis, name in zip(axes[0], OPTIMIZERS, strict=True):
            one = found.sel(optimizer=name)
            ends = np.array([one.foretold.min() / 3, one.foretold.max() * 3])
            axis.fill_between(ends, ends / 2, ends * 2, color="0.92", linewidth=0)
            axis.plot(ends, ends, color="0.4", linewidth=0.8)
            for placement in found.placement.to_numpy():
                for scaling in found.scaling.to_numpy():
                    for depth in found.depth.to_numpy():
                        at = one.sel(placement=placement, scaling=scaling, depth=depth)
                        x, y = float(at.foretold), float(at.found)
                        low, high = (y - y * math.exp(-float(at.half_width)), y * math.exp(float(at.half_width)) - y)
                        shade = plots.colour(placement.lower())
                        axis.errorbar(
                            x,
                            y,
                            yerr=[[low], [high]],
                            color=shade,
                            marker="o" if scaling == "none" else "s",
                            markerfacecolor=shade if scaling == "none" else "white",
                            markersize=4 if depth == found.depth.min() else 6.5,
                            linestyle="none",
                        )
            axis.set(xscale="log", yscale="log", xlim=ends, title=name)
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set(xlabel="rate foretold from the first step", ylabel="largest stable rate found")
        shown = [plots.entry(name, color=plots.colour(name.lower()), linewidth=2.0) for name in found.placement.values]
        shown += [
            plots.entry("ScaleInit", color="0.3", marker="s", markerfacecolor="white", linestyle="none"),
            plots.entry(f"{found.depth.values[0]} blocks", color="0.3", marker="o", markersize=4, linestyle="none"),
            plots.entry(f"{found.depth.values[-1]} blocks", color="0.3", marker="o", markersize=6.5, linestyle="none"),
        ]
        plots.legend(figure, shown)
    return figure
