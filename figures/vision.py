"""Vision Transformers on small digits: loss and errors against the learning rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from figures import training_results as results
from propagate import plots

CAPTION = """\
**Vision.** Held-out loss and share of held-out images told wrong, against the peak learning rate, of Vision
Transformers with {depth} blocks on the 1797 digits of 8 x 8 pixels that scikit-learn ships: 16 patches of 2 x 2 as
tokens, learned positions, the mean token to a linear head. Solid: without scaling; dashed: ScaleInit(0.5). Mean over
{draws} seeds, bars 1.96 standard errors; a run that diverged counts at its first loss and as all wrong but one in ten.
Grey: guessing.

What it shows: the paper's "future work", at a very small scale. Without scaling PostNorm and SpanNorm hardly learn at
all; with it SpanNorm stands rates a little larger than PostNorm does, and smaller ones than PreNorm; none is better at
its best rate by more than chance. Lowest mean loss over rates ± standard error, with the share told wrong there:
{lowest}. Largest rate of 9 at which more than half of the images are told right: {stable}.

Runs: {runs}, of which {diverged} diverged. {held_out} images are held out, the same for all. Width {width}, {heads}
heads, SwiGLU, RMSNorm, no mask; {steps} steps of {batch} images, AdamW (0.9, 0.95, decay 0.1), clipped at norm 1,
warm-up 10 %, cosine. {device}, float32. Digits are not photographs: nothing follows for large images.
"""


def data(**_: Any) -> xr.Dataset:
    """The stored arms, over (cell, lr, seed). They were measured once: arguments change nothing."""
    table = results.stored("vision")
    lost = ~np.isfinite(table.held_out_loss)
    found = xr.Dataset(
        {"loss": table.held_out_loss.where(~lost, table.first_loss), "wrong": 1 - table.accuracy.where(~lost, 0.1)}
    )
    mean = found.loss.mean("seed")
    error = found.loss.std("seed", ddof=1) / np.sqrt(found.sizes["seed"])
    names = [results.label(found.isel(cell=i)) for i in range(found.sizes["cell"])]
    lowest, stable = [], []
    for place, name in enumerate(names):
        best = int(mean[place].values.argmin())
        wrong = 100 * float(found.wrong[place, best].mean())
        lowest.append(f"{name} {float(mean[place, best]):.3f} ± {float(error[place, best]):.3f} ({wrong:.1f} %)")
        right = found.lr.values[(found.wrong[place].mean("seed") < 0.5).values]
        stable.append(f"{name} {right.max():.3g}" if len(right) else f"{name} none")
    said = {name: table.attrs[name] for name in ("depth", "width", "heads", "steps", "batch", "device", "held_out")}
    said |= {"lowest": ", ".join(lowest), "stable": ", ".join(stable), "diverged": int(lost.sum())}
    return found.assign_attrs(said | {"runs": int(lost.size), "draws": found.sizes["seed"]})


def draw(data: xr.Dataset) -> Any:
    """Loss and errors."""
    with plots.style():
        figure, axes = plots.panels(1, 2, height=2.9)
        for place in range(data.sizes["cell"]):
            one = data.isel(cell=place)
            scaled = float(one.exponent) > 0
            look = {
                "color": plots.colour(str(one.placement.item())),
                "linestyle": results.DASHES[0.5 if scaled else 0.0],
            }
            look |= {"markerfacecolor": "white"} if scaled else {}
            results.curve(axes[0, 0], data.lr, one.loss, **look)
            results.curve(axes[0, 1], data.lr, 100 * one.wrong, **look)
        for axis, label, chance in zip(
            axes[0], ("held-out loss, nats", "told wrong, %"), (np.log(10), 90.0), strict=True
        ):
            results.rate_axis(axis)
            axis.set(yscale="log", ylabel=label)
            axis.axhline(chance, color="0.5", linewidth=0.7)
        handles = plots.key(("PreNorm", "PostNorm", "SpanNorm"), scalings=False, band=False)
        for label, exponent, face in (("no scaling", 0.0, "0.3"), ("ScaleInit(0.5)", 0.5, "white")):
            dots = {"marker": "o", "markersize": 2.6, "markerfacecolor": face}
            handles.append(plots.entry(label, linestyle=results.DASHES[exponent], **dots))
        plots.legend(figure, [*handles, plots.entry("guessing", color="0.5", linewidth=0.7)])
    return figure
