"""How many experts a token uses, what a batch's compute varies by, bias control, and the compensation of splitting."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from typing import Any

import numpy as np
import xarray as xr

import propagate as pg
from figures.networks import digits
from propagate import plots
from propagate.figures import workers
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.experts import gates
from propagate.theory.pairs.gates import gate_averages

RELEASED = pg.Experts(512, 12, identity=256, softmax="before", gain=6.0)  # LongCat-Flash
FEWER, SMALL = 6.0, pg.Experts(16, 6, identity=8, softmax="before")
CORRELATIONS, BATCHES, WIDTH = (0.0, 0.3, 0.9), (1, 4, 16, 64, 256), 256
AIMS, RATE, STEPS, EVERY, TOKENS = (3.0, 5.0), 0.05, 400, 20, 64
SPLITS = (1, 2, 4, 8, 16, 32)
KINDS: dict[str, tuple[pg.Experts, tuple[int, ...]]] = {  # label: unsplit, splits that are simulated
    "2 of 8, before, std 2": (pg.Experts(8, 2, 2.0, softmax="before"), (1, 4, 16)),
    "2 of 8, before": (pg.Experts(8, 2, softmax="before"), (1, 4, 16)),
    "2 of 8, after": (pg.Experts(8, 2), (1, 4, 16)),
    "8 of 64, before": (pg.Experts(64, 8, softmax="before"), (1, 4)),
    "8 of 64, before, std 0.3": (pg.Experts(64, 8, 0.3, softmax="before"), (1, 4)),
}
SHADES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
DRAWS, SEED = 120, 0

CAPTION = """\
**Active experts.** In LongCat-Flash (arXiv:2509.01322) a token chooses 12 of 512 FFN and 256 identity experts, so that
its compute is a random variable. Lines: theory. Points: simulation with random routers, 95 % intervals.

