"""The averages of `finite_heads` where queries or keys pass a norm of their own, head by head.

A norm over the n coordinates of a head puts queries and keys on a sphere. Their logits are bounded, two tokens' logits
are correlated as the tokens' directions in the head are, which fluctuate, and a cotangent returns through the norm's
Jacobian, with the token's own direction projected away and E n / |q|^2 = n / (n - 2) in place of 1. A LayerNorm does
the same in the n - 1 coordinates that its mean leaves. Shared parts of the keys no longer drop out, since each token's
size divides its own: the sum over tokens of the keys' cotangent does not vanish.

Averages are taken over drawn pairs of rows. By rotation two queries lie in a plane; of a key what counts is its part in
that plane, its part along what all keys share beyond it, and the size of the rest, whose direction is averaged exactly.
Cotangents of the weights are averaged exactly too, and so is the size of a query in its own average. What is known of
the same draws exactly, the averages of wide heads with the same Gaussians and the moments of sizes, serves as control
variates. The difference from wide heads, a smooth function of the tokens' correlation, is fitted over independent draws
at several correlations. Left is a sampling error of about 0.3 % of an average in heads of 4 coordinates, less in larger
ones; draws are the same in every run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from propagate.model import ModelError
from propagate.theory.gaussian.functions import Scalar, is_plain
from propagate.theory.gaussian.softmax import softmax_averages

Array = NDArray[np.float64]
SEED = 20_261_129
KEYS = 2**17  # drawn for each correlation, all pairs of rows together
PAIRS = 2**11, 2**15  # least and most
CHUNK = 2**10
RELATIVE_ERROR = 0.003  # standard error of the averages, in heads of 4 coordinates; less in larger ones
ALIKE = 1e-12  # loss of correlation that is as good as none


@dataclass(frozen=True)
class NormedHeads:
    """Heads, whose queries or keys may be normed.

    Attributes:
        tokens: two or more.
        size: coordinates of a head.
        query, key: whether they are normed.
        centred: whether a LayerNorm does it.

    Example:
        >>> NormedHeads(8, 4, query=True, key=True, centred=True).free
        3
    """

    tokens: int
    size: float
    query: bool
    key: bool
    centred: bool

    @property
    def free(self) -> int:
        """Coordinates that a norm leaves to a direction."""
        return int(self.size) - self.centred


class NormedAverages(NamedTuple):
    """As `HeadAverages`, in excess likewise, for queries and keys of variance 1 before their norms.

    `key_mean_own` and `key_mean_cross` are of the square of the keys' cotangents' sum over tokens where `key_own` and
    `key_cross` are of the sum of their squares: no excess of anything, as they vanish in wide heads.
    """

    second: Scalar
    overlap: Scalar
    query_own: Scalar
    query_cross: Scalar
    key_own: Scalar
    key_cross: Scalar
    key_mean_own: Scalar
    key_mean_cross: Scalar


def check_normed(what: str, free: float) -> None:
    """ModelError where the mean square of a normed projection's gradient, E 1 / |q|^2, is infinite.

    Example:
        >>> check_normed("query", 3)
    """
    if free <= 2:
        raise ModelError(
            "heads must leave 3 free coordinates or more (of n RMSNorm has n, LayerNorm n - 1) to each head whose"
            f" {what} is normed, or the mean square of its gradient is infinite: got {free:g}"
        )


def normed_averages(heads: NormedHeads, logit_variance: Scalar, loss: Scalar) -> NormedAverages:
    """Averages over the weights of such heads.

    Args:
        heads: of three free coordinates or more.
        logit_variance: of a logit between uncorrelated tokens.
        loss: 1 - correlation of the queries, and of the keys, of two tokens.

    Example: the cotangent of a normed query is that of a wide head times (n - 1) / (n - 2), where logits are small.
        >>> found = normed_averages(NormedHeads(8, 10, query=True, key=False, centred=False), 1e-6, 1.0)
        >>> abs(found.query_own / (7 / 64) + 1 - 9 / 8) < 0.02
        True
    """
    if not is_plain(logit_variance, loss):
        columns = np.vectorize(lambda v, lost: tuple(normed_averages(heads, v, lost)), otypes=[float] * 8)
        return NormedAverages(*columns(logit_variance, loss))
    if logit_variance <= 0:
        return NormedAverages(*[0.0] * 8)
    check_normed("query" if heads.query else "key", heads.free)
    loss = min(max(loss, ALIKE), heads.tokens / (heads.tokens - 1))
    if heads.query and heads.key and loss <= 1:  # of one logit variance wherever they are: one series serves a network
        added = _read(_series(heads, logit_variance), loss)
    else:
        added = _at_a_place(heads, logit_variance, loss)
    second, overlap, own, cross = softmax_averages(heads.tokens, logit_variance * loss, 1 - loss)
    wide = [second, overlap, own, cross, own, (1 - loss) * cross, 0.0, 0.0]
    return NormedAverages(*(w + a for w, a in zip(wide, (added * _units(loss)).tolist(), strict=True)))


def _units(loss: float) -> Array:
    """What is fitted of `second` and `overlap` is their part in the loss of correlation."""
    return np.array([loss, loss, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])


def _read(series: Array, loss: float) -> Array:
    return np.asarray(series @ np.cos(math.acos(2 * loss - 1) * np.arange(series.shape[1])))


@lru_cache(maxsize=64)
def _series(heads: NormedHeads, logit_variance: float) -> Array:
    """Chebyshev coefficients (8, terms) in the loss of correlation, of what is drawn at twice as many places."""
    terms = 4 + int(2 * math.sqrt(logit_variance)) + 2 * (heads.size < 16)
    angle = (np.arange(2 * terms) + 0.5) * np.pi / (2 * terms)
    nodes = (1 + np.cos(angle)) / 2
    values = np.array([excess_of_draws(heads, logit_variance, float(loss), i) for i, loss in enumerate(nodes)])
    to_terms = np.cos(np.outer(np.arange(terms), angle)) / terms
    to_terms[0] /= 2
    return np.ascontiguousarray((to_terms @ values).T)


@lru_cache(maxsize=1024)
def _at_a_place(heads: NormedHeads, logit_variance: float, loss: float) -> Array:
    return excess_of_draws(heads, logit_variance, loss, 0)


def excess_of_draws(heads: NormedHeads, logit_variance: float, loss: float, draw: int, share: int = 1) -> Array:
    """The eight averages less those of wide heads, over `_units`, of heads with any norms or none.

    Args:
        heads: their kind.
        logit_variance, loss: as in `normed_averages`.
        draw: number of the set of draws.
        share: one part in so many of the usual number of pairs of rows.
    """
    tokens, c, uniform = heads.tokens, 1 - loss, (heads.tokens - 1) / heads.tokens**2
    sampled, controls = _drawn(heads, logit_variance, loss, np.random.default_rng([SEED, draw]), share)
    second, overlap, own, cross = softmax_averages(tokens, logit_variance * loss, c)
    controls[:4] -= np.array([second, overlap, own, cross])[:, None]
    known = np.concatenate([np.ones_like(controls[:1]), controls])
    mean = np.linalg.lstsq(known.T, sampled.T, rcond=None)[0][0]  # where every control has its expected value
    wide = [second, overlap, uniform + own, uniform + cross, uniform + own, c * (uniform + cross), 0.0, 0.0]
    return np.asarray((mean - wide) / _units(loss))


def _drawn(
    heads: NormedHeads, logit_variance: float, loss: float, draw: np.random.Generator, share: int
) -> tuple[Array, Array]:
    """Pairs of rows: (8, pairs) of the averages, `second` and `overlap` in excess, and (7, pairs) of control variates.

    Of the controls the first four are the averages of `softmax.py` in excess, the others have mean 0.
    """
    keys = KEYS * 16 // max(int(heads.size), 16)  # larger heads differ less from wide ones
    pairs = min(max(PAIRS[0], keys // heads.tokens), PAIRS[1])
    chunks = [_chunk(heads, logit_variance, loss, draw) for _ in range(max(pairs // (CHUNK * share), 1))]
    sampled, controls = (np.concatenate(parts, axis=-1) for parts in zip(*chunks, strict=True))
    return sampled, controls


def _chunk(heads: NormedHeads, logit_variance: float, loss: float, draw: np.random.Generator) -> tuple[Array, Array]:
    """So few pairs that what is made of them stays in the processor's cache."""
    free, c = heads.free, 1 - loss
    raw = _queries(free, c, draw)
    keys, rest, inverse = _keys(heads, loss, draw)
    query_size, key_size = (raw**2).sum(axis=0), (keys**2).sum(axis=0) + rest
    by_query = np.sqrt(heads.size / query_size) if heads.query else np.ones_like(query_size)
    by_key = np.sqrt(heads.size / key_size) if heads.key else np.ones_like(key_size)
    rows = _Rows(heads, logit_variance, raw * by_query, by_query, keys * by_key, inverse, rest * by_key**2)
    (own0, mean0), (own1, mean1), (cross, mean_cross) = (rows.key(i, j) for i, j in ((0, 0), (1, 1), (0, 1)))
    a, b = rows.weights - 1 / heads.tokens
    sampled = [(a * a + b * b).sum(axis=0) / 2, (a * b).sum(axis=0)]
    sampled += [(rows.query(0, 0) + rows.query(1, 1)) / (2 * loss), rows.query(0, 1) / loss]
    sampled += [(own0 + own1) / 2, cross, (mean0 + mean1) / 2, mean_cross]
    of_sizes = [query_size.mean(axis=0) / free - 1, (raw[:, 0] * raw[:, 1]).sum(axis=0) / free - c]
    of_sizes.append(key_size.mean(axis=0) / free - (1 if heads.key else loss))
    plane = keys[0], keys[1] if free > 1 else math.sqrt(loss) * draw.standard_normal(keys[0].shape)
    return np.stack(sampled), np.concatenate([_wide_rows(*plane, c, logit_variance), of_sizes])


