"""Attention whose heads have a finite number of coordinates: exact in their size as the width alone grows.

`sublayers.attention` takes logits for Gaussian, as they are in wide heads. In a head of n coordinates they are inner
products of n terms: rows of logits have spreads of their own, chance correlations of order 1/sqrt(n) between queries
add up over tokens on the way back, and the keys that are attended to are those that point the query's way. Here the
queries and keys of one head, tokens x n each, are drawn, and the same averages are taken over the weights that they
give. Values and cotangents are independent of the weights, so their own n drops out. No width enters.

With J_t = diag(a_t) - a_t a_t^T the softmax Jacobian, q-hat and k-hat the Gram matrices of the drawn queries and (less
what all keys share) keys, over n and in units of their expected variance, the averages are

    second, overlap            of sum_s a_ts a_t's, for t = t' and t != t'
    query_own, query_cross     of tr(J_t k-hat J_t')
    key_own, key_cross         of q-hat_tt' tr(J_t J_t')
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from propagate.theory.moments import Moments

Array = NDArray[np.float64]


class HeadAverages(NamedTuple):
    """The averages of this module's docstring. Of infinitely wide heads `query_*` are `softmax_averages`' slopes."""

    second: float
    overlap: float
    query_own: float
    query_cross: float
    key_own: float
    key_cross: float


@lru_cache(maxsize=256)
def head_averages(
    tokens: int, head_size: int, spread_squared: float, correlation: float, *, samples: int = 32, seed: int = 0
) -> HeadAverages:
    """Averages over drawn heads.

    Args:
        tokens: two or more.
        head_size: coordinates of a head.
        spread_squared: variance of the part of the logits that the softmax sees.
        correlation: of the queries of two tokens, 0 to 1.
        samples: heads drawn.
        seed: of the draws.

    Example: in wide heads, what `softmax_averages` integrates.
        >>> from propagate.theory.softmax import softmax_averages
        >>> drawn = head_averages(8, 4096, 1.0, 0.5, samples=400)
        >>> abs(drawn.second - 1 / 8 - softmax_averages(8, 1.0, 0.5).second) < 0.005
        True
    """
    draw = np.random.default_rng([20_261_122, seed])
    total = np.mean(
        [_of_one_head(draw, tokens, head_size, math.sqrt(spread_squared), correlation) for _ in range(samples)], axis=0
    )
    return HeadAverages(*total.tolist())


def _of_one_head(draw: np.random.Generator, tokens: int, n: int, spread: float, correlation: float) -> Array:
    shared, own = draw.standard_normal(n), draw.standard_normal((tokens, n))
    queries = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    keys = draw.standard_normal((tokens, n))
    logits = spread / math.sqrt(n) * queries @ keys.T
    a = np.exp(logits - logits.max(axis=1, keepdims=True))
    a /= a.sum(axis=1, keepdims=True)
    q_hat, k_hat = queries @ queries.T / n, keys @ keys.T / n
    both = a @ a.T
    third = a @ (a * a).T
    slope = both + both**2 - third - third.T
    seen = a @ k_hat
    mixed = a @ (a * seen).T
    at_queries = (a * k_hat.diagonal()) @ a.T - mixed - mixed.T + both * (seen @ a.T)
    return np.array([part for matrix in (both, at_queries, q_hat * slope) for part in _own_and_cross(matrix)])


def _own_and_cross(matrix: Array) -> tuple[float, float]:
    own = float(np.trace(matrix))
    tokens = len(matrix)
    return own / tokens, (float(matrix.sum()) - own) / (tokens * (tokens - 1))


def attention_of_head_size(
    x: Moments, g: Moments, tokens: int, head_size: int, logit_variance: float, *, samples: int = 32, seed: int = 0
) -> tuple[Moments, Moments]:
    """Moments of the output, and of the cotangent sent back, of attention at unit gains.

    Args:
        x, g: moments of the input, and of the cotangent at the output.
        tokens, head_size: two or more tokens; coordinates of a head.
        logit_variance: of a logit between unit-variance, uncorrelated tokens.
        samples, seed: of `head_averages`.

    Example: uniform attention knows no head size.
        >>> output, back = attention_of_head_size(Moments(1.0, 1.0), Moments(1.0, 1.0), 4, 8, 0.0, samples=1)
        >>> round(output.variance, 12), round(back.variance, 12)
        (0.25, 0.25)
    """
    others = tokens - 1
    correlation = x.covariance / x.variance
    found = head_averages(
        tokens, head_size, logit_variance * x.variance * x.deviation, correlation, samples=samples, seed=seed
    )
    output = Moments(x.covariance + x.deviation * found.second, x.deviation * (found.second - found.overlap))
    value = g.variance * found.second + others * g.covariance * found.overlap
    shared = (g.variance * (1 - found.second) + others * g.covariance * (1 - found.overlap)) / others
    per_logit = logit_variance * x.deviation
    own, cross = (per_logit * x.deviation * w for w in (g.variance * found.query_own, g.covariance * found.query_cross))
    key = per_logit * x.variance * (g.variance * found.key_own + others * g.covariance * found.key_cross)
    deviation = (value - shared) + (own - cross) + key * tokens / others
    return output, Moments(value + own + key, deviation)
