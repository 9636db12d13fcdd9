"""Trained matrices that are never made, exact in law at every width.

A Gaussian W0 is met only by tokens x W0 and cotangents g W0^T, each of which may depend on all that came before. Kept
are orthonormal rows Q with A = Q W0, and P with C = P W0^T. New tokens are x = a Q + R q with new orthonormal rows q,
and given all that was met q W0 = (q C^T) P + z (I - P^T P) with fresh normals z; cotangents are the mirror image. A
gradient is a sum over tokens of x^T g, and so it has coordinates along Q and P, and so have all that momentum and decay
make of gradients, and their orthogonal factor: W = c W0 + Q^T B P, with B a small matrix. A step costs some
tokens^2 * steps * (fan_in + fan_out) multiplications; memory grows by 2 tokens * (fan_in + fan_out) numbers a step.

At step 0 this is the algebra of `montecarlo.weightless`. Only Gaussian entries have this law.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from propagate.montecarlo.arrays import Array
from propagate.montecarlo.normals import BACKWARD, Normals
from propagate.montecarlo.steps.directions import Gradient, direction, padded
from propagate.montecarlo.steps.maps import Moved, Stored, squares_of
from propagate.montecarlo.steps.span import Span, centred_of, tokens_of
from propagate.optimizers import Optimizer


@dataclass(eq=False)
class Learner:
    """One matrix, gain * ((1 - lost) W0) + Q^T learnt P.

    Attributes:
        gain: with which it is stored; entries of W0 have variance 1 / fan_in.
        width: its columns.
        seen: A, (draws, room, width).
        across: P.
        answered: C, (draws, room, fan_in).
        learnt: (draws, rows of Q, rows of P), those there were at the last update.
        lost: to decay.
        memory: the optimiser's, in coordinates.
        met: the last gradient, in coordinates.
    """

    gain: float
    width: int
    seen: Array
    across: Span
    answered: Array
    learnt: Array
    lost: float = 0.0
    memory: tuple[Any, ...] = ()
    met: Gradient | None = None

    def overlaps(self, rows: int) -> Array:
        """Q W0 P^T, of so many rows of Q."""
        return self.seen[:, :rows] @ self.across.known().swapaxes(-1, -2)


@dataclass(eq=False)
class Weightless:
    """Matrices that read the same tokens: one Q, and the rest of each by itself."""

    normals: Normals
    site: int
    stride: int
    span: Span
    matrices: list[Learner]
    step: int = 0
    first: Array | None = None
    read: Array | None = None

    @property
    def fan_in(self) -> int:
        return int(self.span.rows.shape[-1])

    def forward(self, x: Array) -> list[Array]:
        xp, before = self.normals.backend.xp, self.span.count
        self.read = self.span.meet(x)
        tokens, fresh = tokens_of(xp, self.read), self.span.known()[:, before:]
        self.first = tokens if self.first is None else self.first
        ends = [0, *accumulate(one.width for one in self.matrices)]
        noise = self.normals.rows(self.site + self.step * self.stride, fresh.shape[-2], ends[-1])
        found = []
        for one, (start, end) in zip(self.matrices, pairwise(ends), strict=True):
            known = one.across.known()
            z = noise[..., start:end] * self.fan_in**-0.5
            one.seen[:, before : self.span.count] = conditioned(z, fresh, known, one.answered[:, : one.across.count])
            kept = (one.gain * (1 - one.lost) * tokens).astype(x.dtype) @ one.seen[:, : self.span.count]
            found.append(kept + self._along(tokens, one.learnt, known, x.dtype))
        return found

    def backward(self, cotangents: Sequence[Array]) -> Array:
        xp, dtype = self.normals.backend.xp, cotangents[0].dtype
        left, span = centred_of(xp, self.read), self.span.known()
        counts = [min(g.shape[-2:]) for g in cotangents]
        ends = [0, *accumulate(counts)]
        noise = self.normals.rows(self.site + BACKWARD + self.step * self.stride, ends[-1], self.fan_in)
        noise *= self.fan_in**-0.5
        total = xp.zeros((*cotangents[0].shape[:2], self.fan_in), dtype=dtype)
        for one, g, (start, end) in zip(self.matrices, cotangents, pairwise(ends), strict=True):
            before = one.across.count
            came = one.across.meet(g)
            tokens, fresh = tokens_of(xp, came), one.across.known()[:, before:]
            z = noise[:, start:end]
            one.answered[:, before : one.across.count] = conditioned(z, fresh, span, one.seen[:, : self.span.count])
            total += (one.gain * (1 - one.lost) * tokens).astype(dtype) @ one.answered[:, : one.across.count]
            total += self._along(tokens, one.learnt.swapaxes(-1, -2), span, dtype)
            one.met = Gradient(left, centred_of(xp, came), (self.fan_in, one.width), float(np.finfo(dtype).eps))
        self.step += 1
        return total

    def _along(self, tokens: Array, learnt: Array, rows: Array, dtype: Any) -> Array:
        """Tokens, by their coordinates, times what was learnt: later coordinates have met nothing that was."""
        inside = tokens[..., : learnt.shape[-2]] @ learnt
        return inside.astype(dtype) @ rows[:, : learnt.shape[-1]]

    def gradients(self) -> list[Gradient]:
        return [_met(one) for one in self.matrices]

    def update(self, optimizers: Sequence[Optimizer]) -> Array:
        xp = self.normals.backend.xp
        doubtful = xp.zeros(len(self.span.rows), dtype=bool)
        for one, optimizer in zip(self.matrices, optimizers, strict=True):
            found = direction(optimizer, xp, _met(one), one.memory)
            one.memory, rate = found.memory, optimizer.lr * optimizer.decay
            one.learnt = (1 - rate) * padded(xp, one.learnt, found.towards.shape[-2:]) - optimizer.lr * found.towards
            one.lost += rate * (1 - one.lost)
            doubtful |= False if found.doubtful is None else found.doubtful
        return doubtful

    def moved(self) -> list[Moved]:
        """|S0|^2 is taken to be its expectation, gain^2 fan_out, from which it differs by sqrt(2 / entries) of it."""
        xp, found = self.normals.backend.xp, []
        first, dtype = self.first, self.span.rows.dtype
        assert first is not None
        for one in self.matrices:
            size = xp.full(len(first), one.gain**2 * one.width)
            learnt = one.learnt[:, : first.shape[-1]]
            own = self._along(first, learnt, one.across.known(), dtype)
            far = (one.learnt * one.learnt).sum(axis=(-1, -2))
            if one.lost:
                own = own - (one.gain * one.lost * first).astype(dtype) @ one.seen[:, : first.shape[-1]]
                rows, columns = one.learnt.shape[-2:]
                shared = (one.overlaps(rows)[..., :columns] * one.learnt).sum(axis=(-1, -2))
                far = far + one.lost**2 * size - 2 * one.lost * one.gain * shared
            found.append(Moved(*squares_of(own), far, size))
        return found

    def falls(self) -> list[Array]:
        found = []
        for one in self.matrices:
            gradient = _met(one).matrix()
            fall = -(gradient * padded(self.normals.backend.xp, one.learnt, gradient.shape[-2:])).sum(axis=(-1, -2))
            if one.lost:
                kept = (gradient * one.overlaps(gradient.shape[-2])).sum(axis=(-1, -2))
                fall = fall + one.gain * one.lost * kept
            found.append(fall)
        return found


def conditioned(z: Array, fresh: Array, known: Array, answers: Array) -> Array:
    """What a matrix makes of fresh rows, orthonormal to those it has met, given what its transpose made of others.

    Args:
        z: (draws, rows, coordinates), what it would make of them otherwise; written over.
        fresh: (draws, rows, coordinates of the other side).
        known: (draws, others, coordinates), the orthonormal rows that its transpose has met.
        answers: (draws, others, coordinates of the other side), what that made of them.
    """
    z += (fresh @ answers.swapaxes(-1, -2) - z @ known.swapaxes(-1, -2)) @ known
    return z


def _met(one: Learner) -> Gradient:
    assert one.met is not None
    return one.met


def weightless_map(
    normals: Normals, steps: int, stride: int, site: int, fan_in: int, stored: Sequence[Stored], tokens: int
) -> Weightless:
    """Matrices at this site, with room for so many steps; later steps draw from sites `stride` further on each.

    Example: the map and its transpose agree on what they did.
        >>> import numpy as np
        >>> from propagate.montecarlo.backend import choose_backend
        >>> normals = Normals(choose_backend("numpy"), seed=0, draws=range(1))
        >>> made = weightless_map(normals, 1, 128, 64, 8, [Stored("value", 5, 1.0)], tokens=2)
        >>> x, g = np.eye(2, 8)[None], np.ones((1, 2, 5))
        >>> (y,) = made.forward(x)
        >>> bool(abs((g * y).sum() - (made.backward([g]) * x).sum()) < 1e-14)
        True
    """
    xp, dtype, draws = normals.backend.xp, normals.backend.dtype, len(normals.draws)

    def room(met: int, coordinates: int) -> Array:
        return xp.zeros((draws, (steps + 1) * min(tokens, met), coordinates), dtype=dtype)

    matrices = [
        Learner(
            one.gain,
            one.width,
            seen=room(fan_in, one.width),
            across=Span(xp, room(one.width, one.width)),
            answered=room(one.width, fan_in),
            learnt=xp.zeros((draws, 0, 0)),
        )
        for one in stored
    ]
    return Weightless(normals, site, stride, Span(xp, room(fan_in, fan_in)), matrices)
