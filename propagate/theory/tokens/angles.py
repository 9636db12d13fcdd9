"""A drop of the second moment that many pairs of tokens of one variance have, each at its own angle.

It is a smooth function of the angle, and interpolated in Chebyshev polynomials over intervals that shrink towards 0 and
pi, where pre-activations of a small difference or sum meet what is not straight, down to an angle that is small for the
variance. Error: 1e-10 of the largest value; tests hold it against each pair by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from propagate.theory.tokens.gram import Array

FEW = 100  # pairs that are not worth a table
NODES = 14
HALVINGS = 5  # of a right angle, at variances up to 1
Drop = Callable[[Array], Array]
"""From losses of correlation, (pairs, )."""


class Table(NamedTuple):
    """Drops over theta^power, in Chebyshev polynomials between `ends`."""

    power: int
    ends: Array  # (intervals + 1, )
    series: Array  # (intervals, nodes)

    def at(self, loss: Array) -> Array:
        """Drops at losses of correlation."""
        theta, ends = 2 * np.arcsin(np.sqrt(np.clip(loss / 2, 0.0, 1.0))), self.ends
        interval = np.clip(np.searchsorted(ends, theta, side="right") - 1, 0, len(ends) - 2)
        low, high = ends[interval], ends[interval + 1]
        found = np.polynomial.chebyshev.chebval((2 * theta - low - high) / (high - low), self.series[interval].T, False)
        return np.asarray(found * theta**self.power)


def table(drop: Drop, variance: float) -> Table:
    """Of a function of the loss of correlation, for tokens of this variance.

    Example: that of the function itself is the loss.
        >>> float(table(lambda loss: loss, 1.0).at(np.array([0.25]))[0].round(12))
        0.25
    """
    ends = _ends(variance)
    near = ends[1] / 500 * np.array([1.0, 2.0])
    one, two = np.maximum(drop(_loss(near)), 1e-300)
    power = round(math.log2(two / one))
    nodes, thetas = _nodes(ends)
    values = drop(_loss(thetas.ravel())).reshape(thetas.shape) / thetas**power
    return Table(power, ends, np.asarray(np.polynomial.chebyshev.chebfit(nodes, values.T, NODES - 1).T, dtype=float))


def _loss(theta: Array) -> Array:
    return np.asarray(2 * np.sin(theta / 2) ** 2)


def _ends(variance: float) -> Array:
    """Of the intervals, as far from 0 as from pi."""
    halvings = HALVINGS + max(math.ceil(math.log2(max(variance, 1.0)) / 2), 0)
    parts = math.pi / 2 * 0.5 ** np.arange(halvings, -1, -1)
    return np.concatenate([[0.0], parts, math.pi - parts[-2::-1], [math.pi]])


def _nodes(ends: Array) -> tuple[Array, Array]:
    """Of the polynomials, and the angles that they are at, (intervals, nodes)."""
    nodes = np.polynomial.chebyshev.chebpts1(NODES)
    low, high = ends[:-1, None], ends[1:, None]
    return nodes, (low + high) / 2 + (high - low) / 2 * nodes


def places(loss: Array, variance: float) -> Array:
    """The losses at which `drops` asks for the function itself."""
    unique = np.unique(loss)
    return unique if len(unique) <= FEW else _loss(_nodes(_ends(variance))[1].ravel())


def drops(loss: Array, each: Drop, many: Callable[[], Table]) -> Array:
    """At losses of correlation, from each or, where they are more than `FEW`, from a table."""
    unique, index = np.unique(loss, return_inverse=True)
    found = each(unique) if len(unique) <= FEW else many().at(unique)
    return np.asarray(found[index].reshape(loss.shape))
