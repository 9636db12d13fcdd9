"""Embedded texts, sampled: tables and projections drawn, the text looked up, and the hand-written way back to both.

Of a table only rows that some token reads are drawn: the others have no part in anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagate.embeddings import NGrams, TokenEmbedding
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.operators import NORMS
from propagate.montecarlo.statistics import Floats

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Embedded:
    """An embedded sequence, in every draw with tables of its own.

    Attributes:
        x: (draws, tokens, width), `inputs` of `simulate`.
        pull: from a cotangent of that shape to the squared norms, by draw, of the gradients that reach the rows that
            are read, in ascending order, (draws, rows), the tokens' table first; and the projections', (draws,).
    """

    x: Floats
    pull: Callable[[Any], tuple[list[Floats], list[Floats]]]


def hashed(ngrams: NGrams, vocabulary: int, ids: Ids) -> list[Ids]:
    """Of each table, the rows that every token of a sequence reads; from the oldest token on, by Horner's rule.

    Example:
        >>> hashed(NGrams(longest=2, tables=1, rows=20), 10, np.array([3, 4, 5]))[0].tolist()
        [3, 14, 5]
    """
    found = []
    for n, rows in ngrams.sizes:
        value = np.zeros_like(ids)
        for back in reversed(range(n)):
            before = np.concatenate([np.zeros(min(back, len(ids)), dtype=ids.dtype), ids[: max(len(ids) - back, 0)]])
            value = (value * vocabulary + before) % rows
        found.append(value)
    return found


def embed_text(
    embedding: TokenEmbedding,
    ids: Any,
    *,
    width: int,
    draws: int,
    seed: int,
    backend: str = "numpy",
) -> Embedded:
    """A sequence embedded by random tables, and how a cotangent comes back to them.

    Args:
        embedding: what embeds.
        ids: (tokens,), of one sequence.
        width: of the stream.
        draws: independent embeddings.
        seed: of the draws: draw k is the same, however many there are.
        backend: as for `simulate`.

    Raises:
        ModelError: names the argument, the value and what is allowed.

    Example: theory's variance, 1 / (1 + count), and a sample's.
        >>> bigrams = NGrams(longest=2, tables=1, rows=50)
        >>> found = embed_text(TokenEmbedding(10, ngrams=bigrams), [4, 0, 4], width=512, draws=8, seed=0)
        >>> found.x.shape, round(float((found.x**2).mean()), 1)
        ((8, 3, 512), 0.5)
    """
    sequence, factor = embedding.checked(ids), embedding.factor(width)
    chosen = choose_backend(backend)
    xp, normals = chosen.xp, Normals(chosen, seed, range(draws))
    tokens, ngrams = _Table.read(xp, sequence), embedding.ngrams
    rows = embedding.std * normals(0, (len(tokens.reached), width))
    x = tokens.of(rows)
    tables: list[tuple[_Table, Array, Array]] = []
    if ngrams is not None:
        size = ngrams.size(width)
        for number, hashes in enumerate(hashed(ngrams, embedding.vocabulary, sequence)):
            table = _Table.read(xp, hashes)
            own = ngrams.std * normals(2 * number + 1, (len(table.reached), size))
            weight = ngrams.gain / size**0.5 * normals(2 * number + 2, (size, width))
            x = x + table.of(own) @ weight
            tables.append((table, own, weight))
    x = factor * x
    normed = None
    if embedding.norm is not None:
        x, normed = NORMS[embedding.norm.kind](chosen, x, eps=embedding.norm.eps)

    def pull(cotangent: Any) -> tuple[list[Floats], list[Floats]]:
        g = xp.asarray(cotangent)
        g = factor * (g if normed is None else normed(g))
        of_rows, of_projections = [_squares(tokens.back(g))], []
        for table, own, weight in tables:
            of_rows.append(_squares(table.back(g @ weight.swapaxes(-1, -2))))
            gradient = table.of(own).swapaxes(-1, -2) @ g
            of_projections.append(_squares(gradient).sum(axis=-1))
        return [chosen.to_host(one) for one in of_rows], [chosen.to_host(one) for one in of_projections]

    return Embedded(chosen.to_host(x), pull)


@dataclass(frozen=True, eq=False)
class _Table:
    """Which of the rows that are read each token reads: numbers of rows, and an array of zeros and ones."""

    reached: Ids
    place: Any
    readers: Any

    @classmethod
    def read(cls, xp: Any, rows: Ids) -> _Table:
        reached, place = np.unique(rows, return_inverse=True)
        readers = np.equal(np.arange(len(reached))[:, None], place[None, :]).astype(float)
        return cls(reached, xp.asarray(place), xp.asarray(readers))

    def of(self, rows: Array) -> Array:
        """What every token reads, (draws, tokens, ...)."""
        return rows[:, self.place]

    def back(self, g: Array) -> Array:
        """What all tokens send back to each row."""
        return self.readers @ g


def _squares(x: Array) -> Array:
    return (x * x).sum(axis=-1)


def count_collisions(ngrams: NGrams, vocabulary: int, ids: Any) -> list[float]:
    """Of each table, the share of pairs of tokens of a text whose n-grams differ and yet read one row: counted.

    Example:
        The table's rows are a multiple of the vocabulary: bigrams that end alike collide, if what is before is
        alike up to multiples of 2.

        >>> count_collisions(NGrams(longest=2, tables=1, rows=20), 10, [1, 5, 3, 5])
        [0.16666666666666666]
    """
    sequence = TokenEmbedding(vocabulary).checked(ids)
    tokens, found = len(sequence), []
    for (n, _), rows in zip(ngrams.sizes, hashed(ngrams, vocabulary, sequence), strict=True):
        padded = np.concatenate([np.zeros(n - 1, dtype=np.int64), sequence])
        grams = np.stack([padded[n - 1 - back : n - 1 - back + tokens] for back in range(n)], axis=1)
        _, of_rows = np.unique(rows, return_counts=True)
        _, of_grams = np.unique(grams, axis=0, return_counts=True)
        alike = [int((counts * (counts - 1)).sum()) for counts in (of_rows, of_grams)]
        found.append((alike[0] - alike[1]) / (tokens * (tokens - 1)))
    return found
