"""Second-moment maps of functions with kinks for tokens of unequal variance, pair by pair, by quadrature over panels.

Where all tokens have one variance, as behind a norm, the drop is a smooth function of the angle between two tokens: of
many pairs it is interpolated, in Chebyshev polynomials over intervals that shrink towards 0 and pi, where kinks of
parallel and of opposite tokens meet. Error: 1e-10 of the largest value; tests hold it against dense quadrature.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from propagate.theory.gaussian.panels import Kinked, drop, mean_square
from propagate.theory.gaussian.quadrature import check_reach
from propagate.theory.tokens.gram import Array, Gram, means

SAME = 1e-13  # relative difference of variances that counts as none
FEW = 100  # pairs that are not worth a table
NODES = 14
ENDS = math.pi * np.array([0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8, 15 / 16, 31 / 32, 1])


def map_of(kinked: Kinked, name: str) -> Callable[[Gram], Gram]:
    """From the pre-activations' Gram matrix to that of the function.

    Raises:
        ModelError: for a variance above the largest that quadratures cover, naming `name`.

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
        drops = np.array([drop(kinked, *triple) for triple in unique])[index].reshape(u.matrix.shape)
        variances, index = np.unique(u.variance, return_inverse=True)
        squares = np.array([mean_square(kinked, q) for q in variances])[index].reshape(u.variance.shape)
        return Gram(means(squares) - drops, drops)

    return apply


def _of_one_variance(kinked: Kinked, variance: float, u: Gram) -> Gram:
    loss = u.loss_of_correlation()
    unique, index = np.unique(loss, return_inverse=True)
    if len(unique) <= FEW:
        found = np.array([drop(kinked, variance, variance, variance * lost) for lost in unique])
    else:
        found = _table(kinked, float(f"{variance:.13g}")).at(unique)
    drops = found[index].reshape(loss.shape)
    return Gram(mean_square(kinked, variance) - drops, drops)


class _Table(NamedTuple):
    """Drops over theta^power, in Chebyshev polynomials between `ENDS`."""

    power: int
    series: Array  # (intervals, nodes)

    def at(self, loss: Array) -> Array:
        theta = 2 * np.arcsin(np.sqrt(np.clip(loss / 2, 0.0, 1.0)))
        interval = np.clip(np.searchsorted(ENDS, theta, side="right") - 1, 0, len(ENDS) - 2)
        low, high = ENDS[interval], ENDS[interval + 1]
        found = np.polynomial.chebyshev.chebval((2 * theta - low - high) / (high - low), self.series[interval].T, False)
        return np.asarray(found * theta**self.power)


@lru_cache(maxsize=256)
def _table(kinked: Kinked, variance: float) -> _Table:
    def of(theta: float) -> float:
        return drop(kinked, variance, variance, variance * 2 * math.sin(theta / 2) ** 2)

    power = round(math.log2(max(of(2e-4), 1e-300) / max(of(1e-4), 1e-300)))
    nodes = np.polynomial.chebyshev.chebpts1(NODES)
    series = []
    for low, high in itertools.pairwise(ENDS):
        theta = (low + high) / 2 + (high - low) / 2 * nodes
        values = np.array([of(at) for at in theta]) / theta**power
        series.append(np.polynomial.chebyshev.chebfit(nodes, values, NODES - 1))
    return _Table(power, np.array(series))
