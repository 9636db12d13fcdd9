"""A drop of the second moment that many pairs of tokens of one variance have, each at its own angle.

It is a smooth function of the angle, and interpolated in Chebyshev polynomials over intervals that shrink towards 0 and
pi, where what is not analytic meets for parallel and for opposite tokens. Error: 1e-10 of the largest value; tests hold
it against a quadrature of each pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from propagate.theory.tokens.gram import Array

FEW = 100  # pairs that are not worth a table
NODES = 14
ENDS = math.pi * np.array([0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8, 15 / 16, 31 / 32, 1])


class Table(NamedTuple):
    """Drops over theta^power, in Chebyshev polynomials between `ENDS`."""

    power: int
    series: Array  # (intervals, nodes)

    def at(self, loss: Array) -> Array:
        """Drops at losses of correlation."""
        theta = 2 * np.arcsin(np.sqrt(np.clip(loss / 2, 0.0, 1.0)))
        interval = np.clip(np.searchsorted(ENDS, theta, side="right") - 1, 0, len(ENDS) - 2)
        low, high = ENDS[interval], ENDS[interval + 1]
        found = np.polynomial.chebyshev.chebval((2 * theta - low - high) / (high - low), self.series[interval].T, False)
        return np.asarray(found * theta**self.power)


def table(drop: Callable[[float], float]) -> Table:
    """Of a function of the loss of correlation.

    Example: that of the function itself is the loss.
        >>> float(table(lambda loss: loss).at(np.array([0.25]))[0].round(12))
        0.25
    """

    def of(theta: float) -> float:
        return drop(2 * math.sin(theta / 2) ** 2)

    power = round(math.log2(max(of(2e-4), 1e-300) / max(of(1e-4), 1e-300)))
    nodes, thetas = _nodes()
    values = np.array([of(theta) for theta in thetas.ravel()]).reshape(thetas.shape) / thetas**power
    return Table(power, np.asarray(np.polynomial.chebyshev.chebfit(nodes, values.T, NODES - 1).T, dtype=float))


def _nodes() -> tuple[Array, Array]:
    """Of the polynomials, and the angles that they are at, (intervals, nodes)."""
    nodes = np.polynomial.chebyshev.chebpts1(NODES)
    low, high = ENDS[:-1, None], ENDS[1:, None]
    return nodes, (low + high) / 2 + (high - low) / 2 * nodes


def places(loss: Array) -> Array:
    """The losses at which `drops` asks for the function itself."""
    unique = np.unique(loss)
    return unique if len(unique) <= FEW else 2 * np.sin(_nodes()[1].ravel() / 2) ** 2


def drops(loss: Array, one: Callable[[float], float], many: Callable[[], Table]) -> Array:
    """At losses of correlation, from each or, where they are more than `FEW`, from a table."""
    unique, index = np.unique(loss, return_inverse=True)
    found = np.array([one(lost) for lost in unique]) if len(unique) <= FEW else many().at(unique)
    return np.asarray(found[index].reshape(loss.shape))
