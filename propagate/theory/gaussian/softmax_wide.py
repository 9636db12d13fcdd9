"""The averages of `softmax.py` for widely spread logits, where Hermite nodes would be too many.

With u = log(rate), every integrand is made of Phi_a(u) = E x^a exp(-x), x = exp(u + std h), h a standard normal:
smooth and bounded at any spread. Two correlated rows share a part m of their normals, z = sqrt(c) m + sqrt(1 - c) h;
given m their terms are independent, and m only shifts u. So Phi_a is tabulated once, and the mean over m is a matrix
product.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_STEP = 0.35  # of u; exponentially accurate, as in softmax.py
_TAIL = 8.5  # standard deviations


def integrate_wide(tokens: int, std: float, correlation: float) -> tuple[float, float, float, float]:
    """`second`, `overlap`, `self_slope`, `cross_slope` of `softmax.py`, themselves and not in excess of uniform.

    Example: the wider the logits, the nearer a row of attention comes to a single token.
        >>> second, *_ = integrate_wide(16, 20.0, 0.0)
        >>> round(second, 3)
        0.912
    """
    from scipy.interpolate import CubicSpline  # a third of a second, which few calls need

    u = np.arange(-_TAIL * std - 26, _TAIL * std + 5, _STEP)
    phi = [_phi(a, u, std) for a in range(5)]
    rest1, rest2 = _power(phi[0], tokens - 1), _power(phi[0], tokens - 2)
    second = tokens * np.sum(phi[2] * rest1) * _STEP
    third = tokens * np.sum(phi[3] / 2 * rest1) * _STEP
    squared = tokens * np.sum(phi[4] / 6 * rest1 + (tokens - 1) * phi[2] ** 2 / 6 * rest2) * _STEP

    shared, own = std * math.sqrt(abs(correlation)), std * math.sqrt(1 - abs(correlation))
    m, weight = _normal(shared)
    wide = np.arange(u[0] - _TAIL * shared - 1, u[-1] + _TAIL * shared + 1, 0.05)
    left, right = [], []
    for a in range(3):
        shifted = CubicSpline(wide, _phi(a, wide, own))(u[:, None] + shared * m)
        left.append(shifted * weight)
        right.append((shifted if correlation >= 0 else shifted[:, ::-1]).T)
    others1, others2 = _power(left[0] @ right[0], tokens - 1), _power(left[0] @ right[0], tokens - 2)
    pair11, measure = left[1] @ right[1], tokens * _STEP**2
    overlap = measure * np.sum(pair11 * others1)
    mixed = measure * np.sum((left[1] @ right[2]) * others1)
    overlap_squared = measure * np.sum((left[2] @ right[2]) * others1 + (tokens - 1) * pair11**2 * others2)
    return (
        float(second),
        float(overlap),
        float(second + squared - 2 * third),
        float(overlap + overlap_squared - 2 * mixed),
    )


def _phi(a: int, u: Array, std: float) -> Array:
    """E x^a exp(-x) with x = exp(u + std h)."""
    h, weight = _normal(std)
    out = np.empty_like(u)
    for start in range(0, len(u), 256):  # bounded memory
        log_x = np.minimum(u[start : start + 256, None] + std * h, 50.0)  # exp(-exp(50)) is 0
        out[start : start + 256] = np.exp(a * log_x - np.exp(log_x)) @ weight
    return out


def _normal(std: float) -> tuple[Array, Array]:
    """Points and weights for a standard normal, fine enough for functions of std times it."""
    step = min(0.4, _STEP / max(std, 1e-12))
    count = math.ceil(_TAIL / step)
    points = np.arange(-count, count + 1) * step
    weight = np.exp(-points * points / 2)
    return points.astype(float), weight / weight.sum()


def _power(survival: Array, exponent: int) -> Array:
    """survival^exponent, with the survival of a sum no smaller than rounding lets it be."""
    return np.asarray(np.exp(exponent * np.log(np.maximum(survival, 1e-300))))
