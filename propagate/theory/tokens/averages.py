"""Averages over drawn heads that attention's moment map is made of, for tokens that are not exchangeable.

Derivation. Given the weights A (rows sum to 1), with Gram matrices Q, K, V of queries, keys and values (each that of
the tokens, times what the projection or its norm scales it by), Gamma of the cotangent of A V and J_t = diag(a_t) -
a_t a_t^T the softmax Jacobian of row t, second moments are

    of the output              E A V A^T
    back at the values         E A^T Gamma A
    back at the queries        tau Gamma_tt' E sum_ss' (J_t V J_t')_ss' K_ss' c
    back at the keys           tau sum_tt' Gamma_tt' E Q_tt' (J_t V J_t')_ss' c

(in heads of finite size Q and K are those of the head, drawn with A) since the cotangent of a logit's weight is
h_t . v_s, with h and v independent of A and of each other, of second moments Gamma and V. c = mean_i cos(((t - t') -
(s - s')) theta_i), 1 without rotary positions: the cosine of the difference of two angles is expanded, and each draw of
A serves one frequency. The three cotangents are uncorrelated, each ending in a fresh matrix of its own. As J_t 1 = 0, V
may be taken less the tokens' mean, and the sum over tokens of the keys' cotangent vanishes.

With A = U + B, the uniform weights and the drawn excess, everything linear in B needs its mean only, and B V B^T is
made of the centred V. Distances of the output, and of the values' cotangent, are the sums of those of the parts: the
parts that equal rows or columns of U share drop out by themselves, however small B is. With e = A V and J written out,

    (J_t V J_t')_ss' = a_ts a_t's' (V_ss' - e_ts' - e_t's + e_t . a_t')

so that each path is a few products of matrices for every sample. They are made in the precision of the drawn excess,
of matrices scaled to be at most 1: a cotangent that decreases over tokens keeps its relative precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from propagate.theory.tokens import triangular
from propagate.theory.tokens.gram import Array, Gram, centred, distances, means
from propagate.theory.tokens.softmax import Attention, Heads, turns
from propagate.theory.tokens.triangular import Ends

Drawn = NDArray[Any]
"""Of the precision of the drawn excess, (replicas, samples, tokens, tokens) if not said otherwise."""


class Projected(NamedTuple):
    """Gram matrices of what attention makes of its input."""

    query: Gram
    key: Gram
    value: Gram


def output(drawn: Heads, x: Gram) -> Gram:
    """E A V A^T.

    Example: one token, which sees itself.
        >>> from propagate.theory.tokens.softmax import heads
        >>> one = Gram.of([[[4.0]]])
        >>> output(heads(one, one, Attention(((True,),), 1.0, (), 2, (1, 0))), one).matrix.tolist()
        [[[4.0]]]
    """
    uniform, excess, ends = drawn.uniform, drawn.excess, drawn.ends
    rest = uniform / 2 + _mean(excess)
    inner, scale = scaled(centred(x.deviation), excess)
    spread = scale * _mean(triangular.of_rows(excess, inner[:, None], ends))
    spread = (spread + spread.swapaxes(-1, -2)) / 2
    made = triangular.times(uniform, np.stack(x), ends)
    matrix, apart = _both(triangular.times_transposed(made, rest, ends))
    apart = apart - means(np.diagonal(apart, axis1=-2, axis2=-1)) + distances(spread)
    return Gram(matrix + spread, np.maximum(apart, 0.0))


def values(drawn: Heads, g: Gram) -> Gram:
    """E A^T Gamma A.

    Example: what the first token sends back to those that it saw.
        >>> from propagate.theory.tokens.softmax import heads
        >>> two, first = Gram.of([np.eye(2)]), Gram.of([np.diag([1.0, 0.0])])
        >>> values(heads(two, two, Attention(((True, True), (False, True)), 0.0, (), 2, (1, 0))), first).matrix.tolist()
        [[[0.25, 0.25], [0.25, 0.25]]]
    """
    uniform, excess, ends = drawn.uniform, drawn.excess, drawn.ends
    mean = _mean(excess)
    shares, correlations, reach = _by_size(excess, uniform, g)
    spread = reach * _mean(triangular.of_columns(shares, correlations[:, None], ends))
    spread = (spread + spread.swapaxes(-1, -2)) / 2
    apart = uniform - uniform[:, -1:]  # 0 where all tokens see all
    parts = np.stack([uniform, apart])[:, None]
    made = triangular.after(g.matrix, parts, ends)
    matrix, of_distances = _both(triangular.transposed_times(parts / 2 + mean, made, ends))
    return Gram(matrix + spread, distances(of_distances + spread))


def logits(drawn: Heads, x: Projected, g: Gram, kind: Attention) -> tuple[Gram, Gram]:
    """Cotangents at queries and keys, less the factor tau. One sample of each pair serves."""
    a = drawn.excess[:, : -(-drawn.excess.shape[1] // 2)] + drawn.uniform.astype(drawn.excess.dtype)
    v, size = scaled(centred(x.value.deviation), a)
    of_queries, of_keys = drawn.moments()
    (other, other_size), (own, own_size) = scaled(of_keys, a), scaled(of_queries, a)
    shares, correlations, reach = _by_size(a, drawn.uniform, g)
    shared = correlations[:, None] * own
    queries, keys = np.zeros_like(g.matrix), np.zeros_like(g.matrix)
    for some, turn, sign, share in _turned(kind, *a.shape[:2]):
        one = Jacobians.of(a[:, some], v, drawn.ends)
        queries += share * turn * query_average(one, _turned_by(turn, _some(other, some)), sign)
        keys += share * turn * key_average(one, shares[:, some], _turned_by(turn, _some(shared, some)), sign)
    queries, keys = size * other_size * queries, size * own_size * reach * keys
    return Gram.of(queries).product(g), Gram.of(keys)


def _turned(kind: Attention, replicas: int, samples: int) -> Iterator[tuple[slice, Array, int, float]]:
    """Which samples serve which rotary turn (symmetric or, with the sign -1, antisymmetric), and its share."""
    if not kind.frequencies:
        yield slice(None), np.ones(1), 1, 1.0
        return
    groups = min(len(kind.frequencies), samples)
    bounds = np.linspace(0, samples, groups + 1).astype(int)
    for start, stop, (cosine, sine) in zip(bounds, bounds[1:], turns(kind, groups, replicas), strict=False):
        for turn, sign in ((cosine, 1), (sine, -1)):
            yield slice(start, stop), turn, sign, 1 / groups


def _some(matrices: Drawn, samples: slice) -> Drawn:
    """Those of some samples, of matrices that may be the same for all."""
    return matrices if matrices.shape[1] == 1 else matrices[:, samples]


def _turned_by(turn: Array, matrices: Drawn) -> Drawn:
    """Each replica's by its own; what nothing turns as it is."""
    return matrices if turn.ndim == 1 else matrices * turn.astype(matrices.dtype)[:, None]


