"""Heads of latent attention, drawn in as few coordinates as say the same, for tokens that are not exchangeable.

A query has the same second moments in all its coordinates; its keys in the first have their own, and in the last, which
positions turn, those that all heads share. Sharing leaves expected second moments as they are: heads' queries are
independent, and so is what heads send back, which adds up.

No norm is in the heads, so all that is needed of the coordinates that nothing turns is products over them. Those have
the law of fewer coordinates, as in `softmax`: queries R L, L lower triangular (Bartlett), and keys of as many standard
normals, and of others, apart from them, that no logit sees. Coordinates that turn are drawn one by one.

Cotangents of the logits are drawn as in `drawn_heads`, all in single precision and of matrices scaled to be at most 1:
rows are times their token's share in the largest cotangent that reaches a key.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from propagate.theory.tokens.averages import scaled, sizes_of
from propagate.theory.tokens.drawn_heads import COTANGENTS, turn
from propagate.theory.tokens.gram import Array, Gram, centred
from propagate.theory.tokens.softmax import SEED, Attention, Heads, Single, excess, factor, lower_normals


class Keys(NamedTuple):
    """Second moments of keys.

    Attributes:
        own: of each head's own coordinates.
        shared: of those that all share, before they are turned.
        plain: how many are a head's own.
    """

    own: Gram
    shared: Gram
    plain: int


class LatentHeads(NamedTuple):
    """Drawn heads.

    Attributes:
        heads: weights of attention, of queries and then of their opposites.
        query: (replicas, pairs, tokens, coordinates), first those that nothing turns.
        key: the same, and then coordinates that queries have not.
        plain: how many are first.
    """

    heads: Heads
    query: Single
    key: Single
    plain: int


def draw_latent_heads(query: Gram, keys: Keys, attention: Attention) -> LatentHeads:
    """Heads of `attention.head_size` coordinates with these expected second moments.

    Example: where only what is shared has a size, attention is that of heads of these coordinates alone.
        >>> tokens, nothing = Gram.of(np.eye(2)[None]), Gram.of(np.zeros((1, 2, 2)))
        >>> attention = Attention(((True, True), (True, True)), 1.0, (), 4, (1, 0), 6)
        >>> drawn = draw_latent_heads(tokens, Keys(nothing, tokens, plain=4), attention)
        >>> drawn.query.shape, drawn.key.shape, drawn.key[..., :2].any(), drawn.heads.excess.shape
        ((1, 2, 2, 4), (1, 2, 2, 6), np.False_, (1, 4, 2, 2))
    """
    mask, turned = attention.mask, int(attention.head_size) - keys.plain
    replicas, pairs, tokens = len(query.matrix), max(attention.samples // 2, 1), len(mask)
    draw = np.random.default_rng([SEED + 2, *attention.seed])
    of_queries, of_own = (factor(of).astype(np.float32) for of in (query.matrix, centred(keys.own.deviation)))
    of_shared = factor(keys.shared.matrix if attention.frequencies else centred(keys.shared.deviation))

    def normals(columns: int) -> Single:
        return draw.standard_normal((replicas, tokens, pairs * columns), dtype=np.float32)

    def by_pair(x: Single) -> Single:
        return x.reshape(replicas, tokens, pairs, -1).swapaxes(1, 2)

    plain = min(keys.plain, tokens)
    of_plain = of_queries[:, None] @ lower_normals(draw, (replicas, pairs, tokens), keys.plain)
    more = min(keys.plain - plain, tokens)
    parts = [[of_plain], [by_pair(of_own @ normals(plain))]]
    if turned:
        for part, root in zip(parts, (of_queries, of_shared.astype(np.float32)), strict=True):
            part.append(by_pair(root @ normals(turned)))
            turn(part[-1], attention.frequencies, 1)
    if more:
        parts[1].append(of_own[:, None] @ lower_normals(draw, (replicas, pairs, tokens), keys.plain - plain))
    queries, of_keys = (np.concatenate(part, axis=-1) for part in parts)
    half = queries @ of_keys[..., : queries.shape[-1]].swapaxes(-1, -2)
    half *= np.float32(math.sqrt(attention.logit_variance / attention.head_size))
    uniform = mask / mask.sum(axis=1, keepdims=True)

    def moments() -> tuple[NDArray[Any], NDArray[Any]]:
        size = np.float32(attention.head_size)
        return queries @ queries.swapaxes(-1, -2) / size, of_keys @ of_keys.swapaxes(-1, -2) / size

    return LatentHeads(Heads(uniform, excess(half, uniform), moments), queries, of_keys, plain)


def to_latent_logits(drawn: LatentHeads, values: Gram, g: Gram, attention: Attention) -> tuple[Gram, Gram, Gram]:
    """Cotangents at queries, at keys of a head's own and at shared ones, less the factor of the logits' variance."""
    replicas, pairs, tokens = drawn.query.shape[:3]
    a = (drawn.heads.excess + drawn.heads.uniform.astype(np.float32)).swapaxes(1, 2)[:, None]  # (r, 1, t, c, s)
    samples = a.shape[3]
    size, reach, shares, alike = sizes_of(g, np.asarray(attention.mask, dtype=bool))
    of_values, scale = scaled(factor(centred(values.deviation)), a)
    left = factor(alike).astype(np.float32)
    random = np.random.default_rng([SEED + 3, *attention.seed])
    arrived = random.standard_normal((replicas, COTANGENTS * tokens * samples, tokens), dtype=np.float32)
    arrived = arrived @ of_values.swapaxes(-1, -2)
    arrived = left[:, None] @ arrived.reshape(replicas, COTANGENTS, tokens, -1)
    arrived = arrived.reshape(replicas, COTANGENTS, tokens, samples, tokens)
    arrived -= (a * arrived).sum(axis=-1, keepdims=True)
    arrived *= a
    weight = scale * scale / (COTANGENTS * samples * attention.head_size)

    def moments(sent: Single, columns: slice) -> Array:
        """(r, d, c, t, j), the sum over all but tokens."""
        part = sent.transpose(0, 1, 3, 2, 4)[..., columns]
        part = np.ascontiguousarray(part).reshape(replicas, COTANGENTS, tokens, -1)
        return np.asarray((part @ part.swapaxes(-1, -2)).sum(axis=1) * weight)

    def back(of: Single, x: Single) -> Single:
        """of (r, d, t, c, s) times x (r, p, s, j), to (r, d, c, t, j)."""
        rows = of.reshape(replicas, COTANGENTS * tokens, 2, pairs, tokens).transpose(0, 2, 3, 1, 4)
        found = (rows @ x[:, None]).reshape(replicas, samples, COTANGENTS, tokens, -1)
        turning = slice(drawn.plain, drawn.query.shape[-1])
        turn(found[..., turning], attention.frequencies, -1)
        return found.swapaxes(1, 2)

    everything = slice(None)
    queries = moments(back(arrived, drawn.key), everything) * (size[:, :, None] * size[:, None, :])
    arrived *= shares.astype(np.float32)[:, None, :, None]
    to_keys = back(np.ascontiguousarray(arrived.swapaxes(2, 4)), drawn.query)
    reached = reach[:, :, None] * reach[:, None, :]
    own, shared = (moments(to_keys, s) * reached for s in (slice(drawn.plain), slice(drawn.plain, None)))
    return Gram.of(queries), Gram.of(own), Gram.of(shared)
