"""Embedded texts: which tokens share rows, what that makes of their Gram matrix, and which rows a gradient reaches.

Rows and projections are independent Gaussian vectors at initialisation. Two tokens have in common what they read from
the same rows: the token's own, those of n-grams that are the same, and those of different n-grams that a table cannot
tell apart, for their hashes collide. A term W E(h) has second moment gain^2 std^2 per coordinate whatever the sizes, so

    E x_i x_j = factor^2 (std^2 [t_i = t_j] + gain^2 std_n^2 sum_nk [h_nk(i) = h_nk(j)])

at every width, over tables and projections. Behind a norm it is that over the variance, which all tokens share, in the
limit of a large width.

A cotangent g at the embedded text reaches row r of a table as the sum over the tokens that read it. With g of second
moments Gamma_ij and independent of rows and projections, |dLoss/dE_r|^2 is factor^2 gain^2 width sum_ij Gamma_ij over
those tokens: c grad_variance + c (c - 1) grad_covariance where c of them are alike. A row that no token reads gets 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from propagate.arrays import moment, second_moments
from propagate.checks import ModelError, check_memory, integer
from propagate.embeddings import NGrams, TokenEmbedding
from propagate.theory.embedding import repeat_rate

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
FFTS = 6  # arrays of complex numbers, as long as a table


def hashed(ngrams: NGrams, vocabulary: int, ids: Ids) -> list[Ids]:
    """Of each table, the rows that every token reads, in the shape of `ids`; by powers of the vocabulary.

    Example: in a table of a multiple of the vocabulary's rows a token tells of the one before it what remains.
        >>> hashed(NGrams(longest=2, tables=1, rows=20), 10, np.array([3, 4, 5]))[0].tolist()
        [3, 14, 5]
    """
    found = []
    for n, rows in ngrams.sizes:
        total = ids % rows
        for back in range(1, min(n, ids.shape[-1] + 1)):
            total[..., back:] += ids[..., :-back] * pow(vocabulary, back, rows) % rows
        found.append(total % rows)
    return found


class Shared(NamedTuple):
    """Second moments of an embedded text, and of the covariance what each kind of common row brings.

    Attributes:
        variance: E x_i^2, that of every token.
        covariance: E x_i x_j, mean over pairs of tokens of a sequence; the sum of the three that follow.
        tokens: by tokens that are the same.
        ngrams: by n-grams that are the same.
        collisions: by different n-grams that fall into one row.
    """

    variance: float
    covariance: float
    tokens: float
    ngrams: float
    collisions: float


def embedded_gram(embedding: TokenEmbedding, ids: Any, *, width: int) -> Floats:
    """Second moments per coordinate of every two tokens of an embedded text, (tokens, tokens).

    Args:
        embedding: what embeds.
        ids: (tokens,), or (sequences, tokens), over which the mean is taken.
        width: of the stream.

    Returns:
        `gram` of `predict` and `simulate`.

    Raises:
        ModelError: names the argument, the value and what is allowed.

    Example:
        The first and the third token are the same, and so are the bigrams that end in them: nothing is before the
        first, and token 0 is before the third.

        >>> bigrams = NGrams(longest=2, tables=1, rows=1000)
        >>> embedded_gram(TokenEmbedding(10, ngrams=bigrams), [4, 0, 4], width=8).tolist()
        [[0.5, 0.0, 0.5], [0.0, 0.5, 0.0], [0.5, 0.0, 0.5]]
    """
    checked = np.atleast_2d(embedding.checked(ids))
    check_memory(f"ids of {checked.shape[-1]} tokens", 24.0 * checked.shape[-1] ** 2)
    own, shared = _weights(embedding, width)
    total = np.zeros((checked.shape[-1],) * 2)
    for sequence in checked:
        total += own * _same(sequence)
        for rows in _tables(embedding, sequence):
            total += shared * _same(rows)
    return total / len(checked)


def embedded_text(embedding: TokenEmbedding, ids: Any, *, width: int) -> Shared:
    """Variance and covariance of an embedded text, and where the covariance comes from.

    Args:
        embedding, ids, width: as in `embedded_gram`.

    Example: a table of 10 rows does not know what came before the last token: all of its rows are shared by chance.
        >>> bigrams = NGrams(longest=2, tables=1, rows=10)
        >>> text = embedded_text(TokenEmbedding(10, ngrams=bigrams), [4, 0, 4, 1, 4], width=8)
        >>> [round(value, 3) for value in text]
        [0.5, 0.15, 0.075, 0.025, 0.05]
    """
    checked = np.atleast_2d(embedding.checked(ids))
    tokens = checked.shape[-1]
    own, shared = _weights(embedding, width)
    pairs = max(tokens * (tokens - 1), 1)
    parts = np.zeros(3)
    for sequence in checked:
        parts[0] += own * _repeats(sequence)
        for (n, _), rows in zip(_sizes(embedding), _tables(embedding, sequence), strict=True):
            same = _repeats(_windows(sequence, n))
            parts[1:] += shared * same, shared * (_repeats(rows) - same)
    of_tokens, of_ngrams, of_collisions = (float(part) for part in parts / (len(checked) * pairs))
    variance = own + shared * len(_sizes(embedding))
    return Shared(variance, of_tokens + of_ngrams + of_collisions, of_tokens, of_ngrams, of_collisions)


def collision_rate(frequencies: Any, n: int, rows: int) -> float:
    """Probability that two n-grams of independent tokens differ and yet fall into one row.

    The hash is sum_j t_j V^j mod rows. With p the frequencies and p^ their discrete Fourier transform over `rows`
    points, two hashes are equal with probability (1 / rows) sum_k prod_j |p^(k V^j)|^2; off it goes the probability
    that the n-grams are the same, (sum p^2)^n. A perfect hash would give about 1 / rows.

    Args:
        frequencies: of every token, in the order of their ids: counts or probabilities.
        n: tokens of an n-gram.
        rows: of the table.

    Raises:
        ModelError: names the argument, the value and what is allowed.

    Example:
        Three times as many as in a perfect hash, for a table of a multiple of the vocabulary's rows, since some
        tokens are frequent; a third of it further away.

        >>> zipf = 1 / np.arange(1, 101)
        >>> [round(rows * collision_rate(zipf, 2, rows), 2) for rows in (3000, 3001, 3037)]
        [2.92, 1.56, 0.33]
    """
    repeat = repeat_rate(frequencies)
    integer("n", n, at_most=64)
    rows = integer("rows", rows, at_most=2**31)
    check_memory(f"rows={rows}", 16.0 * FFTS * rows)
    counts = np.asarray(frequencies, dtype=float)
    folded = np.bincount(np.arange(len(counts)) % rows, weights=counts / counts.sum(), minlength=rows)
    half = np.square(np.abs(np.fft.rfft(folded)))
    power = np.concatenate([half, half[1 : (rows + 1) // 2][::-1]])  # of real numbers: the same at k and rows - k
    product, k = power.copy(), np.arange(rows)
    for back in range(1, n):
        product *= power[k * (pow(len(counts), back, rows)) % rows]
    return float(max(product.mean() - repeat**n, 0.0))


class TableGradient(NamedTuple):
    """Expected squared norms of what reaches a table of an embedding, and of the projection behind it.

    Attributes:
        rows: that some token reads, in ascending order; all others get nothing.
        counts: how many tokens read each.
        squared: E |dLoss/dE_row|^2 of each.
        projection: E |dLoss/dW|^2 of the projection, which is none behind the tokens' own table.
    """

    rows: Ids
    counts: Ids
    squared: Floats
    projection: float = 0.0


def table_gradients(
    embedding: TokenEmbedding,
    ids: Any,
    *,
    width: int,
    grad_variance: float = 1.0,
    grad_covariance: float = 0.0,
    grad_gram: Any = None,
) -> list[TableGradient]:
    """What a cotangent at an embedded text sends to the tables: the tokens' own, then those of n-grams.

    Args:
        embedding, width: as in `embedded_gram`.
        ids: (tokens,), of one sequence.
        grad_variance, grad_covariance: second moments of the cotangent at block 0, such as `predict` gives.
        grad_gram: (tokens, tokens) second moments of it, in their place.

    Raises:
        ModelError: names the argument, the value and what is allowed.

    Example: what reads a row twice brings it twice as much, if cotangents are independent, and four times if alike.
        >>> plain = TokenEmbedding(10)
        >>> table_gradients(plain, [7, 3, 7], width=8)[0].squared.tolist()
        [8.0, 16.0]
        >>> table_gradients(plain, [7, 3, 7], width=8, grad_covariance=1.0)[0].squared.tolist()
        [8.0, 32.0]
    """
    sequence = embedding.checked(ids)
    if sequence.ndim != 1:
        raise ModelError(f"ids must be of one sequence, (tokens,), got shape {sequence.shape}")
    tokens = len(sequence)
    if grad_gram is None:
        size, common = moment("grad_variance", grad_variance), moment("grad_covariance", grad_covariance)
        gram = (size - common) * np.eye(tokens) + common
    else:
        gram = second_moments("grad_gram", grad_gram, tokens, positive=False)
    own, _ = _weights(embedding, width)
    back = (own / embedding.std**2) * width  # |factor|^2 of the norm too, summed over coordinates
    found = [_reached(sequence, gram, back, 0.0)]
    if embedding.ngrams is not None:
        gain, std, size = embedding.ngrams.gain, embedding.ngrams.std, embedding.ngrams.size(width)
        for rows in _tables(embedding, sequence):
            found.append(_reached(rows, gram, back * gain**2, back * size * std**2))
    return found


def _reached(rows: Ids, gram: Floats, of_rows: float, of_projection: float) -> TableGradient:
    reached, place, counts = np.unique(rows, return_inverse=True, return_counts=True)
    readers = np.equal(place[None, :], np.arange(len(reached))[:, None]).astype(float)
    arrived = np.einsum("ri,ij,rj->r", readers, gram, readers, optimize=True)
    return TableGradient(reached, counts, of_rows * arrived, of_projection * float(arrived.sum()))


def _weights(embedding: TokenEmbedding, width: int) -> tuple[float, float]:
    """Second moments per coordinate of the token's own term and of one n-gram's, scale and norm included."""
    factor = embedding.factor(integer("width", width)) ** 2
    own, shared, count = factor * embedding.std**2, 0.0, 0
    if (ngrams := embedding.ngrams) is not None:
        ngrams.size(width)
        shared, count = factor * ngrams.gain**2 * ngrams.std**2, ngrams.count
    if embedding.norm is not None:
        whole = own + count * shared + embedding.norm.eps
        own, shared = own / whole, shared / whole
    return own, shared


def _sizes(embedding: TokenEmbedding) -> tuple[tuple[int, int], ...]:
    return () if embedding.ngrams is None else embedding.ngrams.sizes


def _tables(embedding: TokenEmbedding, sequence: Ids) -> list[Ids]:
    return [] if embedding.ngrams is None else hashed(embedding.ngrams, embedding.vocabulary, sequence)


def _windows(sequence: Ids, n: int) -> NDArray[Any]:
    """The n-gram that ends at every token, (tokens, n); before the first stands token 0."""
    padded = np.concatenate([np.zeros(n - 1, dtype=sequence.dtype), sequence])
    return np.lib.stride_tricks.sliding_window_view(padded, n)


def _same(rows: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(np.equal(rows[:, None], rows[None, :]), dtype=np.bool_)


def _repeats(read: NDArray[Any]) -> int:
    """Ordered pairs of two tokens that read the same."""
    _, counts = np.unique(read, axis=0, return_counts=True)
    return int((counts * (counts - 1)).sum())