def _queries(free: int, correlation: float, draw: np.random.Generator) -> Array:
    """Two queries in their plane (Bartlett): (coordinates, 2, pairs)."""
    queries, across = np.zeros((2, 2, CHUNK)), math.sqrt(max(1 - correlation**2, 0.0))
    queries[0, 0] = np.sqrt(draw.chisquare(free, CHUNK))
    queries[0, 1] = correlation * queries[0, 0] + across * draw.standard_normal(CHUNK)
    if free > 1:
        queries[1, 1] = across * np.sqrt(draw.chisquare(free - 1, CHUNK))
    return queries


def _keys(heads: NormedHeads, loss: float, draw: np.random.Generator) -> tuple[Array, Array, tuple[Array, Array]]:
    """Keys, (coordinates, tokens, pairs), the squared sizes of what those coordinates leave out, and `_inverse_size`.

    In the plane of the queries, and along what the keys share beyond it. Keys of negative correlation are two that
    share up to their sign; more of them have all coordinates.
    """
    tokens, free, correlation = heads.tokens, heads.free, 1 - loss
    shape = (tokens, CHUNK)
    if not heads.key:  # what they share drops out
        known = min(free, 3)
        rest = loss * draw.chisquare(free - 3, shape) if free > 3 else np.zeros(shape)
        keys = math.sqrt(loss) * draw.standard_normal((known, *shape))
        return np.concatenate([keys, np.zeros((max(2 - known, 0), *shape))]), rest, (np.ones(shape), np.ones(shape))
    if correlation < 0 and tokens > 2:
        own = draw.standard_normal((free, *shape))
        mean = math.sqrt(max(correlation + loss / tokens, 0.0)) * draw.standard_normal((free, 1, CHUNK))
        keys = mean + math.sqrt(loss) * (own - own.mean(axis=1, keepdims=True))
        size = (keys**2).sum(axis=0)
        return keys, np.zeros(shape), (1 / np.sqrt(size), 1 / size)
    loss = max(min(loss, 2 - loss), ALIKE)
    shared = draw.standard_normal((3, 1, CHUNK))
    shared[2] = np.sqrt(draw.chisquare(free - 2, (1, CHUNK)))
    signs = np.ones((tokens, 1)) if correlation >= 0 else np.array([[1.0], [-1.0]])
    shared = math.sqrt(1 - loss) * shared * signs
    scale = math.sqrt(loss)
    keys = shared + scale * draw.standard_normal((3, *shape))
    rest = loss * draw.chisquare(free - 3, shape) if free > 3 else np.zeros(shape)
    along = (keys * shared).sum(axis=0) / np.sqrt((keys**2).sum(axis=0) + rest)
    first, square = _inverse_size(free, along / scale)
    return keys, rest, (first / scale, square / loss)


