"""Smooth activations of tokens whose variance is large for a Hermite series.

Those with straight ends in closed form. Others, such as a sine, by a quadrature of every pair of tokens; where all have
one variance, as behind a norm, many pairs are interpolated (`angles`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

from propagate.theory.gaussian import quadrature
from propagate.theory.gaussian.quadrature import Array, Elementwise
from propagate.theory.gaussian.straight_ends import at_correlation_1, straight_ends
from propagate.theory.tokens import angles
from propagate.theory.tokens.gram import Gram, means
from propagate.theory.tokens.series import apart_of

Map = Callable[[Gram], Gram]
SAME = 1e-15
"""Relative difference of variances, by rounding alone, that counts as none: its square is of no distance's order."""


def of_large_variance(phi: Elementwise, derivative: Elementwise) -> tuple[Map, Map]:
    """The maps of a smooth function and of its derivative.

    ModelError, from a map, for a function without straight ends at more or wider pairs than are worth waiting for.

    Example: of large variances what is left of a hyperbolic tangent are signs.
        >>> value, _ = of_large_variance(np.tanh, lambda x: 1 - np.tanh(x) ** 2)
        >>> value(Gram.of([[1e8, 1e8], [1e8, 4e8]])).matrix.round(3).tolist()
        [[1.0, 0.333], [0.333, 1.0]]
    """

    def value(u: Gram) -> Gram:
        ends = straight_ends(derivative)
        return _by_plane(phi, u) if ends is None else _by_ends(phi, ends.drop, u)

    def slope(u: Gram) -> Gram:
        ends = straight_ends(derivative)
        return _by_plane(derivative, u) if ends is None else _by_ends(derivative, ends.slope_drop, u)

    return value, slope


def _by_ends(f: Elementwise, drop: Callable[[Array, Array, Array], Array], u: Gram) -> Gram:
    """From its moments at correlation 1, and how far they fall from there."""
    variances, index = np.unique(u.variance, return_inverse=True)
    lower = np.tril_indices(u.matrix.shape[-1], -1)
    loss, falls = u.loss_of_correlation()[..., *lower], np.zeros_like(u.matrix)
    if variances[-1] - variances[0] <= SAME * variances[-1]:
        one = variances[-1:]
        losses, place = np.unique(loss, return_inverse=True)
        falls[..., *lower] = drop(one, one, losses)[place].reshape(loss.shape)
        falls += falls.swapaxes(-1, -2)
        return Gram((at_correlation_1(f, one) ** 2).sum() - falls, falls)
    first, second = (u.variance[..., tokens] for tokens in lower)
    falls[..., *lower] = drop(first.ravel(), second.ravel(), loss.ravel()).reshape(loss.shape)
    falls += falls.swapaxes(-1, -2)
    rows = at_correlation_1(f, variances)[index.reshape(u.variance.shape)]
    apart = apart_of(rows.reshape(-1, *rows.shape[-2:])).reshape(falls.shape)
    return Gram(rows @ rows.swapaxes(-1, -2) - falls, falls + apart)


def _by_plane(f: Elementwise, u: Gram) -> Gram:
    """Each pair of tokens by a quadrature of its own; equal pairs once, and many of one variance interpolated."""
    name, largest = f.__name__.removesuffix("_slope"), float(u.variance.max())
    quadrature.check_reach(name, largest)
    if largest - float(u.variance.min()) <= SAME * largest:
        loss = u.loss_of_correlation()
        places = angles.places(loss)
        all_alike = np.full_like(places, largest)
        quadrature.check_work(name, all_alike, all_alike, largest * places)
        drop = angles.drops(loss, partial(_drop_of_loss, f, largest), lambda: _table(f, float(f"{largest:.13g}")))
        return Gram(quadrature.square_on_line(f, largest) - drop, drop)
    v = np.broadcast_to(u.variance[..., :, None], u.matrix.shape)
    w = np.broadcast_to(u.variance[..., None, :], u.matrix.shape)
    triples = np.stack([np.minimum(v, w), np.maximum(v, w), u.deviation], axis=-1).reshape(-1, 3)
    unique, index = np.unique(triples, axis=0, return_inverse=True)
    quadrature.check_work(name, *unique.T)
    drop = np.array([quadrature.drop_on_plane(f, *triple) for triple in unique])[index].reshape(u.matrix.shape)
    variances, index = np.unique(u.variance, return_inverse=True)
    square = np.array([quadrature.square_on_line(f, q) for q in variances])[index].reshape(u.variance.shape)
    return Gram(means(square) - drop, drop)


def _drop_of_loss(f: Elementwise, variance: float, loss: float) -> float:
    return quadrature.drop_on_plane(f, variance, variance, variance * loss)


@lru_cache(maxsize=256)
def _table(f: Elementwise, variance: float) -> angles.Table:
    return angles.table(partial(_drop_of_loss, f, variance))
