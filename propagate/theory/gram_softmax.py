"""Attention weights of tokens with any Gram matrix, under any mask, in heads of any size.

A head of n coordinates has queries R Y and keys S Z, R R^T and S S^T their expected Gram matrices, Y and Z of
tokens x n independent standard normals; logits are sqrt(tau / n) R Y Z^T S^T. In wide heads Y Z^T / sqrt(n) becomes a
matrix of independent standard normals, logits are jointly Gaussian, and the Gram matrices of queries and keys are the
expected ones. A softmax over a row ignores what all its logits share, so the keys' root is taken of the centred Gram
matrix, made from the distances: spreads stay exact when tokens collapse onto one another.

Not Y and Z are drawn but what is needed of them, Y Z^T, Y Y^T and Z Z^T, which takes no more numbers in large heads
than in small ones: Y = L U with L lower triangular (Bartlett) and U of orthonormal rows, so that Z U^T is again
standard normal, and Z Z^T is what it gives plus a Wishart matrix of the degrees of freedom that are left.

With rotary positions of frequencies theta_i the covariance is multiplied by mean_i cos(((t - t') - (s - s')) theta_i).
That is a positive-definite function of t - s, a sum of a few separable terms, each of which is drawn as above. What
all keys share no longer drops out. Here such heads are wide; those of a finite size are drawn in `drawn_heads`.

Nothing here has a width: only tokens x tokens matrices are drawn. Samples come in pairs l and -l, in `REPLICAS`
independent groups, each of which is carried through the network by itself; their spread is the theory's own standard
error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from propagate.model import ModelError
from propagate.theory.gram import Array, Gram, distances
from propagate.theory.softmax import LARGEST_SPREAD

REPLICAS = 8
SEED = 20_260_731
ROWS = 2**13  # attention rows drawn a sublayer, all replicas together, if the user does not say
NEGLIGIBLE = 1e-7  # share of the rotary kernel's trace


@dataclass(frozen=True)
class Attention:
    """What a softmax attention is, apart from its weights.

    Attributes:
        visible: for each token a tuple, which tokens it attends to.
        logit_variance: of a logit between unit-variance, uncorrelated tokens.
        frequencies: of rotary positions, in radians a token; empty without.
        samples: draws of the logits, a multiple of 2 `REPLICAS`.
        seed: numbers that name this call, so that each call has draws of its own and every run the same ones.
        head_size: coordinates of a head.

    Example:
        >>> Attention(((True, False), (True, True)), 0.0, (), 16, (1, 0)).exact
        True
    """

    visible: tuple[tuple[bool, ...], ...]
    logit_variance: float
    frequencies: tuple[float, ...]
    samples: int
    seed: tuple[int, ...]
    head_size: float = math.inf

    @property
    def mask(self) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
        return np.array(self.visible)

    @property
    def exact(self) -> bool:
        """Whether the weights are not random: uniform, or a single token to attend to."""
        return self.logit_variance == 0 or bool((self.mask.sum(axis=1) == 1).all())


def default_samples(tokens: int) -> int:
    """So many that all sequence lengths draw about the same number of rows.

    Example:
        >>> default_samples(32), default_samples(128)
        (256, 64)
    """
    unit = 2 * REPLICAS
    return max(4 * unit, ROWS // tokens // unit * unit)


class Heads(NamedTuple):
    """Drawn heads.

    Attributes:
        weights: of attention, (replicas, tokens, samples, tokens); rows sum to 1.
        query: second moments of the queries over their coordinates, (replicas, samples, tokens, tokens), or with one
            sample where they do not vary.
        key: half mean squared distances of the keys, likewise.
    """

    weights: Array
    query: Array
    key: Array


def heads(query: Gram, key: Gram, attention: Attention) -> Heads:
    """Heads with these expected second moments of queries and keys.

    Raises:
        ModelError: for logits of a standard deviation above `LARGEST_SPREAD`.

    Example:
        >>> attention = Attention(((True, False), (True, True)), 0.0, (), 16, (1, 0))
        >>> tokens = Gram.of(np.eye(2)[None])
        >>> heads(tokens, tokens, attention).weights[0, :, 0].tolist()
        [[1.0, 0.0], [0.5, 0.5]]
    """
    mask = attention.mask
    expected = query.matrix[:, None], key.deviation[:, None]
    if attention.exact:
        uniform = mask / mask.sum(axis=1, keepdims=True)
        shape = (len(query.matrix), len(mask), 1, len(mask))
        return Heads(np.broadcast_to(uniform[None, :, None, :], shape), *expected)
    if attention.frequencies or attention.head_size == math.inf:
        logits, moments = _logits(query, key, attention), expected
    else:
        logits, moments = _finite(query, key, attention)
    logits = np.where(mask[:, None, :], logits, -np.inf)
    logits -= logits.max(axis=-1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=-1, keepdims=True)
    return Heads(logits, *moments)


def _key_root(query: Gram, key: Gram, attention: Attention) -> Array:
    """Root of the keys' part that the softmax sees; ModelError if the logits are too widely spread."""
    tokens = key.matrix.shape[-1]
    keys = root(key.matrix if attention.frequencies else _centred(key.deviation))
    spread = float((attention.logit_variance * query.variance.max(-1) * (keys**2).sum((-1, -2)) / tokens).max())
    if not spread <= LARGEST_SPREAD**2:
        raise ModelError(
            f"attention's logits reach a standard deviation of {np.sqrt(spread):.3g}; the theory covers up to"
            f" {LARGEST_SPREAD:g} (lower logit_std, or the variance that enters)"
        )
    return keys


