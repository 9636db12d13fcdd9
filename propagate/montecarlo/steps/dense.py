"""Trained matrices that are there entry by entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from propagate.montecarlo.arrays import Array
from propagate.montecarlo.laws import Law
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.parameter_gradients import centred
from propagate.montecarlo.steps.directions import Gradient, direction
from propagate.montecarlo.steps.maps import Moved, Stored, squares_of
from propagate.optimizers import Optimizer


@dataclass(eq=False)
class Dense:
    """The matrices as they are, and how far each has moved since step 0."""

    xp: Any
    now: list[Array]
    moved_by: list[Array] = field(default_factory=list)
    sizes: list[Array] = field(default_factory=list)
    memories: list[tuple[Any, ...]] = field(default_factory=list)
    met: list[Gradient] = field(default_factory=list)
    first: Array | None = None
    read: Array | None = None

    def __post_init__(self) -> None:
        self.moved_by = [self.xp.zeros_like(one) for one in self.now]
        self.sizes = [_square(one) for one in self.now]
        self.memories = [() for _ in self.now]

    def forward(self, x: Array) -> list[Array]:
        self.read = x
        self.first = x if self.first is None else self.first
        return [x @ one for one in self.now]

    def backward(self, cotangents: Sequence[Array]) -> Array:
        left, rounding = centred(self.xp, self.read), float(np.finfo(self.now[0].dtype).eps)
        self.met = [
            Gradient(left, centred(self.xp, g), one.shape[-2:], rounding)
            for g, one in zip(cotangents, self.now, strict=True)
        ]
        back = [g @ one.swapaxes(-1, -2) for g, one in zip(cotangents, self.now, strict=True)]
        return sum(back[1:], back[0])

    def gradients(self) -> list[Gradient]:
        return self.met

    def update(self, optimizers: Sequence[Optimizer]) -> Array:
        doubtful = self.xp.zeros(len(self.now[0]), dtype=bool)
        for index, (optimizer, gradient) in enumerate(zip(optimizers, self.met, strict=True)):
            found = direction(optimizer, self.xp, gradient, self.memories[index])
            self.memories[index] = found.memory
            change = found.towards * -optimizer.lr
            if optimizer.decay:
                change -= optimizer.lr * optimizer.decay * self.now[index]
            self.now[index] += change
            self.moved_by[index] += change
            doubtful |= False if found.doubtful is None else found.doubtful
        return doubtful

    def moved(self) -> list[Moved]:
        return [
            Moved(*squares_of(self.first @ by), _square(by), size)
            for by, size in zip(self.moved_by, self.sizes, strict=True)
        ]

    def falls(self) -> list[Array]:
        return [
            -((gradient.left @ by) * gradient.right).sum(axis=(-1, -2))
            for gradient, by in zip(self.met, self.moved_by, strict=True)
        ]


def dense_map(normals: Normals, law: Law, site: int, fan_in: int, stored: Sequence[Stored]) -> Dense:
    """Matrices of any law, those that `samplers.dense` draws at this site.

    Example: nothing has moved yet.
        >>> import numpy as np
        >>> from propagate.montecarlo.backend import choose_backend
        >>> from propagate.montecarlo.laws import normal
        >>> normals = Normals(choose_backend("numpy"), seed=0, draws=range(2))
        >>> made = dense_map(normals, normal, 64, 8, [Stored("query", 4, 1.0), Stored("key", 4, 0.5)])
        >>> [one.shape for one in made.forward(np.ones((2, 3, 8)))], float(made.moved()[0].far.max())
        ([(2, 3, 4), (2, 3, 4)], 0.0)
    """
    ends = [0, *accumulate(one.width for one in stored)]
    whole = law(normals, site, fan_in, ends[-1])
    parts = [whole[..., first:last] * one.gain for one, (first, last) in zip(stored, pairwise(ends), strict=True)]
    return Dense(normals.backend.xp, parts)


def _square(x: Array) -> Array:
    """Squared Frobenius norm of each draw, without a copy as large as x."""
    return (x.reshape(len(x), 1, -1) @ x.reshape(len(x), -1, 1))[:, 0, 0]
