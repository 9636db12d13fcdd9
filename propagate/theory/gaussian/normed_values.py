"""A norm of a few Gaussian coordinates, as of the values in one head: an exact map of two tokens' correlation.

Of two Gaussian vectors of n coordinates and correlation c the normed ones have the expected product E r, r the sample
correlation about 0, and by Price's theorem its derivative by c multiplies the product of two cotangents that return:

    d E r / dc = K F(3/2, 1/2; n/2 + 1; c^2),    K = (2/n) (Gamma((n + 1)/2) / Gamma(n/2))^2

with E r = K c F(1/2, 1/2; n/2 + 1; c^2), F the hypergeometric function (Hotelling 1953, J. R. Stat. Soc. B 15, 193). At
c = 1 that is (n - 1) / (n - 2): the norm's Jacobian projects one direction of n away, and E n / |v|^2 = n / (n - 2). A
LayerNorm does the same in the n - 1 coordinates that its mean leaves.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import gammaln, hyp2f1

_NEAR = 0.05  # of a loss of correlation, below which 1 - E r is not to be had by subtraction
MANY = 64  # coordinates, from which the series is short; SciPy's function takes 10 microseconds a number
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


def similarity_slope(free: float, loss: Any) -> Any:
    """d E r / dc at correlation 1 - loss, in so many coordinates, 3 or more.

    Example:
        >>> similarity_slope(10, 0.0), round(float(similarity_slope(1e6, 0.3)), 5)
        (1.125, 1.0)
    """
    if np.ndim(loss) == 0 and loss == 0:
        return (free - 1) / (free - 2)
    square = (1 - np.asarray(loss)) ** 2
    if free >= MANY:
        return np.polynomial.polynomial.polyval(square, _series(free))
    return _factor(free) * hyp2f1(1.5, 0.5, free / 2 + 1, square)


def similarity_loss(free: float, loss: Any) -> Any:
    """1 - E r at correlation 1 - loss, however small.

    Example: of tokens that are alike, and of such as point apart.
        >>> [round(float(similarity_loss(4, loss)), 6) for loss in (0.0, 1.0, 2.0)]
        [0.0, 1.0, 2.0]
        >>> round(float(similarity_loss(4, 1e-12)) * 1e12, 3)
        1.5
    """
    loss = np.asarray(loss, dtype=float)
    near = np.minimum(loss, 2 - loss)
    if free >= MANY:  # the slope's series, term by term: odd powers of the correlation, less from 1
        c = 1 - near
        first, above = _losses(free)
        found = near * (first + (2 - near) * c * np.polynomial.polynomial.polyval(c * c, above))
        return np.where(loss <= 1, found, 2 - found)
    y = (1 + _NODES) / 2  # from correlation 1 down by near y^2: the slope has a root's singularity there
    short = np.minimum(near, _NEAR)[..., None]
    integral = (_WEIGHTS * y * short * similarity_slope(free, short * y * y)).sum(axis=-1)
    found = np.where(
        near <= _NEAR, integral, 1 - _factor(free) * (1 - near) * hyp2f1(0.5, 0.5, free / 2 + 1, (1 - near) ** 2)
    )
    return np.where(loss <= 1, found, 2 - found)


@lru_cache(maxsize=64)
def _series(free: float) -> Any:
    """Coefficients of the slope in the squared correlation: of many coordinates few terms are exact."""
    terms = [_factor(free)]
    while terms[-1] > 1e-18:
        k = len(terms) - 1
        terms.append(terms[-1] * (1.5 + k) * (0.5 + k) / ((free / 2 + 1 + k) * (k + 1)))
    return np.array(terms)


@lru_cache(maxsize=64)
def _losses(free: float) -> tuple[float, Any]:
    """Coefficients of 1 - E r: of the loss alone, and of the loss times (1 + c) c by powers of c^2."""
    sums = np.cumsum((_series(free) / (2 * np.arange(len(_series(free))) + 1))[::-1])[::-1]
    return float(sums[0]), np.append(sums[1:], 0.0)


def _factor(free: float) -> float:
    return float(2 / free * np.exp(2 * (gammaln((free + 1) / 2) - gammaln(free / 2))))