class Jacobians(NamedTuple):
    """What the softmax Jacobians of a set of weights have to do with V.

    Attributes:
        weights: A.
        v: V, (replicas, tokens, tokens).
        seen: A V.
        met: A V A^T.
        ends: of blocks of the weights' rows, see `triangular`.
    """

    weights: Drawn
    v: Drawn
    seen: Drawn
    met: Drawn
    ends: Ends

    @classmethod
    def of(cls, a: Drawn, v: Drawn, ends: Ends) -> Jacobians:
        seen = triangular.times(a, v[:, None], ends)
        return cls(a, v, seen, triangular.rows_met(seen, a, ends), ends)


def query_average(j: Jacobians, other: Drawn, sign: int = 1) -> Array:
    """E sum_ss' (J_t V J_t')_ss' other_ss', for `other` (replicas, samples or 1, tokens, tokens), sign-symmetric."""
    a, seen = j.weights, triangular.times(j.weights, other, j.ends)
    half = triangular.times(a, j.v[:, None] * other, j.ends)
    half /= 2
    half -= j.seen * seen
    half = _mean(triangular.times_transposed(half, a, j.ends))
    met = triangular.rows_met(seen, a, j.ends, sign)
    met *= j.met
    return np.asarray(half + sign * half.swapaxes(-1, -2) + _mean(met))


