"""Loss, and 1 - correlation of tokens at three blocks, over the steps of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from figures import training_results as results
from propagate import plots

PLACEMENTS, EXPONENTS = ("prenorm", "postnorm", "spannorm"), (0.0, 0.25, 0.5, 1.0)

CAPTION = """\
**Collapse during training.** Loss, and 1 - correlation of two tokens in the streams that leave three blocks, over the
steps of training of language models with {depth} blocks. Columns: placements; line styles: exponent of ScaleInit. Each
at its own best rate of 9 by factors of 2 (best: lowest mean loss; {rates}). Thin lines: the {draws} seeds; thick ones
their mean, of 1 - correlation the geometric one. Grey: the unigram plateau, {unigram:.3f} nats, which a network
reaches that knows how frequent tokens are and no more. Triangles: the best mean held-out loss on *shuffled* tokens of
the same frequencies, over the plateau of the very tokens that are held out there ({shuffled_plateau:.3f}), below which
it must not lie: {shuffled}.

Bears on claim C8 (training collapses without the scaling, layers 1, 12, 24 traced). It does, here: without it PostNorm
and SpanNorm end on the plateau at every rate, and tokens become one vector at the last block, while nothing of it is
seen at block 1. From exponent 1/2 on both train; PreNorm needs no scaling. Mean held-out loss in the end, ± standard
error: {final}. Geometric mean of 1 - correlation at the last block, at initialisation and in the end: {collapse}. The
SpanNorm paper's Fig. 3 is said to show this; we have not seen it.

Bears on claim C2 (SpanNorm with scaling prevents PostNorm's vanishing gradient). Here it explodes at initialisation,
with SwiGLU, and vanishes once tokens have collapsed; with the scaling neither happens, in PostNorm as in SpanNorm.
Root of the gradient variance at the embedding over that at the last block, at initialisation and in the end, geometric
mean over seeds: {gradient}.

Runs: {swept} to find the rates, of which {diverged} diverged (counted at their first loss), and {runs} traced ones.
Width {width}, {tokens} tokens, {batch} sequences a step, {steps} steps of AdamW (0.9, 0.95, decay 0.1), clipped at
norm 1, warm-up 10 %, then cosine; causal, rotary positions, SwiGLU, RMSNorm. Text: {corpus}, {vocabulary} tokens.
{device}, {precision}; traces in float32, over 8 held-out sequences. {limits}
"""


def data(**_: Any) -> xr.Dataset:
    """The stored profiles of three placements and four exponents. They were measured once: arguments change nothing."""
    profiles, sweeps = results.stored("profiles"), results.stored("sweeps")
    order = [
        cell
        for placement in PLACEMENTS
        for k in EXPONENTS
        for cell in results.chosen(profiles, placement=placement, exponent=k).cell.values.tolist()
    ]
    table = profiles.sel(cell=order)
    depth = table.sizes["block"] - 1
    names = ("decorrelation", "grad_variance", "loss", "held_out_loss", "lr", "unigram_loss")
    shown = sorted({1, (depth + 1) // 2, depth})
    found = table[list(names)].sel(block=[0, *shown])
    said = [results.label(found.isel(cell=i)) for i in range(found.sizes["cell"])]
    swept = results.chosen(sweeps, depth=depth, warmup=0.1, text="text", experts=0)
    shuffled = results.chosen(sweeps, text="shuffled")
    lowest = (results.losses(shuffled).mean("seed") - shuffled.unigram_loss).min("lr")
    control = [f"{results.label(shuffled.isel(cell=i))} {float(lowest[i]):+.3f}" for i in range(shuffled.sizes["cell"])]
    final = found.held_out_loss.sel(share=1.0)
    ends = np.exp(np.log(found.decorrelation.sel(block=depth, share=[0.0, 1.0])).mean("seed")).transpose(
        "cell", "share"
    )
    gain = np.sqrt(found.grad_variance.sel(block=0) / found.grad_variance.sel(block=depth)).sel(share=[0.0, 1.0])
    gains = np.exp(np.log(gain).mean("seed")).transpose("cell", "share")
    return found.assign_attrs(
        results.words(table.assign(held_out_loss=table.held_out_loss))
        | {
            "runs": int(table.sizes["cell"] * table.sizes["seed"]),
            "swept": results.words(swept)["runs"],
            "diverged": results.words(swept)["diverged"],
            "depth": depth,
            "shuffled": ", ".join(control),
            "shuffled_plateau": float(shuffled.unigram_loss.max()),
            "lowest_shuffled": float(lowest.min()) if control else np.nan,
            "rates": ", ".join(f"{name} {rate:.3g}" for name, rate in zip(said, found.lr.values, strict=True)),
            "final": _listed(
                said, [f"{m:.3f} ± {s:.3f}" for m, s in zip(final.mean("seed").values, _error(final), strict=True)]
            ),
            "collapse": _listed(said, [f"{a:.2g} to {b:.2g}" for a, b in ends.values]),
            "gradient": _listed(said, [f"{a:.2g} to {b:.2g}" for a, b in gains.values]),
        }
    )


def _error(values: xr.DataArray) -> Any:
    return (values.std("seed", ddof=1) / np.sqrt(values.sizes["seed"])).values


def _listed(names: list[str], values: list[str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))


def draw(data: xr.Dataset) -> Any:
    """A column for each placement; loss above, three blocks below."""
    blocks = data.block.values.tolist()[1:]
    steps = data.share * float(data.attrs["steps"])
    with plots.style():
        figure, axes = plots.panels(1 + len(blocks), 3, height=1.5 * (1 + len(blocks)), sharex=True, sharey="row")
        for column, placement in zip(axes.T, PLACEMENTS, strict=True):
            one = data.isel(cell=np.flatnonzero(data.placement == placement))
            colour = plots.colour(placement)
            for place in range(one.sizes["cell"]):
                cell = one.isel(cell=place)
                look = {"color": colour, "linestyle": results.DASHES[round(float(cell.exponent), 4)]}
                column[0].plot(data.step, cell.loss.mean("seed"), **look)
                for axis, block in zip(column[1:], blocks, strict=True):
                    held = cell.decorrelation.sel(block=block)
                    axis.plot(steps, held.transpose("share", "seed"), linewidth=0.4, alpha=0.5, **look)
                    axis.plot(steps, np.exp(np.log(held).mean("seed")), **look)
            column[0].axhline(float(data.unigram_loss.max()), color="0.5", linewidth=0.7)
            if np.isfinite(data.attrs["lowest_shuffled"]):
                height = float(data.unigram_loss.max()) + data.attrs["lowest_shuffled"]
                column[0].plot([float(data.attrs["steps"])], [height], "<", color="0.3", markersize=4)
            column[0].set_title(results.NAMES[placement])
            column[-1].set_xlabel("step")
        axes[0, 0].set_ylabel("training loss, nats")
        for row, axis, block in zip(axes[1:], axes[1:, 0], blocks, strict=True):
            if float(data.decorrelation.sel(block=block).min()) < 0.3:
                for one in row:
                    one.set_yscale("log")
                    one.minorticks_off()
            axis.set_ylabel(f"1 - correlation\nblock {block}")
        handles = [
            plots.entry("no scaling" if not k else f"ScaleInit({k:g})", linestyle=style, linewidth=1.4)
            for k, style in results.DASHES.items()
        ]
        handles += [plots.entry("unigram plateau", color="0.5", linewidth=0.7)]
        handles += [plots.entry("shuffled text", marker="<", markersize=4, linestyle="none")]
        plots.legend(figure, handles)
    return figure
