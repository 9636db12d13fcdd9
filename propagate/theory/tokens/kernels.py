"""What an activation does to the second moments of tokens of unequal variance, and its derivative to the gradients'.

K_ts = E phi(u_t) phi(u_s) and S_ts = E phi'(u_t) phi'(u_s) for jointly Gaussian pre-activations of any Gram matrix;
a kernel is a function from the pre-activations' `Gram` to the `Gram` of phi(u), or of phi'(u).

Linear, ReLU and its square in closed form (arc-cosine kernels, Cho & Saul 2009, times powers of the tokens' standard
deviations). Smooth activations by Mehler's formula, K_ts = sum_n a_n(q_t) a_n(q_s) c_ts^n with a_n(q) the Hermite
coefficients of phi(sqrt(q) z); distances as sum_n (a_n(q_t) - a_n(q_s))^2 / 2 + a_n(q_t) a_n(q_s) (1 - c_ts^n), whose
terms do not cancel. Where the series would be long closed forms take over: of GELU and tanh their own, of others as
`large_variances` says. Those with kinks pair by pair, over panels (`kinked`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from scipy.special import ndtr

from propagate.activations import Activation, as_activation
from propagate.theory.gaussian import quadrature
from propagate.theory.gaussian.activations import LEAK, RELU, SMALL, Pair, maps_of, silu, silu_slope, tanh_slope
from propagate.theory.gaussian.expressions import functions
from propagate.theory.gaussian.functions import angle, sine_less_angle_cosine
from propagate.theory.gaussian.quadrature import Array, Elementwise
from propagate.theory.gaussian.straight_ends import straight_ends
from propagate.theory.tokens import tanh_pairs
from propagate.theory.tokens.gram import Gram, distances
from propagate.theory.tokens.kinked import map_of
from propagate.theory.tokens.large_variances import Map, by_ends, of_large_variance, of_one_variance
from propagate.theory.tokens.series import CHUNK, unequal_variances
from propagate.theory.tokens.tanh_pairs import slope_of_one_variance, tanh_pair, tanh_slope_pair

ALIKE = 1e-8  # relative difference of two variances whose square is below rounding
ROWS = 32  # at most: the blocks that a symmetric matrix is made of


@dataclass(frozen=True)
class Kernel:
    """An activation's maps of second moments.

    Attributes:
        value: Gram of u -> Gram of phi(u).
        slope: Gram of u -> Gram of phi'(u), by which the cotangents' second moments are multiplied entry by entry.
        gate: for a gated activation, that of its gate, of the Gram of its input, before the gate's own gain.

    Example:
        >>> kernel_of("relu").value(Gram.of([[1.0, 0.0], [0.0, 4.0]])).matrix.round(4).tolist()
        [[0.5, 0.3183], [0.3183, 2.0]]
    """

    value: Map
    slope: Map
    gate: Kernel | None = None
    together: Callable[[Gram], tuple[Gram, Callable[[], Gram]]] | None = None

    @property
    def at(self) -> Callable[[Gram], tuple[Gram, Callable[[], Gram]]]:
        """From the Gram of u to that of phi(u), and that of phi'(u) for when it is asked for.

        Example:
            >>> one, swiglu = Gram.of([[1.0]]), kernel_of("swiglu", 2.0)
            >>> value, slope = swiglu.at(one)
            >>> bool(value.matrix == swiglu.value(one).matrix), bool(slope().matrix == swiglu.slope(one).matrix)
            (True, True)
        """
        return self.together or (lambda u: (self.value(u), lambda: self.slope(u)))


def _same(u: Gram) -> Gram:
    return u


def _ones(u: Gram) -> Gram:
    return Gram(np.ones_like(u.matrix), np.zeros_like(u.matrix))


def _relu_value(u: Gram) -> Gram:
    size = np.sqrt(u.variance)
    loss = u.loss_of_correlation()
    theta = angle(np.ones_like(loss), loss)
    drop = loss / 2 - sine_less_angle_cosine(theta) / (2 * math.pi)
    of_unit = Gram((1 - loss) / 2 + (loss / 2 - drop), drop)
    return of_unit.times(size)


def _relu_slope(u: Gram) -> Gram:
    loss = u.loss_of_correlation()
    drop = angle(np.ones_like(loss), loss) / (2 * math.pi)
    return Gram(0.5 - drop, drop)


def _squared_relu_value(u: Gram) -> Gram:
    """Arc-cosine kernel of order 2: for unit variances (3 sin cos + (pi - theta) (1 + 2 cos^2)) / (2 pi)."""
    loss = u.loss_of_correlation()
    theta = angle(np.ones_like(loss), loss)
    # the drop in terms of sin - theta cos and 1 - cos^2, both without cancellation
    drop = (2 * math.pi + theta) * loss * (2 - loss) - 3 * (1 - loss) * sine_less_angle_cosine(theta)
    drop = drop / (2 * math.pi)
    return Gram(1.5 - drop, drop).times(u.variance)


def _squared_relu_slope(u: Gram) -> Gram:
    return _relu_value(u).weighted(4.0)  # the derivative of relu(u)^2 is 2 relu(u)


def _leaky_relu_value(u: Gram) -> Gram:
    return u.weighted(LEAK).plus(_relu_value(u).weighted(RELU))


def _leaky_relu_slope(u: Gram) -> Gram:
    return _ones(u).weighted(LEAK).plus(_relu_slope(u).weighted(RELU))


def gelu_pair(s: Array, t: Array, a: Array) -> Array:
    """E gelu(u) gelu(v) for variances s, t and covariance a.

    By Stein's lemma, with E density(u) density(v) = 1 / (2 pi sqrt(D)), D = (1+s)(1+t) - a^2.

    Example:
        >>> float(gelu_pair(np.array(1.0), np.array(1.0), np.array(1.0)).round(5))
        0.42522
    """
    root = np.sqrt((1 + s) * (1 + t) - a * a)
    quadrant = 0.25 + np.arcsin(a / np.sqrt((1 + s) * (1 + t))) / (2 * np.pi)
    shape = s * t + a * a * (1 / (1 + s) + 1 / (1 + t) - 1)
    return np.asarray(a * quadrant + shape / (2 * np.pi * root))


def gelu_slope_pair(s: Array, t: Array, a: Array) -> Array:
    """E gelu'(u) gelu'(v), the derivative of `gelu_pair` by a.

    Example:
        >>> float(gelu_slope_pair(np.array(1.0), np.array(1.0), np.array(0.0)))
        0.25
    """
    square = (1 + s) * (1 + t) - a * a
    quadrant = 0.25 + np.arcsin(a / np.sqrt((1 + s) * (1 + t))) / (2 * np.pi)
    return np.asarray(quadrant + a * (1 / (1 + s) + 1 / (1 + t) + 1 / square) / (2 * np.pi * np.sqrt(square)))


def _by_series(phi: Elementwise, large: Map, largest: float = quadrature.LARGEST_SERIES) -> Map:
    """The Hermite series up to its largest variance, another map above it."""

    def apply(u: Gram) -> Gram:
        if u.variance.max() > largest:
            return large(u)
        return _series(phi, u)

    return apply


def _series(phi: Elementwise, u: Gram) -> Gram:
    if of_one_variance(u):
        return _of_one_variance(phi, float(u.variance.max()), u.loss_of_correlation())
    return unequal_variances(phi, u)


def _of_one_variance(phi: Elementwise, variance: float, loss: Array) -> Gram:
    """The drop is the sum over degrees of a^2 (1 - c^n): the loss times a polynomial in the correlation.

    Even degrees give (1 - c^2) times a polynomial in c^2, odd ones the loss and c times another: all activations have
    hardly any degrees of one parity but the first or the second, and powers of c^2 are half as many.
    """
    total, even, odd = _sums_of_parities(phi, variance)
    drop, tokens = np.empty_like(loss), loss.shape[-1]
    rows = max(min(CHUNK * tokens // loss.size, ROWS), 1)
    for start in range(0, tokens, rows):  # on and below the diagonal
        some, before = slice(start, start + rows), slice(start)
        lost = loss[..., some, : start + rows]
        c = 1 - lost
        square = c * c
        falls = _polynomial(odd, square)
        falls *= c
        falls += _polynomial(even, square)
        drop[..., some, : start + rows] = lost * (float(odd[:1].sum()) + (2 - lost) * falls)
        drop[..., before, some] = drop[..., some, before].swapaxes(-1, -2)
    return Gram(total - drop, drop)


@lru_cache(maxsize=256)
def _sums_of_parities(phi: Elementwise, variance: float) -> tuple[float, Array, Array]:
    """Of the squared Hermite coefficients all, and `_sums_above` of the even and of the odd degrees."""
    squares = quadrature.coefficients(phi, np.array([variance]))[0] ** 2
    total = float(squares.sum())
    return total, _sums_above(squares[::2], total), _sums_above(squares[1::2], total)


def _sums_above(squares: Array, total: float) -> Array:
    """Sums of all squares, of all but the first, and so on, as far as they count."""
    sums = np.cumsum(squares[::-1])[::-1]
    return np.asarray(sums[sums > np.finfo(float).eps / 16 * total])


def _polynomial(sums: Array, x: Array) -> Array:
    """sum_k sums_(k+1) x^k."""
    found = np.zeros_like(x)
    for sum_above in sums[:0:-1]:
        found *= x
        found += sum_above
    return found


def _closed(pair: Callable[[Array, Array, Array], Array], of_one_variance: Callable[[Array, Array], Pair]) -> Map:
    """A closed form, whose drop for tokens of one variance has a form of its own, without cancellation."""

    def apply(u: Gram) -> Gram:
        s, t = u.variance[..., :, None], u.variance[..., None, :]
        matrix = pair(s, t, u.matrix)
        drop = of_one_variance((s + t) / 2, u.deviation)[1]
        return Gram(matrix, np.where(abs(s - t) < ALIKE * s, drop, np.maximum(distances(matrix), 0.0)))

    return apply


def smooth(phi: Elementwise, derivative: Elementwise) -> Kernel:
    """The kernel of an activation that is analytic near the real line, by series up to a large variance.

    Example:
        >>> one = Gram.of([[1.0]])
        >>> round(float(smooth(silu, silu_slope).value(one).matrix[0, 0]), 5)
        0.35578
    """
    large_value, large_slope = of_large_variance(phi, derivative)
    return Kernel(_by_series(phi, large_value), _by_series(derivative, large_slope))


def gated(gate: Kernel, gain: float = 1.0) -> Kernel:
    """A hidden unit phi(gain u) w with an independent linear w, distributed as u (arXiv:2002.05202).

    Its cotangent returns along two uncorrelated paths, the gate's (gain^2 G S) and the linear factor's (K).

    Example:
        >>> one, swiglu = Gram.of([[1.0]]), kernel_of("swiglu")
        >>> round(float(swiglu.slope(one).matrix[0, 0] / swiglu.value(one).matrix[0, 0]), 4)
        2.0666
    """
    power = float(gain * gain)
    opened = gate
    if power != 1:
        opened = Kernel(lambda u: gate.value(u.weighted(power)), lambda u: gate.slope(u.weighted(power)))

    def together(u: Gram) -> tuple[Gram, Callable[[], Gram]]:
        value = opened.value(u)
        return u.product(value), lambda: value.plus(u.product(opened.slope(u)).weighted(power))

    return Kernel(lambda u: together(u)[0], lambda u: together(u)[1](), gate=opened, together=together)


def _gelu(x: Array) -> Array:
    return np.asarray(x * ndtr(x))


def _gelu_slope(x: Array) -> Array:
    return np.asarray(ndtr(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi))


_PAIRS = maps_of("gelu")
CLOSED = {
    "linear": Kernel(_same, _ones),
    "relu": Kernel(_relu_value, _relu_slope),
    "squared_relu": Kernel(_squared_relu_value, _squared_relu_slope),
    "leaky_relu": Kernel(_leaky_relu_value, _leaky_relu_slope),
    "gelu": Kernel(
        _by_series(_gelu, _closed(gelu_pair, _PAIRS.value)),
        _by_series(_gelu_slope, _closed(gelu_slope_pair, _PAIRS.slope)),
    ),
    "silu": smooth(silu, silu_slope),
    "tanh": Kernel(
        _by_series(np.tanh, _closed(tanh_pair, tanh_pairs.of_one_variance), 8.0),
        _by_series(tanh_slope, _closed(tanh_slope_pair, slope_of_one_variance), 8.0),
    ),
}
"""Forms that stand in for quadrature of the expression; tests tie them to it."""


def by_quadrature(activation: Activation) -> Kernel:
    """The kernel of an activation that is not gated, from its expression alone."""
    found = functions(activation)
    if found.smooth:
        return smooth(found.value, found.slope)
    value, slope = (map_of(kinked, activation.name) for kinked in found.kinked)
    ends = straight_ends(found.slope, found.kinked[0].kinks)
    if ends is None:
        return Kernel(value, slope)

    def at_large(small: Map, large: Map) -> Map:
        return lambda u: (large if float(u.variance.max()) > SMALL else small)(u)

    return Kernel(
        at_large(value, partial(by_ends, found.value, ends.drop)),
        at_large(slope, partial(by_ends, found.slope, ends.slope_drop)),
    )


@lru_cache(maxsize=256)
def kernel_of(activation: Activation | str, gate_gain: float = 1.0) -> Kernel:
    """The kernel of an activation; of a gated one, with a further gain on the gate's own input. Raises as `maps_of`.

    Example:
        >>> kernel_of("reglu").value(Gram.of([[2.0]])).matrix.round(9).tolist()
        [[2.0]]
    """
    activation = as_activation(activation)
    core = activation.core
    found = CLOSED.get(core.name) if core.shipped else None
    found = found or by_quadrature(core)
    return gated(found, gate_gain) if activation.gated else found
