"""Dense networks and mixtures of experts with as many active weights: loss against rate, and over the steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from figures import training_results as results
from propagate import plots

PLACEMENTS = ("prenorm", "postnorm", "spannorm")

CAPTION = """\
**Dense networks and experts.** Above: held-out loss in the end against the peak learning rate. Below: held-out loss
over the steps, at each one's own best rate. Solid: dense FFNs. Dashed: mixtures of 4 experts, 2 for a token, each of
half the hidden width, so that as many weights are active. Mean over {draws} seeds, bars 1.96 standard errors; a run
that diverged counts at its first loss. Grey: the unigram plateau. {depth} blocks, all with ScaleInit(0.5).

Bears on claim C6 (SpanNorm beats other placements, dense and with experts). With experts as without, SpanNorm lies
between PostNorm and PreNorm, and stands rates twice as large as PostNorm; experts change neither loss nor stability by
more than chance at this size. Lowest mean loss over rates ± standard error, and the best rate: {lowest}. By how much
experts lie below dense networks of the same placement, seed by seed, with a 95 % interval from Student's distribution:
{gained}.

Runs: {runs}, of which {diverged} diverged. No loss balances the experts' load. Width {width}, {tokens} tokens, {batch}
sequences a step, {steps} steps of AdamW (0.9, 0.95, decay 0.1), warm-up 10 %, cosine. Text: {corpus}, {vocabulary}
tokens. {device}, {precision}. {limits}
"""


def data(**_: Any) -> xr.Dataset:
    """The stored sweeps of both kinds at the depth at which there are experts."""
    sweeps = results.chosen(results.stored("sweeps"), text="text", exponent=0.5, warmup=0.1)
    depth = int(results.chosen(sweeps, experts=1).depth[0])
    sweeps = results.chosen(sweeps, depth=depth)
    order = [
        name
        for placement in PLACEMENTS
        for kind in (0, 1)
        for name in results.chosen(sweeps, placement=placement, experts=kind).cell.values.tolist()
    ]
    table = sweeps.sel(cell=order)
    rates, lowest, error = results.best(table)
    names = [
        results.NAMES[str(table.placement.values[i])] + (" with experts" if table.experts.values[i] else "")
        for i in range(len(order))
    ]
    told = zip(names, lowest.values, error.values, rates.values, strict=True)
    found = xr.Dataset(
        {
            "loss": results.losses(table),
            "over_steps": table.held_out_loss.sel(lr=rates).drop_vars("lr"),
            "best_rate": rates.drop_vars("lr"),
            "unigram_loss": table.unigram_loss,
            "diverged_at": table.diverged_at,
        }
    )
    last = found.over_steps.sel(share=1.0)
    gained = []
    for place in range(0, len(order) - 1, 2):
        difference = (last[place] - last[place + 1]).values
        half = results.STUDENT.get(len(difference), np.nan) * difference.std(ddof=1) / np.sqrt(len(difference))
        gained.append(f"{names[place]} {difference.mean():.3f} ± {half:.3f}")
    said = {
        "lowest": ", ".join(f"{name} {mean:.3f} ± {e:.3f} at {rate:.3g}" for name, mean, e, rate in told),
        "gained": ", ".join(gained),
        "depth": depth,
    }
    return found.assign_attrs(results.words(table) | said)


def draw(data: xr.Dataset) -> Any:
    """A column for each placement."""
    top = float(data.unigram_loss.max())
    with plots.style():
        figure, axes = plots.panels(2, 3, height=4.2, sharey="row")
        for column, placement in zip(axes.T, PLACEMENTS, strict=True):
            cells = data.isel(cell=np.flatnonzero(data.placement == placement))
            for place in range(cells.sizes["cell"]):
                cell = cells.isel(cell=place)
                face = {"linestyle": (0, (4, 2)), "markerfacecolor": "white"} if int(cell.experts) else {}
                look = {"color": plots.colour(placement)} | face
                results.curve(column[0], data.lr, cell.loss, **look)
                results.curve(column[1], data.share * float(data.attrs["steps"]), cell.over_steps, **look)
            column[0].set(title=results.NAMES[placement], ylim=(float(data.loss.min()) - 0.1, top + 0.6))
            results.rate_axis(column[0])
            column[1].set_xlabel("step")
            for axis in column:
                axis.axhline(top, color="0.5", linewidth=0.7)
        for axis in axes[:, 0]:
            axis.set_ylabel("held-out loss, nats")
        look = {"linestyle": (0, (4, 2)), "marker": "o", "markersize": 3, "markerfacecolor": "white"}
        plots.legend(
            figure,
            [
                plots.entry("dense", marker="o", markersize=3),
                plots.entry("experts, as many active weights", **look),
                plots.entry("unigram plateau", color="0.5", linewidth=0.7),
            ],
        )
    return figure
