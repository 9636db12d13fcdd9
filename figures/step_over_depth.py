"""How far the first step lets the loss fall, against depth, for branches multiplied by a power of the depth."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

import propagate as pg
from figures.networks import HEADS, PLACEMENTS, SAMPLER, SEED, TOKENS, digits, shipped
from propagate import plots
from propagate.figures import workers
from propagate.scores import score
from propagate.transfer import Factors, Kind

ALPHAS, DEPTHS, SIMULATED = (0.0, 0.5, 1.0), (2, 4, 8, 16, 32, 64, 128), (4, 16)
SHOWN = ("attention_out", "ffn_out")
FITTED = (32, 128)  # depths between which an exponent is taken
DRAWS, WIDTH = 8, 512
RATE = 1e-6
START = pg.Start(covariance=0.3)

FULL = {"draws": 32, "width": 2048}
CAPTION = """\
**The first step over depth.** First-order fall of the loss in one step of Muon, by the output matrices of all attention
branches together and of all FFN branches together, over the rate, for a loss that is linear in the stream that leaves
the last block. Each branch is multiplied by depth^(-alpha), its matrices are not; columns by alpha.

Lines: theory in the limit of infinite width, from the Gram matrices of each matrix's inputs and cotangents. Points:
simulation, mean over {draws} random networks of width {width}, bars 1.96 standard errors (at most: errors of blocks are
added up). Largest normal score: {worst:.1f}, of {judged}.

What it shows: a step that does not grow with the gradient acts through every block alike. In PreNorm and PostNorm the
falls go as depth^(1-alpha). Exponents at alpha = 0, 1/2, 1, between depths {low} and {high}: {pre_attention} and
{post_attention} for attention, {pre_ffn} and {post_ffn} for FFNs. In SpanNorm the FFN's do ({span_ffn}), but attention
reaches the stream through the FFN alone, whose multiplier it meets once more: depth^(1-2 alpha) ({span_attention}).
Where branches are scaled with depth, SpanNorm's attention learns more slowly than its FFN by a factor of depth^alpha at
one rate. Proposition 14 proves these exponents where tokens are alike; the data hold them for {others} placements.
Transfer rules over depth (depth-muP, CompleteP) were derived for identity skips, and would have to raise the rate of
SpanNorm's attention.

