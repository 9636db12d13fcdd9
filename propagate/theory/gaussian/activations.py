"""What an activation does to the second moments of two tokens, and its derivative to those of their gradients.

For jointly Gaussian (u, v) of variance q and covariance p, K(q, p) = E phi(u) phi(v) and, by Price's theorem,
dK/dp = E phi'(u) phi'(v) =: S(q, p). `Maps` are both at p = q and their drop from there to p = q - deviation. The drop
is computed without cancellation, so that the collapse of tokens onto one another is followed to any depth.

They are made from the activation's expression: by Hermite series where it is smooth (`quadrature`), over panels where
it has kinks (`panels`). Closed forms stand in for some. Their sources: ReLU and its square, Cho & Saul (2009),
arc-cosine kernels of order 1 and 2. GELU, Price's theorem (see proofs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from propagate.activations import Activation, as_activation
from propagate.theory.gaussian import quadrature
from propagate.theory.gaussian.expressions import functions
from propagate.theory.gaussian.functions import (
    Scalar,
    angle,
    arcsin,
    arctan,
    is_plain,
    is_symbolic,
    pi_like,
    sine_less_angle_cosine,
    sqrt,
)
from propagate.theory.gaussian.panels import Kinked, drop, mean_square
from propagate.theory.gaussian.quadrature import Array, Elementwise
from propagate.theory.gaussian.straight_ends import at_correlation_1, straight_ends

Pair = tuple[Scalar, Scalar]
SMALL = 1e-3  # variance below which a kink is not resolved by widths
LEAK, RELU = 1e-2, 0.99 * 0.99  # weights of the linear part and of the ReLU in a leaky ReLU's second moments


@dataclass(frozen=True)
class Maps:
    """An activation's second-moment maps, at pre-activation variance q and deviation q - p.

    Attributes:
        value: (q, q - p) -> (K(q, q), K(q, q) - K(q, p)).
        slope: (q, q - p) -> (S(q, q), S(q, q) - S(q, p)).
        gate: for a gated activation, that of its gate, at the moments of its input, before the gate's own gain.

    Example:
        >>> maps_of("relu").value(1.0, 0.0), maps_of("relu").slope(1.0, 0.0)
        ((0.5, 0.0), (0.5, 0.0))
    """

    value: Callable[[Scalar, Scalar], Pair]
    slope: Callable[[Scalar, Scalar], Pair]
    gate: Maps | None = None


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


def _squared_relu_value(variance: Scalar, deviation: Scalar) -> Pair:
    theta = angle(variance, deviation)
    pi, share = pi_like(theta), deviation / variance  # 1 - cos(theta)
    # theta - sin cos = theta sin^2 - cos (sin - theta cos): the two parts of K's drop, both without cancellation
    drop = (2 * pi + theta) * share * (2 - share) - 3 * (1 - share) * sine_less_angle_cosine(theta)
    return 3 * variance * variance / 2, variance * variance * drop / (2 * pi)


def _squared_relu_slope(variance: Scalar, deviation: Scalar) -> Pair:
    value, drop = _relu_value(variance, deviation)  # the derivative of relu(u)^2 is 2 relu(u)
    return 4 * value, 4 * drop


def _gelu_parts(variance: Scalar, deviation: Scalar) -> tuple[Scalar, ...]:
    """The pieces both closed forms share, as (value at p = q, drop) wherever a difference would cancel."""
    s, a = variance, variance - deviation
    square_drop = deviation * (2 * s - deviation)  # s^2 - a^2
    root1, root = sqrt(1 + 2 * s), sqrt((1 + deviation) * (1 + 2 * s - deviation))  # (1 + s)^2 - a^2, factored
    inverse_drop = square_drop / (root1 * root * (root1 + root))  # 1/root1 - 1/root
    twice_pi = 2 * pi_like(s)
    # for angles A, B up to a right one, tan((A - B) / 2) = (sin A - sin B) / (cos A + cos B): arcsin s/(1+s) less
    # arcsin a/(1+s), over the whole domain; the arcsine of sin(A - B) would fold A - B beyond a right angle
    arc_drop = 2 * arctan(deviation / (root1 + root))
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


def _leaky_relu_value(variance: Scalar, deviation: Scalar) -> Pair:
    value, drop = _relu_value(variance, deviation)  # z / 100 + 0.99 relu(z), and E u relu(v) = p / 2
    return LEAK * variance + RELU * value, LEAK * deviation + RELU * drop


def _leaky_relu_slope(variance: Scalar, deviation: Scalar) -> Pair:
    slope, drop = _relu_slope(variance, deviation)
    return LEAK + RELU * slope, RELU * drop


def by_series(phi: Elementwise, derivative: Elementwise, name: str) -> Maps:
    """The maps of a function that is analytic near the real line, by Hermite series up to a large variance.

    Example:
        >>> round(by_series(silu, silu_slope, "silu").value(1.0, 0.0)[0], 5)
        0.35578
    """

    def maps(which: int) -> Callable[[float, float], tuple[float, float]]:
        def at(variance: float, deviation: float) -> tuple[float, float]:
            if variance > quadrature.LARGEST_SERIES:
                return of_large_variance((phi, derivative), which, variance, deviation)
            series = quadrature.series_of(phi, float(variance))[which]
            return series.total, series.drop(deviation / variance)

        return at

    return Maps(_on_any(maps(0), f"{name}_value"), _on_any(maps(1), f"{name}_slope"))


def of_large_variance(
    functions: tuple[Elementwise, Elementwise], which: int, variance: float, deviation: float
) -> tuple[float, float]:
    """One map of a smooth function and its derivative: in closed form where its ends are straight, else on a plane.

    Raises:
        ModelError: for a variance above `quadrature.LARGEST_VARIANCE`, of a function whose ends are not straight.

    Example: a slope of 0 or 1, and of tokens that are not correlated.
        >>> [round(found, 3) for found in of_large_variance((silu, silu_slope), 1, 1e6, 1e6)]
        [0.5, 0.25]
    """
    ends = straight_ends(functions[1])
    if ends is None:
        return quadrature.on_plane(functions[which], variance, deviation)
    return _by_ends(functions[which], (ends.drop, ends.slope_drop)[which], variance, deviation)


def _by_ends(
    f: Elementwise, drop: Callable[[Array, Array, Array], Array], variance: float, deviation: float
) -> tuple[float, float]:
    one, loss = np.array([variance]), np.array([deviation / variance])
    return float((at_correlation_1(f, one) ** 2).sum()), float(drop(one, one, loss)[0])


def by_panels(value: Kinked, slope: Kinked, name: str) -> Maps:
    """The maps of a function with kinks.

    Example:
        >>> elu = by_quadrature(as_activation("elu"))
        >>> round(elu.value(1.0, 0.0)[0], 5)
        0.64495
    """

    def maps(kinked: Kinked) -> Callable[[float, float], tuple[float, float]]:
        @lru_cache(maxsize=4096)
        def at(variance: float, deviation: float) -> tuple[float, float]:
            quadrature.check_reach(name, variance)
            return mean_square(kinked, variance), drop(kinked, variance, variance, deviation)

        return at

    return Maps(_on_any(maps(value), f"{name}_value"), _on_any(maps(slope), f"{name}_slope"))


def _on_any(at: Callable[[float, float], tuple[float, float]], name: str) -> Callable[[Scalar, Scalar], Pair]:
    """Of plain numbers, arrays, and SymPy expressions, of which they are named functions."""

    def apply(variance: Scalar, deviation: Scalar) -> Pair:
        if is_plain(variance, deviation):
            return at(variance, deviation)
        if is_symbolic(variance, deviation):
            return _symbolic_pair(name, variance, deviation)
        found = np.vectorize(at, otypes=[float, float])(variance, deviation)
        return found[0], found[1]

    return apply


def by_quadrature(activation: Activation) -> Maps:
    """The maps of an activation that is not gated, from its expression alone."""
    found = functions(activation)
    if found.smooth:
        return by_series(found.value, found.slope, activation.name)
    panels, ends = by_panels(*found.kinked, activation.name), straight_ends(found.slope, found.kinked[0].kinks)
    if ends is None:
        return panels

    def wide(
        of_panels: Callable[[Scalar, Scalar], Pair], f: Elementwise, drop: Callable[[Array, Array, Array], Array]
    ) -> Callable[[float, float], tuple[float, float]]:
        def at(variance: float, deviation: float) -> tuple[float, float]:
            return _by_ends(f, drop, variance, deviation) if variance > SMALL else of_panels(variance, deviation)

        return at

    return Maps(
        _on_any(wide(panels.value, found.value, ends.drop), f"{activation.name}_value"),
        _on_any(wide(panels.slope, found.slope, ends.slope_drop), f"{activation.name}_slope"),
    )


def mean_slope(name: str, variance: Scalar) -> Scalar:
    """E phi'(u) at pre-activation variance q, of "tanh" or "silu".

    Example:
        >>> mean_slope("tanh", 0.0)
        1.0
    """
    derivative = {"tanh": tanh_slope, "silu": silu_slope}[name]
    if is_symbolic(variance):
        import sympy

        return sympy.Function(f"{name}_mean_slope")(variance)
    found = np.vectorize(lambda q: quadrature.mean(derivative, q), otypes=[float])(variance)
    return float(found) if is_plain(variance) else found


def _symbolic_pair(name: str, variance: Scalar, deviation: Scalar) -> Pair:
    """Without a closed form: named functions of (q, p), which `recursion` knows how to evaluate."""
    import sympy

    function = sympy.Function(name)
    at_one = function(variance, variance)
    return at_one, at_one - function(variance, sympy.simplify(variance - deviation))


def gated(gate: Maps, gain: Scalar = 1.0) -> Maps:
    """A hidden unit phi(gain u) w with an independent linear w, distributed as u (arXiv:2002.05202): SwiGLU from SiLU,
    GEGLU from GELU.

    Its cotangent returns along two uncorrelated paths, the gate's (gain^2 p S) and the linear factor's (K).

    Example:
        >>> value, slope = maps_of("swiglu").value(1.0, 0.0)[0], maps_of("swiglu").slope(1.0, 0.0)[0]
        >>> round(slope / value, 4)
        2.0666
    """
    power = gain * gain
    gate = gate if gain == 1 else _scaled(gate, power)

    def value(variance: Scalar, deviation: Scalar) -> Pair:
        at_one, drop = gate.value(variance, deviation)
        return at_one * variance, at_one * deviation + drop * (variance - deviation)

    def slope(variance: Scalar, deviation: Scalar) -> Pair:
        value1, value_drop = gate.value(variance, deviation)
        slope1, slope_drop = gate.slope(variance, deviation)
        if gain != 1:
            slope1, slope_drop = power * slope1, power * slope_drop
        drop = value_drop + deviation * slope1 + (variance - deviation) * slope_drop
        return value1 + variance * slope1, drop

    return Maps(value, slope, gate=gate)


def _scaled(maps: Maps, power: Scalar) -> Maps:
    """At an input of `power` times the variance."""
    return Maps(lambda q, d: maps.value(power * q, power * d), lambda q, d: maps.slope(power * q, power * d))


def _logistic(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -700, None))))


def silu(x: Array) -> Array:
    """x times its logistic function.

    Example:
        >>> float(silu(np.array(0.0)))
        0.0
    """
    return np.asarray(x * _logistic(x))


def silu_slope(x: Array) -> Array:
    """Derivative of `silu`.

    Example:
        >>> float(silu_slope(np.array(0.0)))
        0.5
    """
    return np.asarray(_logistic(x) * (1 + x * _logistic(-x)))


def tanh_slope(x: Array) -> Array:
    """Derivative of the hyperbolic tangent.

    Example:
        >>> float(tanh_slope(np.array(0.0)))
        1.0
    """
    return np.asarray(1 - np.tanh(x) ** 2)


CLOSED = {
    "linear": Maps(_linear_value, _linear_slope),
    "relu": Maps(_relu_value, _relu_slope),
    "squared_relu": Maps(_squared_relu_value, _squared_relu_slope),
    "leaky_relu": Maps(_leaky_relu_value, _leaky_relu_slope),
    "gelu": Maps(_gelu_value, _gelu_slope),
    "silu": by_series(silu, silu_slope, "silu"),
    "tanh": by_series(np.tanh, tanh_slope, "tanh"),
}
"""Forms that stand in for quadrature of the expression; tests tie them to it."""


@lru_cache(maxsize=256)
def maps_of(activation: Activation | str, gate_gain: Scalar = 1.0) -> Maps:
    """The maps of an activation; of a gated one, with a further gain on the gate's own input.

    Raises:
        ModelError: for an unknown name, or an expression that changes too fast for the quadrature.

    Example: a gate that is wide open or closed is a ReLU's.
        >>> from math import isclose
        >>> sharp = maps_of("swiglu", 30.0).value(1.0, 0.0)[0] / 900
        >>> isclose(sharp, maps_of("reglu").value(1.0, 0.0)[0], rel_tol=2e-3)
        True
    """
    activation = as_activation(activation)
    core = activation.core
    found = CLOSED.get(core.name) if core.shipped else None
    found = found or by_quadrature(core)
    return gated(found, gate_gain) if activation.gated else found
