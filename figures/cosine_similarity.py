"""Cosine between the streams that leave any two blocks, for three placements with and without ScaleInit."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import numpy as np
import xarray as xr

import propagate as pg
from figures.networks import HEADS, LOGIT_STD, PLACEMENTS, SCALINGS, SEED, START, TOKENS, digits
from propagate import plots
from propagate.figures import workers

DEPTH, WIDTH, DRAWS = 24, 256, 6

FULL = {"draws": 24, "width": 512}
CAPTION = """\
**Cosine between layers.** Cosine between a token in the stream that leaves block l and the same token in the stream
that leaves block m (0: the embedding), at random initialisation, in networks of {depth} blocks. Heat maps: above the
diagonal theory, below it simulation, so that a map that looks symmetric agrees. Beneath: the cosine with the last
block's stream, theory as lines, simulation as points with bars of ±1.96 standard errors over {draws} networks.

Theory: in the limit of infinite width a branch ends in a fresh matrix and is uncorrelated with every stream before it,
so from block l to m only the skips keep the direction: cos = s √(variance_l / variance_m), where s is the product of
what the skips multiply by, the root of the ratio of `skip_gain`. Without scaling that is 2^(-|l - m| / 2) for SpanNorm,
√(variance_l / variance_m) for PreNorm, and close to 2^(-|l - m|) for PostNorm: attention, which averages over tokens,
adds a little less than the skip has while they differ. Simulation: torch modules made by `propagate.build`, in
float64, fed Gaussian tokens; mean over tokens. Largest |z| over all pairs of blocks: {worst:.1f}, where {pairs}
independent pairs would by chance reach about {chance:.1f} (z: normal score of a t statistic with {freedom} degrees of
freedom; no allowance is made for finite width).

Bears on claim C4. The SpanNorm paper's Fig. 6 is said to show such heat maps of *trained* PreNorm and SpanNorm models,
as evidence that SpanNorm's layers do more; a reviewer found the difference marginal. We have not seen it. At
initialisation and without scaling the difference is large: between the embedding and the last block the cosine is
{pre:.2f} in PreNorm, {span:.4f} in SpanNorm and {post:.0e} in PostNorm. With ScaleInit(0.5) it is gone:
{pre_scaled:.2f}, {span_scaled:.2f} and {post_scaled:.2f}, and successive layers are alike in all three. So a low
similarity between the layers of a scaled SpanNorm has to come from
training.

Width {width}, {heads} heads, ReLU FFN of ratio 4, RMSNorm, logit standard deviation {logit_std:g}, {tokens} tokens of
variance 1 and covariance 0.3. Device: CPU, torch. Seed {first_seed}; each network has its own.
"""


def data(
    draws: int = DRAWS,
    seed: int = SEED,
    executor: Executor | None = None,
    depth: int = DEPTH,
    width: int = WIDTH,
    **_: Any,
) -> xr.Dataset:
    """Six networks, theory and simulation over (network, block, other)."""
    models = {(name, scaling): model(name, scaling, depth, width) for name in PLACEMENTS for scaling in SCALINGS}
    with workers(executor) as pool:
        futures = [
            [
                pool.submit(simulate, one, 1_000_000 * seed + 700_000 + 1000 * row + draw, float(START))
                for draw in range(draws)
            ]
            for row, one in enumerate(models.values())
        ]
        seen = np.array([[future.result() for future in row] for row in futures])
    said = {
        "theory_cosine": np.array([predict(one) for one in models.values()]),
        "cosine": seen.mean(1),
        "cosine_se": seen.std(1, ddof=1) / np.sqrt(draws),
    }
    found = xr.Dataset({name: (("network", "block", "other"), digits(values)) for name, values in said.items()})
    found["placement"] = "network", [name for name, _ in models]
    found["scaling"] = "network", [scaling for _, scaling in models]
    scores = z(found, draws)
    labels = [f"{name[:-4].lower()}{'' if scaling == 'none' else '_scaled'}" for name, scaling in models]
    corners = {label: float(found.theory_cosine[i, 0, -1]) for i, label in enumerate(labels)}
    return found.assign_attrs(
        corners,
        depth=depth,
        width=width,
        heads=HEADS,
        tokens=TOKENS,
        logit_std=LOGIT_STD,
        draws=draws,
        freedom=draws - 1,
        first_seed=seed,
        worst=float(digits(np.nanmax(abs(scores)), 3)),
        pairs=int(np.isfinite(scores).sum()) // 2,
        chance=float(digits(_chance(int(np.isfinite(scores).sum()) // 2), 3)),
        propagate=pg.__version__,
    )


def model(placement: str, scaling: str, depth: int, width: int) -> pg.Model:
    """A network of the figure."""
    size: dict[str, Any] = {"depth": depth, "width": width, "tokens": TOKENS, "heads": HEADS, "logit_std": LOGIT_STD}
    return pg.Model(placement, scaling=SCALINGS[scaling], activation="relu", **size)


def predict(one: pg.Model) -> Any:
    """Cosine of every two blocks' streams, (depth + 1, depth + 1); for one stream, with positive skips."""
    table = pg.predict(one, covariance=float(START))
    along = np.log(table.skip_gain * table.variance).to_numpy() / 2
    return np.exp(-abs(along[:, None] - along[None, :]))


