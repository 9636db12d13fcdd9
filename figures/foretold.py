"""What initialisation foretells of training: a rule that was written down first, its hits and misses."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import xarray as xr

from figures import training_results as results
from figures.training_cells import FULL, Cell
from figures.training_rule import FROM, GAIN, MARGIN, judged
from propagate import plots

MOST = 1e6  # larger gains are drawn there

CAPTION = """\
**What initialisation foretells.** Left: held-out loss in the end, less the unigram plateau, of every architecture,
depth and learning rate (mean over {draws} seeds; diverged runs at their first loss), against the relative gradient gain
that `predict` gives for the *moved* network: the initial one, with ten steps of Adam at that rate added in quadrature
to the output matrices' entries (those above a million are drawn there). Open: without warm-up. The rule says that what
lies left of the line trains (and keeps its tokens apart), and that what lies right of it does not; below the horizontal
line a network is said to train. Middle: the largest stable rate that the rule foretells against the one found; at the
edges none or all of the rates; of networks that were trained at all 9; points are moved apart a little. Right: the
first block whose stream leaves the theory of the initialisation, taken from that moment's own start, by more than half
a natural logarithm (at the top: none does), over the steps; mean streams of {traced} seeds. In the end: {left}.

The rule and its two numbers, a gain of {gain:g} and ten steps, were chosen on earlier pilots and committed, in
`figures/training_rule.py`, before any of these runs was made; that rates below {least:g} (faint) are not judged was
added while the first were being made: it is no part of what was committed beforehand, by which the rule is right on
{all_hits} of {all_count} arms ({all_share:.0f} %).

What it shows: theory of the initialisation, with one assumption on what Adam does to it, tells which networks train
and up to which rates. What it does not foresee is collapse that comes with training itself: PostNorm + 1/4, and
DeepNorm at large rates. Of rates from {least:g} on, the rule is right on {hits} of {count} arms, {share:.0f} % (95 %
interval {low:.0f} to {high:.0f}, as if arms were independent, which neighbouring rates are not). Foretold to train and
did: {both}; foretold and did not: {wrong_yes}; foretold not to and did: {wrong_no}; neither: {neither}. One threshold
on the rate for all architectures, chosen with hindsight, is right on {threshold:.0f} %; "all train" on {always:.0f} %.
By group: {groups}. At rest (rate 0), whether an architecture trains at any rate: right on {rest_hits} of {rest_count}
(interval {rest_low:.0f} to {rest_high:.0f} %). Misses: {misses}.

Bears on claim C5 (SpanNorm trains at depths and learning rates where PostNorm does not). Largest stable rate foretold
and found at {main} blocks with warm-up: {rates}.

