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
Drop = Callable[[Array, Array, Array], Array]
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
        return _by_plane(phi, u) if ends is None else by_ends(phi, ends.drop, u)

    def slope(u: Gram) -> Gram:
        ends = straight_ends(derivative)
        return _by_plane(derivative, u) if ends is None else by_ends(derivative, ends.slope_drop, u)

    return value, slope


def of_one_variance(u: Gram) -> bool:
    """Whether all tokens have one variance, but for rounding.

    Example:
        >>> of_one_variance(Gram.of(np.eye(2))), of_one_variance(Gram.of([[1.0, 0.0], [0.0, 2.0]]))
        (True, False)
    """
    largest = float(u.variance.max())
    return largest - float(u.variance.min()) <= SAME * largest


def by_ends(f: Elementwise, drop: Drop, u: Gram) -> Gram:
    """Of a function with straight ends, from its moments at correlation 1 and how far they fall from there.

    Example: of a linear one.
        >>> linear, two = lambda s, t, loss: np.sqrt(s * t) * loss, Gram.of([[1.0, 0.5], [0.5, 4.0]])
        >>> by_ends(np.positive, linear, two).matrix.round(9).tolist()
        [[1.0, 0.5], [0.5, 4.0]]
    """
    variances, index = np.unique(u.variance, return_inverse=True)
    lower = np.tril_indices(u.matrix.shape[-1], -1)
    loss, falls = u.loss_of_correlation()[..., *lower], np.zeros_like(u.matrix)
    if of_one_variance(u):
        one = variances[-1:]
        falls[..., *lower] = angles.drops(
            loss, partial(drop, one, one), lambda: _table_of_ends(drop, float(f"{one[0]:.13g}"))
        )
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
    if of_one_variance(u):
        loss = u.loss_of_correlation()
        places = angles.places(loss, largest)
        all_alike = np.full_like(places, largest)
        quadrature.check_work(name, all_alike, all_alike, largest * places)
        drop = angles.drops(loss, partial(_drops, f, largest), lambda: _table(f, float(f"{largest:.13g}")))
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


def _drops(f: Elementwise, variance: float, losses: Array) -> Array:
    return np.array([quadrature.drop_on_plane(f, variance, variance, variance * loss) for loss in losses])


@lru_cache(maxsize=256)
def _table(f: Elementwise, variance: float) -> angles.Table:
    return angles.table(partial(_drops, f, variance), variance)


@lru_cache(maxsize=256)
def _table_of_ends(drop: Drop, variance: float) -> angles.Table:
    one = np.array([variance])
    return angles.table(partial(drop, one, one), variance)