def simulate(one: pg.Model, seed: int, covariance: float) -> Any:
    """The same, in one random network and averaged over its tokens."""
    import torch

    torch.set_num_threads(1)
    network = pg.build(one, seed=seed, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    shape = {"generator": generator, "dtype": torch.float64}
    shared, own = torch.randn(one.width, **shape), torch.randn(one.tokens, one.width, **shape)
    stream = covariance**0.5 * shared + (1 - covariance) ** 0.5 * own
    streams = [stream]
    with torch.no_grad():
        for block in network.blocks:
            streams.append(block(streams[-1]))
    directions = torch.nn.functional.normalize(torch.stack(streams), dim=-1)
    return torch.einsum("ltd,mtd->lm", directions, directions).numpy() / one.tokens


def z(data: xr.Dataset, draws: int) -> Any:
    """Normal scores of simulation against theory, over (network, block, other); NaN where the cosine is 1."""
    from scipy import stats

    off = ~np.eye(data.sizes["block"], dtype=bool)
    error = data.cosine_se.where(off).to_numpy()
    t = (data.cosine - data.theory_cosine).to_numpy() / error
    return np.sign(t) * stats.norm.isf(stats.t.sf(abs(t), draws - 1))


def _chance(count: int) -> float:
    """Two-sided normal score that the largest of `count` independent ones exceeds in half of all cases."""
    from scipy import stats

    return float(stats.norm.isf((1 - 0.5 ** (1 / count)) / 2))


def draw(data: xr.Dataset) -> Any:
    """A column for each placement: maps without scaling and with it; beneath, the cosine with the last block."""
    with plots.style():
        figure, axes = plots.panels(3, len(PLACEMENTS), height=5.9, sharey="row", height_ratios=[1.3, 1.3, 1])
        depth = data.sizes["block"] - 1
        upper = np.tril(np.ones((depth + 1, depth + 1), dtype=bool))  # above the diagonal, once rows count upwards
        for index in range(data.sizes["network"]):
            one = data.isel(network=index)
            name, scaled = str(one.placement.item()), str(one.scaling.item()) != "none"
            heat, cut = axes[int(scaled), PLACEMENTS.index(name)], axes[2, PLACEMENTS.index(name)]
            shown = np.where(upper, one.theory_cosine, one.cosine)
            image = heat.imshow(shown, vmin=0, vmax=1, origin="lower", interpolation="nearest", aspect="equal")
            heat.grid(False)
            faint = "black" if scaled else "white"  # on the map's bright or dark end
            heat.text(0.05, 0.95, "theory", transform=heat.transAxes, color=faint, va="top")
            heat.text(0.95, 0.05, "simulation", transform=heat.transAxes, color=faint, ha="right")
            heat.set(title=f"{name}, " + ("ScaleInit(0.5)" if scaled else "no scaling"), xlabel="block")
            look: dict[str, Any] = {"placement": name, "scaled": scaled}
            blocks = np.arange(depth + 1)
            plots.theory_line(cut, blocks, one.theory_cosine[:, -1], **look)
            points = one.isel(block=slice(0, depth, 3))
            plots.simulation_points(cut, blocks[:depth:3], points.cosine[:, -1], points.cosine_se[:, -1], **look)
            cut.set(xlabel="block", ylim=(-0.15, 1.05), box_aspect=0.7, title=name)
        for axis in axes[:2, 0]:
            axis.set_ylabel("other block")
        axes[2, 0].set_ylabel("cosine with the last")
        figure.colorbar(image, ax=axes[:2].ravel().tolist(), label="cosine", shrink=0.6)
        plots.legend(figure, plots.key(PLACEMENTS, band=False))
    return figure
