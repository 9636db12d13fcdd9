"""The hidden z-loss: how large a stream is, by the logarithm of its summed exponentials, and the gradient of that.

LongCat-Flash (arXiv:2509.01322) adds lambda / T sum_t (log sum_i exp |z_ti|)^2 to its loss, of the stream z that the
final norm reads. At initialisation the d coordinates of a token are independent Gaussian variables of its variance q.

With S the sum, E an independent exponential variable of mean 1 and phi(t) = E exp(-t exp |z_i|), the probability that
E > t S is phi(t)^d: the law of log E - log S, and with it all moments of log S, are integrals of one variable, exact at
any width. So are those of the gradient, 2 log S p_i sign(z_i) with p the softmax of |z|, by the integrals of
t (log t)^k E exp(2 |z_i| - t exp |z_i|) phi(t)^(d - 1). Where the largest coordinate is most of the sum, which is
beyond q = 2 log d, no law of large numbers holds: there log S is not log d + log E exp |z_i|.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from propagate.checks import ModelError, integer, number, shown

LARGEST = 1e4  # variance
REACH = 12.0  # standard deviations of a coordinate: the rest has probability 1e-32
STEP = 0.25  # of log t, on which the integrands vary over 1 or more: the trapezoidal rule is exact to rounding
NODES = 16  # of the Gauss-Legendre rule, for each standard deviation, or for each 2 of a coordinate if that is less
FEW = 20  # variances, of more of which a spline through so many is taken
BELOW, ABOVE = 45.0, 8.0  # how far log t reaches beyond where the integrands live


class HiddenZ(NamedTuple):
    """Moments of the hidden z-loss of one token, for lambda = 1; numbers or arrays.

    Attributes:
        mean: E log sum_i exp |z_i|.
        loss: E (log sum_i exp |z_i|)^2.
        gradient: mean square, per coordinate, of the loss's gradient.
    """

    mean: Any
    loss: Any
    gradient: Any


def hidden_z(variance: Any, width: int) -> HiddenZ:
    """The hidden z-loss of a token with independent Gaussian coordinates, and its gradient.

    Args:
        variance: of a coordinate, up to 1e4; a number or an array.
        width: coordinates.

    Raises:
        ModelError: for other values.

    Example: small coordinates leave the number of them; of large ones the largest alone counts.
        >>> import math
        >>> round(hidden_z(1e-8, 512).mean - math.log(512), 3)
        0.0
        >>> round(hidden_z(400.0, 512).mean, 1), round(math.log(512) + 200 + math.log(2), 1)
        (65.1, 206.9)
    """
    width = integer("width", width)
    if np.ndim(variance) == 0:
        value = number("variance", variance, positive=False)
        if value > LARGEST:
            raise ModelError(f"variance must be at most {LARGEST:g} for a hidden z-loss, got {shown(variance)}")
        return _of(float(value), width)
    values = np.asarray(variance, dtype=float)
    if not (np.isfinite(values).all() and (values >= 0).all() and (values <= LARGEST).all()):
        raise ModelError(f"variance must hold numbers from 0 to {LARGEST:g} for a hidden z-loss, got {shown(variance)}")
    unique, back = np.unique(values, return_inverse=True)
    if len(unique) > FEW:
        from scipy.interpolate import CubicSpline

        roots = np.linspace(math.sqrt(unique[0]), math.sqrt(unique[-1]), FEW)
        points = np.log([_of(float(root) ** 2, width) for root in roots])
        found = np.exp(CubicSpline(roots, points)(np.sqrt(unique))).T
    else:
        found = np.array([_of(float(one), width) for one in unique]).T
    return HiddenZ(*(part[back].reshape(values.shape) for part in found))


@lru_cache(maxsize=256)
def _of(variance: float, width: int) -> HiddenZ:
    if variance == 0:
        return HiddenZ(math.log(width), math.log(width) ** 2, 0.0)  # |z| has no slope at 0: the mean of both sides
    root = math.sqrt(variance)
    y, weights = _halves(root)
    log_t = np.arange(-(math.log(width) + REACH * root + BELOW), ABOVE - math.log(width), STEP)
    lost, squares = np.empty_like(log_t), np.empty_like(log_t)  # 1 - phi; E (t e^y)^2 exp(-t e^y)
    for at in range(0, len(log_t), 256):
        part = slice(at, at + 256)
        met = np.exp(np.minimum(log_t[part, None] + y, 300.0))
        lost[part] = -np.expm1(-met) @ weights
        squares[part] = (met**2 * np.exp(-met)) @ weights
    with np.errstate(divide="ignore"):
        log_phi = np.log1p(-np.minimum(lost, 1.0))
    above, rest = np.exp(width * log_phi), np.exp((width - 1) * log_phi)
    # of log E - log S, from the probabilities to lie above
    first = float(log_t[0] + STEP * (above.sum() - (above[0] + above[-1]) / 2))
    weighted = log_t * above
    second = float(log_t[0] ** 2 + 2 * STEP * (weighted.sum() - (weighted[0] + weighted[-1]) / 2))
    mean = -np.euler_gamma - first
    loss = mean**2 + max(second - first**2 - math.pi**2 / 6, 0.0)
    # of p^2 (log S)^k: derivatives of the Gamma function at 2
    slope = 1 - np.euler_gamma
    bend = math.pi**2 / 6 - 1 + slope**2
    none, one, two = (float(STEP * (squares * rest * log_t**k).sum()) for k in range(3))
    of_log = slope * none - one
    of_square = two - bend * none + 2 * slope * of_log
    return HiddenZ(mean, loss, 4 * max(of_square, 0.0))


def _halves(root: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes of |z| for a standard deviation `root`, and their weights, which sum to 1."""
    panels = math.ceil(REACH * max(1.0, root / 2))
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    edges = np.linspace(0.0, REACH, panels + 1)
    width = REACH / panels
    n = (edges[:-1, None] + width / 2 * (nodes + 1)).ravel()
    density = np.tile(weights, panels) * width / 2 * np.exp(-n * n / 2)
    return root * n, density / density.sum()