(a) Share of tokens with a active FFN experts at initialisation: hypergeometric, whatever the spread of the logits,
with mean 8, the number that the paper aims at, and standard deviation {std:.2f} (circles: {draws} routers of width
{width}, tokens correlated 0.3; |z| at most {worst:.1f}); and with the bias that brings the mean to {fewer:g}. (b)
Standard deviation, between networks, of the mean over a batch: tokens share the router, and correlated ones choose
together. Of correlation 0.3 they have {shared:.1%} of the variance in common, of 0.9 {shared_high:.0%}: larger
batches do not average that out. (c) Bias control, 6 of 16 and 8 chosen: mean number of active FFN experts against the
step, aims 3 and 5; filled: uncorrelated tokens, as the theory has them, open: of correlation 0.5. It ends where
theory says, and as fast: at the end {end:.2f} and {end_high:.2f}. Of correlated tokens the FFN experts get even
loads, each by a bias of its own; identity experts, which have none, do not: the most used one gets {most:.0%} of the
tokens, the least {least:.0%}. (d) Fine splitting: variance of a mixture whose experts are cut into m, with gates
times m (the paper's compensation), over that of the uncut one. Even gates make it 1 exactly. Uneven ones do not,
because m times as many candidates reach farther into the tail of the logits: {rise:.2f} at m = 4 for 2 of 8,
{rise_wide:.2f} for 8 of 64, {rise_two:.2f} for 2 of 8 with logits twice as wide. "before" and "after": the softmax,
against the choice. Without the compensation all would fall as 1 / m^2.

Device: CPU. Seed {first_seed}.
"""


class FeedForwardAlone(pg.Placement):
    """One mixture and nothing else."""

    def block(self, x: Any, block: Any) -> Any:
        return block.ffn(x)


def data(
    draws: int = DRAWS,
    seed: int = SEED,
    executor: Executor | None = None,
    backend: str = "numpy",
    steps: int = STEPS,
) -> xr.Dataset:
    """Distributions, spreads of batches' means, paths of control and variances of split mixtures."""
    own = 1_000_000 * seed + 920_000
    with workers(executor) as pool:
        released = [pool.submit(counted, c, draws, own + at) for at, c in enumerate(CORRELATIONS)]
        fewer = pool.submit(counted, CORRELATIONS[1], draws, own + 10, FEWER)
        controlled = [
            pool.submit(control, aim, c, steps, own + 20 + 4 * at)
            for at, (c, aim) in enumerate((c, a) for c in (0.0, 0.5) for a in AIMS)
        ]
        cut = [
            pool.submit(split_variance, kind, m, 4 * draws, own + 40 + at, backend)
            for at, (kind, m) in enumerate((k, m) for k, (_, some) in KINDS.items() for m in some)
        ]
        counts, biased = [one.result() for one in released], fewer.result()
        paths, variances = [one.result() for one in controlled], iter([one.result() for one in cut])
    found: dict[str, Any] = _distributions(counts[1], biased) | _batches(counts) | _controls(paths, steps)
    for kind, (unsplit, some) in KINDS.items():
        own_points = {m: next(variances) for m in some}
        found |= _splits(kind, unsplit, own_points)
    table = xr.Dataset({key: (dims, digits(values)) for key, (dims, values) in found.items()})
    table = table.assign_coords(
        active=np.arange(13), batch=list(BATCHES), correlation=list(CORRELATIONS), aim=list(AIMS), split=list(SPLITS)
    )
    return table.assign_attrs(_told(table, counts[1], paths), draws=draws, width=WIDTH, first_seed=seed, fewer=FEWER)


def counted(correlation: float, draws: int, seed: int, expected: float | None = None) -> Any:
    """Numbers of active FFN experts of LongCat-Flash, (routers, tokens)."""
    experts = RELEASED if expected is None else pg.balanced(RELEASED, expected)
    draw, host, found = np.random.default_rng(seed), choose_backend("numpy"), []
    for _ in range(draws):
        router = draw.standard_normal((WIDTH, experts.candidates)) / math.sqrt(WIDTH)
        x = math.sqrt(correlation) * draw.standard_normal(WIDTH)
        x = x + math.sqrt(1 - correlation) * draw.standard_normal((1, BATCHES[-1], WIDTH))
        found.append((gates(host, experts, x @ router)[0][0] > 0)[:, : experts.routed].sum(axis=-1))
    return np.array(found)


def control(aim: float, correlation: float, steps: int, seed: int) -> list[xr.Dataset]:
    """Bias control of four routers."""
    run: dict[str, Any] = {"rate": RATE, "steps": steps, "tokens": TOKENS, "correlation": correlation}
    return [pg.simulate_balance(SMALL, aim, seed=seed + at, **run) for at in range(4)]


def split_variance(kind: str, split: int, draws: int, seed: int, backend: str) -> tuple[float, float]:
    """Variance of a mixture's output, and its standard error."""
    unsplit = KINDS[kind][0]
    model = pg.Model(
        FeedForwardAlone(), depth=1, width=64, tokens=4, heads=1, ffn_ratio=1.0, experts=_cut(unsplit, split)
    )
    seen = pg.simulate(model, draws=draws, seed=seed, backend=backend, sampler="weightless", progress=False)
    return float(seen.variance[1]), float(seen.variance_se[1])


def _cut(experts: pg.Experts, split: int) -> pg.Experts:
    return pg.Experts(experts.count, experts.top_k, experts.router_std, softmax=experts.softmax, split=split)


def _distributions(plain: Any, biased: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, counts, experts in (("plain", plain, RELEASED), ("fewer", biased, pg.balanced(RELEASED, FEWER))):
        shares = np.stack([(counts == a).mean(axis=1) for a in range(13)])
        found[f"theory_{name}"] = "active", pg.active_experts(experts).probability
        found[name], found[f"{name}_se"] = (
            ("active", shares.mean(axis=1)),
            ("active", shares.std(axis=1, ddof=1) / math.sqrt(shares.shape[1])),
        )
    return found


def _batches(counts: list[Any]) -> dict[str, Any]:
    dims = ("correlation", "batch")
    said = [[pg.active_experts(RELEASED, correlation=c).std_of_mean(batch) for batch in BATCHES] for c in CORRELATIONS]
    stds = np.array([[one[:, :batch].mean(axis=1).std(ddof=1) for batch in BATCHES] for one in counts])
    return {
        "theory_std": (dims, np.array(said)),
        "std": (dims, stds),
        "std_se": (dims, stds / math.sqrt(2 * (len(counts[0]) - 1))),
    }


def _controls(paths: list[list[xr.Dataset]], steps: int) -> dict[str, Any]:
    said = [pg.predict_balance(SMALL, aim, rate=RATE, steps=steps).active for aim in AIMS]
    found: dict[str, Any] = {"theory_control": (("aim", "step"), np.array(said))}
    several = np.array([[one.active.values for one in path] for path in paths])
    several = several[..., : steps // EVERY * EVERY].reshape(*several.shape[:2], -1, EVERY).mean(axis=-1)
    dims = ("alike", "aim", "window")
    for key, values in (
        ("control", several.mean(axis=1)),
        ("control_se", several.std(axis=1, ddof=1) / math.sqrt(several.shape[1])),
    ):
        found[key] = dims, values.reshape(2, len(AIMS), -1)
    return found


def _splits(kind: str, unsplit: pg.Experts, points: dict[int, tuple[float, float]]) -> dict[str, Any]:
    name = list(KINDS).index(kind)
    variances = [gate_averages(_cut(unsplit, m), unsplit.router_std**2, 1.0).routed.variance / m for m in SPLITS]
    measured = np.full((2, len(SPLITS)), np.nan)
    for m, point in points.items():
        measured[:, SPLITS.index(m)] = point
    return {
        f"theory_split_{name}": ("split", np.array(variances) / variances[0]),
        f"split_{name}": ("split", measured[0] / variances[0]),
        f"split_{name}_se": ("split", measured[1] / variances[0]),
    }


def _told(table: xr.Dataset, counts: Any, paths: list[list[xr.Dataset]]) -> dict[str, Any]:
    z = ((table.plain - table.theory_plain) / table.plain_se).where(table.theory_plain > 1e-3)
    uneven = np.array([np.sort(one["share"][-100:, 16:].mean("step").values) for one in paths[2]]).mean(axis=0)
    rises = {"rise": 1, "rise_wide": 3, "rise_two": 0}
    told = {
        "std": pg.active_experts(RELEASED).std,
        "worst": float(abs(z).max()),
        "shared": pg.active_experts(RELEASED, correlation=CORRELATIONS[1]).shared,
        "shared_high": pg.active_experts(RELEASED, correlation=CORRELATIONS[2]).shared,
        "end": float(table.control[0, 0, -5:].mean()),
        "end_high": float(table.control[0, 1, -5:].mean()),
        "most": float(uneven[-1]),
        "least": float(uneven[0]),
    } | {key: float(table[f"theory_split_{at}"].sel(split=4)) for key, at in rises.items()}
    return {key: float(digits(value, 4)) for key, value in told.items()}


def draw(data: xr.Dataset) -> Any:
    """Four panels."""
    with plots.style():
        figure, ((first, second), (third, fourth)) = plots.panels(2, 2, height=5.4)
        handles = []
        for name, shade, label in (("plain", SHADES[0], "at initialisation"), ("fewer", SHADES[1], "with a bias")):
            plots.theory_line(first, data.active, data[f"theory_{name}"], placement="", color=shade)
            handles.append(plots.entry(f"(a) {label}", color=shade, linewidth=2.0))
            plots.simulation_points(first, data.active, data[name], data[f"{name}_se"], shade=shade)
        first.set(xlabel="active FFN experts of 12", ylabel="share of tokens", title="(a) LongCat-Flash")
        for shade, c in zip(SHADES, data.correlation.values, strict=False):
            one = data.sel(correlation=c)
            plots.theory_line(second, data.batch, one.theory_std, placement="", color=shade)
            handles.append(plots.entry(f"(b) correlation {c:g}", color=shade, linewidth=2.0))
            plots.simulation_points(second, data.batch, one["std"], one.std_se, shade=shade)
        second.set(xscale="log", yscale="log", xlabel="tokens of a batch", title="(b) between networks")
        second.set_ylabel("standard deviation of\nmean active experts")
        middle = (np.arange(data.sizes["window"]) + 0.5) * EVERY
        for shade, aim in zip(SHADES, data.aim.values, strict=False):
            line = data.theory_control.sel(aim=aim)
            plots.theory_line(third, np.arange(data.sizes["step"]), line, placement="", color=shade)
            handles.append(plots.entry(f"(c) aim {aim:g}", color=shade, linewidth=2.0))
            for alike in range(2):
                one = data.isel(alike=alike).sel(aim=aim)
                plots.simulation_points(third, middle, one.control, one.control_se, shade=shade, scaled=bool(alike))
        for label, kind in (("uncorrelated", plots.UNSCALED), ("correlation 0.5", plots.SCALED)):
            face = "0.3" if kind["filled"] else "white"
            dots = {"marker": kind["marker"], "markersize": 3.4, "markerfacecolor": face, "linestyle": "none"}
            handles.append(plots.entry(f"(c) {label}", **dots))
        third.set(xlabel="step", ylabel="mean active FFN experts", title="(c) bias control")
        for at, (kind, shade) in enumerate(zip(KINDS, SHADES, strict=True)):
            plots.theory_line(fourth, data.split, data[f"theory_split_{at}"], placement="", color=shade)
            handles.append(plots.entry(f"(d) {kind}", color=shade, linewidth=2.0))
            here = np.isfinite(data[f"split_{at}"].values)
            points, error = (data[f"split_{at}{end}"][here] for end in ("", "_se"))
            plots.simulation_points(fourth, data.split[here], points, error, shade=shade)
        fourth.set(xscale="log", yscale="log", xlabel="parts m of an expert", title="(d) experts cut into m")
        fourth.set_ylabel("variance over that of uncut experts")
        fourth.set_xticks(SPLITS, [str(m) for m in SPLITS])
        fourth.set_yticks([1, 2, 4], ["1", "2", "4"])
        fourth.minorticks_off()
        plots.legend(figure, handles, columns=4)
    return figure
