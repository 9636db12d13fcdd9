"""Second-moment maps of functions with kinks for tokens of unequal variance, pair by pair, by quadrature over panels.

Where all tokens have one variance, as behind a norm, many pairs are interpolated (`angles`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

from propagate.theory.gaussian.panels import Kinked, drop, mean_square, points
from propagate.theory.gaussian.quadrature import Array, check_points, check_reach
from propagate.theory.tokens import angles
from propagate.theory.tokens.gram import Gram, means

MOST_POINTS = 2.0**27
"""Of all pairs of tokens in one sublayer: about twenty seconds."""
SAME = 1e-13  # relative difference of variances that counts as none


def map_of(kinked: Kinked, name: str) -> Callable[[Gram], Gram]:
    """From the pre-activations' Gram matrix to that of the function.

    Raises:
        ModelError: for a variance above the largest that quadratures cover, or more or wider pairs of tokens than are
            worth waiting for, naming `name`.

    Example:
        >>> relu = Kinked(lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float), (0.0,))
        >>> map_of(relu, "relu")(Gram.of([[1.0, 0.0], [0.0, 4.0]])).matrix.round(4).tolist()
        [[0.5, 0.3183], [0.3183, 2.0]]
    """

    def apply(u: Gram) -> Gram:
        largest = float(u.variance.max())
        check_reach(name, largest)
        if largest - float(u.variance.min()) <= SAME * largest:
            return _of_one_variance(kinked, largest, u)
        v = np.broadcast_to(u.variance[..., :, None], u.matrix.shape)
        w = np.broadcast_to(u.variance[..., None, :], u.matrix.shape)
        triples = np.stack([np.minimum(v, w), np.maximum(v, w), u.deviation], axis=-1).reshape(-1, 3)
        unique, index = np.unique(triples, axis=0, return_inverse=True)
        check_points(name, largest, len(unique), points(kinked, *unique.T), MOST_POINTS)
        drops = np.array([drop(kinked, *triple) for triple in unique])[index].reshape(u.matrix.shape)
        variances, index = np.unique(u.variance, return_inverse=True)
        squares = np.array([mean_square(kinked, q) for q in variances])[index].reshape(u.variance.shape)
        return Gram(means(squares) - drops, drops)

    return apply


def _of_one_variance(kinked: Kinked, variance: float, u: Gram) -> Gram:
    each = partial(_drops, kinked, variance)
    found = angles.drops(u.loss_of_correlation(), each, lambda: _table(kinked, float(f"{variance:.13g}")))
    return Gram(mean_square(kinked, variance) - found, found)


def _drops(kinked: Kinked, variance: float, losses: Array) -> Array:
    return np.array([drop(kinked, variance, variance, variance * loss) for loss in losses])


@lru_cache(maxsize=256)
def _table(kinked: Kinked, variance: float) -> angles.Table:
    return angles.table(partial(_drops, kinked, variance), variance)
