"""Which way an optimiser moves a matrix, from the gradient and what it remembers of earlier ones.

A step is W <- (1 - lr * decay) W - lr * direction. A gradient comes as two thin factors, left^T right: inputs and
cotangents of the tokens, or their coordinates along orthonormal rows, for which all but `Sign` and `Adam` do the same.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NamedTuple

from propagate.checks import ModelError
from propagate.montecarlo.arrays import Array
from propagate.optimizers import SGD, Adam, Muon, Sign

EXACT, DOUBTFUL = 2.0**9, 2.0**16
"""In units of rounding: singular values of a gradient below the first, relative to the largest, count as 0; of those
below the second it cannot be told whether they are."""


class Gradient(NamedTuple):
    """left^T right.

    Attributes:
        left: (draws, rows, fan_in), or coordinates of that.
        right: (draws, rows, fan_out), or coordinates of that.
        sizes: fan_in and fan_out.
        rounding: of the arrays that they come from.
    """

    left: Array
    right: Array
    sizes: tuple[int, int]
    rounding: float = 2.0**-52

    def matrix(self) -> Array:
        return self.left.swapaxes(-1, -2) @ self.right


class Direction(NamedTuple):
    """Where to, what is remembered for the next step, and in which draws rounding may have decided."""

    towards: Array
    memory: tuple[Any, ...]
    doubtful: Array | None = None


@singledispatch
def direction(optimizer: Any, xp: Any, gradient: Gradient, memory: tuple[Any, ...]) -> Direction:
    """The direction of the next step; `memory` is empty at the first.

    Example:
        >>> import numpy as np
        >>> gradient = Gradient(np.array([[[2.0, 0.0]]]), np.array([[[3.0]]]), (2, 1))
        >>> direction(SGD(lr=1.0), np, gradient, ()).towards.tolist()
        [[[6.0], [0.0]]]
        >>> direction(Muon(lr=1.0), np, gradient, ()).towards.tolist()
        [[[1.0], [0.0]]]
    """
    raise ModelError(f"simulation does not cover the optimizer {type(optimizer).__name__}")


@direction.register(SGD)
def sgd(optimizer: SGD, xp: Any, gradient: Gradient, memory: tuple[Any, ...]) -> Direction:
    mean = _mean(xp, gradient, memory, optimizer.momentum)
    return Direction(mean, (mean,) if optimizer.momentum else ())


@direction.register(Sign)
def sign(optimizer: Sign, xp: Any, gradient: Gradient, memory: tuple[Any, ...]) -> Direction:
    mean = _mean(xp, gradient, memory, optimizer.momentum)
    return Direction(xp.sign(mean), (mean,) if optimizer.momentum else ())


@direction.register(Adam)
def adam(optimizer: Adam, xp: Any, gradient: Gradient, memory: tuple[Any, ...]) -> Direction:
    """Where gradient and eps are 0, it stays."""
    found, (first, second) = gradient.matrix(), optimizer.betas
    taken, mean, square = memory or (0, 0.0, 0.0)
    mean = first * mean + (1 - first) * found
    square = second * square + (1 - second) * found * found
    size = xp.sqrt(square / (1 - second ** (taken + 1))) + optimizer.eps
    towards = mean / (1 - first ** (taken + 1)) / xp.where(size == 0, 1.0, size)
    return Direction(towards, (taken + 1, mean, square))


@direction.register(Muon)
def muon(optimizer: Muon, xp: Any, gradient: Gradient, memory: tuple[Any, ...]) -> Direction:
    """Momentum is kept as the factors of all gradients so far, each times its weight."""
    beta, (left, right, (fan_in, fan_out), rounding) = optimizer.momentum, gradient
    if memory:
        old_left, old_right = padded(xp, memory[0], left.shape[-1:]), beta * padded(xp, memory[1], right.shape[-1:])
        left, right = xp.concatenate([old_left, left], axis=-2), xp.concatenate([old_right, right], axis=-2)
    kept = (left, right) if beta else ()
    if optimizer.nesterov and beta:
        weights = xp.full(right.shape[-2], beta, dtype=right.dtype)
        weights[-gradient.right.shape[-2] :] += 1
        right = right * weights[:, None]
    towards, doubtful = polar(xp, left, right, rounding)
    return Direction(optimizer.size(fan_in, fan_out) * towards, kept, doubtful)


def polar(xp: Any, left: Array, right: Array, rounding: float = 2.0**-52) -> tuple[Array, Array]:
    """U V^T of left^T right = U S V^T, and in which draws rounding may have decided what is in it.

    Example:
        >>> import numpy as np
        >>> left, right = np.random.default_rng(0).standard_normal((2, 1, 3, 5))
        >>> u, _, v = np.linalg.svd(left[0].T @ right[0])
        >>> bool(abs(polar(np, left, right)[0][0] - u[:, :3] @ v[:3]).max() < 1e-12)
        True
    """
    (along, upper), (across, other) = (xp.linalg.qr(rows.swapaxes(-1, -2)) for rows in (left, right))
    core = upper @ other.swapaxes(-1, -2)
    sound = xp.isfinite(core).all(axis=(-1, -2))
    u, sizes, v = xp.linalg.svd(xp.where(sound[:, None, None], core, 0.0), full_matrices=False)
    share = sizes / xp.where(sizes[:, :1] > 0, sizes[:, :1], 1.0)
    inner = (u * (share > EXACT * rounding)[:, None, :]) @ v
    inner = xp.where(sound[:, None, None], inner, xp.nan).astype(core.dtype)
    doubtful = ((share > EXACT * rounding / 2**3) & (share < DOUBTFUL * rounding)).any(axis=-1)
    return along @ inner @ across.swapaxes(-1, -2), doubtful


def _mean(xp: Any, gradient: Gradient, memory: tuple[Any, ...], momentum: float) -> Array:
    found = gradient.matrix()
    if not memory:
        return found
    return found + momentum * padded(xp, memory[0], found.shape[-2:])


def padded(xp: Any, x: Array, sizes: tuple[int, ...]) -> Array:
    """With zeros after it along the last axes, up to these sizes: coordinates along rows that were met later.

    Example:
        >>> import numpy as np
        >>> padded(np, np.ones((1, 1, 1)), (1, 3)).tolist()
        [[[1.0, 0.0, 0.0]]]
    """
    missing = [size - had for size, had in zip(sizes, x.shape[-len(sizes) :], strict=True)]
    return xp.pad(x, [(0, 0)] * (x.ndim - len(sizes)) + [(0, more) for more in missing]) if any(missing) else x
