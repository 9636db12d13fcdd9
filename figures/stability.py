"""Loss against learning rate, for placements, depths and warm-up; the largest stable rate and the sensitivity."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from figures import training_results as results
from propagate import plots

CORE = (("prenorm", 0.0), ("prenorm", 0.5), ("postnorm", 0.5), ("spannorm", 0.5))
FAMILY = (
    ("postnorm", 0.0),
    ("postnorm", 0.25),
    ("postnorm", 1.0),
    ("spannorm", 0.0),
    ("spannorm", 0.25),
    ("spannorm", 1.0),
)
CONTROLS = ("periln", "deepnorm", "layernormscaling", "keel")
CONTROL_COLOURS = {"keel": "#999999"}

CAPTION = """\
**Learning-rate stability.** Held-out loss in the end against the peak learning rate. Upper row: four architectures at
depths {depths} (darker: deeper; filled), and at {main} blocks without warm-up (open). Lower row: other exponents of
ScaleInit, and four other placements with their own initial gains, at {main} blocks; the largest stable rate, and the
sensitivity to the rate, against depth (open: without warm-up). Mean over {draws} seeds, bars 1.96 standard errors; a
run that diverged counts at its first loss. Grey: the unigram plateau, {unigram:.3f} nats. Numbers behind the placement
are exponents of ScaleInit. A rate is stable if the mean loss, there and at all rates between it and the best, is more
than 0.1 below the plateau. Sensitivity: mean over the 9 rates of the loss, at most the first one, less the best
(arXiv:2309.14322).

Bears on claim C5 (SpanNorm trains at depths and learning rates where PostNorm does not). It does, by a factor of about
2 in the rate: where SpanNorm + 1/2 is at its best, PostNorm + 1/2 has begun to fail, and at 96 blocks it fails at
2e-3. Both lose a factor of 4 from 12 to 96 blocks. PreNorm trains at every rate and depth, scaled or not. Largest
stable rate with a warm-up of 10 %, at depths {depths}: {stable}. Without warm-up at {main} blocks: {sudden}. Rates are
a factor of 2 apart.

Bears on claim C6 (SpanNorm beats other placements, dense and with experts). It beats PostNorm with every exponent; it
does not beat PreNorm with the same exponent, nor KEEL and LN-Scaling, which end lowest here. Lowest mean loss over
rates at {main} blocks, ± standard error over seeds: {lowest}. Standard deviation of one run's loss over {many} seeds,
SpanNorm + 1/2 at {scatter_rate:g}: {scatter:.4f}; a difference of two means of {draws} seeds is told from chance (1.96
standard errors) above {told:.3f}. Sensitivity at {main} blocks: {sensitive}.

