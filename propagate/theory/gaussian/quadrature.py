"""Gaussian expectations of products phi(u) phi(v), for activations without a closed form.

Up to a variance of `LARGEST_SERIES` by Mehler's formula, E phi(u) phi(v) = sum_n a_n^2 c^n with a_n the Hermite
coefficients of phi(sqrt(variance) z): one set of coefficients serves every correlation. Above, where too many terms
would be needed, by the trapezoid rule over the plane of the two variables' sum and difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from propagate.model import ModelError

Array = NDArray[np.float64]
Elementwise: TypeAlias = Callable[[Array], Array]
LARGEST_SERIES = 32.0
LARGEST_VARIANCE = 1e4
"""Of pre-activations: above, the plane has more points than are worth waiting for."""
MOST_POINTS = 2.0**29
"""Of the planes of all pairs of tokens in one sublayer: about twenty seconds."""
_TOGETHER = 2**13  # points of a plane taken together: so many stay in a cache
_STEP = 0.2  # of a pre-activation: silu and tanh have their poles pi/2 or more from the real axis
_TAIL = 8.5  # standard deviations
NEEDED = 1e-22  # share of the sum of squared coefficients of one that counts
MANY = 24  # nodes of an interpolation over an octave of variances
_ANGLES = (np.arange(MANY) + 0.5) * np.pi / MANY
_NODES, _SIGNS = np.cos(_ANGLES), np.sin(_ANGLES) * (-1.0) ** np.arange(MANY)


class Series(NamedTuple):
    """sum_n terms_n c^n over the given degrees, and its value at c = 1."""

    degrees: Array
    terms: Array
    total: float

    def drop(self, loss: float) -> float:
        """Value at correlation 1, less the value at correlation 1 - loss."""
        if loss < 1:
            return float(self.terms @ -np.expm1(self.degrees * math.log1p(-loss)))
        return self.total - float(self.terms @ (1 - loss) ** self.degrees)


@lru_cache(maxsize=8)
def _hermite_basis(terms: int, step: float) -> tuple[Array, Array]:
    """Points z, and h_n(z) density(z) step for n < terms, with h_n the orthonormal Hermite polynomials.

    The recurrence runs on h_n sqrt(density), which stays bounded.
    """
    z = np.arange(-13, 13 + step / 2, step)
    root_density = np.exp(-z * z / 4) / (2 * np.pi) ** 0.25
    basis = np.empty((terms, len(z)))
    previous, current = np.zeros_like(z), root_density
    for n in range(terms):
        basis[n] = current
        previous, current = current, (z * current - math.sqrt(n) * previous) / math.sqrt(n + 1)
    return z, basis * (root_density * step)


def coefficients(phi: Elementwise, variances: Array, *, ending: bool = True, reach: float = 1.0) -> Array:
    """Hermite coefficients of phi(sqrt(variance) z), a row for each variance, as many as any of them needs.

    Without `ending` as many as there are, which is 128 up to variance 1; with `reach` as many as at that variance.

    Example: z^2 has the coefficients 1 and sqrt(2) of degrees 0 and 2.
        >>> coefficients(np.square, np.array([1.0])).round(12).tolist()
        [[1.0, 0.0, 1.414213562373]]
    """
    octave = max(0, math.ceil(math.log2(max(float(variances.max()), reach))))
    z, basis = _hermite_basis(128 * 2**octave, 0.04 * 2 ** (-octave / 2))
    rows = phi(np.sqrt(variances)[:, None] * z) @ basis.T
    if not ending:
        return np.asarray(rows)
    return np.asarray(rows[:, : _needed(rows)])


def coefficients_of_many(phi: Elementwise, variances: Array) -> Array:
    """The same, of many variances by Chebyshev interpolation in their logarithm.

    phi is analytic near the real line, so its coefficients are near the positive half-line of variances: with `MANY`
    nodes an octave they are interpolated to rounding, which the last terms of the series must show.

    Example:
        >>> variances = np.linspace(0.3, 3.0, 200)
        >>> found, direct = coefficients_of_many(np.tanh, variances), coefficients(np.tanh, variances)
        >>> common = min(found.shape[1], direct.shape[1])
        >>> bool(abs(found - direct)[:, :common].max() < 2e-15)
        True
    """
    if len(variances) <= 4 * MANY or not variances.min() > 0:
        return coefficients(phi, variances)
    position = np.log2(variances)
    octaves = np.floor(position).astype(int)
    last = int(octaves.max())
    tables = {int(octave): _over_octave(phi, int(octave), last) for octave in np.unique(octaves)}
    known = {octave: table for octave, table in tables.items() if table is not None}
    if len(known) < len(tables):
        return coefficients(phi, variances)
    needed = max(count for _, count in known.values())
    found = np.empty((len(variances), needed))
    for octave, (table, _) in known.items():
        there = octaves == octave
        away = 2 * (position[there] - octave)[:, None] - 1 - _NODES
        weights = _SIGNS / np.where(away == 0, 1e-300, away)
        found[there] = weights / weights.sum(axis=1, keepdims=True) @ table[:, :needed]
    return found


@lru_cache(maxsize=256)
def _over_octave(phi: Elementwise, octave: int, last: int) -> tuple[Array, int] | None:
    """Coefficients at the nodes between 2^octave and the double of it, of all degrees that the last octave has, and how
    many of these count; None where the nodes are too few.
    """
    reach = max(2.0 ** (last + 1), 1.0)
    table = coefficients(phi, 2.0 ** (octave + (_NODES + 1) / 2), ending=False, reach=reach)
    last_terms = np.cos(np.outer(np.arange(MANY - 2, MANY), _ANGLES)) @ table * 2 / MANY
    return None if np.abs(last_terms).max() > 1e-14 * np.abs(table).max() else (table, _needed(table))


def _needed(rows: Array) -> int:
    """How many coefficients count in some row."""
    squares = rows**2
    needed = (squares > NEEDED * squares.sum(axis=1, keepdims=True)).any(axis=0)
    return int(np.flatnonzero(needed)[-1]) + 1


@lru_cache(maxsize=4096)
def series_of(phi: Elementwise, variance: float) -> tuple[Series, Series]:
    """The series of K and S at this variance: squared Hermite coefficients of phi(sqrt(variance) z), and n times them.

    The number of terms and the step follow the distance of the poles of phi from the real axis, pi / 2 or more over
    sqrt(variance). The trapezoid rule is then exact to rounding; Gauss-Hermite nodes are not at large variance.
    """
    squares = coefficients(phi, np.array([variance]))[0] ** 2
    degrees = np.arange(len(squares), dtype=float)
    slopes = (degrees * squares)[1:] / variance
    return (
        Series(degrees, squares, float(squares.sum())),
        Series(degrees[:-1], slopes, float(slopes.sum())),
    )


def mean(f: Elementwise, variance: float) -> float:
    """E f(u) for a centred Gaussian of this variance.

    Example:
        >>> round(mean(lambda u: u * u, 4.0), 12)
        4.0
    """
    u, weight = _gaussian(variance)
    return float(weight @ f(u))


def on_plane(f: Elementwise, variance: float, deviation: float) -> tuple[float, float]:
    """E f(u)^2, and its drop E f(u)^2 - E f(u) f(v) = E (f(u) - f(v))^2 / 2, for variables of this variance.

    Args:
        f: an activation or its derivative.
        variance: of u and of v.
        deviation: variance less the covariance of u and v.

    Raises:
        ModelError: for a variance above `LARGEST_VARIANCE`.

    Example: for f(u) = u the drop is the deviation.
        >>> [round(value, 9) for value in on_plane(lambda u: u, 100.0, 25.0)]
        [100.0, 25.0]
    """
    return square_on_line(f, variance), drop_on_plane(f, variance, variance, deviation)


def square_on_line(f: Elementwise, variance: float) -> float:
    """E f(u)^2. Raises as `on_plane`.

    Example:
        >>> round(square_on_line(lambda u: u, 100.0), 9)
        100.0
    """
    check_reach(f.__name__.removesuffix("_slope"), variance)
    u, weight = _gaussian(variance)
    return float(weight @ f(u) ** 2)


def check_reach(name: str, variance: float) -> None:
    """ModelError for a variance above `LARGEST_VARIANCE`, or none."""
    if not variance <= LARGEST_VARIANCE:
        raise ModelError(
            f"{name} reads a variance of {variance:.3g}, and covers up to {LARGEST_VARIANCE:g}: lower the variance of"
            " the stream that it reads, or the gain before it"
        )


def drop_on_plane(f: Elementwise, first: float, second: float, deviation: float) -> float:
    """E (f(u) - f(v))^2 / 2 for variables of the `first` and `second` variance, and E (u - v)^2 / 2 = `deviation`.

    Example:
        >>> round(drop_on_plane(lambda u: u, 100.0, 64.0, 25.0), 9)
        25.0
    """
    if deviation <= 0:
        return 0.0
    slope, of_sum, of_difference = _split(first, second, deviation)
    half_sum, sum_weight = _gaussian(float(of_sum))
    half_difference, difference_weight = _gaussian(float(of_difference), moved=1 + abs(float(slope)))
    drop, together = 0.0, max(_TOGETHER // len(half_sum), 1)
    for start in range(0, len(half_difference), together):
        some = slice(start, start + together)
        h = half_difference[some, None]
        s = half_sum + slope * h
        drop += float(difference_weight[some] @ ((f(s + h) - f(s - h)) ** 2 @ sum_weight))
    return drop / 2


def check_work(name: str, first: Array, second: Array, deviation: Array) -> None:
    """ModelError for so many calls of `drop_on_plane`, or such wide ones, that they have more than `MOST_POINTS`.

    Example: two pairs of tokens are no work.
        >>> check_work("silu", np.array([100.0, 64.0]), np.array([100.0, 100.0]), np.array([25.0, 0.0]))
    """
    apart = deviation > 0
    slope, of_sum, of_difference = _split(first[apart], second[apart], deviation[apart])
    points = float(((2 * _reach(of_sum, 1.0)[0] + 1) * (2 * _reach(of_difference, 1 + abs(slope))[0] + 1)).sum())
    check_points(name, float(second.max()), len(first), points, MOST_POINTS)


def check_points(name: str, variance: float, pairs: int, points: float, most: float) -> None:
    """ModelError for more points of quadrature than `most`, or none.

    Example:
        >>> check_points("silu", 40.0, 3, 1e5, 1e6)
    """
    if points > most:
        raise ModelError(
            f"{name} reads a variance of {variance:.3g}, where {pairs} pairs of tokens take {points:.2g}"
            f" points of quadrature, and the theory covers up to {most:.2g}: lower the variance of the"
            " stream that it reads, or the gain before it, or take fewer tokens"
        )


def _split(first: Any, second: Any, deviation: Any) -> tuple[Any, Any, Any]:
    """Of two variables: given half the difference, the half sum is Gaussian about a multiple of it. That multiple, and
    the variances of both.
    """
    slope = (first - second) / (2 * deviation)
    return slope, np.maximum((first + second - deviation - slope * slope * deviation) / 2, 0.0), deviation / 2


def _gaussian(variance: float, *, moved: float = 1.0) -> tuple[Array, Array]:
    """Points and weights of the trapezoid rule for a centred Gaussian of this variance.

    `moved` is how far a pre-activation moves with it: steps of the pre-activation are what must be small.
    """
    if variance <= 0:
        return np.zeros(1), np.ones(1)
    reach, step = _reach(variance, moved)
    points = np.arange(-reach, reach + 1) * step
    weight = np.exp(-points * points / (2 * variance))
    return points.astype(float), weight / weight.sum()


def _reach(variance: Any, moved: Any) -> tuple[Any, Any]:
    """How many points lie on either side of 0, and their distance."""
    deviation = np.sqrt(variance)
    step = np.minimum(_STEP / moved, np.where(deviation > 0, deviation, 1.0) / 3)
    return np.ceil(_TAIL * deviation / step), step
