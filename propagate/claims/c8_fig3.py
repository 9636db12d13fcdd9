"""C8: without scaling training collapses, as the paper's Fig. 3 shows at layers 1, 12 and 24."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from propagate.claims.claim import Claim, Evidence, Sources, of_runs
from propagate.claims.runs import TRAINS, best, one
from propagate.model import Model

if TYPE_CHECKING:
    import xarray as xr

LAYERS = (1, 12, 24)
GONE = 1e-2
"""1 - correlation below which tokens are one vector for all that a head can read."""


def at_rest(sources: Sources) -> Evidence:
    """Tokens in the last block's stream at initialisation."""
    said = sources.predict(Model("spannorm", depth=24), covariance=0.3)
    left = (said.deviation / said.variance).values[list(LAYERS)]
    words = (
        f"1 - correlation of unscaled SpanNorm at layers 1, 12, 24: {left[0]:.2g}, {left[1]:.2g}, {left[2]:.2g} (ReLU)."
    )
    return Evidence("theory", words, bool(left[-1] < GONE < left[0]))


@of_runs("sweeps")
def loss(sweeps: xr.Dataset) -> Evidence:
    """Whether it gets below what the tokens' frequencies tell."""
    cell = one(sweeps, "spannorm")
    plain, scaled = best(cell), best(one(sweeps, "spannorm+0.5"))
    said = (
        f"24 blocks, {plain.runs + scaled.runs} runs: unscaled SpanNorm ends at {plain.loss:.4f} +- "
        f"{plain.error:.4f} at best, the unigram loss being {float(cell.unigram_loss):.4f}; with ScaleInit 1/2 at "
        f"{scaled.loss:.3f} +- {scaled.error:.3f}."
    )
    return Evidence("training", said, plain.stable == 0 and scaled.stable > 0)


@of_runs("profiles")
def layers(profiles: xr.Dataset) -> Evidence:
    """The same of trained networks."""
    ends = {}
    for name in ("spannorm", "spannorm+0.5"):
        cell = profiles.isel(cell=int(np.flatnonzero(profiles.architecture.values == name)[0]))
        ends[name] = cell.decorrelation.sel(share=1.0).values[:, list(LAYERS)]
    logs = [np.log(np.maximum(one_, 1e-12)) for one_ in ends.values()]  # of runs, of layers
    plain, scaled = (np.exp(one_.mean(0)) for one_ in logs)
    factors = [float(np.exp(one_[:, -1].std(ddof=1) / np.sqrt(len(one_)))) for one_ in logs]
    said = (
        f"1 - correlation at layers 1, 12, 24 after training, geometric means of {len(ends['spannorm'])} runs each: "
        f"unscaled {plain[0]:.2g}, {plain[1]:.2g}, {plain[2]:.2g} (within a factor of {factors[0]:.2f}, one standard "
        f"error); with ScaleInit 1/2 {scaled[0]:.2g}, {scaled[1]:.2g}, {scaled[2]:.2g} ({factors[1]:.3f})."
    )
    return Evidence("training", said, bool(plain[-1] < GONE < scaled[-1]))


CLAIM = Claim(
    name="C8",
    words="training collapses without it",
    source="a review of arXiv:2601.22580, of the scaled initialisation; its Fig. 3",
    sure="quoted by a reviewer",
    statement=(
        f"Unscaled SpanNorm of 24 blocks gets at no rate {TRAINS:g} nats below the unigram loss, its tokens become one "
        f"vector at the last layer (1 - correlation below {GONE:g}), and with ScaleInit 1/2 neither happens."
    ),
    tests=(at_rest, loss, layers),
    change="fewer blocks: unscaled SpanNorm of 12 blocks trains at a small rate (see C5).",
)
