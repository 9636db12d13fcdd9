"""Orthonormal rows along which all lies that a matrix has met so far, and coordinates along them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from propagate.montecarlo.arrays import Array
from propagate.montecarlo.factor import differences, factor_of_rows

LOST = 2.0**-20  # what is left of a row of length 1 that was rounding and nothing else


@dataclass(eq=False)
class Span:
    """Rows in the order in which they were met, room for more behind them; a row of zeros is none.

    Everything is done with differences of tokens, as in `factor`: of tokens that have collapsed onto one another the
    differences are known to as many digits as the tokens tell of them.

    Attributes:
        rows: (draws, room, coordinates).
        count: rows so far.

    Example: what lies in the span already adds rows of zeros.
        >>> span = Span(np, np.zeros((1, 4, 5)))
        >>> first = span.meet(np.eye(2, 5)[None])
        >>> span.meet(np.eye(2, 5)[None] * 3)[0].tolist()
        [[3.0, 0.0, 0.0, 0.0], [-3.0, 3.0, 0.0, 0.0]]
        >>> span.count, span.rows[0, 2:].any().item()
        (4, False)
    """

    xp: Any
    rows: Array
    count: int = 0

    def known(self) -> Array:
        """The rows so far."""
        return self.rows[:, : self.count]

    def meet(self, x: Array) -> Array:
        """Coordinates (draws, tokens, count) of the differences of tokens, along the rows so far and new ones.

        Projected twice before new rows are made orthonormal, and once more after: where what was left is little more
        than rounding, rows made of it lean back on the old ones.
        """
        xp, met = self.xp, differences(self.xp, x)
        if not self.count:
            root, fresh = self._orthonormal(met)
            along = xp.zeros((*x.shape[:2], 0))
        else:
            length = _lengths(xp, met)
            along, rest = self._apart(met)
            rest *= _lengths(xp, rest) > 2.0**4 * np.finfo(x.dtype).eps * length
            again, rest = self._apart(rest)
            root, fresh = self._orthonormal(rest)
            leaning, fresh = self._apart(fresh)
            fresh *= _lengths(xp, fresh) > LOST
            along += again + root @ leaning
            upright, fresh = self._orthonormal(fresh)
            root = root @ upright
        new = fresh.shape[-2]
        self.rows[:, self.count : self.count + new] = fresh
        self.count += new
        return xp.concatenate([along, root], axis=-1)

    def _apart(self, x: Array) -> tuple[Array, Array]:
        """Coordinates along the rows so far, and what is left."""
        known = self.known()
        along = x @ known.swapaxes(-1, -2)
        return along.astype(float), x - along @ known

    def _orthonormal(self, rows: Array) -> tuple[Array, Array]:
        root, change, basis = factor_of_rows(self.xp, rows)
        return root, change.astype(basis.dtype) @ basis


def tokens_of(xp: Any, coordinates: Array) -> Array:
    """Coordinates of tokens, from those of their differences."""
    return xp.cumsum(coordinates, axis=-2)


def centred_of(xp: Any, coordinates: Array) -> Array:
    """Coordinates of the rows of `parameter_gradients.centred`, from those of differences.

    Example:
        >>> from propagate.montecarlo.parameter_gradients import centred
        >>> x = np.array([[[1.0, 2.0], [3.0, 5.0], [4.0, 4.0]]])
        >>> bool(abs(centred_of(np, differences(np, x)) - centred(np, x)).max() < 1e-15)
        True
    """
    first, tokens = coordinates[:, :1], coordinates.shape[-2]
    since = xp.cumsum(coordinates[:, 1:], axis=-2)  # less the first token, which may be much larger
    mean = since.sum(axis=-2, keepdims=True) / tokens
    return xp.concatenate([(first + mean) * math.sqrt(tokens), -mean, since - mean], axis=-2)


def _lengths(xp: Any, rows: Array) -> Array:
    return xp.sqrt((rows * rows).sum(axis=-1, keepdims=True))
