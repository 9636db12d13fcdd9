"""E tanh x_t tanh x_s and E tanh'(x_t) tanh'(x_s) as functions of a Gram matrix, to second order, in closed form.

By the representation of `tanh_pairs` each is an average over two scales of an elementary function of x = E x_t^2 + K^2,
y = E x_s^2 + K'^2 and a = E x_t x_s. A token with itself is a pair whose three entries are one.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from propagate.theory.finite.perturbation import Array
from propagate.theory.tokens.tanh_pairs import scales

NEGLIGIBLE = 1e-12  # weight of a pair of scales


class Expansion(NamedTuple):
    """A matrix of averages over pairs of tokens, about a Gram matrix.

    Attributes:
        value: (tokens, tokens).
        gradient: by E x_t^2, E x_s^2 and E x_t x_s, (3, tokens, tokens).
        hessian: likewise, (3, 3, tokens, tokens).
    """

    value: Array
    gradient: Array
    hessian: Array

    def at(self, moved: Array) -> Array:
        """The averages where the entries are larger by `moved`, (3, ..., tokens, tokens)."""
        curved = np.einsum("i...ts,ijts,j...ts->...ts", moved, self.hessian, moved)
        return np.asarray(self.value + np.einsum("i...ts,its->...ts", moved, self.gradient) + curved / 2)

    def slopes(self, moved: Array) -> Array:
        """The gradient there, to first order: (3, ..., tokens, tokens)."""
        gradient = self.gradient.reshape(3, *(1,) * (moved.ndim - 3), *self.value.shape)
        return np.asarray(gradient + np.einsum("ijts,j...ts->i...ts", self.hessian, moved))

    def of_sample(self, gram: Array) -> Array:
        """Times the width: by how much the mean over coordinates of a frame with this very Gram matrix is off.

        That of Gaussian coordinates is the average; part of it is how much their Gram matrix fluctuates.
        """
        s, t, a = entries(gram)
        covariance = np.array([[2 * s * s, 2 * a * a, 2 * s * a], [2 * a * a, 2 * t * t, 2 * t * a]])
        covariance = np.concatenate([covariance, np.array([[2 * s * a, 2 * t * a, s * t + a * a]])])
        return np.asarray(-(self.hessian * covariance).sum(axis=(0, 1)) / 2)


def entries(gram: Array) -> Array:
    """What a pair of tokens depends on: both variances and the covariance, (3, ..., tokens, tokens).

    Example:
        >>> entries(np.array([[1.0, 0.5], [0.5, 2.0]]))[:, 0, 1].tolist()
        [1.0, 2.0, 0.5]
    """
    variance, like = np.diagonal(gram, axis1=-2, axis2=-1), np.zeros_like(gram)
    return np.stack([like + variance[..., :, None], like + variance[..., None, :], gram])


def tanh_expansions(gram: Array) -> tuple[Expansion, Expansion]:
    """Of tanh and of its slope.

    Example:
        >>> value, slope = tanh_expansions(np.array([[1.0, 0.3], [0.3, 1.0]]))
        >>> moved = tanh_expansions(np.array([[1.02, 0.29], [0.29, 1.02]]))[0].value
        >>> bool(abs(value.at(entries(np.array([[0.02, -0.01], [-0.01, 0.02]]))) - moved).max() < 1e-6)
        True
        >>> bool(abs(value.gradient[2] - slope.value).max() < 1e-12)  # Price's theorem
        True
    """
    distinct, where = np.unique(entries(gram).reshape(3, -1), axis=1, return_inverse=True)
    found = (_averages(tuple(map(tuple, distinct.tolist()))) + np.zeros(1))[..., where.ravel()]
    shape = gram.shape
    values, slopes = (
        Expansion(part[0].reshape(shape), part[1:4].reshape(3, *shape), part[4:][SYMMETRIC].reshape(3, 3, *shape))
        for part in found
    )
    return values, slopes


SYMMETRIC = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])  # where a Hessian's entries stand


@lru_cache(maxsize=64)
def _averages(pairs: tuple[tuple[float, ...], ...]) -> Array:
    """Of both functions the value, three first and six second derivatives: (2, 10, pairs)."""
    squares, weights = scales()
    both = np.multiply.outer(weights, weights).ravel()
    kept = both > NEGLIGIBLE
    one, other = (np.repeat(squares, len(squares))[kept], np.tile(squares, len(squares))[kept])
    s, t, a = (np.array(part) for part in pairs)
    x, y = s + one[:, None], t + other[:, None]
    p = x * y - a * a
    r1, r3, r5 = p**-0.5, p**-1.5, p**-2.5
    value = [np.arcsin(a / np.sqrt(x * y)), -a / (2 * x) * r1, -a / (2 * y) * r1, r1]
    value += [a / (2 * x * x) * r1 + a * y / (4 * x) * r3, a / 4 * r3, -y / 2 * r3]
    value += [a / (2 * y * y) * r1 + a * x / (4 * y) * r3, -x / 2 * r3, a * r3]
    slope = [r1, -y / 2 * r3, -x / 2 * r3, a * r3]
    slope += [3 / 4 * y * y * r5, 3 / 4 * x * y * r5 - r3 / 2, -3 / 2 * a * y * r5]
    slope += [3 / 4 * x * x * r5, -3 / 2 * a * x * r5, r3 + 3 * a * a * r5]
    return np.asarray(2 / math.pi * np.array([[both[kept] @ part for part in parts] for parts in (value, slope)]))