{heads} heads, ReLU FFN of ratio 4, RMSNorm, logit standard deviation 1, {tokens} tokens; start: variance 1, covariance
0.3, cotangent independent over tokens. Sampler {sampler}, exact in law at every width. Device: {device}. Seed
{first_seed}. What later steps do is not shown here.
"""


@dataclass(frozen=True)
class BranchMultiplier:
    """A rule of transfer that multiplies branches by depth^-alpha and changes nothing else."""

    alpha: float

    def factors(self, kind: Kind, width: float, depth: float) -> Factors:
        return Factors(multiplier=depth**-self.alpha if kind == "branch_out" else 1)


def data(
    draws: int = DRAWS,
    seed: int = SEED,
    executor: Executor | None = None,
    width: int = WIDTH,
    backend: str = "numpy",
    depths: tuple[int, ...] = DEPTHS,
    placements: tuple[str, ...] | None = None,
) -> xr.Dataset:
    """Falls over (placement, alpha, depth, matrix), simulated at some depths; exponents of every placement."""
    every = placements or shipped()
    shown = [name.lower() for name in PLACEMENTS]
    grid = [(name, alpha) for name in shown for alpha in ALPHAS]
    ends = [(name, alpha, depth) for name in every for alpha in ALPHAS for depth in FITTED if max(FITTED) <= depths[-1]]
    simulated = [depth for depth in SIMULATED if depth in depths]
    with workers(executor) as pool:
        seen = [
            pool.submit(simulate, *one, depth, width, draws, 1_000_000 * seed + 900_000 + number, backend)
            for number, (*one, depth) in enumerate((*g, d) for g in grid for d in simulated)
        ]
        said = [pool.submit(predict, *one, depth, width) for one in grid for depth in depths]
        of_ends = [pool.submit(predict, *one, width) for one in ends]
        falls = [future.result() for future in said]
        measured = [future.result() for future in seen]
        by_end = [future.result() for future in of_ends]
    dims = ("placement", "alpha", "depth", "matrix")
    shape = len(shown), len(ALPHAS), -1, len(SHOWN)
    coords = {"placement": list(PLACEMENTS), "alpha": list(ALPHAS), "depth": list(depths), "matrix": list(SHOWN)}
    found = xr.Dataset(
        {
            name: (dims, digits(np.array([f[name] for f in falls]).reshape(shape), 7))
            for name in ("theory_fall", "fall_allowance")
        },
        coords,
    )
    for name in ("fall", "fall_se"):
        values = digits(np.array([m[name] for m in measured]).reshape(shape))
        found[name] = ("placement", "alpha", "simulated_depth", "matrix"), values
    found = found.assign_coords(simulated_depth=simulated)
    found = found.merge(_exponents(every, by_end)) if by_end else found
    device = measured[0]["device"]
    return found.assign_attrs(
        **(_judged(found, draws) | _said(found)),
        draws=draws,
        width=width,
        heads=HEADS,
        tokens=TOKENS,
        sampler=SAMPLER,
        device=device,
        first_seed=seed,
        low=FITTED[0],
        high=FITTED[1],
        propagate=pg.__version__,
    )


def network(placement: str, depth: int, width: int) -> pg.Model:
    """A network of the figure."""
    return pg.Model(placement, depth=depth, width=width, tokens=TOKENS, heads=HEADS)


def predict(placement: str, alpha: float, depth: int, width: int) -> dict[str, Any]:
    """Falls over the rate of the matrices shown, and how far a network of this width may lie from them."""
    step = pg.predict_step(
        network(placement, depth, width),
        pg.Muon(lr=RATE),
        START,
        transfer=BranchMultiplier(alpha),
        base=(width, 1),
    ).reindex(matrix=list(SHOWN))
    fall = step.first_order_fall.sum("block").to_numpy()
    allowed = (step.first_order_fall * step.first_order_fall_allowance).sum("block").to_numpy()
    return {"theory_fall": fall / RATE, "fall_allowance": allowed / np.where(fall > 0, fall, np.nan)}  # ReZero has none


def simulate(
    placement: str, alpha: float, depth: int, width: int, draws: int, seed: int, backend: Any
) -> dict[str, Any]:
    """The same of random networks, with a bound on the standard error."""
    seen = pg.simulate_steps(
        network(placement, depth, width),
        pg.Muon(lr=RATE),
        START,
        steps=1,
        draws=draws,
        seed=seed,
        transfer=BranchMultiplier(alpha),
        base=(width, 1),
        backend=backend,
        sampler=SAMPLER,
        progress=False,
    ).reindex(matrix=list(SHOWN))
    fall, error = (seen[name].sum("block").to_numpy() / RATE for name in ("first_order_fall", "first_order_fall_se"))
    return {"fall": fall, "fall_se": error, "device": seen.attrs["device"]}


def _exponents(names: tuple[str, ...], falls: list[dict[str, Any]]) -> xr.Dataset:
    """Slopes of log fall on log depth between the two depths; NaN where a placement has no such matrix or no fall."""
    values = np.array([fall["theory_fall"] for fall in falls]).reshape(len(names), len(ALPHAS), 2, len(SHOWN))
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.diff(np.log(values), axis=2)[:, :, 0] / np.log(FITTED[1] / FITTED[0])
    labels = [pg.placements()[name].__name__ for name in names]
    return xr.Dataset({"exponent": (("any", "alpha", "matrix"), digits(slopes))}, {"any": labels})


def z(found: xr.Dataset, draws: int) -> Any:
    """Normal scores of the simulated falls; the theory's allowance is one of its errors."""
    said = found.sel(depth=found.simulated_depth)
    allowed = said.fall_allowance * said.theory_fall
    return score(*(x.to_numpy() for x in (found.fall - said.theory_fall, found.fall_se, allowed)), draws)


def _judged(found: xr.Dataset, draws: int) -> dict[str, Any]:
    scores = z(found, draws)
    return {"worst": float(digits(np.abs(scores).max(), 3)), "judged": scores.size}


def _said(found: xr.Dataset) -> dict[str, Any]:
    """Exponents that the caption says."""
    if "exponent" not in found:
        return {}
    words = {"PreNorm": "pre", "PostNorm": "post", "SpanNorm": "span"}
    return {"others": found.sizes["any"]} | {
        f"{word}_{matrix.partition('_')[0]}": ", ".join(
            f"{value:.2f}" for value in found.exponent.sel(any=name, matrix=matrix).to_numpy()
        )
        for name, word in words.items()
        if name in found["any"]
        for matrix in SHOWN
    }


def draw(found: xr.Dataset) -> Any:
    """Matrices in rows, exponents in columns, a line a placement."""
    with plots.style():
        figure, axes = plots.panels(len(SHOWN), len(ALPHAS), height=4.2, sharex=True, sharey="row")
        for row, (matrix, title) in enumerate(zip(SHOWN, ("attention's output", "FFN's output"), strict=True)):
            for column, alpha in enumerate(ALPHAS):
                axis = axes[row, column]
                for name in PLACEMENTS:
                    one = found.sel(placement=name, alpha=alpha, matrix=matrix)
                    plots.theory_line(axis, one.depth, one.theory_fall, placement=name, allowance=one.fall_allowance)
                    plots.simulation_points(axis, one.simulated_depth, one.fall, one.fall_se, placement=name)
                axis.set(xscale="log", yscale="log")
                axis.set_xticks([2, 8, 32, 128], ["2", "8", "32", "128"])
                axis.minorticks_off()
                if row == 0:
                    axis.set_title(rf"branches times depth$^{{-{alpha:g}}}$" if alpha else "branches not multiplied")
            axes[row, 0].set_ylabel(f"fall of the loss / rate\n{title}")
        for axis in axes[-1]:
            axis.set_xlabel("depth (blocks)")
        plots.legend(figure, plots.key(PLACEMENTS, scalings=False))
    return figure
