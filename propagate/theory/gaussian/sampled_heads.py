"""What finite heads add to wide ones where quadrature fails: in small heads at wide logits, of tokens that point apart.

Averages over drawn heads (`normed_heads`, without norms) at places all over a patch, an octave of the logits' spread
and all correlations, are fitted by a polynomial: smooth, and made once for each number of tokens and size of head. One
row's averages know no correlation. Those of two rows tend to one row's as the tokens become alike, so what is fitted is
their difference, the loss of correlation times a polynomial in the angle between queries, which resolves how fast wide
logits part. Measured at places of seven patches against 16 times as many draws, its error in the root mean square is
0.1 to 0.4 % of one row's average, 0.7 % in heads of one or two coordinates and 1.6 % of their keys; at worst twice as
much.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from propagate.theory.gaussian.normed_heads import ALIKE, NormedHeads, excess_of_draws

Array = NDArray[np.float64]
EDGES = (0.0, 1.0, 2.0, 4.0, 8.0)  # of the spread; where it is wider still, heads are drawn anew at each place
PLACES = 36  # in each patch
TERMS = 4, 5  # in the spread, in the angle
_GOLDEN = (math.sqrt(5) - 1) / 2


def sampled_excess(tokens: int, size: float, std: float, correlation: float) -> list[float]:
    """What finite heads add to each of `HeadAverages`; the first time in a patch it takes one or two seconds.

    Args:
        tokens: two or more.
        size: coordinates of a head.
        std: standard deviation of the logits that is expected.
        correlation: of two tokens' queries.

    Example: chance correlations between the queries of small heads.
        >>> sampled_excess(8, 4, 2.5, 0.0)[1] > 0.01
        True
    """
    loss = max(1 - correlation, ALIKE)
    heads = NormedHeads(tokens, size, query=False, key=False, centred=False)
    patch = next((patch for patch in pairwise(EDGES) if std <= patch[1] * (1 + 1e-9)), None)
    if patch is None:
        second, overlap, *slopes = _drawn(heads, std, loss)
        return [loss * second, loss * overlap, *slopes]
    of_one, of_difference = _fitted(heads, *patch)
    in_std, in_both = _basis(heads, patch, np.array([std]), np.array([loss]))
    one = in_std[0] @ of_one
    second, query_own, key_own = one.tolist()
    overlap, query_cross, key_cross = (one - in_both[0] @ of_difference).tolist()
    return [std**2 * second, std**2 * overlap, query_own, query_cross, key_own, key_cross]


@lru_cache(maxsize=1024)
def _drawn(heads: NormedHeads, std: float, loss: float) -> list[float]:
    return list(excess_of_draws(heads, std**2 / loss, loss, 0)[:6].tolist())


@lru_cache(maxsize=64)
def _fitted(heads: NormedHeads, low: float, high: float) -> tuple[Array, Array]:
    """Coefficients (terms, 3): of one row's averages, and of what those of two rows are less; as a share of std^2
    where they are of the weights themselves.
    """
    i = np.arange(PLACES) + 0.5
    spreads = low + (high - low) * (1 - np.cos(np.pi * i / PLACES)) / 2
    losses = heads.tokens / (heads.tokens - 1) * (1 - np.cos(np.pi * (i * _GOLDEN % 1))) / 2
    places = enumerate(zip(spreads, losses, strict=True))
    drawn = np.array([excess_of_draws(heads, s * s / loss, loss, k, share=2)[:6] for k, (s, loss) in places])
    drawn[:, :2] *= (losses / spreads**2)[:, None]
    one, two = drawn[:, ::2], drawn[:, 1::2]
    in_std, in_both = _basis(heads, (low, high), spreads, losses)
    return np.linalg.lstsq(in_std, one)[0], np.linalg.lstsq(in_both, one - two)[0]


def _basis(heads: NormedHeads, patch: tuple[float, float], spreads: Array, losses: Array) -> tuple[Array, Array]:
    """Polynomials in the spread, (places, terms), and in it and the angle, of bounded total degree."""
    low, high = patch
    x = np.clip((2 * spreads - low - high) / (high - low), -1, 1)
    angle = np.arccos(np.clip(1 - losses, -1, 1)) / math.acos(-1 / (heads.tokens - 1))
    in_std = np.asarray(np.polynomial.chebyshev.chebvander(x, TERMS[0] - 1), dtype=float)
    in_angle = losses[:, None] * np.polynomial.chebyshev.chebvander(np.clip(2 * angle - 1, -1, 1), TERMS[1] - 1)
    both = [in_std[:, i] * in_angle[:, j] for i in range(TERMS[0] - 1) for j in range(TERMS[1] - i)]
    return in_std, np.stack(both, axis=1)
