"""C7, and LongCat-Flash's claim: rules over width carry the best rate from small networks to large ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from propagate.claims.claim import Claim, Evidence, of_runs
from propagate.claims.runs import best, cells, losses, optimum

if TYPE_CHECKING:
    import xarray as xr

MOST = 1.0
"""Octaves by which the best rate may move from the smallest width to the largest."""


def octaves(cell: xr.Dataset) -> float:
    """Of its best rate, as log2."""
    mean = losses(cell).mean("seed")
    return optimum(mean.values, np.log2(mean.lr.values))


@dataclass(frozen=True)
class Moved:
    """How far the best rate moves.

    Attributes:
        octaves, error: from the smallest width to the largest that trains at any rate; by the seeds left out in turn.
        small, large: these widths.
        widest: the largest that was tried.
        runs: that these are taken from.
    """

    octaves: float
    error: float
    small: int
    large: int
    widest: int
    runs: int

    def __str__(self) -> str:
        beyond = f" (at {self.widest} no rate trains)" if self.widest > self.large else ""
        moves = f"moves by {self.octaves:+.2f} +- {self.error:.2f} octaves"
        return f"from width {self.small} to {self.large} the best rate {moves}{beyond}"


def moved(table: xr.Dataset, rule: str, architecture: str, experts: bool = False) -> Moved:
    """Of an architecture by a rule; at the smallest width all rules are one."""
    same = {"architecture": architecture, "experts": int(experts)}
    base = cells(table, **same, width=int(table.width.min())).isel(cell=0)
    found = cells(table, **same, rule=rule)
    tried = {int(found.width[at]): found.isel(cell=at) for at in range(found.sizes["cell"])}
    trained = [width for width, cell in tried.items() if best(cell).stable > 0]
    large = max(trained, default=int(base.width))
    shift, error = _shift(base, tried.get(large, base))
    trained_at = [base, *(cell for cell in tried.values() if int(cell.width) > int(base.width))]
    runs = sum(int(np.isfinite(cell.held_out_loss.sel(share=0.0)).sum()) for cell in trained_at)
    return Moved(shift, error, int(base.width), large, max(tried), runs)


def _shift(base: xr.Dataset, wide: xr.Dataset) -> tuple[float, float]:
    """Of the optimum, and its standard error: the jackknife's over seeds."""
    seeds = np.arange(base.sizes["seed"])
    kept = [seeds, *(np.delete(seeds, out) for out in seeds)]
    whole, *without = (octaves(wide.isel(seed=some)) - octaves(base.isel(seed=some)) for some in kept)
    return whole, float(np.std(without) * np.sqrt(len(seeds) - 1))


@of_runs("transfer")
def rule_holds(runs: xr.Dataset, rule: str, architecture: str, experts: bool = False) -> Evidence:
    """Whether the best rate stays, by a rule, and the widest network trains."""
    found = moved(runs, rule, architecture, experts)
    kind = " with experts" if experts else ""
    said = f"{architecture}{kind}, rule {rule!r}, {found.runs} runs: {found}."
    return Evidence("training", said, abs(found.octaves) <= MOST and found.large == found.widest)


@of_runs("transfer")
def needed(runs: xr.Dataset, architecture: str) -> Evidence:
    """That without a rule the rate would have to be found anew."""
    found = moved(runs, "standard", architecture)
    said = f"{architecture}, entries and rates as they are, {found.runs} runs: {found}."
    return Evidence("training", said, abs(found.octaves) > MOST or found.large < found.widest)


SPAN, PRE = "spannorm+0.5", "prenorm+0.5"
CLAIM = Claim(
    name="C7",
    words="width scaling rules carry hyperparameters across sizes",
    source="abstract and reviews of arXiv:2601.22580",
    sure="the sense is sure; which rule the paper uses is not known, muP is ours",
    statement=(
        f"From width 128 to 1024 (with experts, to 512) the best rate of SpanNorm with ScaleInit 1/2 moves by at most "
        f"{MOST:g} octave by muP's rule, and by more without one, or no rate trains."
    ),
    tests=(
        partial(rule_holds, rule="mup", architecture=SPAN),
        partial(rule_holds, rule="mup", architecture=SPAN, experts=True),
        partial(needed, architecture=SPAN),
    ),
    change="networks deeper than 2 blocks, longer training, and a rule for depth.",
)
LONGCAT = Claim(
    name="LongCat 1",
    words="hyperparameters found on a small proxy are transferred by width",
    source="arXiv:2509.01322, model growth and hyperparameter transfer",
    sure="the rule's numbers are from the full text; the sentence is ours",
    statement=(
        f"By its rule (hidden matrices and head at variance and rate 1 / width), as by muP's, the best rate of PreNorm "
        f"with ScaleInit 1/2 moves by at most {MOST:g} octave from width 128 to 1024."
    ),
    tests=(partial(rule_holds, rule="longcat", architecture=PRE), partial(rule_holds, rule="mup", architecture=PRE)),
    change="its own architecture, ScMoE, and its own sizes.",
)