Runs: {runs}, of which {diverged} diverged. Width {width}, {tokens} tokens, {steps} steps of {batch} sequences. Text:
{corpus}, {vocabulary} tokens. {device}, {precision}. {limits}
"""


@cache
def said(placement: str, exponent: float, depth: int, width: int, tokens: int, lr: float) -> dict[str, Any]:
    """The rule's word on an arm."""
    size = replace(FULL, width=width, heads=max(1, FULL.heads * width // FULL.width), tokens=tokens)
    return judged(Cell(placement, exponent, depth, 0.0, width, (), ()).model(size), lr)


def data(**_: Any) -> xr.Dataset:
    """The rule of today beside the stored sweeps of dense networks on text, over (cell, lr)."""
    table = results.chosen(results.stored("sweeps"), text="text", experts=0).sortby(["depth", "warmup"])
    rates = table.lr.values
    ran = np.isfinite(results.losses(table).mean("seed"))
    words = [
        [said(*_cell(table, i), float(lr)) if bool(ran[i, j]) else None for j, lr in enumerate(rates)]
        for i in range(table.sizes["cell"])
    ]

    def column(name: str) -> Any:
        return np.array([[np.nan if one is None else float(one[name]) for one in row] for row in words])

    rest = [said(*_cell(table, i), 0.0)["trains"] for i in range(table.sizes["cell"])]
    found = xr.Dataset(
        {
            "gain": (("cell", "lr"), column("gain")),
            "distinct": (("cell", "lr"), column("distinct")),
            "foretold": (("cell", "lr"), column("trains")),
            "trains": results.trains(table),
            "above_plateau": results.losses(table).mean("seed") - table.unigram_loss,
            "rest": ("cell", np.array(rest, float)),
            "ever": results.trains(table).max("lr"),
            "stable": results.largest_stable(table),
        },
        {"lr": rates},
    )
    found["stable_foretold"] = found.lr.where(found.foretold > 0).max("lr")
    theory = results.stored("theory")
    found = found.merge(
        xr.Dataset(
            {
                "left": (("traced", "moment"), theory.first_forward.values),
                "left_placement": ("traced", theory.placement.values),
                "left_exponent": ("traced", theory.exponent.values),
            },
            {"moment": theory.share.values},
        )
    )
    return found.assign_attrs(results.words(table) | _told(found) | {"traced": 3, "gain": GAIN, "left": _left(theory)})


def _left(theory: xr.Dataset) -> str:
    ends = [theory.isel(cell=place) for place in range(theory.sizes["cell"])]
    blocks = [float(one.first_forward.sel(share=1.0)) for one in ends]
    return ", ".join(
        f"{results.label(one)} {'nowhere' if np.isnan(block) else f'block {block:.0f}'}"
        for one, block in zip(ends, blocks, strict=True)
    )


def _cell(table: xr.Dataset, place: int) -> tuple[str, float, int, int, int]:
    one = table.isel(cell=place)
    size = int(one.depth), int(one.width), int(table.attrs["tokens"])
    return str(one.placement.item()), round(float(one.exponent), 4), *size


def _told(found: xr.Dataset) -> dict[str, Any]:
    ran = np.isfinite(found.trains.values) & (found.lr.values >= FROM)
    yes, did = found.foretold.values[ran] > 0, found.trains.values[ran] > 0
    hits, count = int((yes == did).sum()), int(ran.sum())
    low, high = results.wilson(hits, count)
    rates = np.broadcast_to(found.lr.values, ran.shape)[ran]
    single = max(float(((rates < edge) == did).mean()) for edge in (*found.lr.values[found.lr.values >= FROM], np.inf))
    rest = found.rest.values == found.ever.values
    rest_low, rest_high = results.wilson(int(rest.sum()), len(rest))
    main = results.main_depth(found)
    known = np.isin(found.placement.values, ("prenorm", "postnorm", "spannorm"))
    risen = found.warmup.values > 0
    kinds = {
        f"{main} blocks, warm-up": known & risen & (found.depth.values == main),
        "other depths": known & (found.depth.values != main),
        "no warm-up": ~risen,
        "other placements": ~known,
    }
    groups = []
    for name, keep in kinds.items():
        here = ran[keep]
        right = (found.foretold.values == found.trains.values)[keep][here]
        groups.append(f"{name} {int(right.sum())} of {right.size}")
    misses = []
    for place in range(found.sizes["cell"]):
        one = found.isel(cell=place)
        wrong = [
            f"{lr:.3g}"
            for lr, a, b in zip(found.lr.values, one.foretold.values, one.trains.values, strict=True)
            if a != b and np.isfinite(b) and lr >= FROM
        ]
        if wrong:
            start = "" if float(one.warmup) else ", no warm-up"
            misses.append(f"{results.label(one)}, {int(one.depth)} blocks{start}, at {', '.join(wrong)}")
    at_main = results.chosen(results.chosen(found, depth=main), warmup=0.1)
    stable = [
        f"{results.label(one)} {_rate(one.stable_foretold)} and {_rate(one.stable)}"
        for one in (at_main.isel(cell=i) for i in range(at_main.sizes["cell"]))
    ]
    return {
        "hits": hits,
        "all_hits": int((found.foretold == found.trains).sum()),
        "all_count": int(np.isfinite(found.trains).sum()),
        "all_share": 100 * float((found.foretold == found.trains).sum()) / int(np.isfinite(found.trains).sum()),
        "least": FROM,
        "count": count,
        "share": 100 * hits / count,
        "low": 100 * low,
        "high": 100 * high,
        "both": int((yes & did).sum()),
        "wrong_yes": int((yes & ~did).sum()),
        "wrong_no": int((~yes & did).sum()),
        "neither": int((~yes & ~did).sum()),
        "threshold": 100 * single,
        "always": 100 * float(did.mean()),
        "groups": "; ".join(groups),
        "rest_hits": int(rest.sum()),
        "rest_count": len(rest),
        "rest_low": 100 * rest_low,
        "rest_high": 100 * rest_high,
        "misses": "; ".join(misses) or "none",
        "rates": ", ".join(stable),
        "main": main,
    }


def _rate(value: xr.DataArray) -> str:
    return "none" if np.isnan(float(value)) else f"{float(value):.3g}"


def draw(data: xr.Dataset) -> Any:
    """All arms; the largest stable rates; where trained networks leave theory."""
    with plots.style():
        figure, axes = plots.panels(1, 3, height=3.2, gridspec_kw={"width_ratios": [1.5, 1.0, 1.0]})
        everything, rates, blocks = axes[0]
        for place in range(data.sizes["cell"]):
            one = data.isel(cell=place)
            colour = plots.colour(str(one.placement.item()))
            face = colour if float(one.warmup) else "white"
            look = {"markersize": 3.0, "markerfacecolor": face, "markeredgewidth": 0.6, "linestyle": "none"}
            for judged, shade in ((one.lr >= FROM, 1.0), (one.lr < FROM, 0.25)):
                spots = np.minimum(one.gain, MOST).where(judged), one.above_plateau.where(judged)
                everything.plot(*spots, "o", color=colour, alpha=shade, **look)
        everything.axvline(GAIN, color="0.4", linewidth=0.8)
        everything.axhline(-MARGIN, color="0.4", linewidth=0.8)
        everything.set(xscale="log", xlabel="relative gradient gain of the moved network")
        everything.set_ylabel("held-out loss - plateau, nats")
        everything.set_ylim(top=1.0)
        low = float(data.lr.min()) / 2
        jitter = np.random.default_rng(0).uniform(0.85, 1.18, (2, data.sizes["cell"]))
        for place in range(data.sizes["cell"]):
            one = data.isel(cell=place)
            if not np.isfinite(one.trains).all():
                continue
            colour = plots.colour(str(one.placement.item()))
            spot = [low if np.isnan(float(v)) else float(v) for v in (one.stable_foretold, one.stable)]
            face = colour if float(one.warmup) else "white"
            rates.plot(*(jitter[:, place] * spot)[:, None], "o", color=colour, markersize=3.5, markerfacecolor=face)
        ends = [low, float(data.lr.max())]
        rates.plot(ends, ends, color="0.5", linewidth=0.7)
        rates.set(xscale="log", yscale="log", xlabel="foretold", ylabel="found", title="largest stable rate")
        depth = int(data.attrs["main"])
        for place in range(data.sizes["traced"]):
            one = data.isel(traced=place)
            look = {"color": plots.colour(str(one.left_placement.item()))}
            look |= {"linestyle": results.DASHES[round(float(one.left_exponent), 4)]}
            steps = data.moment * float(data.attrs["steps"].split(", ")[-1])
            blocks.plot(steps, one.left.fillna(depth + 1), marker="o", markersize=2.6, **look)
        blocks.set(xlabel="step", ylabel="first block that leaves theory", ylim=(-0.5, depth + 2))
        handles = plots.key(("PreNorm", "PostNorm", "SpanNorm", "Peri-LN", "DeepNorm"), scalings=False, band=False)
        handles += [plots.entry("LN-Scaling", color=plots.colour("layernormscaling"), linewidth=2.5)]
        handles += [plots.entry("KEEL", color=plots.OTHER, linewidth=2.5)]
        dots = {"marker": "o", "linestyle": "none", "markersize": 3.5}
        handles += [plots.entry("warm-up 10 %", **dots), plots.entry("no warm-up", markerfacecolor="white", **dots)]
        handles += [plots.entry("no scaling"), plots.entry("ScaleInit(0.5)", linestyle=results.DASHES[0.5])]
        plots.legend(figure, handles)
    return figure