def _inverse_size(free: int, along: Array) -> tuple[Array, Array]:
    """E 1 / r and E 1 / r^2 of a Gaussian vector's size r, given its direction.

    Its density is r^(n - 1) exp(a r - r^2 / 2), with a its mean's part `along` that direction. Small sizes, of which
    the averages over keys would have many, are averaged here.
    """
    table = _inverse_sizes(free)
    peak = (along + np.sqrt(along * along + 4 * (free - 1))) / 2
    inside = np.clip(along, table[0, 0], table[0, -1])
    return np.interp(inside, table[0], table[1]) / peak, np.interp(inside, table[0], table[2]) / peak**2


@lru_cache(maxsize=64)
def _inverse_sizes(free: int) -> Array:
    """(3, points): `along`, and the two means times the density's peak and its square."""
    along = np.linspace(-30, 30, 601)[:, None]
    peak = (along + np.sqrt(along * along + 4 * (free - 1))) / 2
    log_r = np.linspace(-14, 6, 1601) + np.log(peak)  # the trapezoid rule, in the size's logarithm
    density = free * log_r + along * np.exp(log_r) - np.exp(2 * log_r) / 2
    weight = np.exp(density - density.max(axis=1, keepdims=True))
    moments = [(weight * np.exp(-k * log_r)).sum(axis=1) / weight.sum(axis=1) * peak[:, 0] ** k for k in (1, 2)]
    return np.stack([along[:, 0], *moments])


