"""Attention in heads that are drawn coordinate by coordinate, with norms of queries and keys and rotary positions.

Queries and keys of a head of n coordinates are n Gaussian vectors over the tokens; each token's is normed and turned by
itself, as the head does it, and the weights follow. Of the cotangent only the weights' part is drawn with them: that of
a_ts is h_t . v_s, with h and v independent of the weights and of each other, of second moments Gamma and V, so that
draws of Gamma^(1/2) G V^(1/2), G of independent standard normals, have its second moments. It returns through the
softmax, the turn and the norm. That takes tokens^2 n operations a draw, no matrix over pairs of pairs of tokens, and no
property of queries and keys but their law.

Draws come in pairs, of a query and its opposite, in the groups of `tokens.softmax`. One of each pair is kept: the
other's logits are the opposite ones, and what it sends back has the same second moments with the sign of its queries.
What comes back is made one replica at a time, which stays in the processor's caches.

With rotary positions heads are in single precision, whose rounding, 1e-7, lies far below the sampling error: what turns
by its position stays apart. Without them tokens may come so close that only double precision tells them apart. Weights,
and what is averaged with them alone, are in double precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from propagate.theory.gaussian.roots import symmetric_root
from propagate.theory.tokens.gram import Array, Gram, centred, distances
from propagate.theory.tokens.softmax import SEED, Attention

Normals = Callable[[tuple[int, ...]], Array]
"""Independent standard normals of a shape."""
COTANGENTS = 3  # drawn for each head's weights
NEGLIGIBLE = 1e-12  # relative differences of variances that are rounding


@dataclass(frozen=True)
class Norms:
    """Which of queries and keys each head norms, and whether a LayerNorm does it.

    Example:
        >>> Norms(query=True, key=False, centred=False).key
        False
    """

    query: bool
    key: bool
    centred: bool


class Drawn(NamedTuple):
    """Drawn heads: arrays over (replicas, samples, tokens, tokens), or (replicas, pairs, tokens, coordinates).

    Attributes:
        weights: of attention, of one of each pair and then of the others; rows sum to 1.
        query, key: as they enter the logits, of one of each pair; coordinates that turn together side by side.
        raw_query, raw_key: before the turn and the norm; where there is no norm, nobody reads them.
    """

    weights: Array
    query: Array
    key: Array
    raw_query: Array
    raw_key: Array


def draw_heads(query: Gram, key: Gram, attention: Attention, norms: Norms) -> Drawn:
    """Heads whose queries and keys have these expected second moments before any norm.

    Example: a norm leaves the sizes alike.
        >>> tokens, norms = Gram.of(np.diag([1.0, 4.0])[None]), Norms(query=True, key=False, centred=False)
        >>> attention = Attention(((True, True), (True, True)), 1.0, (), 2, (1, 0), 4)
        >>> (draw_heads(tokens, tokens, attention, norms).query ** 2).sum(axis=-1).round(12).tolist()
        [[[4.0, 4.0]]]
    """
    shape = (len(query.matrix), max(attention.samples // 2, 1), len(attention.mask), int(attention.head_size))
    draw = np.random.default_rng([SEED + 2, *attention.seed])
    precision = precision_of(attention)

    def normals(shape: tuple[int, ...]) -> Array:
        return draw.standard_normal(shape).astype(precision, copy=False)

    raw_query, raw_key = (side_by_side(tokens_of(gram, shape, normals)) for gram in (query, key))
    queries = normed(raw_query, norms.centred) if norms.query else raw_query
    keys = normed(raw_key, norms.centred) if norms.key else raw_key
    for x in (queries, keys):
        turn(x, attention.frequencies, 1)
    return Drawn(weights_of(queries, keys, attention), queries, keys, raw_query, raw_key)


def precision_of(attention: Attention) -> type:
    """Of queries and keys: single where positions keep tokens apart.

    Example:
        >>> precision_of(Attention(((True,),), 1.0, (), 2, (1, 0))).__name__
        'float64'
    """
    return np.float32 if attention.frequencies else np.float64


def weights_of(queries: Array, keys: Array, attention: Attention) -> Array:
    """Attention's, of drawn queries and then of their opposites."""
    pairs = queries.shape[1]
    weights = np.empty((len(queries), 2 * pairs, *attention.mask.shape), dtype=queries.dtype)
    np.matmul(
        (attention.logit_variance / queries.shape[-1]) ** 0.5 * queries, keys.swapaxes(-1, -2), weights[:, :pairs]
    )
    np.negative(weights[:, :pairs], out=weights[:, pairs:])
    weights += np.where(attention.mask, 0.0, -np.inf).astype(queries.dtype)
    weights -= weights.max(axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    found = weights.astype(np.float64, copy=False)
    found /= found.sum(axis=-1, keepdims=True)
    return found


def output(drawn: Drawn, values: Gram) -> Gram:
    """E A V A^T; its distances, of sums whose coefficients' difference adds up to 0, from the distances of V alone."""
    a = drawn.weights
    inner = (a @ values.deviation[:, None] @ a.swapaxes(-1, -2)).mean(axis=1)
    diagonal = np.diagonal(inner, axis1=-2, axis2=-1)
    apart = np.maximum(inner - (diagonal[..., :, None] + diagonal[..., None, :]) / 2, 0.0)
    return Gram((a @ values.matrix[:, None] @ a.swapaxes(-1, -2)).mean(axis=1), apart)


def to_values(drawn: Drawn, g: Gram) -> Gram:
    """E A^T Gamma A; its distances from columns less the average column, 1 / tokens everywhere."""
    a, middle = drawn.weights, g.matrix[:, None]
    centred = a - 1 / a.shape[-1]
    apart = distances((centred.swapaxes(-1, -2) @ middle @ centred).mean(axis=1))
    return Gram((a.swapaxes(-1, -2) @ middle @ a).mean(axis=1), apart)


def to_logits(drawn: Drawn, values: Gram, g: Gram, attention: Attention, norms: Norms) -> tuple[Gram, Gram]:
    """Cotangents at queries and keys before their norms, less the factor of the logits' variance."""

    def sent(r: int, queries: Array, keys: Array) -> tuple[Array, Array]:
        for x in (queries, keys):
            turn(np.moveaxis(x, 0, -2), attention.frequencies, -1)
        if norms.query:
            queries = norm_pull(drawn.raw_query[r].swapaxes(0, 1)[:, None], queries, norms.centred)
        if norms.key:
            keys = norm_pull(drawn.raw_key[r].swapaxes(0, 1)[:, None], keys, norms.centred)
        return queries, keys

    of_values, of_cotangents = _largest(values.deviation), _largest(g.matrix)
    values = Gram(values.matrix / of_values, values.deviation / of_values)
    g = Gram(g.matrix / of_cotangents, g.deviation / of_cotangents)
    sent_back = moments_sent(drawn, of_logits(drawn, values, g, attention), sent)
    size = of_values * of_cotangents
    queries, keys = (Gram(size * one.matrix, size * one.deviation) for one in sent_back)
    return queries, keys


def _largest(second_moments: Array) -> Array:
    """Of each replica, by which they are divided: single precision holds the squares of what is of order 1."""
    largest = np.abs(second_moments).max(axis=(-1, -2), keepdims=True)
    return np.asarray(np.where(largest > 0, largest, 1.0))


def moments_sent(
    drawn: Drawn, of_logits: Iterable[Array], sent: Callable[[int, Array, Array], tuple[Array, ...]]
) -> list[Gram]:
    """Second moments, over samples and drawn cotangents, of what these send back.

    Args:
        drawn: the heads.
        of_logits: cotangents of the logits, (replicas, samples, tokens, tokens) each.
        sent: from a replica and the cotangents of its queries and keys in the logits, (tokens, 2, pairs, coordinates)
            each and its own to write on, to those of what they are made of.
    """
    replicas, pairs, tokens, size = drawn.query.shape
    # so that moments are products of matrices
    queries, keys = (np.empty((tokens, 2, pairs, size), dtype=drawn.query.dtype) for _ in range(2))
    found: list[list[list[Array]]] = []
    for arrived in of_logits:
        found.append([])
        for r, one in enumerate(arrived.reshape(replicas, 2, pairs, tokens, tokens)):
            np.matmul(one, drawn.key[r], out=queries.transpose(1, 2, 0, 3))
            np.matmul(one.swapaxes(-1, -2), drawn.query[r], out=keys.transpose(1, 2, 0, 3))
            parts = [x.reshape(tokens, -1) for x in sent(r, queries, keys)]
            found[-1].append([x @ x.T / (2 * pairs) for x in parts])
    return [Gram.of(moments) for moments in np.mean(found, axis=0).swapaxes(0, 1)]


def of_logits(drawn: Drawn, values: Gram, g: Gram, attention: Attention) -> Iterator[Array]:
    """Drawn cotangents of the logits, less the root of their variance, over that of a head's size."""
    precision = drawn.query.dtype
    a = drawn.weights.astype(precision, copy=False)
    draw = np.random.default_rng([SEED + 3, *attention.seed])
    scale = np.sqrt(g.variance)[..., None]
    alike = np.divide(g.matrix, scale * scale.swapaxes(-1, -2), out=np.zeros_like(g.matrix), where=g.matrix != 0)
    left, right = scale * symmetric_root(alike), symmetric_root(centred(values.deviation))
    left /= drawn.query.shape[-1] ** 0.5
    left, right = (root.astype(precision, copy=False)[:, None] for root in (left, right))
    for _ in range(COTANGENTS):
        arrived = left @ draw.standard_normal(a.shape).astype(precision, copy=False) @ right
        arrived *= a
        arrived -= a * arrived.sum(axis=-1, keepdims=True)
        yield arrived


def tokens_of(gram: Gram, shape: tuple[int, ...], normals: Normals) -> Array:
    """Gaussian tokens with these second moments; see `gaussian_tokens`."""
    apart, shared = gaussian_tokens(gram, shape, normals)
    apart += shared
    return apart


def gaussian_tokens(gram: Gram, shape: tuple[int, ...], normals: Normals) -> tuple[Array, Array]:
    """Gaussian tokens with these second moments, as a sum: their differences, from the distances alone, and what is
    the same for all.

    Args:
        gram: (replicas, tokens, tokens).
        shape: replicas, samples, tokens, coordinates.
        normals: what draws; its precision is that of the tokens.

    Returns:
        Arrays of this shape, and of the same with one token.

    Example: tokens that differ by a millionth of a millionth.
        >>> close = Gram.exchangeable(1.0, 1e-24, 2)
        >>> one = Gram(close.matrix[None], close.deviation[None])
        >>> apart, shared = gaussian_tokens(one, (1, 100, 2, 100), np.random.default_rng(0).standard_normal)
        >>> shared.shape, bool(0.9 < ((apart[:, :, 0] - apart[:, :, 1]) ** 2).mean() / 2e-24 < 1.1)
        ((1, 100, 1, 100), True)
    """
    values, vectors = np.linalg.eigh(centred(gram.deviation))
    values = np.maximum(values, 0.0)
    roots, rows = np.sqrt(values)[..., None, :], vectors.swapaxes(-1, -2)
    variance, apart = gram.variance, gram.deviation.mean(axis=-1)
    unequal = variance - variance.mean(axis=-1, keepdims=True)
    unequal = np.where(np.abs(unequal) > NEGLIGIBLE * variance, unequal, 0.0)
    with_mean = unequal / 2 - (apart - apart.mean(axis=-1, keepdims=True))  # second moments with the mean token
    kept = values > NEGLIGIBLE * values.max(axis=-1, keepdims=True)
    inverse = np.divide(1.0, roots, out=np.zeros_like(roots), where=kept[..., None, :])
    along = (vectors * inverse) @ (rows @ with_mean[..., None])  # of the mean token, along the differences' normals
    rest = variance.mean(axis=-1) - apart.mean(axis=-1) - (along**2).sum(axis=(-1, -2))
    mixed = (vectors * roots) @ rows + along.swapaxes(-1, -2)
    size = np.sqrt(np.maximum(rest, 0.0))[:, None, None, None]
    shared, apart = normals((*shape[:2], 1, shape[3])), normals(shape)
    kept = apart.dtype
    return np.asarray(mixed[:, None].astype(kept, copy=False) @ apart), np.asarray(shared * size.astype(kept))


def normed(x: Array, centred: bool) -> Array:
    """A norm of each token's coordinates."""
    if centred:
        x = x - x.mean(axis=-1, keepdims=True)
    return np.asarray(x * (x.shape[-1] / (x * x).sum(axis=-1, keepdims=True)) ** 0.5)


def norm_pull(x: Array, g: Array, centred: bool) -> Array:
    """What a cotangent behind the norm of x is before it."""
    size = x.shape[-1]
    if centred:
        x, g = x - x.mean(axis=-1, keepdims=True), g - g.mean(axis=-1, keepdims=True)
    squared = (x * x).sum(axis=-1, keepdims=True)
    return np.asarray((size / squared) ** 0.5 * (g - x * ((x * g).sum(axis=-1, keepdims=True) / squared)))


def turned(x: Array, frequencies: Sequence[float], direction: int) -> Array:
    """Tokens (..., tokens, coordinates) by their rotary positions, forth or back, in pairs of coordinates.

    Example: the second token by a right angle, in a head of two coordinates.
        >>> turned(np.array([[1.0, 0.0], [1.0, 0.0]]), (np.pi / 2,), 1).round(12).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if not frequencies:
        return x
    angle = np.arange(x.shape[-2])[:, None] * np.array(frequencies)
    cos, sin = (of(angle).astype(x.dtype) for of in (np.cos, np.sin))
    sin *= direction
    one, other = np.split(x, 2, axis=-1)
    return np.concatenate([one * cos - other * sin, one * sin + other * cos], axis=-1)


def side_by_side(x: Array) -> Array:
    """The coordinates of each pair, which elsewhere stand half a head apart.

    Example:
        >>> side_by_side(np.array([[1.0, 2.0, 3.0, 4.0]])).tolist()
        [[1.0, 3.0, 2.0, 4.0]]
    """
    half = x.shape[-1] // 2
    paired = np.empty_like(x)
    paired[..., : 2 * half : 2], paired[..., 1 : 2 * half : 2] = x[..., :half], x[..., half : 2 * half]
    paired[..., 2 * half :] = x[..., 2 * half :]
    return paired


def turn(x: NDArray[Any], frequencies: Sequence[float], direction: int) -> None:
    """As `turned`, in place and in one step, of pairs that stand `side_by_side`: complex numbers times phases.

    Example: the second token by a right angle, in a head of two coordinates.
        >>> x = np.array([[1.0, 0.0], [1.0, 0.0]])
        >>> turn(x, (np.pi / 2,), 1)
        >>> x.round(12).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if frequencies:
        pairs = x.view(np.result_type(x.dtype, 1j))
        pairs *= _phases(x.shape[-2], tuple(frequencies), direction).astype(pairs.dtype, copy=False)


@lru_cache(maxsize=16)
def _phases(tokens: int, frequencies: tuple[float, ...], direction: int) -> NDArray[np.complex128]:
    """(tokens, frequencies)."""
    return np.asarray(np.exp(direction * 1j * np.arange(tokens)[:, None] * np.array(frequencies)))
