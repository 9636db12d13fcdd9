"""The modes of a matrix's gradient: where the Gram matrices of its input and of its output's cotangent meet.

For y = x W with Gram matrices K and Gamma per coordinate, the singular values of the gradient x^T g are the roots of
fan_in fan_out lambda, lambda the eigenvalues of C = K^(1/2) Gamma K^(1/2) with eigenvectors v. What the change of W
does to y is told by the size w = v^T K v of the input along each. For exchangeable tokens there are two: the mean over
tokens and, tokens - 1 times, what differs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from propagate.theory.tokens.gram import Array, Gram, centred

RESOLVED = 1e-12  # of the largest eigenvalue: below it lies the rounding of the others
ALIKE = 1e-14  # relative differences of variances that are rounding


class Modes(NamedTuple):
    """Of one use of a matrix, (..., modes).

    Attributes:
        power: lambda, 0 where there is nothing.
        size: w.
        total: (1^T K^(1/2) v)^2, 1 having an entry for each token.
        times: how often each occurs.
        rank: (...,) of the gradient.
        spanned: (..., 2) sums of w and of `total` over all modes whose power is not 0, however small.
    """

    power: Array
    size: Array
    total: Array
    times: Array
    rank: Array
    spanned: Array


def modes(tokens: int, x: Any, g: Any, *, balanced: bool = False) -> Modes:
    """From the second moments of the input and of the cotangent, of either resolution.

    Args:
        tokens: their number.
        x, g: the moments.
        balanced: whether the cotangent sums to zero over tokens.

    Example: the sum of all powers is tr K Gamma, at both resolutions.
        >>> from propagate.theory.pairs.moments import Moments
        >>> two = modes(4, Moments(1.0, 0.5), Moments(2.0, 1.0))
        >>> two.power.tolist(), two.times.tolist(), int(two.rank)
        ([12.5, 0.5], [1, 3], 4)
        >>> four = modes(4, Gram.exchangeable(1.0, 0.5, 4), Gram.exchangeable(2.0, 1.0, 4))
        >>> four.power.round(9).tolist(), four.size.round(9).tolist()
        ([0.5, 0.5, 0.5, 12.5], [0.5, 0.5, 0.5, 2.5])
    """
    if isinstance(x, Gram):
        return _of_grams(x, g, balanced)
    size, arriving = (_of_two(tokens, one) for one in (x, g))
    if balanced:
        arriving[..., 0] = 0.0
    count, there = np.array([1, tokens - 1]), (size > 0) & (arriving > 0)
    held = count * there
    total = tokens * size * [1, 0]
    spanned = np.stack([(held * of).sum(axis=-1) for of in (size, total)], axis=-1)
    return Modes(size * arriving * there, size, total, count, held.sum(axis=-1), spanned)


def _of_two(tokens: int, moments: Any) -> Array:
    """The eigenvalues, tokens times the variance of the mean and the deviation; moments may be arrays."""
    mean, apart = tokens * moments.mean_mode(tokens), np.asarray(moments.deviation, dtype=float)
    return np.stack([mean, apart if tokens > 1 else np.zeros_like(apart)], axis=-1)


def _of_grams(x: Gram, g: Gram, balanced: bool) -> Modes:
    scale = np.sqrt(np.maximum(g.variance, 0.0))
    shape = scale[..., :, None] * scale[..., None, :]
    alike = np.divide(
        without_mean(g.matrix) if balanced else g.matrix, shape, out=np.zeros_like(shape), where=shape > 0
    )
    values, vectors = np.linalg.eigh(alike)
    there = values > RESOLVED * np.maximum(values[..., -1:], RESOLVED)
    root = scale[..., None] * vectors * np.sqrt(np.where(there, values, 0.0))[..., None, :]
    met, read = _meeting(x, root, balanced)
    power, turned = np.linalg.eigh(met)
    resolved = power > RESOLVED * power[..., -1:]
    size, total = (np.divide(of, power, out=np.zeros_like(power), where=resolved) for of in squares(read @ turned, -2))
    full = there.sum(axis=-1) == (scale > 0).sum(axis=-1)
    basis = np.where(
        full[..., None, None],
        (scale > 0)[..., None] * np.eye(scale.shape[-1]),
        scale[..., None] * vectors * there[..., None, :],
    )
    met, read = _meeting(x, basis, balanced)
    spread, turned = np.linalg.eigh(met)
    kept = spread > RESOLVED * spread[..., -1:]
    each = (np.divide(of, spread, out=np.zeros_like(spread), where=kept) for of in squares(read @ turned, -2))
    spanned = np.stack([of.sum(axis=-1) for of in each], axis=-1)
    rank = np.minimum(there.sum(axis=-1), _distinct(x))
    count = np.ones(power.shape[-1], dtype=int)
    return Modes(np.where(resolved, power, 0.0), size, total, count, rank, spanned)


def squares(x: Array, axis: int) -> Array:
    """The sum of squares along an axis, and the square of the sum: of x x^T its trace and the sum of its entries.

    Example:
        >>> squares(np.array([1.0, 2.0]), -1).tolist()
        [5.0, 9.0]
    """
    return np.stack([(x * x).sum(axis=axis), x.sum(axis=axis) ** 2])


def without_mean(matrix: Array) -> Array:
    """Symmetric, and without what sums over tokens have: the rounding of draws in single precision."""
    matrix = (matrix + matrix.swapaxes(-1, -2)) / 2
    less = matrix - matrix.mean(axis=-1, keepdims=True)
    return np.asarray(less - less.mean(axis=-2, keepdims=True))


def _meeting(x: Gram, root: Array, balanced: bool) -> tuple[Array, Array]:
    """root^T K root and K root; of a root whose columns sum to zero, from the distances alone."""
    if not balanced:
        read = x.matrix @ root
        return root.swapaxes(-1, -2) @ read, read
    root = root - root.mean(axis=-2, keepdims=True)
    apart = -x.deviation @ root
    return root.swapaxes(-1, -2) @ apart, apart + uneven(x)[..., None, :] @ root / 2


def uneven(x: Gram) -> Array:
    """(..., tokens): variances less their mean, but for rounding."""
    variance = x.variance
    less = variance - variance.mean(axis=-1, keepdims=True)
    return np.asarray(np.where(np.abs(less) > ALIKE * variance, less, 0.0))


def _distinct(x: Gram) -> Array:
    """The rank of K: one more than that of the differences between tokens, however small."""
    largest = x.deviation.max(axis=(-1, -2), keepdims=True)
    values = np.linalg.eigvalsh(centred(x.deviation / np.where(largest > 0, largest, 1.0)))
    of_differences = (values > RESOLVED).sum(axis=-1)
    return np.asarray(np.minimum(of_differences + 1, x.matrix.shape[-1]))
