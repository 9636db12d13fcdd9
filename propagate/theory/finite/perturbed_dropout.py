"""Dropout on perturbed streams (see `perturbation`).

A token is multiplied by 1 + m, coordinate by coordinate, with m of mean 0, variance v = p / (1 - p), and two values: so
m^2 = v + k m with k = (2 p - 1) / (1 - p). That fixes what becomes of the plane of x and w = m x, where m takes x to w
and w to v x + k w; so w and m w cost nothing, and w has the squared length v |x|^2 + k <x, w> exactly. Of what is
orthogonal to that plane m makes a vector orthogonal to it too. Everything else is Gaussian, of order e: with
coordinates taken for Gaussian, <m x, f> has the variance e^2 v (|x|^2 |f|^2 + 2 <x, f>^2), and for another token's
mask <m x, m' x'> has v^2 in place of v. Of the variance of <m x, x> a third is that of the mean of m over coordinates.

The cotangent meets the same mask: its part in the plane is known; the rest, g, is treated as x was, with the same mean
of m. As the plane is not open to g, and m has the trace k there, <m g, g> has the mean -e^2 k |g|^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from propagate.theory.finite.perturbation import Array, Frame, inner, root


def dropout(probability: float, frame: Frame, x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """The stream with entries set to 0 with this probability, the others divided by 1 - probability; and the pull."""
    v, k = probability / (1 - probability), (2 * probability - 1) / (1 - probability)
    mean = math.sqrt(v) * frame.noise.normals(x.shape[1], 1)
    w = masked(v, k, mean, frame, x)

    def pull(g: Array) -> Array:
        one, other = frame.padded(x), frame.padded(w)
        g = frame.padded(g)
        first, second = _within(one, other, g)
        apart = g - first * one - second * other
        made = masked(v, k, mean - k * frame.noise.square, frame, apart, without=(one, other))
        return np.asarray(frame.padded(g + second * v * one + (first + second * k) * other) + made)

    return frame.padded(x) + w, pull


def masked(
    v: float, k: float, mean: Array, frame: Frame, x: Array, without: tuple[Array, Array] | None = None
) -> Array:
    """m x with m of this mean over coordinates, orthogonal to the tokens of a pair of streams."""
    noise, x = frame.noise, frame.padded(x)
    tokens, gram = x.shape[1], inner(x, x)
    square = np.diagonal(gram, axis1=1, axis2=2)[..., None]
    along = np.sqrt(square) * noise.normals(tokens, frame.directions) + noise.normals(tokens, 1) * x
    along = math.sqrt(v) * along + mean * x
    if without:
        first, second = _within(*without, along)
        along = along - first * without[0] - second * without[1]
    own = v * square + k * (along * x).sum(axis=-1, keepdims=True)
    between = v * np.sqrt(square * square.swapaxes(1, 2) + 2 * gram**2) * noise.symmetric(tokens)
    made = np.where(np.eye(tokens, dtype=bool), own, between)
    rest = root(made - along @ along.swapaxes(1, 2))
    frame.directions += tokens
    return np.concatenate([along, rest], axis=-1)


def _within(x: Array, w: Array, g: Array) -> tuple[Array, Array]:
    """Coefficients of each token's projection on the plane of two others; 0 where they span none."""

    def product(a: Array, b: Array) -> Array:
        return np.asarray((a * b).sum(axis=-1, keepdims=True))

    xx, xw, ww, gx, gw = product(x, x), product(x, w), product(w, w), product(g, x), product(g, w)
    area = xx * ww - xw * xw
    scale = np.divide(1.0, area, out=np.zeros_like(area), where=area > 0)
    return (gx * ww - gw * xw) * scale, (gw * xx - gx * xw) * scale
