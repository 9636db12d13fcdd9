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
error. Most of it comes from what all tokens do together: how much their mean query, of length |y|, looks towards each
key. Y is therefore drawn with the mean of the tokens as its first row, L's first row being (|y|, 0, ..., 0); and |y|
and that row's products with the keys are stratified over a group's pairs of samples: one in each quantile.

A softmax's weights are the uniform ones, exact, and what they are in excess of those. The excess is single precision:
its rounding, 1e-7 of itself, lies far below the sampling error, and it is made without cancellation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtri

from propagate.model import ModelError
from propagate.theory.gaussian.roots import symmetric_root
from propagate.theory.gaussian.softmax import LARGEST_SPREAD
from propagate.theory.tokens.gram import Array, Gram, centred
from propagate.theory.tokens.triangular import Ends, blocks, ends_of

Single = NDArray[np.float32]

REPLICAS = 8
SEED = 20_260_731
ROWS = 2**13  # attention rows drawn a sublayer, all replicas together, if the user does not say
NEGLIGIBLE = 1e-7  # share of the rotary kernel's trace
_RIDGE = 1e-13  # of the largest variance: what rounding may make negative
_SMALL = 0.02  # logits below which a few terms of the exponential series are exact to single precision
_LARGE = 40.0  # logits whose exponentials, and their sums, are within single precision


@dataclass(frozen=True)
class Attention:
    """What a softmax attention is, apart from its weights.

    Attributes:
        visible: which token, the row, attends to which, (tokens, tokens).
        logit_variance: of a logit between unit-variance, uncorrelated tokens.
        frequencies: of rotary positions, in radians a token; empty without.
        samples: draws of the logits in each replica, an even number.
        seed: numbers that name this call, so that each call has draws of its own and every run the same ones.
        head_size: coordinates of a head.

    Example:
        >>> Attention(((True, False), (True, True)), 0.0, (), 2, (1, 0)).exact
        True
    """

    visible: Any
    logit_variance: float
    frequencies: tuple[float, ...]
    samples: int
    seed: tuple[int, ...]
    head_size: float = math.inf

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        return np.asarray(self.visible)

    @property
    def exact(self) -> bool:
        """Whether the weights are not random: uniform, or a single token to attend to."""
        return self.logit_variance == 0 or bool((self.mask.sum(axis=1) == 1).all())