Runs: {runs}, of which {diverged} diverged; every run is shown, nothing but the rate is tuned. Width {width}, {tokens}
tokens, {batch} sequences a step, {steps} steps of AdamW (0.9, 0.95, decay 0.1), clipped at norm 1, cosine; causal,
rotary positions, SwiGLU, RMSNorm; all architectures of a seed see the same sequences in the same order. Text:
{corpus}, {vocabulary} tokens. {device}, {precision}. {limits}
"""


def data(**_: Any) -> xr.Dataset:
    """The stored sweeps of dense networks on text. They were measured once: arguments change nothing."""
    table = results.chosen(results.stored("sweeps"), text="text", experts=0)
    table = table.sortby(["depth", "warmup"])
    main = results.main_depth(table)
    depths = sorted({int(d) for d in table.depth.values})
    found = xr.Dataset(
        {
            "loss": results.losses(table),
            "first_loss": table.held_out_loss.sel(share=0.0, drop=True),
            "largest_stable": results.largest_stable(table),
            "sensitivity": results.sensitivity(table).where(np.isfinite(results.losses(table)).all(("lr", "seed"))),
            "diverged_at": table.diverged_at,
            "unigram_loss": table.unigram_loss,
        }
    )
    many = results.stored("scatter")
    spread = float(results.losses(many).std("seed", ddof=1).squeeze())
    at_main = results.chosen(results.chosen(found, depth=main), warmup=0.1)
    rates, lowest, error = results.best(results.chosen(results.chosen(table, depth=main), warmup=0.1))
    del rates
    named = [results.label(at_main.isel(cell=i)) for i in range(at_main.sizes["cell"])]
    stable = [
        f"{_name(*kind)} {_several(_of(found, *kind, warmup=0.1).sortby('depth').largest_stable)}" for kind in CORE
    ]
    sudden = [f"{_name(*kind)} {_several(_of(found, *kind, warmup=0.0).largest_stable)}" for kind in CORE]
    return found.assign_attrs(
        results.words(table)
        | {
            "main": main,
            "depths": ", ".join(map(str, depths)),
            "stable": "; ".join(stable),
            "sudden": "; ".join(sudden),
            "lowest": ", ".join(
                f"{n} {m:.3f} ± {s:.3f}" for n, m, s in zip(named, lowest.values, error.values, strict=True)
            ),
            "sensitive": ", ".join(
                f"{n} {s:.2f}" for n, s in zip(named, at_main.sensitivity.values, strict=True) if np.isfinite(s)
            ),
            "scatter": spread,
            "many": int(many.sizes["seed"]),
            "scatter_rate": float(many.lr.values[0]),
            "told": plots.CONFIDENCE * spread * float(np.sqrt(2 / table.sizes["seed"])),
        }
    )


def _name(placement: str, exponent: float) -> str:
    return results.NAMES[placement] + results.EXPONENTS[exponent]


def _of(table: xr.Dataset, placement: str, exponent: float, **fields: Any) -> xr.Dataset:
    return results.chosen(table, placement=placement, exponent=exponent, **fields)


def _several(rates: xr.DataArray) -> str:
    return ", ".join("none" if np.isnan(rate) else f"{rate:.3g}" for rate in rates.values) or "not run"


def draw(data: xr.Dataset) -> Any:
    """Curves above; other members of the family, other placements, and two summaries below."""
    main, top = int(data.attrs["main"]), float(data.unigram_loss.max())
    depths = sorted({int(d) for d in data.depth.values})
    with plots.style():
        figure, axes = plots.panels(2, 4, height=4.6)
        for axis, kind in zip(axes[0], CORE, strict=True):
            cells = _of(data, *kind)
            for place in range(cells.sizes["cell"]):
                cell = cells.isel(cell=place)
                shade = _depth_shade(depths, int(cell.depth))
                face = {} if float(cell.warmup) else {"markerfacecolor": "white", "linestyle": ":"}
                results.curve(axis, data.lr, cell.loss, color=plots.colour(kind[0]), alpha=shade, **face)
            axis.set_title(_name(*kind))
        at_main = results.chosen(results.chosen(data, depth=main), warmup=0.1)
        for kind in FAMILY:
            for place in range((cells := _of(at_main, *kind)).sizes["cell"]):
                style = results.DASHES[kind[1]]
                results.curve(
                    axes[1, 0], data.lr, cells.loss.isel(cell=place), color=plots.colour(kind[0]), linestyle=style
                )
        axes[1, 0].set_title("other exponents")
        for name in CONTROLS:
            for place in range((cells := _of(at_main, name, 0.0)).sizes["cell"]):
                look = {"color": _shade(name), "label": results.NAMES[name]}
                results.curve(axes[1, 1], data.lr, cells.loss.isel(cell=place), **look)
        axes[1, 1].set_title("other placements")
        for axis in (*axes[0], *axes[1, :2]):
            results.rate_axis(axis)
            axis.axhline(top, color="0.5", linewidth=0.7)
            axis.set_ylim(float(data.loss.min()) - 0.1, top + 0.6)
        for axis in (axes[0, 0], axes[1, 0]):
            axis.set_ylabel("held-out loss, nats")
        _against_depth(axes[1, 2], data, "largest_stable", depths)
        axes[1, 2].set(yscale="log", title="largest stable rate", ylabel="peak learning rate")
        _against_depth(axes[1, 3], data, "sensitivity", depths)
        axes[1, 3].set(title="sensitivity", ylabel="nats")
        styles = [
            plots.entry(f"ScaleInit({k:g})" if k else "no scaling", linestyle=s) for k, s in results.DASHES.items()
        ]
        styles += [plots.entry(f"{d} blocks", marker="o", markersize=3, alpha=_depth_shade(depths, d)) for d in depths]
        handles = plots.key(("PreNorm", "PostNorm", "SpanNorm"), scalings=False, band=False) + styles
        handles += [plots.entry(results.NAMES[name], color=_shade(name), linewidth=2.5) for name in CONTROLS]
        handles += [plots.entry("no warm-up", marker="o", markersize=3, markerfacecolor="white", linestyle=":")]
        plots.legend(figure, handles)
    return figure


def _depth_shade(depths: list[int], depth: int) -> float:
    return 1.0 - 0.75 * (len(depths) - 1 - depths.index(depth)) / max(1, len(depths) - 1)


def _shade(name: str) -> str:
    return CONTROL_COLOURS.get(name, plots.colour(name))


def _against_depth(axis: Any, data: xr.Dataset, name: str, depths: list[int]) -> None:
    for kind in CORE:
        look = {"color": plots.colour(kind[0]), "linestyle": results.DASHES[kind[1]], "marker": "o", "markersize": 3.0}
        risen = _of(data, *kind, warmup=0.1).sortby("depth")
        axis.plot(risen.depth, risen[name], **look)
        sudden = _of(data, *kind, warmup=0.0)
        axis.plot(
            sudden.depth, sudden[name], **(look | {"markerfacecolor": "white", "linestyle": "none", "markersize": 5})
        )
    axis.set(xscale="log", xlabel="depth, blocks")
    axis.set_xticks(depths, map(str, depths))
    axis.minorticks_off()
