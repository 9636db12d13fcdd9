"""A feed-forward layer of finite width and hidden width on perturbed streams (see `perturbation`).

Forward, y = W_out h with h = phi(W_in x). Given x the hidden units are independent, so the Gram matrix of h is its
expectation at the Gram matrix of x and a fluctuation with a unit's covariance, over the hidden width.

Backward, q = W_out^T g is known along h, where h q^T = y g^T, and fresh elsewhere; p = phi'(u) q; and W_in^T p is known
along x, where x p^T = u p^T, and fresh elsewhere. With r independent of h, q = r + h M for M = H^-1 (y g^T - h r^T),
which is of order e. M enters the Gram matrix of p squared, and with the fluctuation of h r^T; and by Stein's lemma
E u_t phi'(u_s) phi(u_a) = U_ta E phi'_s phi'_a + U_ts E phi''_s phi_a is what p has along x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from propagate.activations import Activation
from propagate.checks import ModelError
from propagate.sublayers import FFN
from propagate.theory.finite.perturbation import Array, Frame, Returned, inner, root
from propagate.theory.finite.units import ELEMENTWISE, pointwise
from propagate.theory.gaussian.activations import maps_of, silu, silu_slope, tanh_slope
from propagate.theory.gaussian.expressions import functions
from propagate.theory.gaussian.quadrature import LARGEST_SERIES, Elementwise, coefficients
from propagate.theory.tokens.gram import Gram
from propagate.theory.tokens.kernels import CLOSED, kernel_of

Pull = Callable[[Array], Returned]
UNITS = 64  # hidden units that make one sample of their fluctuation; any number has the right covariance
STRANGERS = 512  # hidden units over which is averaged what is of order e^2 already
STEP = 0.01  # of a logarithm, in finite differences
SMOOTH: dict[str, tuple[Elementwise, Elementwise]] = {
    "gelu": ELEMENTWISE["gelu"],
    "silu": (silu, silu_slope),
    "tanh": (np.tanh, tanh_slope),
}
"""Forms that stand in for those made from the expression."""


def ffn(kind: FFN, width: int, frame: Frame, x: Array) -> tuple[Array, Pull]:
    """Output, as vectors, and pull, of an input with components x along as many directions as there are tokens.

    A norm of hidden units is RMSNorm.

    Raises:
        ModelError: where a smooth activation's series does not reach the variance that enters.
    """
    noise, tokens, ratio, normed = frame.noise, x.shape[-2], kind.units / width, "hidden" in kind.normed
    gain, few = float(kind.in_gain), math.sqrt(1 / (ratio * UNITS))  # `few` times e: for a sum of UNITS units
    power = float(kind.out_gain) ** 2
    scale, out = (1.0, math.sqrt(power)) if normed else (power / maps_of(kind.activation).value(1.0, 0.0)[0], 1.0)
    gate_gain = float(kind.gate_gain)
    preactivations = gain * gain * inner(x, x)
    value, slope = (scale * found for found in _kernels(kind.activation, preactivations, gate_gain))
    normals, h, slopes = _units(kind, gain * x[-1].T, scale, noise.random, (noise.pairs, UNITS))
    _, strangers, strangers_slopes = _units(kind, gain * x[-1].T, scale, noise.random, (1, STRANGERS))
    gram_h = value + few * noise.odd(_products(h, h) - UNITS * value[-1])
    size = 1 / np.sqrt(np.diagonal(gram_h, axis1=1, axis2=2))[..., None] if normed else np.ones((len(x), tokens, 1))
    root_h = root(size * gram_h * size.swapaxes(1, 2))
    image = frame.image(tokens)
    basis = size[-1] * np.linalg.pinv(root_h[-1].T, rcond=1e-10)
    bent = scale * _bent(kind.activation, preactivations[-1], gate_gain)

    def pull(g: Array) -> Returned:
        g = out * size * g
        gram, met = inner(g, g), inner(image, g) / math.sqrt(ratio)
        r = noise.random.standard_normal((noise.pairs, UNITS, tokens)) @ root(gram[-1]).T
        along_itself = np.eye(tokens) * (root_h @ met) if normed else 0 * met
        of_h = basis @ met - size[-1] * along_itself
        known = strangers @ of_h[: noise.pairs] / noise.small
        lost = (strangers @ basis) ** 2 @ np.ones((tokens, 1)) / ratio
        (sent, second), v = (np.zeros((noise.pairs, tokens, tokens)) for _ in range(2)), np.zeros_like(met)
        for z, d, other in zip(normals, slopes, strangers_slopes, strict=True):
            sent += _products(d * r, d * r)
            second += (_products(other * known, other * known) - _products(other, other * lost) * gram[-1]) / STRANGERS
            v = v + few * noise.odd(_products(z, d * r))
        p_gram = slope * gram + few * noise.odd(sent - UNITS * slope[-1] * gram[-1])
        p_gram = p_gram + noise.square * np.concatenate([second, second, second[:1]])
        weights, upper = of_h - few * basis @ noise.odd(_products(h @ basis, r)), x[-1].T
        v = v + gain * (upper @ (slope[-1] * weights) + upper * np.einsum("sa,kas->ks", bent, weights)[:, None, :])
        return Returned(gain * root(p_gram), math.sqrt(ratio) * gain * v.swapaxes(1, 2))

    return np.asarray(out * root_h @ image), pull


def _products(one: Array, other: Array) -> Array:
    """Sums over units (samples, units, tokens) of outer products over tokens."""
    return one.swapaxes(1, 2) @ other


def _units(
    kind: FFN, upper: Array, scale: float, random: np.random.Generator, number: tuple[int, int]
) -> tuple[list[Array], Array, list[Array]]:
    """Hidden units in the limit: the normals behind each input matrix, the values, and the slopes by each."""
    shape, size = (*number, len(upper)), math.sqrt(scale)
    gate_gain = float(kind.gate_gain)
    phi, slope = pointwise(kind.activation)
    z = random.standard_normal(shape)
    u = z @ upper
    if not kind.activation.gated:
        return [z], size * phi(u), [size * slope(u)]
    factor = random.standard_normal(shape)
    w = factor @ upper
    opened = phi(gate_gain * u)
    return [z, factor], size * opened * w, [size * gate_gain * slope(gate_gain * u) * w, size * opened]


def _kernels(activation: Activation, u: Array, gate_gain: float) -> tuple[Array, Array]:
    """E phi(u_t) phi(u_s) and the factor of the cotangents' Gram matrix, to second order about the last evaluation."""
    if activation.gated:
        power = gate_gain * gate_gain
        value, slope = _kernels(activation.core, power * u, 1.0)
        return u * value, value + power * u * slope
    smooth = _smooth(activation)
    if smooth is not None:
        return _series(smooth[0], u), _series(smooth[1], u)
    kernel, gram = kernel_of(activation), Gram.of(u)
    return kernel.value(gram).matrix, kernel.slope(gram).matrix


