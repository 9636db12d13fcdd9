"""Second moments of tokens that are not exchangeable: a (tokens, tokens) matrix in place of a pair of numbers.

Beside the matrix G itself, half the mean squared distances D_ts = (G_tt + G_ss) / 2 - G_ts are carried along, each by
its own formula. D can become as small as it likes next to G (rank collapse), and so can an entry of G next to the
others (gradients under a causal mask): neither is ever got from the other by subtraction. For exchangeable tokens D is
the `deviation` of `Moments`.

What is left of rounding: distances are followed down to about 1e-30 of the variances, where tokens have different
variances before a norm (the square of a difference of variances), and relative to the largest distance elsewhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from propagate.theory.gaussian.functions import inverse

Array = NDArray[np.float64]


class Gram(NamedTuple):
    """Second moments per coordinate of every pair of tokens. Any leading axes are independent evaluations.

    Attributes:
        matrix: (..., tokens, tokens), E x_t x_s.
        deviation: the same shape, E (x_t - x_s)^2 / 2.

    Example:
        >>> gram = Gram.of([[1.0, 0.5], [0.5, 4.0]])
        >>> gram.deviation.tolist()
        [[0.0, 2.0], [2.0, 0.0]]
        >>> gram.times(gram.norm_scale()).matrix.tolist()
        [[1.0, 0.25], [0.25, 1.0]]
    """

    matrix: Array
    deviation: Array

    @classmethod
    def of(cls, matrix: Any) -> Gram:
        """From the matrix alone."""
        dense = np.asarray(matrix, dtype=float)
        return cls(dense, distances(dense))

    @classmethod
    def exchangeable(cls, variance: float, deviation: float, tokens: int) -> Gram:
        """Of tokens that all have this variance, and each pair this deviation.

        Example:
            >>> Gram.exchangeable(1.0, 1e-20, 2).deviation.tolist()
            [[0.0, 1e-20], [1e-20, 0.0]]
        """
        apart = deviation * (1 - np.eye(tokens))
        return cls(variance - apart, apart)

    @property
    def variance(self) -> Array:
        """(..., tokens): E x_t^2."""
        return np.diagonal(self.matrix, axis1=-2, axis2=-1)

    def plus(self, other: Gram) -> Gram:
        """Of the sum with an uncorrelated stream."""
        return Gram(self.matrix + other.matrix, self.deviation + other.deviation)

    def scaled(self, left: Any, right: Any) -> Gram:
        """Of tokens times `left` with tokens times `right`, each a number or one for every token.

        The distances of l_t x_t and r_t x_t' follow from l_t r_s D_ts and the differences of the factors alone.
        """
        if not (np.ndim(left) or np.ndim(right)):
            return self.weighted(left * right)
        weight = np.asarray(_rows(left) * _columns(right))
        apart = weight * self.deviation
        a, b, v = np.broadcast_arrays(left, right, self.variance)
        if left is right:  # the same sum, in fewer steps
            unequal = _differences(a / 2)
            unequal *= _differences(a * v)
            apart += unequal
        else:
            apart += ((a * v)[..., :, None] * _differences(b) - (b * v)[..., None, :] * _differences(a)) / 2
        return Gram(np.multiply(weight, self.matrix, out=weight if weight.shape == apart.shape else None), apart)

    def times(self, coefficient: Any) -> Gram:
        """Of the stream times a number, or each token times its own."""
        return (
            self.scaled(coefficient, coefficient) if np.ndim(coefficient) else self.weighted(coefficient * coefficient)
        )

    def weighted(self, weight: float) -> Gram:
        """All second moments times a number."""
        if weight == 1.0:
            return self
        return Gram(weight * self.matrix, weight * self.deviation)

    def less(self, part: Gram) -> Gram:
        """Of what is left when a part, uncorrelated with the rest, is taken away."""
        return Gram(self.matrix - part.matrix, self.deviation - part.deviation)

    def product(self, other: Gram) -> Gram:
        """Of the product of two independent streams, coordinate by coordinate.

        Example:
            >>> Gram.of([[1.0, 0.5], [0.5, 1.0]]).product(Gram.of([[2.0, 1.0], [1.0, 2.0]])).deviation.tolist()
            [[0.0, 1.5], [1.5, 0.0]]
        """
        v, w = self.variance, other.variance
        apart, part = means(v), means(w)
        apart -= self.deviation
        apart *= other.deviation
        part *= self.deviation
        apart += part
        unequal = _differences(v / 4)
        unequal *= _differences(w)
        apart += unequal
        return Gram(self.matrix * other.matrix, apart)

    def unshared(self) -> Gram:
        """Of a stream whose tokens have these variances and are uncorrelated."""
        apart = 1 - np.eye(self.matrix.shape[-1])
        return Gram(self.matrix * (1 - apart), means(self.variance) * apart)

    def entries(self) -> Entries:
        """Without the distances."""
        return Entries(self.matrix)

    def norm_scale(self, eps: float = 0.0) -> Array:
        """What a norm multiplies each token by. ZeroDivisionError where a token is 0."""
        return np.asarray(np.sqrt(inverse(self.variance + eps)))

    def std(self) -> Array:
        """(..., 1): root mean square over tokens and coordinates."""
        return np.asarray(np.sqrt(self.variance.mean(axis=-1, keepdims=True)))

    def loss_of_correlation(self) -> Array:
        """1 - correlation of each pair, without cancellation; 0 where a token is zero."""
        size = np.sqrt(self.variance)
        apart, scale = _differences(size), size[..., :, None] * size[..., None, :]
        apart *= apart
        apart /= -2
        apart += self.deviation
        if size.min(initial=1.0) > 0:
            apart /= scale
        else:
            apart = np.divide(apart, scale, out=np.zeros_like(apart), where=scale > 0)
        return np.asarray(np.clip(apart, 0.0, 2.0, out=apart))


class Entries(NamedTuple):
    """The matrix alone, where differences of its entries do not matter.

    Example:
        >>> Entries(np.ones((2, 2))).scaled(np.array([1.0, 2.0]), 3.0).matrix.tolist()
        [[3.0, 3.0], [6.0, 6.0]]
    """

    matrix: Array

    @property
    def variance(self) -> Array:
        """(..., tokens): E x_t^2."""
        return np.diagonal(self.matrix, axis1=-2, axis2=-1)

    def plus(self, other: Entries) -> Entries:
        """Of the sum with an uncorrelated stream."""
        return Entries(self.matrix + other.matrix)

    def scaled(self, left: Any, right: Any) -> Entries:
        """Of tokens times `left` with tokens times `right`, each a number or one for every token."""
        return Entries(_rows(left) * _columns(right) * self.matrix)

    def product(self, other: Entries) -> Entries:
        """Of the product of two independent streams, coordinate by coordinate."""
        return Entries(self.matrix * other.matrix)

    def swapped(self) -> Entries:
        """Of two streams jointly, in the other order."""
        return Entries(self.matrix.swapaxes(-1, -2))


def distances(matrix: Array) -> Array:
    """(G_tt + G_ss) / 2 - G_ts.

    Example:
        >>> distances(np.array([[1.0, 0.0], [0.0, 3.0]])).tolist()
        [[0.0, 2.0], [2.0, 0.0]]
    """
    return np.asarray(means(np.diagonal(matrix, axis1=-2, axis2=-1)) - matrix)


def centred(deviation: Array) -> Array:
    """Gram matrix of the tokens less their mean, from the distances.

    Example:
        >>> centred(np.array([[0.0, 2.0], [2.0, 0.0]])).tolist()
        [[1.0, -1.0], [-1.0, 1.0]]
    """
    rows = deviation.mean(axis=-1, keepdims=True)
    return np.asarray(rows + rows.swapaxes(-1, -2) - deviation - rows.mean(axis=-2, keepdims=True))


def means(v: Array) -> Array:
    """Of each pair of a vector's entries."""
    half = v / 2
    return np.asarray(half[..., :, None] + half[..., None, :])


def _differences(v: Array) -> Array:
    return np.asarray(v[..., :, None] - v[..., None, :])


def _rows(factor: Any) -> Any:
    return factor[..., :, None] if np.ndim(factor) else factor


def _columns(factor: Any) -> Any:
    return factor[..., None, :] if np.ndim(factor) else factor
