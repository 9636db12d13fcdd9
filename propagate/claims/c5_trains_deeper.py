"""C5: SpanNorm trains at depths and rates at which PostNorm does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from propagate.claims.claim import Claim, Evidence, of_runs
from propagate.claims.runs import TRAINS, best, one

if TYPE_CHECKING:
    import xarray as xr


@of_runs("sweeps")
def unscaled_postnorm(sweeps: xr.Dataset) -> Evidence:
    """PostNorm as it was published."""
    span, post = best(one(sweeps, "spannorm+0.5")), best(one(sweeps, "postnorm"))
    said = (
        f"24 blocks, {span.runs + post.runs} runs: SpanNorm + ScaleInit 1/2 trains up to a rate of {span.stable:g} "
        f"(best loss "
        f"{span.loss:.3f} +- {span.error:.3f}); unscaled PostNorm {_to(post.stable)} (best {post.loss:.3f} +- "
        f"{post.error:.3f}, unigram loss {float(sweeps.unigram_loss.max()):.3f})."
    )
    return Evidence("training", said, span.stable > post.stable)


@of_runs("sweeps")
def scaled_postnorm(sweeps: xr.Dataset) -> Evidence:
    """The fair control, which the paper is not known to have."""
    rows, runs, rates = [], 0, []
    for depth in (12, 24, 48, 96):
        span, post = (best(one(sweeps, f"{name}+0.5", depth)) for name in ("spannorm", "postnorm"))
        rows.append(f"{depth} blocks {span.stable:g} against {post.stable:g}")
        runs += span.runs + post.runs
        rates.append((span.stable, post.stable))
    larger, smaller = sum(span > post for span, post in rates), sum(span < post for span, post in rates)
    said = (
        f"largest rate at which SpanNorm and PostNorm, both with ScaleInit 1/2, train, {runs} runs: {'; '.join(rows)}; "
        f"at {larger} depths SpanNorm's is larger, at {smaller} smaller."
    )
    return Evidence("training", said, larger > 0 and not smaller, under="ScaleInit for PostNorm too")


@of_runs("sweeps")
def unscaled_both(sweeps: xr.Dataset) -> Evidence:
    """Structure alone."""
    span, post = best(one(sweeps, "spannorm", 12)), best(one(sweeps, "postnorm", 12))
    said = (
        f"without scaling, 12 blocks, {span.runs + post.runs} runs: SpanNorm {_to(span.stable)}, PostNorm "
        f"{_to(post.stable)}."
    )
    return Evidence("training", said, span.stable > post.stable, under="structure alone, without scaling")


def _to(rate: float) -> str:
    return f"trains up to {rate:g}" if rate else "trains at no rate"


CLAIM = Claim(
    name="C5",
    words="trains at depths and learning rates at which PostNorm does not",
    source="abstract and reviews of arXiv:2601.22580",
    sure="the sense is sure, the wording ours",
    statement=(
        "At 24 blocks SpanNorm with ScaleInit 1/2 trains up to a larger rate than PostNorm as published; to train is "
        f"to end {TRAINS:g} nats below the unigram loss."
    ),
    tests=(unscaled_postnorm, scaled_postnorm, unscaled_both),
    change=(
        "rates between those tried, which lie a factor of 2 apart (4 at 12 blocks without scaling); longer training "
        "and larger networks."
    ),
)