def _smooth(activation: Activation) -> tuple[Elementwise, Elementwise] | None:
    """An activation and its slope, where they have a Hermite series."""
    if activation.shipped and activation.name in CLOSED:
        return SMOOTH.get(activation.name)
    found = functions(activation)
    return (found.value, found.slope) if found.smooth else None


def _series(phi: Elementwise, u: Array) -> Array:
    """Mehler's formula, sum_n a_n(q_t) a_n(q_s) c_ts^n, with a_n to second order in the variance's logarithm."""
    variance = np.diagonal(u, axis1=-2, axis2=-1)
    at = variance[-1]
    if at.max() > LARGEST_SERIES:
        raise ModelError(
            f"bias covers smooth activations up to pre-activations of variance {LARGEST_SERIES:g}, got {at.max():.3g}"
        )
    down, here, up = _coefficients(phi, tuple(at[:1] if _alike(at) else at))
    moved = np.log(variance / at)
    c = u / np.sqrt(variance[..., :, None] * variance[..., None, :])
    found = np.zeros_like(u)
    for low, middle, high in zip(down[::-1], here[::-1], up[::-1], strict=True):
        a = middle + moved * (high - low) / (2 * STEP) + moved**2 * (high + low - 2 * middle) / (2 * STEP**2)
        found = found * c + a[..., :, None] * a[..., None, :]
    return found


def _alike(values: Array) -> bool:
    return bool(np.ptp(values) <= 1e-9 * np.abs(values).max())


@lru_cache(maxsize=1024)
def _coefficients(phi: Elementwise, at: tuple[float, ...]) -> Array:
    """Below, at and above each of these variances: (3, degrees, variances)."""
    around = np.exp([-STEP, 0.0, STEP])[:, None] * np.array(at)
    return coefficients(phi, around.ravel()).reshape(3, len(at), -1).swapaxes(1, 2)


def _bent(activation: Activation, u: Array, gate_gain: float) -> Array:
    """E phi''(u_t) phi(u_s), (tokens, tokens)."""
    own, others = np.diagonal(u), u[~np.eye(len(u), dtype=bool)]
    if _alike(own) and (len(u) == 1 or _alike(others)):
        alone, pair = _bent_pair(activation, float(own[0]), float(u[0, -1]), gate_gain)
        return pair + (alone - pair) * np.eye(len(u))
    return _differentiated(activation, u, gate_gain)


@lru_cache(maxsize=1024)
def _bent_pair(activation: Activation, variance: float, covariance: float, gate_gain: float) -> tuple[float, float]:
    own, other = _differentiated(activation, np.array([[variance, covariance], [covariance, variance]]), gate_gain)[0]
    return float(own), float(other)


def _differentiated(activation: Activation, u: Array, gate_gain: float) -> Array:
    """From the derivatives of E phi(u_t)^2 and of E phi(u_t) phi(u_s) by the variance of u_t.

    The latter is half of what is wanted; the former is E phi'^2 more.
    """
    kernel, tokens = kernel_of(activation, gate_gain), len(u)
    steps = 1e-5 * np.diagonal(u)
    moved = steps[:, None, None] * (np.eye(tokens)[:, :, None] * np.eye(tokens)[:, None, :])
    up, down = (kernel.value(Gram.of(u + sign * moved)).matrix for sign in (1, -1))
    slopes = np.einsum("tts->ts", up - down) / (2 * steps[:, None])
    own = np.eye(tokens, dtype=bool)
    return np.asarray(np.where(own, slopes - kernel.slope(Gram.of(u)).matrix, 2 * slopes))
