"""Gaussian expectations of functions with kinks, by Gauss-Legendre panels that end where anything is not smooth.

For a pair of half sum s and half difference h, E f(u) f(v) falls from E f(u)^2 by E (f(s + h) - f(s - h))^2 / 2.
The inner of the two variables is the wider one: for a given outer one, its kinks are known, panels end there, and the
integral over it is a smooth function of the outer one between the places where two kinks cross.

Accuracy: 1e-10 of E f^2, and of the drop where that is small; tested against dense quadrature over the whole domain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from propagate.theory.gaussian.quadrature import Elementwise

Array = NDArray[np.float64]
TAIL = 8.5  # standard deviations
NODES = 12
SHORT = 0.02  # half differences below which the difference is the integral of the slope: it would cancel


@dataclass(frozen=True)
class Kinked:
    """A function of one variable, smooth between its kinks.

    Attributes:
        f, slope: the function and its derivative between kinks.
        kinks: in order.
        panel: length over which a dozen nodes resolve it.
    """

    f: Elementwise
    slope: Elementwise
    kinks: tuple[float, ...]
    panel: float = 1.6


def mean_square(kinked: Kinked, variance: float) -> float:
    """E f(u)^2 for a centred Gaussian of this variance.

    Example:
        >>> relu = Kinked(lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float), (0.0,))
        >>> round(mean_square(relu, 3.0), 12)
        1.5
    """
    deviation = math.sqrt(variance)
    reach = TAIL * deviation
    regular = _even(-reach, reach, min(kinked.panel, 1.5 * deviation))
    u, weight = _nodes(np.sort(np.concatenate([regular, np.clip(kinked.kinks, -reach, reach)])))
    density = np.exp(-u * u / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    return float((weight * density) @ kinked.f(u) ** 2)


def drop(kinked: Kinked, first: float, second: float, deviation: float) -> float:
    """E (f(u) - f(v))^2 / 2 for variables of the `first` and `second` variance, and E (u - v)^2 / 2 = `deviation`.

    Example: of ReLU at opposite variables, half of E u^2.
        >>> relu = Kinked(lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float), (0.0,))
        >>> round(drop(relu, 1.0, 1.0, 2.0), 12), round(drop(relu, 1.0, 1.0, 1e-20) * 1e20, 6)
        (0.5, 0.5)
    """
    if deviation <= 0:
        return 0.0
    of_sum, of_difference = max((first + second - deviation) / 2, 0.0), deviation / 2
    together = (first - second) / 4
    by_sum = of_sum < of_difference
    outer, inner = (of_sum, of_difference) if by_sum else (of_difference, of_sum)
    if outer <= 0:  # v = -u exactly
        places, weights = np.zeros(1), np.ones(1)
        along = 0.0
    else:
        along = together / outer
        std = math.sqrt(outer)
        crossings = [(a + b if by_sum else a - b) / 2 for a in kinked.kinks for b in kinked.kinks]
        reach = TAIL * std
        length = min(kinked.panel / (1 + abs(along)), 1.5 * std)
        low = 0.0 if along == 0 and not by_sum else -reach  # even in the half difference
        edges = np.concatenate([_even(low, reach, length), np.clip([*crossings, 0.0], low, reach)])
        places, weights = _nodes(np.sort(edges))
        weights = weights * np.exp(-places * places / (2 * outer)) / (math.sqrt(2 * math.pi) * std)
        weights = weights * (2 if low == 0 else 1)
        kept = weights > 0
        places, weights = places[kept], weights[kept]
    left = max(inner - along * along * outer, 0.0)
    found = 0.0
    for start in range(0, len(places), _at_once(kinked, left)):
        rows = slice(start, start + _at_once(kinked, left))
        found += float(weights[rows] @ _inner(kinked, places[rows], along * places[rows], left, by_sum))
    return found / 2


def points(kinked: Kinked, first: Array, second: Array, deviation: Array) -> float:
    """About how many nodes `drop` takes at all these places together.

    Example: of opposite variables those of one of them.
        >>> relu = Kinked(lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float), (0.0,))
        >>> one, wide = np.ones(1), np.full(1, 100.0)
        >>> points(relu, one, one, 2 * one) < points(relu, one, one, one) < points(relu, wide, wide, wide)
        True
    """
    of_sum, of_difference = np.maximum((first + second - deviation) / 2, 0.0), deviation / 2
    outer, inner = np.minimum(of_sum, of_difference), np.maximum(of_sum, of_difference)
    along = np.divide(np.abs(first - second) / 4, outer, out=np.zeros_like(outer), where=outer > 0)
    left = np.maximum(inner - along * along * outer, 0.0)

    def panels(variance: Array, length: Array | float, kinks: int) -> Array:
        std = np.sqrt(variance)
        each = np.minimum(length, 1.5 * std)
        return np.where(std > 0, NODES * (2 * TAIL * std / np.where(std > 0, each, 1.0) + kinks), 1.0)

    number = len(kinked.kinks)
    rows, columns = panels(outer, kinked.panel / (1 + along), number**2 + 1), panels(left, kinked.panel, 2 * number)
    return float((rows * columns).sum())


def _at_once(kinked: Kinked, variance: float) -> int:
    """Rows of about 2^18 nodes together."""
    panels = 2 * TAIL * math.sqrt(variance) / kinked.panel + 12 + 2 * len(kinked.kinks)
    return max(int(2**18 / (NODES * panels)), 1)


def _inner(kinked: Kinked, outer: Array, centre: Array, variance: float, by_sum: bool) -> Array:
    """E (f(s + h) - f(s - h))^2 over the inner variable, about a centre for each value of the outer one."""
    if variance <= 0:
        s, h = (outer, centre) if by_sum else (centre, outer)
        return np.asarray((kinked.f(s + h) - kinked.f(s - h)) ** 2)
    std = math.sqrt(variance)
    reach = TAIL * std
    low, high = (centre - reach)[:, None], (centre + reach)[:, None]
    regular = centre[:, None] + _even(-reach, reach, min(kinked.panel, 1.5 * std))
    kinks, o = np.array(kinked.kinks)[None, :], outer[:, None]
    ends = [kinks - o, o - kinks] if by_sum else [kinks - o, kinks + o]
    edges = np.sort(np.concatenate([regular, *(np.clip(end, low, high) for end in ends)], axis=1), axis=1)
    x, weight = _nodes(edges)
    away = x - centre[:, None]
    weight = weight * np.exp(-away * away / (2 * variance)) / (math.sqrt(2 * math.pi) * std)
    s, h = (np.broadcast_to(o, x.shape), x) if by_sum else (x, np.broadcast_to(o, x.shape))
    return np.asarray((weight * _differences(kinked, s, h) ** 2).sum(axis=1))


def _differences(kinked: Kinked, s: Array, h: Array) -> Array:
    """f(s + h) - f(s - h); between kinks, where h is small, the integral of the slope."""
    found = np.asarray(kinked.f(s + h) - kinked.f(s - h))
    small = np.abs(h) < SHORT
    for kink in kinked.kinks:
        small &= np.abs(s - kink) >= np.abs(h)
    if small.any():
        t, w = _legendre(6)
        middle, half = s[small], h[small]
        found[small] = half * (kinked.slope(middle[:, None] + half[:, None] * t) @ w)
    return found


def _even(low: float, high: float, length: float) -> Array:
    """Ends of panels no longer than `length`."""
    return np.linspace(low, high, max(math.ceil((high - low) / length), 1) + 1)


def _nodes(edges: Array) -> tuple[Array, Array]:
    """Nodes and weights between the ends of panels, along the last axis."""
    t, w = _legendre(NODES)
    half = np.diff(edges, axis=-1)[..., None] / 2
    middle = (edges[..., 1:, None] + edges[..., :-1, None]) / 2
    shape = (*edges.shape[:-1], -1)
    return (middle + half * t).reshape(shape), (half * w * np.ones_like(middle)).reshape(shape)


@lru_cache(maxsize=4)
def _legendre(nodes: int) -> tuple[Array, Array]:
    t, w = np.polynomial.legendre.leggauss(nodes)
    return t, w
