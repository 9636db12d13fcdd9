"""The averages over attention weights that attention's moment map is made of, for heads of any size.

In a head of n coordinates the logits of token t are inner products of its query with the keys. Given the queries of two
tokens their logits are Gaussian, and independent between keys: over the variance that is expected, the variances and
the covariance are q_tt, q_uu and q_tu, the second moments of n pairs of Gaussians of the tokens' correlation. Those
fluctuate by 1/sqrt(n), and softmax averages curve upwards: chance correlations add up. With the averages of
`softmax.py` for two rows of different spread, O(v, w, k) = E a . a' for logit variances v, w and covariance k, and its
slope F = dO/dk = E tr(J J'), the averages for heads of n coordinates are, at logit variance s and correlation c,

    overlap      E O(s q_tt, s q_uu, s q_tu)
    key_cross    E q_tu F(s q_tt, s q_uu, s q_tu)
    query_cross  d overlap / dc / s, by Price's theorem: E tr(J k J'), k the Gram matrix of the drawn keys

and `second`, `key_own`, `query_own` the same at c = 1, where both rows are one. Expectations over the three q are taken
by Gauss quadrature, in variables that are independent (Bartlett): a chi-squared, a normal, another chi-squared. Where
few nodes would not do, in small heads at wide logits, and for tokens that point apart, they are sampled
(`sampled_heads`), with an error that no width reduces: see `relative_error`.

No width enters: the map is exact as the number of heads grows. At finite width, logits and their cotangents go through
the same matrices, which adds terms of relative order logit variance / width. For tokens of exact second moments they
are, of the values' part, its derivative by the logarithm of the logits' standard deviation over the width, and a like
term of the keys' part: 0.5 to 1 % together at width 512 and logits of standard deviation 2.25. They are left out, as
all else of order 1 / width is; `benchmarks/attention_gradient.py` measures what is left.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import roots_hermitenorm

from propagate.theory.gaussian.functions import Scalar, chebyshev_terms, is_plain
from propagate.theory.gaussian.sampled_heads import sampled_excess
from propagate.theory.gaussian.softmax import degrees_of, hermite_basis, softmax_averages

Array = NDArray[np.float64]

NEGLIGIBLE = 1e-11
_ROWS = 8  # taken together: so many stay in a cache
_STEP = 0.7  # of log(rate): errors of about 1e-6 of what is a correction
_PATCHES = ((1.0, 5, 6), (2.0, 6, 7), (3.0, 8, 8))  # largest spread; Chebyshev terms in it and in c


class HeadAverages(NamedTuple):
    """The averages of this module's docstring, in excess of their values for uniform attention.

    Those are 1/T for `second` and `overlap`, (T - 1)/T^2 for the slopes, and c times that for `key_cross`.
    """

    second: Scalar
    overlap: Scalar
    query_own: Scalar
    query_cross: Scalar
    key_own: Scalar
    key_cross: Scalar


def head_averages(tokens: Scalar, head_size: float, variance: Scalar, correlation: Scalar) -> HeadAverages:
    """Averages over the weights of heads of `head_size` coordinates, infinity included.

    Args:
        tokens: two or more.
        head_size: coordinates of a head, 1 or more; of infinitely many no fluctuation is left.
        variance: expected one of the part of the logits that the softmax sees. What finite heads add is
            integrated up to a spread of 3, in small heads to less, and sampled beyond; tabulated up to 8.
        correlation: of the queries of two tokens, -1 / (tokens - 1) to 1.

    Example: the smaller the heads, the more two uncorrelated tokens attend to the same keys.
        >>> [round(head_averages(16, size, 2.0, 0.0).overlap, 4) for size in (64, 8)]
        [0.0007, 0.0049]
    """
    wide = softmax_averages(tokens, variance, correlation)
    second, overlap, own, cross = wide
    if head_size == math.inf:
        return HeadAverages(second, overlap, own, cross, own, correlation * cross)
    if is_plain(variance, correlation):
        a, b, c, d, e, f = _added(tokens, head_size, variance, correlation)
    else:
        columns = np.vectorize(lambda v, c: tuple(_added(tokens, head_size, v, c)), otypes=[float] * 6)
        a, b, c, d, e, f = columns(variance, correlation)
    return HeadAverages(second + a, overlap + b, own + c, cross + d, own + e, correlation * cross + f)


def _added(tokens: int, head_size: float, variance: float, correlation: float) -> list[float]:
    """What finite heads add to each of `HeadAverages`."""
    if variance <= 0 or tokens == 1:
        return [0.0] * 6
    std = math.sqrt(variance)
    if _are_sampled(head_size, variance, correlation):
        return sampled_excess(tokens, head_size, std, correlation)
    top, spreads, correlations = next(patch for patch in _PATCHES if std <= patch[0] * (1 + 1e-9))
    few = 2 if tokens < 4 or head_size <= 16 else 0  # singularities are nearer
    spreads, correlations = spreads + few, correlations + few
    in_correlation, at_one = _series(tokens, head_size, top, spreads, correlations)
    a = chebyshev_terms(min(2 * variance / top**2, 2.0) - 1, spreads)
    b = chebyshev_terms(min(2 * correlation, 2.0) - 1, correlations)
    overlap, query, key = in_correlation.dot(a).reshape(3, -1).dot(b).tolist()
    second, query_own, key_own = at_one.dot(a).tolist()
    return [variance * second, variance * overlap, query_own, query, key_own, key]


def _are_sampled(head_size: float, variance: Scalar, correlation: Scalar) -> Any:
    return (correlation < 0) | (variance > min(_PATCHES[-1][0] ** 2, math.sqrt(head_size)))


def relative_error(head_size: float, variance: Scalar, correlation: Scalar) -> float:
    """Relative standard error of the averages: 0 where they are integrated, as measured where heads are drawn.

    Example:
        >>> relative_error(4, 1.0, 0.5), relative_error(4, 9.0, 0.5)
        (0.0, 0.003)
    """
    if head_size == math.inf:
        return 0.0
    drawn = (variance > 0) & _are_sampled(head_size, variance, correlation)
    if not (drawn if isinstance(drawn, bool) else np.any(drawn)):
        return 0.0
    return 0.003 if head_size > 2 else 0.01


_INDEX = np.arange(16.0)


@lru_cache(maxsize=64)
def _series(tokens: int, head_size: float, top: float, spreads: int, correlations: int) -> tuple[Array, Array]:
    """Chebyshev coefficients of the excess over wide heads, (3 correlations, spreads), and those at correlation 1.

    Of overlap / std^2, of its derivative by the correlation, and of key_cross; even in std / top on [-1, 1], in
    2 correlation - 1 on [-1, 1].
    """
    angle_s = (np.arange(spreads) + 0.5) * np.pi / (2 * spreads)
    angle_c = (np.arange(correlations) + 0.5) * np.pi / correlations
    nodes_s, nodes_c = top * np.cos(angle_s), (1 + np.cos(angle_c)) / 2
    values = np.array([_excess(tokens, head_size, s, nodes_c) for s in nodes_s])  # (spreads, 2, correlations)
    to_s = np.cos(2 * np.outer(_INDEX[:spreads], angle_s)) * 2 / spreads
    to_c = np.cos(np.outer(_INDEX[:correlations], angle_c)) * 2 / correlations
    to_s[0] /= 2
    to_c[0] /= 2
    overlap, key = np.einsum("ki,lj,imj->mlk", to_s, to_c, values)
    slope = np.zeros_like(overlap)
    slope[:-1] = 2 * np.polynomial.chebyshev.chebder(overlap, axis=0)
    found = np.ascontiguousarray(np.stack([overlap, slope, key]))
    return found.reshape(-1, spreads), np.ascontiguousarray(found.sum(axis=1))


def _excess(tokens: int, head_size: float, std: float, correlations: Array) -> Array:
    """(2, correlations): E O / std^2 and E q_tu F, each less its value at the expected q."""
    integrals = _Integrals(tokens, std)
    c = correlations[:, None, None]
    size, size_weight = _chi_squared(head_size, _nodes(head_size, std))
    turn, turn_weight = _normal(head_size, 2 * _nodes(head_size, std) - 1)
    rest, rest_weight = _chi_squared(head_size - 1, 2, over=head_size)
    one = np.ones(len(correlations))
    total = -np.stack(integrals(1.0, one, correlations)) * [[1.0], [1.0]] * [one, correlations]
    for own, weight in zip(size, size_weight, strict=True):
        along = c * math.sqrt(own) + np.sqrt(1 - c * c) * turn[:, None]
        other, joint = np.broadcast_arrays(along**2 + (1 - c * c) * rest, math.sqrt(own) * along)
        overlap, slope = integrals(own, other.ravel(), joint.ravel())
        mean = weight * turn_weight[:, None] * rest_weight
        total[0] += (mean * overlap.reshape(other.shape)).sum(axis=(1, 2))
        total[1] += (mean * (joint.ravel() * slope).reshape(other.shape)).sum(axis=(1, 2))
    return np.asarray(total / [[std**2], [1.0]])


def _nodes(head_size: float, std: float) -> int:
    """The wider the logits fluctuate, the more nodes."""
    return min(2 + int(3 * std**2 / math.sqrt(head_size)) + int(head_size < 16), 6)


def _chi_squared(freedom: float, nodes: int, over: float | None = None) -> tuple[Array, Array]:
    """Gauss nodes and weights of a chi-squared variable over its degrees of freedom, or over another number.

    From the recurrence of Laguerre's polynomials (Golub and Welsch), at any number of degrees of freedom.
    """
    if freedom <= 0:
        return np.zeros(1), np.ones(1)
    k = np.arange(nodes)
    values, vectors = np.linalg.eigh(
        np.diag(2 * k + freedom / 2) + np.diag(np.sqrt(k[1:] * (k[1:] + freedom / 2 - 1)), -1)
    )
    return 2 * values / (over or freedom), vectors[0] ** 2


def _normal(head_size: float, nodes: int) -> tuple[Array, Array]:
    x, weight = roots_hermitenorm(nodes)
    return x / math.sqrt(head_size), weight / weight.sum()


class _Integrals:
    """E a . a' and E tr(J J') of two rows whose logits have variances and a covariance in units of std^2.

    As `softmax._integrals`, for rows of different spread, and coarser: what is used are differences.
    """

    def __init__(self, tokens: int, std: float) -> None:
        self.tokens, self.std = tokens, std
        self.x, self.root, self.hermite = hermite_basis(28 + int(8 * std**2))
        self.rate = np.exp(np.arange(-math.log(tokens) - 8 - 4 * std, 7 * std + 4, _STEP))

    def __call__(self, variance: float, others: Array, joint: Array) -> tuple[Array, Array]:
        size = np.sqrt(variance * others)
        correlation = np.clip(np.divide(joint, size, out=np.zeros_like(joint), where=size > 0), -1.0, 1.0)
        rate = self._reached(max(variance, float(others.max())))
        (row,) = self._rows(np.array([variance]), rate)
        degrees = np.arange(len(self.x))
        overlap, slope = np.empty_like(others), np.empty_like(others)
        measure = self.tokens * _STEP**2
        parts = (others[start : start + _ROWS] for start in range(0, len(others), _ROWS))
        for i, other in enumerate(row for part in parts for row in self._rows(part, rate)):
            powers = correlation[i] ** degrees[: degrees_of(len(degrees), correlation[i])]
            kept = len(powers)
            p00, p11, slopes = ((row[a, :, :kept] * powers) @ other[a, :, :kept].T for a in range(3))
            p00 = np.maximum(p00, 1e-300)
            rest2 = np.exp((self.tokens - 2) * np.log(p00))
            rest1 = rest2 * p00
            overlap[i] = measure * np.vdot(p11, rest1)
            slope[i] = measure * (np.vdot(slopes, rest1) + (self.tokens - 1) * np.vdot(p11 * p11, rest2))
        return overlap, slope

    def _reached(self, variance: float) -> Array:
        """Rates at which integrands are not negligible, for logits of this variance at most.

        By Schwarz's inequality an integrand of two rates is at most the product of what is compared here.
        """
        (row,) = self._rows(np.array([variance]), self.rate)
        zeroth, first = ((row[a] ** 2).sum(axis=-1) for a in range(2))  # E exp(-2 y), E y^2 exp(-2 y)
        others = zeroth ** (self.tokens / 2 - 1)
        bounds = np.stack([np.sqrt(first * zeroth) * others, first * others])
        return np.asarray(self.rate[(bounds > NEGLIGIBLE * bounds.max(axis=1, keepdims=True)).any(axis=0)])

    def _rows(self, variances: Array, rate: Array) -> Array:
        """(rows, 3, rates, Hermite functions): exp(-y), y exp(-y) and its slope by the logit, y = rate exp(logit)."""
        growth = np.exp(self.std * np.sqrt(variances)[:, None, None] * self.x)
        y = rate[:, None] * growth
        np.minimum(y, 1e20, out=y)  # exp(-1e20) is 0
        found = np.empty((len(variances), 3, *y.shape[1:]))
        zeroth, first, slope = (found[:, k] for k in range(3))
        np.negative(y, out=zeroth)
        np.exp(zeroth, out=zeroth)
        zeroth *= self.root
        np.multiply(y, zeroth, out=first)
        np.multiply(y, first, out=slope)
        np.subtract(first, slope, out=slope)
        return np.asarray((found.reshape(-1, len(self.x)) @ self.hermite).reshape(found.shape))
