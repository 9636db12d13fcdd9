"""What the scale correction of latent attention does to logits, values, stream and gradient, against the rank."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.ticker import LogLocator

import propagate as pg
from figures.networks import DRAWS, SEED, START, Run, columns, digits, measure, predict
from propagate import plots

WIDTH, DEPTH, TOKENS, HEADS = 256, 8, 16, 8
POWER = 0.02**2 * 6144  # sigma^2 d of LongCat-Flash
SIZES: dict[str, Any] = {"heads": HEADS, "head_size": 32, "rope_size": 16}
SIMULATED = (8, 16, 32, 64, 128, 256)
KINDS = (True, False)
NAMES = ("variance", "grad_variance")
PANELS = ("logit", "value", *NAMES)

FULL = {"draws": 64, "width": 1024}
CAPTION = """\
**The scale correction of latent attention.** Standard deviation of a logit between unlike tokens, variance of a value,
and in a PreNorm network of {depth} blocks the variance of the stream that leaves the last and of the gradient at the
embedding, against the rank that queries, keys and values pass (the same for both latents; the width is {width}). All
entries of all of attention's matrices have one standard deviation σ, with σ²d = {power:.2f}, which is LongCat-Flash's
(0.02² · 6144). With the correction (filled) queries are multiplied by √(d/d_q), a head's own keys and the values by
√(d/d_kv); without it (open) they are not. Shared keys, {rope_size} coordinates beside the {head_size} of a head's own,
read the stream itself and are scaled in neither.

Lines: theory, of the upper panels Proposition 15, of the lower ones the limit of a large width at these ranks and
heads; the shaded band is its stated allowance. Points: simulation, {draws} independent draws of the matrices or
networks, bars ±1.96 standard errors; in the lower panels geometric means.

What it shows: with the correction no rank is left in the logits' spread and in the values' size, which are both σ²d.
Without it both fall with the rank, and what is left of the logits is mostly that of the shared keys: at rank {narrow}
the spread is {logit_plain:.2f} in place of {logit_corrected:.2f} and the value's variance {value_plain:.3f} in place of
{value_corrected:.2f}. The value is scaled too, though only queries and keys are sums of parts that should be alike: at
rank {narrow} the stream's variance after {depth} blocks is {variance_corrected:.1f} with the correction and
{variance_plain:.1f} without. All of this is said of the initialisation.