def _finite(query: Gram, key: Gram, attention: Attention) -> tuple[Array, tuple[Array, Array]]:
    """Logits, second moments of the queries and distances of the keys, of heads of a finite size."""
    (replicas, tokens), size = query.matrix.shape[:2], int(attention.head_size)
    draw = np.random.default_rng([SEED, *attention.seed])
    shape = (replicas, attention.samples // replicas // 2, tokens)
    shared = min(size, tokens)
    queries = root(query.matrix)[:, None] @ _normals(draw, shape, size)
    within = draw.standard_normal((*shape, shared))
    moments = within @ within.swapaxes(-1, -2)
    if size > shared:
        rest = _normals(draw, shape, size - shared)
        moments += rest @ rest.swapaxes(-1, -2)
    keys = _key_root(query, key, attention)[:, None]
    half = (attention.logit_variance / size) ** 0.5 * queries @ (keys @ within).swapaxes(-1, -2)
    both = np.concatenate([half, -half], axis=1).swapaxes(1, 2)
    of_queries, of_keys = queries @ queries.swapaxes(-1, -2) / size, distances(keys @ moments @ keys / size)
    return both, (np.concatenate([of_queries] * 2, axis=1), np.concatenate([of_keys] * 2, axis=1))


def _normals(draw: np.random.Generator, shape: tuple[int, ...], columns: int) -> Array:
    """Standard normals of so many columns, times an orthogonal matrix that leaves no more columns than rows."""
    rows = shape[-1]
    if columns < rows:
        return draw.standard_normal((*shape, columns))
    lower = np.tril(draw.standard_normal((*shape, rows)), -1)
    diagonal = np.arange(rows)
    lower[..., diagonal, diagonal] = np.sqrt(draw.chisquare(columns - diagonal, shape))
    return lower


def _logits(query: Gram, key: Gram, attention: Attention) -> Array:
    """Of wide heads."""
    replicas, tokens = query.matrix.shape[:2]
    pairs = attention.samples // replicas // 2
    keys = _key_root(query, key, attention)
    draw = np.random.default_rng([SEED, *attention.seed])
    queries = root(query.matrix)

    def gaussian() -> Array:
        normals = draw.standard_normal((replicas, tokens * pairs, tokens))
        mixed = (normals @ keys.swapaxes(-1, -2)).reshape(replicas, tokens, pairs * tokens)
        return (queries @ mixed).reshape(replicas, tokens, pairs, tokens)

    if attention.frequencies:
        half = np.zeros((replicas, tokens, pairs, tokens))
        for profile in rotary_profiles(attention.frequencies, tokens):
            half += profile[:, None, :] * gaussian()
    else:
        half = gaussian()
    half *= attention.logit_variance**0.5
    return np.concatenate([half, -half], axis=2)


@lru_cache(maxsize=16)
def rotary_profiles(frequencies: tuple[float, ...], tokens: int) -> Array:
    """Matrices f_r(t - s) with sum_r f_r(t - s) f_r(t' - s') = mean_i cos(((t - s) - (t' - s')) theta_i).

    Example: a frequency of 0 turns nothing.
        >>> rotary_profiles((0.0,), 2).round(12).tolist()
        [[[1.0, 1.0], [1.0, 1.0]]]
    """
    shift = np.arange(1 - tokens, tokens)
    kernel = np.cos((shift[:, None, None] - shift[None, :, None]) * np.array(frequencies)).mean(axis=-1)
    values, vectors = np.linalg.eigh(kernel)
    kept = values > NEGLIGIBLE * values.sum()
    profiles = (vectors[:, kept] * np.sqrt(values[kept])).T[::-1]
    profiles = profiles * np.where(profiles[:, :1] < 0, -1.0, 1.0)  # the same sign from every solver
    lag = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    return np.asarray(profiles[:, lag + tokens - 1])


def turns(attention: Attention, groups: int, replicas: int) -> Iterator[tuple[Array, Array]]:
    """cos and sin of the rotary angle between two tokens, (replicas, tokens, tokens), for each group of draws.

    Every group serves one frequency, drawn without repetition: fewer groups than frequencies leave no bias.

    Example:
        >>> cos, sin = next(turns(Attention(((True,),), 1.0, (0.5,), 16, (1, 0)), groups=1, replicas=2))
        >>> cos.tolist(), sin.tolist()
        ([[[1.0]], [[1.0]]], [[[0.0]], [[0.0]]])
    """
    tokens, frequencies = len(attention.visible), np.array(attention.frequencies)
    lag = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    draw = np.random.default_rng([SEED + 1, *attention.seed])
    order = np.array([draw.permutation(len(frequencies))[:groups] for _ in range(replicas)])
    for chosen in order.T:
        angle = frequencies[chosen][:, None, None] * lag
        yield np.cos(angle), np.sin(angle)


def _centred(deviation: Array) -> Array:
    """The Gram matrix of the tokens less their mean."""
    rows = deviation.mean(axis=-1, keepdims=True)
    return np.asarray(rows + rows.swapaxes(-1, -2) - deviation - rows.mean(axis=-2, keepdims=True))


def root(matrix: Array) -> Array:
    """Symmetric root of a positive semi-definite matrix: the one root that no convention of a solver enters.

    Example:
        >>> root(np.diag([4.0, 9.0])).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    values, vectors = np.linalg.eigh(matrix)
    roots = np.sqrt(np.maximum(values, 0.0))[..., None, :]
    return np.asarray((vectors * roots) @ vectors.swapaxes(-1, -2))
