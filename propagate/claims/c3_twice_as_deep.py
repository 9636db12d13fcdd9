"""C3: structure alone lets SpanNorm be twice as deep as PostNorm."""

from __future__ import annotations

import math

from propagate.claims.claim import Claim, Evidence, Sources
from propagate.model import Model

DEPTH = 24
CLOSE = 0.15
"""Relative distance from 2 that still is "twice"."""


def _rate(sources: Sources, placement: str, quantity: str) -> float:
    """Decay a block, as a logarithm, over the last half of the way."""
    said = sources.predict(Model(placement, depth=DEPTH), covariance=0.3)
    if quantity == "skips":
        path = said.skip_gain
        return math.log(float(path[DEPTH // 2] / path[0])) / (DEPTH // 2)
    if quantity == "collapse":
        left = (said.deviation / said.variance).values
        return math.log(left[DEPTH // 2] / left[DEPTH]) / (DEPTH // 2)
    return math.log(float(said.grad_variance[DEPTH // 2] / said.grad_variance[0])) / (DEPTH // 2)


def _ratio(sources: Sources, quantity: str) -> float:
    return _rate(sources, "postnorm", quantity) / _rate(sources, "spannorm", quantity)


def skips(sources: Sources) -> Evidence:
    """The argument as it is made."""
    ratio = _ratio(sources, "skips")
    said = f"PostNorm's skips lose {ratio:.2f} times as much a block as SpanNorm's (ReLU, {DEPTH} blocks)."
    return Evidence("theory", said, abs(ratio / 2 - 1) < CLOSE, under="skips alone")


def whole(sources: Sources) -> Evidence:
    """All of the gradient."""
    post, span = (_rate(sources, name, "gradient") for name in ("postnorm", "spannorm"))
    said = (
        f"all of the gradient falls by a factor of {math.exp(post):.3f} (PostNorm) and {math.exp(span):.3f} "
        f"(SpanNorm) a "
        "block at the bottom: to a floor that depth does not lower, SpanNorm's below PostNorm's."
    )
    return Evidence("theory", said, post > 0.01 and abs(post / span / 2 - 1) < CLOSE)


def collapse(sources: Sources) -> Evidence:
    """1 - correlation of two tokens."""
    ratio = _ratio(sources, "collapse")
    said = f"1 - correlation decays {ratio:.2f} times as fast a block in PostNorm as in SpanNorm."
    return Evidence("theory", said, abs(ratio / 2 - 1) < CLOSE, under="rank collapse in place of the gradient")


CLAIM = Claim(
    name="C3",
    words="twice as deep",
    source="reviews of arXiv:2601.22580, of its Eq. 11",
    sure="the words are quoted by a reviewer; the equation was not available to us",
    statement="Without scaling, a quantity that decays with depth does so half as fast in SpanNorm as in PostNorm "
    f"(within {CLOSE:.0%}).",
    tests=(whole, skips, collapse),
    change="for rank collapse the ratio is above 2: SpanNorm is better than claimed there.",
)
