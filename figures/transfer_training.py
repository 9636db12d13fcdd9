"""Hyperparameter transfer in training: loss against rate at several widths, under three rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from figures import training_results as results
from figures.training_rule import MARGIN
from propagate import plots
from propagate.claims.runs import optimum

KINDS = (("prenorm", 0), ("spannorm", 0), ("prenorm", 1), ("spannorm", 1))
RULES = ("standard", "mup", "longcat")
MARKS = {"standard": "o", "mup": "s", "longcat": "^"}

CAPTION = """\
**Hyperparameter transfer.** Held-out loss against the peak learning rate at widths {widths}, under three rules of
transfer whose base is the smallest width (there they are one), for PreNorm and SpanNorm with ScaleInit(0.5), dense and
with experts (4, of which 2 for a token). Dots: the optimum, where anything is learned, from a parabola through the
logarithms of the best rate and its neighbours. Last column: that optimum against the width; bars: 95 % interval of the
mean over {draws} seeds, each with a parabola of its own (Student, so wide). Mean over seeds; a run that diverged
counts at its first loss.

Bears on claim C7 (width scaling rules carry hyperparameters across sizes). They do, from width 128 to 1024, in
SpanNorm as in PreNorm: under muP and LongCat's rule the base's best rate is the best, or as good, at every width, and
wider networks end lower; under the standard rule, which keeps the entries' size and the rate, the optimum falls, and
from 512 on wider networks learn less. Slope of the optimal rate with the width, as a power, ± half a 95 % interval
over seeds; 0 is transfer: {slopes}. Loss at the largest width at the base's best rate, less the best there: {regret}.

Runs: {runs}, of which {diverged} diverged. {depth} blocks, head size {head}, {tokens} tokens, {batch} sequences a
step, {steps} steps of AdamW (0.9, 0.95, decay 0.1), warm-up 10 %, cosine. Text: {corpus}, {vocabulary} tokens.
{device}, {precision}. An optimum at the first or last rate is only known to lie there or beyond. {limits}
"""


def data(**_: Any) -> xr.Dataset:
    """The stored sweeps over widths. They were measured once: arguments change nothing."""
    table = results.stored("transfer")
    loss = results.losses(table)
    of_seeds = xr.apply_ufunc(optimum, loss, np.log2(table.lr), input_core_dims=[["lr"], ["lr"]], vectorize=True)
    of_mean = xr.apply_ufunc(
        optimum, loss.mean("seed"), np.log2(table.lr), input_core_dims=[["lr"], ["lr"]], vectorize=True
    )
    learned = loss.mean("seed").min("lr") < table.unigram_loss - MARGIN
    of_seeds, of_mean = of_seeds.where(learned), of_mean.where(learned)
    found = xr.Dataset(
        {"loss": loss, "optimum": of_mean, "optimum_of_seed": of_seeds, "unigram_loss": table.unigram_loss}
    )
    widths = sorted({int(w) for w in table.width.values})
    slopes, regret = [], []
    for placement, sparse in KINDS:
        for rule in RULES:
            cells = _line(found, placement, sparse, rule)
            if cells.sizes["cell"] < 2:
                continue
            name = f"{results.NAMES[placement]}{' with experts' if sparse else ''}, {rule}"
            trained = cells.isel(cell=np.flatnonzero(np.isfinite(cells.optimum)))
            power = np.polyfit(np.log2(trained.width.values), trained.optimum_of_seed.values, 1)[0]
            half = results.STUDENT.get(len(power), np.nan) * power.std(ddof=1) / np.sqrt(len(power))
            lost = trained.sizes["cell"] < cells.sizes["cell"]
            slopes.append(f"{name} {power.mean():.2f} ± {half:.2f}{' (it trains at no rate at the largest)' * lost}")
            mean = cells.loss.mean("seed")
            price = mean[-1, int(mean[0].values.argmin())] - mean[-1].min()
            regret.append(f"{name} {float(price):.3f}")
    said = {"widths": ", ".join(map(str, widths)), "slopes": "; ".join(slopes), "regret": "; ".join(regret)}
    more = {"depth": int(table.depth[0]), "head": "32" if widths[0] == 128 else "unknown"}
    return found.assign_attrs(results.words(table.assign(diverged_at=table.diverged_at)) | said | more)


def _line(data: xr.Dataset, placement: str, sparse: int, rule: str) -> xr.Dataset:
    """Its widths in order; the smallest, where rules are one, is every rule's."""
    cells = results.chosen(data, placement=placement, experts=sparse)
    least = int(data.width.min())
    if rule not in cells.rule.values:
        return cells.isel(cell=[])
    return cells.isel(cell=np.flatnonzero((cells.rule == rule) | (cells.width == least))).sortby("width")


