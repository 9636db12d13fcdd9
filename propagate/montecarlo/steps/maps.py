"""What a map that is trained must do, however its matrices are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from propagate.montecarlo.arrays import Array
from propagate.montecarlo.steps.directions import Gradient
from propagate.optimizers import Optimizer


class Stored(NamedTuple):
    """A matrix as the network stores it: name, columns, and its entries' standard deviation times sqrt(fan_in)."""

    name: str
    width: int
    gain: float


class Moved(NamedTuple):
    """How far a matrix S has come since step 0, for each draw.

    Attributes:
        own: |x0 (S - S0)|^2, x0 being what entered at step 0.
        together: the squared norm of the sum of its rows, one a token.
        far: |S - S0|^2, squared Frobenius norm.
        size: |S0|^2.
    """

    own: Array
    together: Array
    far: Array
    size: Array


def squares_of(x: Array) -> tuple[Array, Array]:
    """Of each draw of (draws, tokens, coordinates): the squared norm, and that of the sum over tokens.

    Example:
        >>> import numpy as np
        >>> [float(of[0]) for of in squares_of(np.array([[[1.0], [2.0]]]))]
        [5.0, 9.0]
    """
    together = x.sum(axis=-2)
    return (x * x).sum(axis=(-1, -2), dtype=float), (together * together).sum(axis=-1, dtype=float)


class Map(Protocol):
    """Matrices side by side that read the same tokens. Forward, backward and update follow one another in turn."""

    def forward(self, x: Array) -> list[Array]:
        """x S of each matrix; x is (draws, tokens, fan_in)."""
        ...

    def backward(self, cotangents: Sequence[Array]) -> Array:
        """The cotangent of x, from that of each matrix's output."""
        ...

    def gradients(self) -> list[Gradient]:
        """Of each matrix, by the last way forward and backward."""
        ...

    def update(self, optimizers: Sequence[Optimizer]) -> Array:
        """A step of each matrix; in which draws rounding may have decided its direction."""
        ...

    def moved(self) -> list[Moved]:
        """Of each matrix, since step 0."""
        ...

    def falls(self) -> list[Array]:
        """<gradient, S0 - S> of each matrix and draw, by the last gradient."""
        ...
