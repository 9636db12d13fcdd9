"""Averages of tanh and its derivatives over two Gaussians of any variances, in closed form but for a few nodes.

(1 + tanh u) / 2 is the distribution function of K Z with Z normal and K of Kolmogorov's distribution (Andrews and
Mallows 1974): a logistic variable is a normal one of random scale. So tanh u = E erf(u / sqrt(2) K), and with A = K^2 +
E u^2, B = K'^2 + E v^2 for two independent scales and D = A B - (E u v)^2

    E tanh u tanh v = 2 / pi E arcsin(E u v / sqrt(A B))

whose derivatives by E u v and by E u^2 are the averages of derivatives (Price's theorem). Gauss's rule for K^2 leaves
an error of 1e-9 of a slope where the variances are 1 or more, and of 3e-9 where they are 0.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from propagate.theory.tokens.gram import Array

NODES = 32


@lru_cache(maxsize=1)
def scales() -> tuple[Array, Array]:
    """Nodes and weights for K^2, with K of Kolmogorov's distribution, by Lanczos's method.

    Example: E K^2 = pi^2 / 12, the variance of a logistic variable of scale 1/2.
        >>> squares, weights = scales()
        >>> bool(abs(weights @ squares - math.pi**2 / 12) < 1e-9)
        True
    """
    x = np.linspace(0.15, 4.5, 4001)
    k = np.arange(1, 61)[:, None]
    density = 8 * x * ((-1.0) ** (k + 1) * k * k * np.exp(-2 * k * k * x * x)).sum(axis=0)
    weight = np.maximum(density, 0.0)
    weight /= weight.sum()
    diagonal, beside = np.zeros(NODES), np.zeros(NODES)
    basis = [np.sqrt(weight)]
    for n in range(NODES):
        row = x * x * basis[n]
        diagonal[n] = basis[n] @ row
        for _ in range(2):  # twice is enough
            for known in basis:
                row = row - (known @ row) * known
        beside[n] = math.sqrt(float(row @ row))
        basis.append(row / beside[n])
    nodes, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1))
    return nodes, np.asarray(vectors[0] ** 2)


def _pairs() -> Iterator[tuple[float, float, float]]:
    nodes, weights = scales()
    for one, w in zip(nodes.tolist(), weights.tolist(), strict=True):
        for other, v in zip(nodes.tolist(), weights.tolist(), strict=True):
            if w * v > 1e-12:
                yield 2 / math.pi * w * v, one, other


def _average(function: Callable[[Array, Array, Array], Array], s: Array, t: Array, a: Array) -> Array:
    total = np.zeros(np.broadcast_shapes(s.shape, t.shape, a.shape))
    for weight, one, other in _pairs():
        total += weight * function(s + one, t + other, a)
    return total


def tanh_pair(s: Array, t: Array, a: Array) -> Array:
    """E tanh u tanh v for variances s, t and covariance a.

    Example: of large variances what is left are signs.
        >>> float(tanh_pair(np.array(1e8), np.array(1e8), np.array(0.5e8)).round(3))
        0.333
    """
    return _average(lambda x, y, c: np.arcsin(c / np.sqrt(x * y)), s, t, a)


def tanh_slope_pair(s: Array, t: Array, a: Array) -> Array:
    """E tanh'(u) tanh'(v).

    Example:
        >>> float(tanh_slope_pair(np.array(4.0), np.array(4.0), np.array(4.0)).round(4))
        0.256
    """
    return _average(lambda x, y, c: (x * y - c * c) ** -0.5, s, t, a)


def of_one_variance(q: Array, deviation: Array) -> tuple[Array, Array]:
    """E tanh(u)^2, and its drop E (tanh u - tanh v)^2 / 2 for E (u - v)^2 / 2 = `deviation`, without cancellation.

    Example:
        >>> [f"{part:.6g}" for part in of_one_variance(np.array(4.0), np.array(1e-9))]
        ['0.635261', '2.5595e-10']
    """

    def drop(x: Array, y: Array, d: Array) -> Array:
        a, size = q - d, np.sqrt(x * y)
        along = np.maximum(a, 0.0)  # of tokens that point apart the other form is taken, and this one may divide by 0
        near = d * (2 * q - d) / (q * np.sqrt(x * y - a * a) + along * np.sqrt(x * y - q * q))
        far = np.arcsin(q / size) - np.arcsin(a / size)
        return np.asarray(np.where(a > 0, np.arcsin(np.clip(near, -1, 1)), far))

    return tanh_pair(q, q, q), _average(drop, q, q, deviation)


def slope_of_one_variance(q: Array, deviation: Array) -> tuple[Array, Array]:
    """The same of tanh'."""

    def drop(x: Array, y: Array, d: Array) -> Array:
        alike, apart = np.sqrt(x * y - q * q), np.sqrt(x * y - (q - d) ** 2)
        return np.asarray(d * (2 * q - d) / (alike * apart * (alike + apart)))

    return tanh_slope_pair(q, q, q), _average(drop, q, q, deviation)


def tanh_second_pair(s: Array, t: Array, a: Array) -> Array:
    """E tanh''(u) tanh''(v), the derivative of `tanh_slope_pair` by a."""
    return _average(lambda x, y, c: c * (x * y - c * c) ** -1.5, s, t, a)


def tanh_third_pair(s: Array, t: Array, a: Array) -> Array:
    """E tanh'''(u) tanh'(v), twice the derivative of `tanh_slope_pair` by s."""
    return _average(lambda x, y, c: -y * (x * y - c * c) ** -1.5, s, t, a)
