"""Averages of the sign of a Gaussian sum, and of what Adam makes of it: integrals over one number.

With xi_k independent standard normals and Q = sum_k lambda_k xi_k^2,

    E sqrt(Q)                = (2 sqrt(pi))^(-1) int_0^inf (1 - prod_j (1 + 2 t lambda_j)^(-1/2)) t^(-3/2) dt
    E lambda_k xi_k^2 / Q    = int_0^inf lambda_k / (1 + 2 t lambda_k) prod_j (1 + 2 t lambda_j)^(-1/2) dt

from sqrt(q) and 1 / q as integrals over exp(-t q). In the logarithm of t both integrands fall off exponentially at
either end and are analytic in a strip, so that the trapezoidal rule converges exponentially.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
TIMES = np.exp(np.arange(-90.0, 90.0, 0.5))
STEP = 0.5
SIZES = np.exp(np.arange(-14.0, 2.4, 0.15))  # of a standard normal, in equal steps of its logarithm
RATIOS = np.arange(-40.0, 40.0, 0.01)  # logarithms of eps over a standard deviation
WEIGHTS = 0.15 * SIZES * np.exp(-SIZES * SIZES / 2) * math.sqrt(2 / math.pi)


def mean_root(power: Array, count: Array) -> Array:
    """E sqrt(sum_k lambda_k xi_k^2), each lambda_k (..., k) as often as `count` says.

    Example: the mean length of a normal vector in the plane, sqrt(pi / 2).
        >>> round(float(mean_root(np.array([1.0]), np.array([2])) / math.sqrt(math.pi / 2)), 12)
        1.0
    """
    total = (count * power).sum(axis=-1)
    exponent = _exponent(power, count, total)
    integral = (-np.expm1(-exponent) / np.sqrt(TIMES)).sum(axis=-1) * STEP
    return np.asarray(np.sqrt(total) * integral / (2 * math.sqrt(math.pi)))


def mean_shares(power: Array, count: Array) -> Array:
    """E lambda_k xi_k^2 / sum_j lambda_j xi_j^2 for every k; they add up to 1, each as often as `count` says.

    Example:
        >>> mean_shares(np.array([3.0, 3.0]), np.array([1, 4])).round(12).tolist()
        [0.2, 0.2]
    """
    total = (count * power).sum(axis=-1)
    share = power / np.where(total > 0, total, 1.0)[..., None]
    each = share[..., None] / (1 + 2 * TIMES * share[..., None])
    return np.asarray((each * (TIMES * np.exp(-_exponent(power, count, total)))[..., None, :]).sum(axis=-1) * STEP)


def _exponent(power: Array, count: Array, total: Array) -> Array:
    """log of prod_j (1 + 2 t lambda_j)^(1/2), with times in units of 1 / sum lambda."""
    share = power / np.where(total > 0, total, 1.0)[..., None]
    return np.asarray((count[..., None] * np.log1p(2 * TIMES * share[..., None])).sum(axis=-2) / 2)


def soft_sign(y: Array, eps: float) -> Array:
    """y / (|y| + eps), the first step of Adam; the sign where eps is 0.

    Example:
        >>> soft_sign(np.array([-1.0, 0.0, 3.0]), 1.0).tolist()
        [-0.5, 0.0, 0.75]
    """
    return np.asarray(np.sign(y) if eps == 0 else y / (np.abs(y) + eps))


def soft_sign_averages(std: Array, eps: float) -> tuple[Array, Array, Array]:
    """E y f, E f^2 and E y^2 f^2 / std^2 of Gaussian y, f its `soft_sign`; 0 where the standard deviation is.

    Example: large eps leaves f = y / eps.
        >>> [round(float(a), 6) for a in soft_sign_averages(np.array(2.0), 1e9)]
        [0.0, 0.0, 0.0]
        >>> [round(float(a), 6) for a in soft_sign_averages(np.array(2.0), 0.0)]
        [1.595769, 1.0, 1.0]
    """
    std = np.asarray(std, dtype=float)
    some = (std > 0).astype(float)
    if eps == 0:
        return np.asarray(math.sqrt(2 / math.pi) * std), some, some
    place = (np.log(eps / np.where(std > 0, std, eps)) - RATIOS[0]) / (RATIOS[1] - RATIOS[0])
    place = np.clip(place, 0, len(RATIOS) - 1.001)
    below = place.astype(int)
    first, second, fourth = _softened()[:, below] + (place - below) * _softened_steps()[:, below]
    return np.asarray(std * first), np.asarray(some * second), np.asarray(some * fourth)


@lru_cache(maxsize=1)
def _softened() -> Array:
    """The averages at standard deviation 1, over `RATIOS` along the last axis."""
    f = SIZES / (SIZES + np.exp(RATIOS)[:, None])
    return np.stack([(WEIGHTS * values).sum(axis=-1) for values in (SIZES * f, f * f, SIZES**2 * f * f)])


@lru_cache(maxsize=1)
def _softened_steps() -> Array:
    """By how much each is less than the next."""
    return np.diff(_softened(), axis=-1, append=0.0)
