"""C2: SpanNorm prevents the gradient vanishing of PostNorm."""

from __future__ import annotations

from propagate.claims.claim import Claim, Evidence, Sources
from propagate.model import Model
from propagate.scaling import ScaleInit

SMALL = 1e-3
"""A gradient vanishes whose variance falls below this share of what enters."""
DEPTH, TOKENS = 96, 32
MASKED_DEPTH, MASKED_TOKENS = 36, 16
"""Under a causal mask, where at 24 blocks the second token's gradient has not vanished yet."""


def unmasked(sources: Sources) -> Evidence:
    """All of the gradient, where tokens see one another."""
    post, deeper, fewer = (
        float(sources.predict(Model("postnorm", depth=depth, tokens=tokens), covariance=0.3).grad_variance[0])
        for depth, tokens in ((DEPTH, TOKENS), (4 * DEPTH, TOKENS), (DEPTH, TOKENS // 4))
    )
    scaled = Model("spannorm", depth=DEPTH, tokens=TOKENS, scaling=ScaleInit(0.5))
    span = float(sources.predict(scaled, covariance=0.3).grad_variance[0])
    said = (
        f"without a mask the gradient variance of {DEPTH} blocks of ReLU falls to {post:.2g} in unscaled PostNorm of "
        f"{TOKENS} tokens ({deeper:.2g} at {4 * DEPTH} blocks; {fewer:.2g} with {TOKENS // 4} tokens) and is "
        f"{span:.2g} in SpanNorm with ScaleInit 1/2."
    )
    return Evidence("theory", said, post < SMALL < span)


def masked(sources: Sources) -> Evidence:
    """That of every token but the first, under a causal mask."""
    plain = Model("postnorm", depth=MASKED_DEPTH, tokens=MASKED_TOKENS, causal=True)
    post = sources.predict(plain, covariance=0.3).grad_token_variance[0, 1:].values
    scaled = Model("spannorm", depth=MASKED_DEPTH, tokens=MASKED_TOKENS, causal=True, scaling=ScaleInit(0.5))
    span = sources.predict(scaled, covariance=0.3).grad_token_variance[0, 1:].values
    said = (
        f"of tokens 2 to {MASKED_TOKENS} at {MASKED_DEPTH} blocks: {post.max():.2g} to {post.min():.2g} in unscaled "
        f"PostNorm, {span.max():.2g} to {span.min():.2g} in SpanNorm with ScaleInit 1/2."
    )
    holds = bool(post.max() < SMALL < span.min())
    return Evidence("theory", said, holds, under="a causal mask for all tokens but the first")


def skips(sources: Sources) -> Evidence:
    """Along the skips, which is the textbook's argument."""
    post = float(sources.predict(Model("postnorm", depth=24), covariance=0.3).skip_gain[0])
    scaled = Model("spannorm", depth=24, scaling=ScaleInit(0.5))
    span = float(sources.predict(scaled, covariance=0.3).skip_gain[0])
    said = (
        f"along the skips of 24 blocks {post:.1g} is left in unscaled PostNorm, {span:.2g} in SpanNorm with ScaleInit "
        "1/2; branches carry back what they lose."
    )
    return Evidence("theory", said, post < SMALL < span, under="skips alone")


CLAIM = Claim(
    name="C2",
    words="prevents the gradient vanishing issue of PostNorm",
    source="abstract and reviews of arXiv:2601.22580",
    sure="the sense is sure, the wording ours",
    statement=f"PostNorm's gradient variance falls below {SMALL:g} of what enters, SpanNorm's does not.",
    tests=(unmasked, masked, skips),
    change=(
        "a loss in which tokens' gradients are far from independent, or another activation: SwiGLU makes both explode."
    ),
)
