"""Streams of a wide network and their fluctuations, as vectors in a small space.

The tokens of all streams of a block span few of `width` directions. Only inner products count, so those directions are
taken as an orthonormal frame, and a stream is an array (evaluations, tokens, directions) whose rows' inner products are
second moments per coordinate. What a fresh Gaussian matrix makes of a stream brings as many new directions as there are
tokens, and has small components along those that were there before: of each of them the rows have independent Gaussian
components of variance 1 / width, whatever the frame (the law that conditions a Gaussian matrix on where it was used).

With e^2 = 1 / width every inner product is limit + e (Gaussian) + e^2 (bias), and to order e^2 the mean of any smooth
function of them follows from means and covariances alone: E f = f + f' bias + f'' Cov / 2. That is taken over samples.
Evaluations come in pairs with the noise of opposite signs, whose mean has no term of order e, and a last one without
noise, which is the limit: half the sum of a pair less the limit, over e^2, is a sample of the bias times the width.
No width enters: e is any small number.

Where a function acts on a stream coordinate by coordinate, inner products do not say all: its means over coordinates
are correlated with one another, and with inner products of what comes later. Then every direction also has a few
sampled coordinates, standard normals to leading order for one that a Gaussian matrix made. Means over `width`
coordinates have the fluctuations of those over a few, made smaller; all of them, inner products too, are taken there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagate.theory.gaussian.roots import symmetric_root

Array = NDArray[np.float64]
SINGULAR = 1e-5  # of the largest pivot: below it a triangular root is not smooth in what is rounded
COORDINATES = 64  # that make one sample of the fluctuations of their means; any number has the right covariance
SMALL = 2e-3  # e: fourth order is left out of what is e^2, rounding over e^2 must be small


@dataclass
class Noise:
    """Evaluations: `pairs` with +e, as many with -e, and one without noise.

    Attributes:
        pairs: their number.
        random: where the noise comes from.
        small: e.
    """

    pairs: int
    random: np.random.Generator
    small: float = SMALL
    square: Array = field(init=False)

    def __post_init__(self) -> None:
        self.square = np.full((2 * self.pairs + 1, 1, 1), self.small**2)
        self.square[-1] = 0.0

    def odd(self, values: Array) -> Array:
        """e times samples (pairs, ...), with both signs and, last, 0."""
        return np.concatenate([self.small * values, -self.small * values, np.zeros((1, *values.shape[1:]))])

    def normals(self, rows: int, columns: int) -> Array:
        """e times a Gaussian matrix."""
        return self.odd(self.random.standard_normal((self.pairs, rows, columns)))

    def of_pairs(self, values: Array) -> Array:
        """e times samples of either sign (2 pairs, ...), the second ones turned and, last, 0."""
        return np.concatenate(
            [self.small * values[: self.pairs], -self.small * values[self.pairs :], np.zeros((1, *values.shape[1:]))]
        )

    def of_products(self, one: Array, other: Array, mean: Array | float = 0.0) -> Array:
        """Fluctuations of inner products about this mean, of rows of sampled coordinates (2 pairs, rows, number)."""
        number = one.shape[-1]
        return self.of_pairs((one @ other.swapaxes(1, 2) - number * mean) / math.sqrt(number))

    def symmetric(self, size: int) -> Array:
        """The fluctuation of Z Z^T / width for Gaussian Z: variance 2 e^2 on the diagonal, e^2 off it."""
        values = self.random.standard_normal((self.pairs, size, size))
        return self.odd((values + values.swapaxes(1, 2)) / np.sqrt(2))


@dataclass
class Frame:
    """The directions that a block's streams have so far.

    Attributes:
        noise: its evaluations.
        directions: their number.
        coordinates: sampled ones of every direction, (2 pairs, directions, `COORDINATES`); None where none are needed.
    """

    noise: Noise
    directions: int
    coordinates: Array | None = None

    def image(self, rows: int, without: Array | None = None) -> Array:
        """Rows of a fresh Gaussian matrix: along the directions so far, then along as many new ones.

        Args:
            rows: their number.
            without: an orthonormal frame (evaluations, size, directions) to which the rows are orthogonal.
        """
        fresh = self.fresh(rows)
        along = self._along(rows, fresh, without)
        apart = self.noise.symmetric(rows) if fresh is None else self.noise.of_products(fresh, fresh, np.eye(rows))
        # squared, with what lies along the frame, its mean is 1 less 1 / width for each direction in `without`
        rest = (1 - self.directions * self.noise.square / 2) * np.eye(rows) + apart / 2 - apart @ apart / 8
        return self.grown(along, rest, fresh)

    def isometry(self, rows: int, without: Array | None = None, coordinates: Array | None = None) -> Array:
        """Orthonormal rows in directions that know nothing of the frame, likewise; with these sampled coordinates."""
        fresh = self.fresh(rows) if coordinates is None else coordinates
        along = self._along(rows, fresh, without)
        rest = np.linalg.cholesky(np.eye(rows) - along @ along.swapaxes(1, 2))
        return self.grown(along, np.asarray(rest, float), fresh)

    def fresh(self, rows: int) -> Array | None:
        """Sampled coordinates of rows of a fresh Gaussian matrix, the same for either sign; None as `coordinates`."""
        if self.coordinates is None:
            return None
        values = self.noise.random.standard_normal((self.noise.pairs, rows, COORDINATES))
        return np.concatenate([values, values])

    def seen(self, x: Array) -> Array | None:
        """Sampled coordinates of vectors (evaluations, rows, directions so far), in all but the last evaluation."""
        return None if self.coordinates is None else x[:-1] @ self.coordinates[:, : x.shape[-1]]

    def turned(self, span: Array) -> Frame:
        """The frame of these orthonormal rows."""
        return Frame(self.noise, span.shape[1], self.seen(span))

    def padded(self, x: Array) -> Array:
        """With zeros along the directions that came later."""
        return padded(x, self.directions)

    def grown(self, along: Array, rest: Array, fresh: Array | None = None) -> Array:
        """Vectors of these components along the directions so far, and along new ones with these coordinates."""
        self.directions += rest.shape[-1]
        if fresh is not None:
            assert self.coordinates is not None
            self.coordinates = np.concatenate([self.coordinates, fresh], axis=1)
        return np.concatenate([along, rest], axis=-1)

    def _along(self, rows: int, fresh: Array | None, without: Array | None) -> Array:
        if fresh is None or self.coordinates is None:
            along = self.noise.normals(rows, self.directions)
        else:
            along = self.noise.of_products(fresh, self.coordinates)
        if without is None:
            return along
        span = self.padded(without)
        return along - (along @ span.swapaxes(1, 2)) @ span


@dataclass(frozen=True)
class Returned:
    """A cotangent that sublayers send back: fresh rows of Gaussian matrices, but for what it has along their input.

    Attributes:
        fresh: factors of rows that are orthogonal to the input, (evaluations, tokens, rows).
        known: components along the input's directions, (evaluations, tokens, tokens).
        isotropic: whether no sublayer sent it: rows are orthonormal, and not orthogonal to anything.
    """

    fresh: Array
    known: Array
    isotropic: bool = False

    def __add__(self, other: Returned) -> Returned:
        return Returned(np.concatenate([self.fresh, other.fresh], axis=-1), self.known + other.known)

    def __mul__(self, factor: Any) -> Returned:
        return Returned(self.fresh * factor, self.known * factor, self.isotropic)

    def vectors(self, frame: Frame, span: Array) -> Array:
        """In the frame, where the input's directions are these."""
        fresh = self.fresh @ frame.image(self.fresh.shape[-1], without=span)
        return np.asarray(fresh + frame.padded(self.known @ span))


