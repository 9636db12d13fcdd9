"""Similarity between layers before and after training, and what each block is worth to the trained network."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from figures import training_results as results
from propagate import plots

SHOWN = (("prenorm", 0.0), ("prenorm", 0.5), ("postnorm", 0.5), ("spannorm", 0.5))

CAPTION = """\
**Layers before and after training.** Cosine between a token in the stream that leaves one block and the same token in
the stream that leaves another (0: the embedding), mean over tokens and {draws} seeds: at initialisation, above, and in
the end, middle. Below: by how much the held-out loss of the trained network rises if one block is left out, its input
going on as it is; thin lines are seeds. Networks of {depth} blocks, each at its own best rate; numbers behind the
placement are exponents of ScaleInit.

Bears on claim C4 (SpanNorm alleviates PreNorm's representation collapse). Of cosines it holds: trained SpanNorm's
layers are less alike than PreNorm's, though PostNorm's are less alike still. Of use it does not: as many blocks can be
left out unnoticed. Mean cosine between different blocks, at initialisation and in the end, ± standard error over
seeds: {similar}. Median over blocks of the rise of the loss without one, and the share of blocks without which it
rises by less than 0.01 nats: {worth}. The SpanNorm paper's Fig. 6 is said to show such heat maps of trained models; we
have not seen it, and a reviewer found the difference marginal.

Traced runs: {runs}. Cosines are over 8, losses over 32 held-out sequences. Width {width}, {tokens} tokens, {steps}
steps of {batch} sequences. Text: {corpus}, {vocabulary} tokens. {device}, {precision}. {limits}
"""


def data(**_: Any) -> xr.Dataset:
    """The stored profiles of four architectures. They were measured once: arguments change nothing."""
    profiles = results.stored("profiles")
    order = [n for p, k in SHOWN for n in results.chosen(profiles, placement=p, exponent=k).cell.values.tolist()]
    table = profiles.sel(cell=order)
    found = table[["layer_similarity", "loss_without"]].mean("seed", keep_attrs=True)
    rise = table.loss_without - table.loss_without.isel(block=0)
    found = found.assign(rise=rise.isel(block=slice(1, None)).rename(block="removed"), lr=table.lr)
    size = table.sizes["block"]
    apart = table.layer_similarity.where(~np.eye(size, dtype=bool)).mean(("block", "other_block"))
    mean, error = apart.mean("seed"), apart.std("seed", ddof=1) / np.sqrt(table.sizes["seed"])
    names = [results.label(table.isel(cell=i)) for i in range(len(order))]
    similar = [
        f"{name} {mean[i, 0]:.3f} ± {error[i, 0]:.3f} and {mean[i, 1]:.3f} ± {error[i, 1]:.3f}"
        for i, name in enumerate(names)
    ]
    middle = found.rise.median(("removed", "seed")).values
    idle = (found.rise.mean("seed") < 0.01).mean("removed").values
    worth = [f"{name} {m:.3f} and {100 * s:.0f} %" for name, m, s in zip(names, middle, idle, strict=True)]
    said = {"similar": ", ".join(similar), "worth": ", ".join(worth), "depth": size - 1}
    return found.assign_attrs(results.words(table) | said | {"runs": int(table.sizes["cell"] * table.sizes["seed"])})


def draw(data: xr.Dataset) -> Any:
    """A column for each architecture."""
    columns = data.sizes["cell"]
    with plots.style():
        figure, axes = plots.panels(3, columns, height=5.4, sharey="row")
        for place, column in enumerate(axes.T):
            one = data.isel(cell=place)
            for axis, end in zip(column[:2], (0, 1), strict=True):
                picture = axis.imshow(
                    one.layer_similarity.isel(end=end),
                    vmin=0.0,
                    vmax=1.0,
                    origin="lower",
                    aspect="equal",
                )
                axis.grid(visible=False)
                axis.set_xlabel("block")
            column[0].set_title(results.label(one))
            colour = plots.colour(str(one.placement.item()))
            column[2].plot(one.removed, one.rise.transpose("removed", "seed"), color=colour, linewidth=0.5, alpha=0.6)
            column[2].plot(one.removed, one.rise.mean("seed"), color=colour, marker="o", markersize=2.4)
            column[2].set_yscale("symlog", linthresh=0.01)
            column[2].axhline(0.0, color="0.6", linewidth=0.6)
            column[2].set_xlabel("block left out")
        for axis, label in zip(
            axes[:, 0], ("block, at initialisation", "block, after training", "rise of the loss, nats"), strict=True
        ):
            axis.set_ylabel(label)
        figure.colorbar(picture, ax=axes[:2], label="cosine", shrink=0.6)
    return figure