def key_average(j: Jacobians, shares: Drawn, shared: Drawn, sign: int = 1) -> Array:
    """E sum_tt' shared_tt' (J_t V J_t')_ss', `shared` like `other`; `shares` weights times the tokens' sizes."""
    mixed = triangular.after(shared, shares, j.ends)
    half = triangular.after(shared * j.met, shares, j.ends)
    half /= 2
    half -= j.seen * mixed
    half = _mean(triangular.transposed_times(shares, half, j.ends))
    together = _mean(triangular.columns_met(mixed, shares, j.ends, sign))
    return np.asarray(j.v * together + half + sign * half.swapaxes(-1, -2))


def scaled(matrix: Array, like: Drawn) -> tuple[Drawn, Array]:
    """A matrix in the precision of another array, at most 1, and the scale of each replica that this leaves out.

    Example:
        >>> scaled(np.array([[[4.0, 1e-60]]]), np.zeros(1, dtype=np.float32))
        (array([[[1., 0.]]], dtype=float32), array([[[4.]]]))
    """
    of_each = tuple(range(1, matrix.ndim))
    size = np.maximum(matrix.max(axis=of_each), -matrix.min(axis=of_each))
    size = np.where(size > 0, size, 1).astype(matrix.dtype)
    over = size.reshape(-1, *(1,) * (matrix.ndim - 1))
    return (matrix / over).astype(like.dtype, copy=False), size[:, None, None].astype(np.float64)


def _by_size(a: Drawn, uniform: Array, g: Gram) -> tuple[Drawn, Drawn, Array]:
    """A with each row times its token's share in the largest cotangent of those that see the same token, correlations
    of cotangents, and what A^T Gamma A is more than this A'^T corr A'.
    """
    cotangents = sizes_of(g, uniform > 0)
    shares = a * cotangents.shares.astype(a.dtype)[:, None]
    reach = cotangents.reach
    return shares, cotangents.correlations.astype(a.dtype), reach[:, :, None] * reach[:, None, :]


class Sizes(NamedTuple):
    """Cotangents of tokens and the largest of those that see a token, so that each is of order 1.

    Attributes:
        size, reach: (replicas, tokens) of each, and at each token the largest of those that see it.
        shares: (replicas, t, s) size of t over the reach of s, at most 1.
        correlations: (replicas, tokens, tokens).
    """

    size: Array
    reach: Array
    shares: Array
    correlations: Array


def sizes_of(g: Gram, seen: NDArray[np.bool_]) -> Sizes:
    """Of cotangents with these second moments, where t sees s.

    Example: of two that differ by far.
        >>> found = sizes_of(Gram.of(np.array([[[1e-40, 0.0], [0.0, 1.0]]])), np.tri(2, dtype=bool))
        >>> found.reach.tolist(), found.shares.round(12).tolist()
        ([[1.0, 1.0]], [[[0.0, 0.0], [1.0, 1.0]]])
    """
    size = np.sqrt(g.variance)
    reach = (size[:, :, None] * seen).max(axis=1)
    share = _over(size[:, :, None], reach[:, None, :])
    correlations = _over(g.matrix, size[:, :, None] * size[:, None, :])
    return Sizes(size, reach, np.minimum(share, 1.0, out=share), correlations)


def _over(x: Array, size: Array) -> Array:
    """0 where the size is 0."""
    if size.min(initial=1.0) > 0:
        return np.asarray(x / size)
    shape = np.broadcast_shapes(x.shape, size.shape)
    return np.asarray(np.divide(x, size, out=np.zeros(shape), where=size > 0))


def _both(matrix: Array) -> Array:
    return np.asarray(matrix + matrix.swapaxes(-1, -2))


def _mean(matrices: Drawn) -> Array:
    """Over samples."""
    return np.asarray(matrices.mean(axis=1), dtype=np.float64)
