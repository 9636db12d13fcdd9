"""The two ends of a network: moments of learned embeddings, and of what a cross-entropy loss sends back.

At initialisation every vocabulary entry's embedding is an independent Gaussian vector, and so is every row of the
unembedding. The results are dictionaries of `predict`'s arguments.

With a tied unembedding the rows that read the stream are the embeddings that started it. `own_logit` says what that
does to the logit of a token's own entry, and so how far `cross_entropy_moments`, which takes the rows to be independent
of the stream, may be trusted: it must be small against log(vocabulary).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from propagate.checks import ModelError, integer, number
from propagate.theory.gaussian.softmax import softmax_averages


def repeat_rate(frequencies: Sequence[float]) -> float:
    """Probability that two tokens, drawn independently with these frequencies, are the same entry.

    Args:
        frequencies: of every vocabulary entry: counts or probabilities, of any sum.

    Raises:
        ModelError: unless they are numbers of at least 0, and not all 0.

    Example:
        >>> repeat_rate([1, 1, 2])
        0.375
    """
    counts = np.asarray(frequencies, dtype=float)
    if counts.ndim != 1 or not np.isfinite(counts).all() or (counts < 0).any() or not counts.sum() > 0:
        raise ModelError("frequencies must be a sequence of numbers of at least 0, and not all 0")
    return float(((counts / counts.sum()) ** 2).sum())


def embedding_moments(
    frequencies: Sequence[float], std: float, *, scale: float = 1.0, position_std: float = 0.0
) -> dict[str, float]:
    """Variance and covariance of embedded tokens, over embeddings and texts of independent tokens.

    Tokens share what they have in common only where they are the same entry; learned positions are never shared.
    Real texts repeat tokens nearby more often than independent ones: give the repeat rate of your windows as
    frequencies of their own, or `simulate` the text.

    Args:
        frequencies: of every vocabulary entry.
        std: standard deviation of an embedding's coordinate.
        scale: what embeddings are multiplied by, such as sqrt(width) in arXiv:1706.03762.
        position_std: standard deviation of a learned position's coordinate; 0 for none.

    Returns:
        `variance` and `covariance`, arguments of `predict` and `simulate`.

    Raises:
        ModelError: names the argument, the value and what is allowed.

    Example: GPT-2's, with tokens and positions of std 0.02 and 0.01, were all entries equally frequent.
        >>> moments = embedding_moments([1] * 50257, 0.02, position_std=0.01)
        >>> round(moments["variance"], 6), round(moments["covariance"] * 1e9, 3)
        (0.0005, 7.959)
    """
    token = number("scale", scale, positive=True) ** 2 * number("std", std, positive=True) ** 2
    position = number("position_std", position_std, positive=False) ** 2
    return {"variance": token + position, "covariance": token * repeat_rate(frequencies)}


def cross_entropy_moments(
    vocabulary: int, std: float, *, width: int, correlation: float, same_target: float = 0.0
) -> dict[str, float]:
    """Second moments of the cotangent at the readout's output, for the sum over tokens of their cross-entropies.

    The logits of a token of variance 1 are independent normals of variance std^2 width, and those of two tokens are
    correlated as the tokens are. The cotangent is sum_v (p_v - [v is the target]) U_v, with U the unembedding's rows;
    its second moment is that of a row times E sum_v (p_v - [target]) (p'_v - [target']). Targets are taken to be
    independent of the stream. Left out are terms of relative order std^2, along the tokens. For the mean over tokens
    divide by tokens squared.

    Args:
        vocabulary: entries.
        std: standard deviation of an unembedding's coordinate.
        width: of the stream, which a final norm has given variance 1.
        correlation: between tokens at the readout.
        same_target: probability that two tokens have the same target (`repeat_rate`).

    Returns:
        `grad_variance` and `grad_covariance`, arguments of `predict(..., through_readout=True)`.

    Raises:
        ModelError: names the argument, the value and what is allowed.

    Example: nearly uniform predictions, so that a target's own row is all there is.
        >>> moments = cross_entropy_moments(1000, 0.01, width=64, correlation=0.0)
        >>> round(moments["grad_variance"] * 1e4, 3), round(moments["grad_covariance"] * 1e7, 3)
        (0.999, -1.0)
    """
    own, crossed = _residual_products(vocabulary, std, width, correlation, same_target)
    return {"grad_variance": std**2 * own, "grad_covariance": std**2 * crossed}


class TiedGradient(NamedTuple):
    """Expected squared Frobenius norms of the two gradients that one tied matrix receives.

    Attributes:
        embedding: from where tokens are looked up.
        unembedding: from where logits are read off.
    """

    embedding: float
    unembedding: float


def tied_gradient(
    vocabulary: int,
    std: float,
    *,
    width: int,
    tokens: int,
    correlation: float,
    grad_variance: float,
    grad_covariance: float,
    same_token: float = 0.0,
    scale: float = 1.0,
) -> TiedGradient:
    """The gradient of a matrix that is embedding and unembedding, in its two parts, for the sum of cross-entropies.

    Args:
        vocabulary, std, width, correlation: as in `cross_entropy_moments`.
        tokens: in the sequence.
        grad_variance, grad_covariance: at block 0, for example from `predict`.
        same_token: probability that two tokens are the same entry; targets are tokens too.
        scale: what embeddings are multiplied by.

    Example: at initialisation the unembedding's part is larger by about 1 / std^2.
        >>> sent = {"grad_variance": 4e-4, "grad_covariance": 0.0}
        >>> parts = tied_gradient(1000, 0.02, width=64, tokens=8, correlation=0.1, **sent)
        >>> round(parts.embedding, 4), round(parts.unembedding, 1)
        (0.2048, 511.1)
    """
    own, crossed = _residual_products(vocabulary, std, width, correlation, same_token)
    pairs = tokens * (tokens - 1)
    looked_up = tokens * grad_variance + pairs * same_token * grad_covariance
    return TiedGradient(scale**2 * width * looked_up, width * (tokens * own + pairs * correlation * crossed))


def own_logit(std: float, *, width: int, skip_share: float) -> float:
    """Mean logit of a token's own vocabulary entry, where the unembedding is tied and reads a stream of variance 1.

    Args:
        std: standard deviation of an embedding's coordinate.
        width: of the stream.
        skip_share: share of the readout's variance that is still the embedding,
            `skip_gain[0] variance[0] / variance[-1]` of `predict`.

    Example: a quarter left, at the size of GPT-2 small.
        >>> own_logit(0.02, width=768, skip_share=0.25)
        7.68
    """
    return float(std * width * np.sqrt(number("skip_share", skip_share, positive=False)))


def _residual_products(
    vocabulary: int, std: float, width: int, correlation: float, same_target: float
) -> tuple[float, float]:
    """E sum_v (p_v - [target])^2, and the same for two tokens."""
    integer("vocabulary", vocabulary, at_least=2)
    integer("width", width)
    for name, value in (("correlation", correlation), ("same_target", same_target)):
        if not 0 <= number(name, value, positive=False) <= 1:
            raise ModelError(f"{name} must be at most 1, got {value!r}")
    spread = number("std", std, positive=True) ** 2 * width
    excess = softmax_averages(vocabulary, spread, correlation)
    return 1 - 1 / vocabulary + excess.second, same_target - 1 / vocabulary + excess.overlap