def root(gram: Array) -> Array:
    """R of R R^T, of nearby matrices: lower triangular, or symmetric where one of them is singular.

    Example:
        >>> root(np.array([[[4.0, 2.0], [2.0, 2.0]]]))[0].tolist(), root(np.zeros((1, 1, 1))).tolist()
        ([[2.0, 0.0], [1.0, 1.0]], [[[0.0]]])
    """
    try:
        lower = np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        return symmetric_root(gram)
    pivots = np.diagonal(lower, axis1=-2, axis2=-1)
    regular = (pivots.min(axis=-1) > SINGULAR * pivots.max(axis=-1)).all()
    return np.asarray(lower, float) if regular else symmetric_root(gram)


def factored(x: Array) -> tuple[Array, Array]:
    """x = L Q with lower triangular L of positive diagonal, so that it is smooth in x, and orthonormal rows Q."""
    q, r = np.linalg.qr(x.swapaxes(-1, -2))
    sign = np.where(np.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return (r * sign[..., :, None]).swapaxes(-1, -2), (q * sign[..., None, :]).swapaxes(-1, -2)


def padded(x: Array, directions: int) -> Array:
    """With zeros along directions that came later."""
    if x.shape[-1] == directions:
        return x
    found = np.zeros((*x.shape[:-1], directions))
    found[..., : x.shape[-1]] = x
    return found


def inner(x: Array, y: Array) -> Array:
    """Inner products of every token of x with every token of y."""
    size = min(x.shape[-1], y.shape[-1])
    return x[..., :size] @ y[..., :size].swapaxes(-1, -2)
