"""Time and memory of a training step of each placement, beside PreNorm's."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from figures import training_results as results
from propagate import plots

CAPTION = """\
**What placements cost.** Time of a training step and most memory held by tensors, over PreNorm's; forward, backward
and AdamW of a language model of {depth} blocks and width {width}, {heads} heads, {batch} sequences of {tokens} tokens,
in bfloat16 by autocast, by a plain PyTorch loop. Bars: 1.96 standard errors over {repeats} repeats of {steps} steps.
PreNorm itself: {milliseconds:.1f} ms and {memory:.1f} GiB.

What it shows: norms on the branches take memory, for what they keep for the way back; SpanNorm takes as much as
PreNorm and PostNorm, to 1 %. Memory over PreNorm's: {memories}. Times are told apart only roughly. SpanNorm with and
without ScaleInit, and PreNorm likewise, are the same work and differ by {chance:.0f} %: so much comes of the host,
from one network to the next, and bars within a network do not show it. Only Peri-LN and OLMo2, whose branches end in
norms, lie beyond. Time over PreNorm's: {times}.

Runs: {runs}. {device}, torch {torch}. The paper's own statement on cost, if it makes one, is not known to us.
"""


def data(**_: Any) -> xr.Dataset:
    """The stored times, over (cell, repeat). They were measured once: arguments change nothing."""
    table = results.stored("cost")
    names = [results.label(table.isel(cell=i)) for i in range(table.sizes["cell"])]
    reference = table.isel(cell=names.index("PreNorm"))
    mean = table.milliseconds.mean("repeat")
    error = table.milliseconds.std("repeat", ddof=1) / np.sqrt(table.sizes["repeat"])
    base = float(reference.milliseconds.mean())
    found = xr.Dataset(
        {"time": mean / base, "time_se": error / base, "memory": table.memory / float(reference.memory)},
        {"label": ("cell", names)},
    )
    found = found.sortby("time")
    times = [f"{n} {t:.3f}" for n, t in zip(found.label.values, found.time.values, strict=True)]
    memories = [f"{n} {m:.2f}" for n, m in zip(found.label.values, found.memory.values, strict=True)]
    alike = [("PreNorm", "PreNorm + 1/2"), ("SpanNorm", "SpanNorm + 1/2")]
    at = dict(zip(found.label.values.tolist(), found.time.values.tolist(), strict=True))
    chance = max(abs(at[one] / at[other] - 1) for one, other in alike)
    kept = ("depth", "width", "heads", "batch", "tokens", "steps", "device", "torch")
    said = {name: table.attrs[name] for name in kept}
    said |= {"milliseconds": base, "memory": float(reference.memory) / 1024, "times": ", ".join(times)}
    said |= {"memories": ", ".join(memories), "chance": 100 * chance}
    sizes = {"runs": table.sizes["cell"], "repeats": table.sizes["repeat"], "draws": table.sizes["repeat"]}
    return found.assign_attrs(said | sizes)


def draw(data: xr.Dataset) -> Any:
    """Bars from 1."""
    places = np.arange(data.sizes["cell"])
    colours = [plots.colour(str(name)) for name in data.placement.values]
    with plots.style():
        figure, axes = plots.panels(1, 2, height=2.9, sharey=True)
        bars = plots.CONFIDENCE * data.time_se
        axes[0, 0].barh(places, data.time, xerr=bars, color=colours, alpha=0.8, error_kw={"elinewidth": 0.8})
        axes[0, 1].barh(places, data.memory, color=colours, alpha=0.8)
        axes[0, 0].set_yticks(places, data.label.values)
        for axis, label in zip(axes[0], ("time of a step / PreNorm's", "memory / PreNorm's"), strict=True):
            axis.axvline(1.0, color="0.4", linewidth=0.7)
            axis.set_xlabel(label)
    return figure