def draw(data: xr.Dataset) -> Any:
    """A row for each placement and kind, a column for each rule, and the optima."""
    rows = [kind for kind in KINDS if results.chosen(data, placement=kind[0], experts=kind[1]).sizes["cell"]]
    widths = sorted({int(w) for w in data.width.values})
    with plots.style():
        figure, axes = plots.panels(len(rows), 4, height=1.75 * len(rows) + 0.3, sharex="col")
        low, high = float(data.loss.min()) - 0.05, float(data.unigram_loss.max()) + 0.05
        for row, (placement, sparse) in zip(axes, rows, strict=True):
            colour = plots.colour(placement)
            for axis, rule in zip(row[:3], RULES, strict=True):
                cells = _line(data, placement, sparse, rule)
                axis.set_visible(bool(cells.sizes["cell"]))
                for place in range(cells.sizes["cell"]):
                    cell = cells.isel(cell=place)
                    look = {
                        "color": colour,
                        "alpha": 0.3 + 0.7 * widths.index(int(cell.width)) / max(1, len(widths) - 1),
                    }
                    mean = cell.loss.mean("seed")
                    results.curve(axis, data.lr, cell.loss, marker="none", **look)
                    axis.plot(2 ** float(cell.optimum), float(mean.min()), "o", markersize=3.5, **look)
                axis.set(xscale="log", ylim=(low, high))
                if (placement, sparse) == rows[0]:
                    axis.set_title(rule)
            for rule in RULES:
                cells = _line(data, placement, sparse, rule)
                if not cells.sizes["cell"]:
                    continue
                each = cells.optimum_of_seed.transpose("cell", "seed").values
                half = results.STUDENT.get(each.shape[1], np.nan) * each.std(1, ddof=1) / np.sqrt(each.shape[1])
                mean = 2 ** each.mean(1)
                bars = [mean * (1 - 2**-half), mean * (2**half - 1)]
                shift = 1 + 0.05 * (RULES.index(rule) - 1)
                shade = {"standard": "0.55", "mup": colour, "longcat": "#000000"}[rule]
                row[3].errorbar(
                    cells.width * shift, mean, bars, color=shade, marker=MARKS[rule], markersize=3.2, linewidth=0.9
                )
            row[3].set(
                xscale="log", yscale="log", title="optimum", ylim=(float(data.lr.min()) / 2, float(data.lr.max()) * 2)
            )
            row[3].set_ylabel("best rate")
            row[3].set_xticks(widths, map(str, widths))
            row[3].minorticks_off()
            shown = next(axis for axis in row if axis.get_visible())
            shown.set_ylabel(f"{results.NAMES[placement]}{', experts' if sparse else ''}\nheld-out loss")
        for column in axes.T[:3]:
            lowest = [axis for axis in column if axis.get_visible()][-1]
            lowest.set_xlabel("peak learning rate")
            lowest.tick_params(labelbottom=True)
        axes[-1][3].set_xlabel("width")
        handles = [
            plots.entry(f"width {w}", linewidth=2, alpha=0.3 + 0.7 * i / max(1, len(widths) - 1))
            for i, w in enumerate(widths)
        ]
        handles += [
            plots.entry(f"optimum, {rule}", marker=mark, linestyle="none", markersize=3.2)
            for rule, mark in MARKS.items()
        ]
        plots.legend(figure, handles)
    return figure