def default_samples(tokens: int) -> int:
    """So many, in all replicas together, that all sequence lengths draw about the same number of rows.

    Example:
        >>> default_samples(32), default_samples(128)
        (256, 64)
    """
    unit = 2 * REPLICAS
    return max(4 * unit, ROWS // tokens // unit * unit)


class Heads(NamedTuple):
    """Drawn heads.

    Attributes:
        uniform: weights of equal logits, (tokens, tokens); rows sum to 1.
        excess: what the drawn weights are more, (replicas, samples, tokens, tokens); rows sum to 0. The first half of
            the samples has one of each pair.
        moments: second moments over a head's coordinates of the queries and of the keys (less their mean, without
            rotary positions), each (replicas, samples, tokens, tokens): of the first half of the samples, or with one
            sample where they do not vary.
    """

    uniform: Array
    excess: NDArray[Any]
    moments: Callable[[], tuple[NDArray[Any], NDArray[Any]]]

    @property
    def ends(self) -> Ends:
        """Of blocks of tokens that see no later block."""
        return ends_of(self.uniform)


def heads(query: Gram, key: Gram, attention: Attention) -> Heads:
    """Heads with these expected second moments of queries and keys.

    Raises:
        ModelError: for logits of a standard deviation above `LARGEST_SPREAD`.

    Example:
        >>> attention = Attention(((True, False), (True, True)), 0.0, (), 2, (1, 0))
        >>> tokens = Gram.of(np.eye(2)[None])
        >>> heads(tokens, tokens, attention).uniform.tolist()
        [[1.0, 0.0], [0.5, 0.5]]
    """
    mask = attention.mask
    uniform = mask / mask.sum(axis=1, keepdims=True)
    of_keys = key.matrix if attention.frequencies else centred(key.deviation)
    replicas, tokens = query.matrix.shape[:2]
    if attention.exact:
        none = np.zeros((replicas, 1, tokens, tokens), dtype=np.float32)
        return Heads(uniform, none, lambda: (query.matrix[:, None], of_keys[:, None]))
    _check_spread(query, of_keys, attention)
    drawn = _wide if attention.frequencies or attention.head_size == math.inf else _finite
    half, moments = drawn(query.matrix, of_keys, attention)
    return Heads(uniform, excess(half, uniform), moments)


def excess(half: NDArray[Any], uniform: Array) -> NDArray[Any]:
    """What softmax weights of logits, and then of their opposites, are more than the uniform ones.

    Args:
        half: (..., pairs, tokens, tokens); what is said of tokens that are not seen does not matter.
        uniform: (tokens, tokens), 0 where a token is not seen.

    Example: of nearly equal logits, which a softmax less 1/2 would lose in single precision.
        >>> half = np.array([[[0.0, 4e-9], [0.0, 2e-9]]], dtype=np.float32)
        >>> [float(f"{x:.5g}") for x in excess(half, np.full((2, 2), 0.5))[0, :, 1]]
        [1e-09, 5e-10]
    """
    *leading, pairs, tokens, _ = half.shape
    found = np.zeros((*leading, 2 * pairs, tokens, tokens), dtype=half.dtype)
    for start, end in blocks(ends_of(uniform)):
        of_rows = found[..., start:end, :end]
        _excess(half[..., start:end, :end], uniform[start:end, :end].astype(half.dtype), of_rows)
    return found


def _excess(half: NDArray[Any], shares: NDArray[Any], found: NDArray[Any]) -> None:
    """`excess` of some rows, into `found`."""
    pairs = half.shape[-3]
    one, opposite, seen = found[..., :pairs, :, :], found[..., pairs:, :, :], (shares > 0).astype(half.dtype)
    largest = max(float(half.max()), -float(half.min()))
    if largest < _SMALL:  # exp - 1 of logits less their mean
        for part, logits in ((one, half), (opposite, -half)):
            np.multiply(logits, 1 + logits * (1 / 2 + logits * (1 / 6 + logits / 24)), out=part)
        mean = (found * shares).sum(axis=-1, keepdims=True)
        found -= mean
        found *= shares
        found /= 1 + mean
        return
    if largest < _LARGE:
        np.exp(half, out=one)
        np.divide(1, one, out=opposite)
    else:
        for part, logits in ((one, half), (opposite, -half)):
            visible = np.where(shares > 0, logits, -np.inf)
            np.exp(visible - visible.max(axis=-1, keepdims=True), out=part)
    found *= seen
    found /= found.sum(axis=-1, keepdims=True)
    found -= shares


def _check_spread(query: Gram, of_keys: Array, attention: Attention) -> None:
    """ModelError if the logits are too widely spread."""
    powers = np.trace(of_keys, axis1=-2, axis2=-1) / of_keys.shape[-1]
    spread = float((attention.logit_variance * query.variance.max(-1) * powers).max())
    if not spread <= LARGEST_SPREAD**2:
        raise ModelError(
            f"attention's logits reach a standard deviation of {np.sqrt(spread):.3g}; the theory covers up to"
            f" {LARGEST_SPREAD:g} (lower logit_std, or the variance that enters)"
        )


def _finite(query: Array, key: Array, attention: Attention) -> tuple[Single, Any]:
    """Logits (replicas, pairs, tokens, tokens) of heads of a finite size, and their moments."""
    (replicas, tokens), size = query.shape[:2], int(attention.head_size)
    draw, pairs = np.random.default_rng([SEED, *attention.seed]), attention.samples // 2
    shared = min(size, tokens)
    directions = _normals(draw, (replicas, pairs, tokens, shared))
    directions[..., 0] = _stratified(draw, (replicas, pairs, tokens))
    lower = lower_normals(draw, (replicas, pairs, tokens), size)
    lengths = 2 * gammaincinv(size / 2, _quantiles(draw, (replicas, pairs)))
    lower[..., 0, 0] = np.sqrt(lengths)
    queries = _of_mean_first(query)[:, None] @ lower * np.float32(size**-0.5)
    to_keys = factor(key).astype(np.float32)[:, None]
    keys = to_keys @ directions
    half = (np.float32(attention.logit_variance**0.5) * queries) @ keys.swapaxes(-1, -2)

    def moments() -> tuple[Single, Single]:
        of_keys = keys @ keys.swapaxes(-1, -2)
        if size > shared:
            more = np.random.default_rng([SEED + 4, *attention.seed])
            rest = to_keys @ lower_normals(more, (replicas, pairs, tokens), size - shared)
            of_keys += rest @ rest.swapaxes(-1, -2)
        return np.asarray(queries @ queries.swapaxes(-1, -2)), np.asarray(of_keys / np.float32(size), np.float32)

    return half, moments


def _wide(query: Array, key: Array, attention: Attention) -> tuple[Single, Any]:
    """The same of wide heads, whose moments do not vary."""
    (replicas, tokens), pairs = query.shape[:2], attention.samples // 2
    draw = np.random.default_rng([SEED, *attention.seed])
    queries, keys = _of_mean_first(query), factor(key).astype(np.float32)

    def gaussian() -> Single:
        normals = _normals(draw, (replicas, tokens, pairs, tokens))
        normals[:, 0] = _stratified(draw, (replicas, pairs, tokens))
        return np.asarray(queries[:, None] @ normals.swapaxes(1, 2) @ keys[:, None].swapaxes(-1, -2))

    if attention.frequencies:
        half = np.zeros((replicas, pairs, tokens, tokens), dtype=np.float32)
        for profile in rotary_profiles(attention.frequencies, tokens):
            half += profile.astype(np.float32) * gaussian()
    else:
        half = gaussian()
    half *= attention.logit_variance**0.5
    return half, lambda: (query[:, None], key[:, None])


def _normals(draw: np.random.Generator, shape: tuple[int, ...]) -> Single:
    return draw.standard_normal(shape, dtype=np.float32)


def lower_normals(draw: np.random.Generator, shape: tuple[int, ...], columns: int) -> Single:
    """Standard normals of so many columns, times an orthogonal matrix that leaves no more columns than rows."""
    rows = shape[-1]
    kept = np.arange(min(rows, columns))
    lower = np.tril(_normals(draw, (*shape, len(kept))), -1)
    lower[..., kept, kept] = np.sqrt(draw.chisquare(columns - kept, (*shape[:-1], len(kept))))
    return lower


def _quantiles(draw: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Uniform on (0, 1), one in each of so many equal parts as there are samples, along axis 1."""
    order = np.argsort(draw.random(shape), axis=1)
    return np.asarray((order + draw.uniform(1e-12, 1.0, shape)) / shape[1])


def _stratified(draw: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Standard normals whose sizes have one of each quantile along axis 1."""
    signs = np.where(draw.random(shape) < 0.5, -1.0, 1.0)
    return np.asarray(signs * ndtri(0.5 + _quantiles(draw, shape) / 2))


def _of_mean_first(matrix: Array) -> Single:
    """R with R R^T = matrix, whose first column is what the mean of the tokens has a share in, and no other.

    That is a reflection times the lower-triangular factor of the reflected matrix.
    """
    tokens = matrix.shape[-1]
    axis = np.full(tokens, -(tokens**-0.5))
    axis[0] += 1
    axis *= math.sqrt(2 / length) if (length := float(axis @ axis)) > 0 else 0.0
    half = matrix - axis[:, None] * (axis @ matrix)[..., None, :]
    lower = factor(half - (half @ axis)[..., None] * axis)
    return np.asarray(lower - axis[:, None] * (axis @ lower)[..., None, :], dtype=np.float32)


def factor(matrix: Array) -> Array:
    """L with L L^T = matrix, positive semi-definite: lower triangular, as no convention of a solver enters.

    Example:
        >>> factor(np.array([[4.0, 2.0], [2.0, 1.0]])).round(5).tolist()
        [[2.0, 0.0], [1.0, 0.0]]
    """
    scale = np.diagonal(matrix, axis1=-2, axis2=-1).max(axis=-1)[..., None, None]
    ridge = _RIDGE * np.eye(matrix.shape[-1])
    try:
        return np.asarray(np.linalg.cholesky(matrix / np.where(scale > 0, scale, 1.0) + ridge) * np.sqrt(scale))
    except np.linalg.LinAlgError:
        return symmetric_root(matrix)


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
        >>> cos, sin = next(turns(Attention(((True,),), 1.0, (0.5,), 2, (1, 0)), groups=1, replicas=2))
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
