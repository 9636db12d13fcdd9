"""Heads of latent attention, drawn coordinate by coordinate, for tokens that are not exchangeable.

As in `drawn_heads`. A query has the same second moments in all its coordinates; its keys in the first have their own,
and in the last, which positions turn, those that all heads share. Sharing leaves expected second moments as they are:
heads' queries are independent, and so is what heads send back, which adds up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from propagate.theory.tokens.drawn_heads import (
    Drawn,
    moments_sent,
    of_logits,
    side_by_side,
    tokens_of,
    turn,
    weights_of,
)
from propagate.theory.tokens.gram import Array, Gram
from propagate.theory.tokens.softmax import SEED, Attention


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


def draw_latent_heads(query: Gram, keys: Keys, attention: Attention) -> Drawn:
    """Heads of `attention.head_size` coordinates with these expected second moments.

    Example: where only what is shared has a size, attention is that of heads of these coordinates alone.
        >>> tokens, nothing = Gram.of(np.eye(2)[None]), Gram.of(np.zeros((1, 2, 2)))
        >>> attention = Attention(((True, True), (True, True)), 1.0, (), 4, (1, 0), 6)
        >>> drawn = draw_latent_heads(tokens, Keys(nothing, tokens, plain=4), attention)
        >>> drawn.key[..., :4].any(), drawn.weights.shape
        (np.False_, (1, 4, 2, 2))
    """
    size, plain = int(attention.head_size), keys.plain
    shape = (len(query.matrix), max(attention.samples // 2, 1), len(attention.mask))
    draw = np.random.default_rng([SEED + 2, *attention.seed])
    queries = tokens_of(query, (*shape, size), draw)
    own = tokens_of(keys.own, (*shape, plain), draw)
    key = np.concatenate([own, tokens_of(keys.shared, (*shape, size - plain), draw)], axis=-1)
    for turning in (queries[..., plain:], key[..., plain:]):
        turning[...] = side_by_side(turning)
        turn(turning, attention.frequencies, 1)
    return Drawn(weights_of(queries, key, attention), queries, key, queries, key)


def to_latent_logits(drawn: Drawn, values: Gram, g: Gram, attention: Attention, plain: int) -> tuple[Gram, Gram, Gram]:
    """Cotangents at queries, at keys of a head's own and at shared ones, less the factor of the logits' variance."""

    def sent(_: int, queries: Array, keys: Array) -> tuple[Array, Array, Array]:
        for x in (queries, keys):
            turn(np.moveaxis(x, 0, -2)[..., plain:], attention.frequencies, -1)
        return queries, keys[..., :plain], keys[..., plain:]

    query, own, shared = moments_sent(drawn, of_logits(drawn, values, g, attention), sent)
    return query, own, shared