Width {width}, {heads} heads, {tokens} tokens without positions or mask, ReLU FFN of ratio 4, RMSNorm; start: variance
1, covariance 0.3. Sampler weightless, exact in law at every width. Device: {device}. Seed {first_seed}.
"""


def attention(rank: int, width: int, *, corrected: bool) -> pg.LatentAttention:
    """Of one standard deviation of entries, at one rank for both latents."""
    std = math.sqrt(POWER / width)
    sizes = SIZES | {"query_rank": rank, "key_value_rank": rank, "scale_correction": corrected}
    return pg.LatentAttention.of_std(std, width, **sizes)


def data(
    draws: int = DRAWS,
    seed: int = SEED,
    executor: Executor | None = None,
    depth: int = DEPTH,
    width: int = WIDTH,
    backend: str = "numpy",
) -> xr.Dataset:
    """Both kinds at every rank of a grid; simulations at some of them."""
    ranks = sorted({*np.geomspace(8, 256, 11).round().astype(int).tolist(), *SIMULATED})
    places = [(corrected, rank) for corrected in KINDS for rank in ranks]
    runs = [
        Run(
            "PreNorm",
            "corrected" if corrected else "plain",
            START,
            pg.Model(
                "prenorm", depth, width=width, tokens=TOKENS, attention=attention(rank, width, corrected=corrected)
            ),
            draws,
            1_000_000 * seed + 700_000 + 1000 * corrected + rank,
            backend,
        )
        for corrected, rank in places
    ]
    wanted = [run for run, (_, rank) in zip(runs, places, strict=True) if rank in SIMULATED]
    measured = dict(zip(wanted, measure(wanted, executor), strict=True))
    rows = [_row(run, measured.get(run), rank, corrected) for run, (corrected, rank) in zip(runs, places, strict=True)]
    found = xr.concat(rows, "network").assign(rank=("network", [rank for _, rank in places]))
    found["corrected"] = "network", [int(corrected) for corrected, _ in places]
    said: dict[str, Any] = {"depth": depth, "width": width, "tokens": TOKENS, "power": float(digits(POWER)), **SIZES}
    for suffix, at in (("corrected", 0), ("plain", len(ranks))):
        said |= {f"{name}_{suffix}": float(found[f"theory_{name}"][at]) for name in PANELS}
    device = next(iter(measured.values())).attrs["device"]
    return found.assign_attrs(draws=draws, first_seed=seed, device=device, narrow=ranks[0], **said)


def _row(run: Run, measured: xr.Dataset | None, rank: int, corrected: bool) -> xr.Dataset:
    """What the figure shows of one network, NaN where it is not simulated."""
    kind = run.model.at(1).attention
    assert isinstance(kind, pg.LatentAttention)
    scale = kind.scale_of("value", run.model.width)
    found = {
        "theory_logit": math.sqrt(kind.logit_power(run.model.width)),
        "theory_value": float((kind.value_gain * scale) ** 2),
    }
    seen = drawn(kind, run.model.width, run.draws, run.seed) if measured is not None else np.full((2, 2), np.nan)
    for name, (mean, error) in zip(("logit", "value"), seen, strict=True):
        found |= {name: mean, f"{name}_se": error}
    theory = predict(run)
    blocks = columns(theory, theory if measured is None else measured, NAMES, measured is not None)
    for name, block in (("variance", -1), ("grad_variance", 0)):
        for key in (f"theory_{name}", f"{name}_allowance", f"log_{name}", f"log_{name}_se"):
            found[key] = float(blocks[key][block])
    return xr.Dataset({key: float(digits(value)) for key, value in found.items()})


def drawn(kind: pg.LatentAttention, width: int, draws: int, seed: int) -> Any:
    """The equations of latent attention, matrix by matrix: mean and standard error over draws of the logits' standard
    deviation and of the values' mean square, tokens being independent and of size 1."""
    random, entries = np.random.default_rng(seed), math.sqrt(POWER / width)
    found = []
    for _ in range(draws):
        h = _normed(random.standard_normal((TOKENS, width)))

        def read(x: Any, size: int) -> Any:
            return x @ random.normal(0.0, entries, (x.shape[-1], size))  # called in this turn

        query = kind.scale_of("query", width) * read(_normed(read(h, kind.query_rank or width)), HEADS * kind.size)
        latent = _normed(read(h, kind.rank))
        key, value = (kind.scale_of("key", width) * read(latent, HEADS * n) for n in (kind.plain_size, kind.of_value))
        shared = np.broadcast_to(read(h, kind.turned_size)[:, None], (TOKENS, HEADS, kind.turned_size))
        keys = np.concatenate([key.reshape(TOKENS, HEADS, -1), shared], axis=-1)
        logits = np.einsum("thi,shi->hts", query.reshape(TOKENS, HEADS, -1), keys) / math.sqrt(kind.size)
        found.append((math.sqrt((logits**2).mean()), (value**2).mean()))
    return [(column.mean(), column.std(ddof=1) / math.sqrt(draws)) for column in np.array(found).T]


def _normed(x: Any) -> Any:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True))


def draw(data: xr.Dataset) -> Any:
    """Logits and values above, stream and gradient below; filled with the correction, open without."""
    titles = (
        "standard deviation of a logit",
        "variance of a value",
        f"variance of the stream, block {data.attrs['depth']}",
        "gradient variance at the embedding",
    )
    with plots.style():
        figure, axes = plots.panels(2, 2, height=4.6, sharex=True)
        for axis, name, title in zip(axes.ravel(), PANELS, titles, strict=True):
            for corrected in KINDS:
                one = data.isel(network=np.flatnonzero(data.corrected == corrected))
                look: dict[str, Any] = {"placement": "prenorm", "scaled": not corrected}
                band = {"allowance": one[f"{name}_allowance"]} if f"{name}_allowance" in data else {}
                plots.theory_line(axis, one["rank"], one[f"theory_{name}"], **band, **look)
                value = f"log_{name}" if f"log_{name}" in data else name
                seen = one.isel(network=np.flatnonzero(np.isfinite(one[value])))
                error = seen[f"{value}_se"]
                plots.simulation_points(
                    axis, seen["rank"], seen[value], error, logarithmic=value.startswith("log_"), **look
                )
            axis.set(xscale="log", yscale="log", title=title)
            axis.set_xticks(SIMULATED, [str(rank) for rank in SIMULATED])
            axis.minorticks_off()
            axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:g}")
        for axis in axes[1]:
            axis.set_xlabel("rank of both latents")
        axes[0, 0].set_ylabel("mean over draws")
        axes[1, 0].set_ylabel("geometric mean (per coordinate)")
        shade = plots.colour("prenorm")
        entries = [
            plots.entry(
                label,
                color=shade,
                linestyle=kind["linestyle"],
                marker=kind["marker"],
                markersize=3.4,
                markerfacecolor=shade if kind["filled"] else "white",
            )
            for label, kind in (("with the correction", plots.UNSCALED), ("without", plots.SCALED))
        ]
        plots.legend(figure, [*entries, *plots.key(scalings=False)], columns=4)
    return figure