def _wide_rows(one: Array, other: Array, correlation: float, logit_variance: float) -> Array:
    """The averages of `softmax.py`, in excess, of the rows that the keys' Gaussian coordinates make in wide heads."""
    turned = correlation * one + math.sqrt(max(1 - correlation**2, 0.0)) * other
    a, b = (_softmax(math.sqrt(logit_variance) * logits) for logits in (one, turned))
    a2, b2, both = a * a, b * b, a * b
    aa, bb, ab = (x.sum(axis=0) for x in (a2, b2, both))
    cubes, mixed = (a2 * a + b2 * b).sum(axis=0), (both * (a + b)).sum(axis=0)
    tokens = len(a)
    uniform = (tokens - 1) / tokens**2
    found = [(aa + bb) / 2 - 1 / tokens, ab - 1 / tokens]
    found += [(aa + bb + aa * aa + bb * bb) / 2 - cubes - uniform, ab + ab * ab - mixed - uniform]
    return np.stack(found)


def _softmax(logits: Array) -> Array:
    """Over the tokens, of (..., tokens, pairs)."""
    weights = np.exp(logits - logits.max(axis=-2, keepdims=True))
    weights /= weights.sum(axis=-2, keepdims=True)
    return np.asarray(weights)


class _Rows:
    """Two rows of attention, and what cotangents of their weights send back, averaged over those cotangents.

    Of weights' cotangents that are independent over tokens and the same in both rows i and j; J = diag(a) - a a^T.
    Arrays are (coordinates, tokens or rows, pairs).
    """

    def __init__(
        self,
        heads: NormedHeads,
        logit_variance: float,
        queries: Array,
        by_query: Array,
        keys: Array,
        inverse: tuple[Array, Array],
        rest: Array,
    ) -> None:
        self.heads, self.by_query, self.inverse, self.keys, self.rest = heads, by_query, inverse, keys, rest
        self.squares = (keys**2).sum(axis=0) + rest
        self.queries = np.concatenate([queries, np.zeros((len(keys) - 2, *queries.shape[1:]))])
        self.along = np.stack([queries[0, i] * keys[0] + queries[1, i] * keys[1] for i in (0, 1)])  # q_i . k_s
        self.weights = _softmax(math.sqrt(logit_variance / heads.size) * self.along)
        self.mean_key = [(self.weights[i] * keys).sum(axis=1) for i in (0, 1)]

    def _products(self, i: int, j: int) -> tuple[Array, Array, Array, Array, Array]:
        a, b = self.weights[i], self.weights[j]
        both = a * b
        return a, b, both, both.sum(axis=0), (self.queries[:, i] * self.queries[:, j]).sum(axis=0)

    def query(self, i: int, j: int) -> Array:
        """sum_s (da_is / dq_i) . (da_js / dq_j) over the logits' variance, per coordinate, through the norms."""
        a, b, both, overlap, same = self._products(i, j)
        one, other, size = self.mean_key[i], self.mean_key[j], self.heads.size
        found = overlap * (one * other).sum(axis=0) - ((both * self.keys).sum(axis=1) * (one + other)).sum(axis=0)
        found += (both * (self.squares - self.rest * (a + b - overlap))).sum(axis=0)
        if not self.heads.query:
            return np.asarray(found / size)
        at_own, at_other = (self.along[k] - (self.queries[:, k] * self.mean_key[k]).sum(axis=0) for k in (i, j))
        parts = at_own * (self.along[i] - (self.queries[:, i] * other).sum(axis=0))
        parts += at_other * (self.along[j] - (self.queries[:, j] * one).sum(axis=0))
        parts -= at_own * at_other * (same / size)
        found -= (both * parts).sum(axis=0) / size
        return np.asarray(found * (1 / (self.heads.free - 2) if i == j else self.by_query[i] * self.by_query[j] / size))

    def key(self, i: int, j: int) -> tuple[Array, Array]:
        """The same for keys: sum_s x_s . y_s (J_i J_j)_ss, and sum_ss' x_s . y_s' (J_i J_j)_ss'.

        x_s is the derivative of the logit of row i by key s, y_s that of row j.
        """
        a, b, both, overlap, same = self._products(i, j)
        size = self.heads.size
        own = both * (1 - a - b + overlap)
        if not self.heads.key:
            return np.asarray(own.sum(axis=0) * same / size), np.zeros_like(overlap)
        first, square = self.inverse
        per_square = self.along[i] * self.along[j] / size
        products = same - per_square
        both_x, both_y, mean_x, mean_y = (self._sum(w, k) for w, k in ((both, i), (both, j), (a, i), (b, j)))
        mean = (first**2 * (both * products - (both - own) * per_square * self.rest / size)).sum(axis=0)
        mean += ((square - first**2) * own * products).sum(axis=0)
        mean += (overlap * mean_x * mean_y - both_x * mean_y - mean_x * both_y).sum(axis=0)
        return np.asarray((square * own * products).sum(axis=0)), np.asarray(mean)

    def _sum(self, weights: Array, i: int) -> Array:
        """sum_s weights_s x_s, in the coordinates that are known."""
        scaled = weights * self.inverse[0]
        through = (scaled * self.along[i] * self.keys).sum(axis=1) / self.heads.size
        return np.asarray(scaled.sum(axis=0) * self.queries[:, i] - through)
