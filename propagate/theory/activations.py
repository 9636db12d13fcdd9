"""What an activation does to the second moments of two tokens, and its derivative to those of their gradients.

For jointly Gaussian (u, v) of variance q and covariance p, K(q, p) = E phi(u) phi(v) and, by Price's theorem,
dK/dp = E phi'(u) phi'(v) =: S(q, p). An `Activation` gives both at p = q and their drop from there to
p = q - deviation. The drop is computed without cancellation, so that the collapse of tokens onto one another is
followed to any depth.

Sources: ReLU, Cho & Saul (2009), arc-cosine kernels. GELU, Price's theorem (see proofs). SiLU and tanh by Mehler's
formula, K = sum_n a_n^2 c^n with a_n the Hermite coefficients of phi(sqrt(q) z).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from propagate.theory.functions import (
    Scalar,
    angle,
    arcsin,
    is_plain,
    is_symbolic,
    pi_like,
    sine_less_angle_cosine,
    sqrt,
)

Pair = tuple[Scalar, Scalar]


@dataclass(frozen=True)
class Activation:
    """An activation's second-moment maps, at pre-activation variance q and deviation q - p.

    Attributes:
        value: (q, q - p) -> (K(q, q), K(q, q) - K(q, p)).
        slope: (q, q - p) -> (S(q, q), S(q, q) - S(q, p)).

    Example:
        >>> ACTIVATIONS["relu"].value(1.0, 0.0), ACTIVATIONS["relu"].slope(1.0, 0.0)
        ((0.5, 0.0), (0.5, 0.0))
    """

    value: Callable[[Scalar, Scalar], Pair]
    slope: Callable[[Scalar, Scalar], Pair]


def _linear_value(variance: Scalar, deviation: Scalar) -> Pair:
    return variance, deviation


def _linear_slope(variance: Scalar, deviation: Scalar) -> Pair:
    return 1.0, 0.0


def _relu_value(variance: Scalar, deviation: Scalar) -> Pair:
    theta = angle(variance, deviation)
    drop = deviation / 2 - variance * sine_less_angle_cosine(theta) / (2 * pi_like(theta))
    return variance / 2, drop


def _relu_slope(variance: Scalar, deviation: Scalar) -> Pair:
    theta = angle(variance, deviation)
    half = 1 / (2 * pi_like(theta))
    return half * pi_like(theta), half * theta


def _gelu_parts(variance: Scalar, deviation: Scalar) -> tuple[Scalar, ...]:
    """The pieces both closed forms share, as (value at p = q, drop) wherever a difference would cancel."""
    s, a = variance, variance - deviation
    square_drop = deviation * (s + a)  # s^2 - a^2
    root1, root = sqrt(1 + 2 * s), sqrt((1 + s) ** 2 - a * a)
    inverse_drop = square_drop / (root1 * root * (root1 + root))  # 1/root1 - 1/root
    twice_pi = 2 * pi_like(s)
    # arcsin x - arcsin y = arcsin((x^2 - y^2) / (x sqrt(1 - y^2) + y sqrt(1 - x^2))), x = s/(1+s), y = a/(1+s)
    arc_drop = arcsin(square_drop / (s * root + a * root1))
    quadrant1 = arcsin(s / (1 + s)) / twice_pi + 0.25
    return a, square_drop, root1, root, inverse_drop, twice_pi, quadrant1, arc_drop / twice_pi


def _gelu_value(variance: Scalar, deviation: Scalar) -> Pair:
    s = variance
    a, square_drop, root1, _, inverse_drop, twice_pi, quadrant1, quadrant_drop = _gelu_parts(s, deviation)
    shape = (1 - s) / (1 + s)
    numerator = s * s + a * a * shape
    at_one = s * quadrant1 + s * s * (1 + shape) / (twice_pi * root1)
    drop = deviation * quadrant1 + a * quadrant_drop
    return at_one, drop + (square_drop * shape / root1 + numerator * inverse_drop) / twice_pi


def _gelu_slope(variance: Scalar, deviation: Scalar) -> Pair:
    s = variance
    a, square_drop, root1, root, inverse_drop, twice_pi, quadrant1, quadrant_drop = _gelu_parts(s, deviation)
    m1, m = (s + 1) * (2 * s + 3) - 2 * s * s, (s + 1) * (2 * s + 3) - 2 * a * a
    cube_drop = inverse_drop * (1 / root1**2 + 1 / (root1 * root) + 1 / root**2)  # root1^-3 - root^-3
    scale = 1 / (twice_pi * (1 + s))
    drop = deviation * m1 / root1**3 + a * (m * cube_drop - 2 * square_drop / root1**3)
    return quadrant1 + scale * s * m1 / root1**3, quadrant_drop + scale * drop


Array = NDArray[np.float64]
Elementwise: TypeAlias = Callable[[Array], Array]


class _Series(NamedTuple):
    """sum_n terms_n c^n over the given degrees, and its value at c = 1."""

    degrees: Array
    terms: Array
    total: float

    def drop(self, loss: float) -> float:
        """Value at correlation 1, less the value at correlation 1 - loss."""
        if loss < 1:
            return float(self.terms @ -np.expm1(self.degrees * math.log1p(-loss)))
        return self.total - float(self.terms @ (1 - loss) ** self.degrees)


@lru_cache(maxsize=8)
def _hermite_basis(terms: int, step: float) -> tuple[Array, Array]:
    """Points z, and h_n(z) density(z) step for n < terms, with h_n the orthonormal Hermite polynomials.

    The recurrence runs on h_n sqrt(density), which stays bounded.
    """
    z = np.arange(-13, 13 + step / 2, step)
    root_density = np.exp(-z * z / 4) / (2 * np.pi) ** 0.25
    basis = np.empty((terms, len(z)))
    previous, current = np.zeros_like(z), root_density
    for n in range(terms):
        basis[n] = current
        previous, current = current, (z * current - math.sqrt(n) * previous) / math.sqrt(n + 1)
    return z, basis * (root_density * step)


@lru_cache(maxsize=4096)
def _series_of(phi: Elementwise, variance: float) -> tuple[_Series, _Series]:
    """The series of K and S at this variance: squared Hermite coefficients of phi(sqrt(variance) z), and n times them.

    The number of terms and the step follow the distance of the poles of phi from the real axis, pi / 2 or more over
    sqrt(variance). The trapezoid rule is then exact to rounding; Gauss-Hermite nodes are not at large variance.
    """
    octave = max(0, math.ceil(math.log2(max(variance, 1.0))))
    z, basis = _hermite_basis(128 * 2**octave, 0.04 * 2 ** (-octave / 2))
    squares = (basis @ phi(math.sqrt(variance) * z)) ** 2
    squares = squares[: int(np.flatnonzero(squares > 1e-22 * squares.sum())[-1]) + 1]
    degrees = np.arange(len(squares), dtype=float)
    slopes = (degrees * squares)[1:] / variance
    return (
        _Series(degrees, squares, float(squares.sum())),
        _Series(degrees[:-1], slopes, float(slopes.sum())),
    )


def _by_series(phi: Elementwise, name: str) -> Activation:
    def maps(which: int, label: str) -> Callable[[Scalar, Scalar], Pair]:
        def at(variance: float, deviation: float) -> tuple[float, float]:
            series = _series_of(phi, float(variance))[which]
            return series.total, series.drop(deviation / variance)

        def apply(variance: Scalar, deviation: Scalar) -> Pair:
            if is_plain(variance, deviation):
                return at(variance, deviation)
            if is_symbolic(variance, deviation):
                return _symbolic_pair(f"{name}_{label}", variance, deviation)
            found = np.vectorize(at, otypes=[float, float])(variance, deviation)
            return found[0], found[1]

        return apply

    return Activation(value=maps(0, "value"), slope=maps(1, "slope"))


def _symbolic_pair(name: str, variance: Scalar, deviation: Scalar) -> Pair:
    """Without a closed form: named functions of (q, p), which `recursion` knows how to evaluate."""
    import sympy

    function = sympy.Function(name)
    at_one = function(variance, variance)
    return at_one, at_one - function(variance, sympy.simplify(variance - deviation))


def gated(activation: Activation) -> Activation:
    """The gate phi(u) w with an independent, equally distributed linear w: SwiGLU from SiLU (arXiv:2002.05202).

    Its cotangent returns along two uncorrelated paths, the gate's (p S) and the linear factor's (K).

    Example:
        >>> value, slope = ACTIVATIONS["swiglu"].value(1.0, 0.0)[0], ACTIVATIONS["swiglu"].slope(1.0, 0.0)[0]
        >>> round(slope / value, 4)
        2.0666
    """

    def value(variance: Scalar, deviation: Scalar) -> Pair:
        at_one, drop = activation.value(variance, deviation)
        return at_one * variance, at_one * deviation + drop * (variance - deviation)

    def slope(variance: Scalar, deviation: Scalar) -> Pair:
        value1, value_drop = activation.value(variance, deviation)
        slope1, slope_drop = activation.slope(variance, deviation)
        drop = value_drop + deviation * slope1 + (variance - deviation) * slope_drop
        return value1 + variance * slope1, drop

    return Activation(value, slope)


def _silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-np.clip(x, -700, None))))


_SILU = _by_series(_silu, "silu")
ACTIVATIONS = {
    "linear": Activation(_linear_value, _linear_slope),
    "relu": Activation(_relu_value, _relu_slope),
    "gelu": Activation(_gelu_value, _gelu_slope),
    "silu": _SILU,
    "tanh": _by_series(np.tanh, "tanh"),
    "swiglu": gated(_SILU),
}
