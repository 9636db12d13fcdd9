"""Sums, activations and their pulls on a CUDA device, one pass each; the formulas of `montecarlo.operators`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from propagate.montecarlo.arrays import Array
from propagate.montecarlo.cuda.kernels import THREADS, launch

Pulled = tuple[Array, Callable[[Array], Array]]


def add(a: Array, b: Array) -> Array:
    """The sum of two arrays of one shape and type."""
    import cupy

    a, b = cupy.ascontiguousarray(a), cupy.ascontiguousarray(b)
    out = cupy.empty_like(a)
    launch("add", 1, a.dtype, (-(-a.size // (4 * THREADS)),), THREADS, out, a, b, np.uint64(a.size))
    return out


def activation(name: str, x: Array) -> Pulled:
    """An activation of one argument."""
    import cupy

    x = cupy.ascontiguousarray(x)
    y = cupy.empty_like(x)
    grid, size = (-(-x.size // (4 * THREADS)),), np.uint64(x.size)
    launch(f"{name}_value", 1, x.dtype, grid, THREADS, y, x, size)

    def pull(g: Array) -> Array:
        out = cupy.empty_like(x)
        launch(f"{name}_pull", 1, x.dtype, grid, THREADS, out, cupy.ascontiguousarray(g), x, size)
        return out

    return y, pull


def gated(name: str, both: Array) -> Pulled:
    """The activation of the first half of the last axis times the second half."""
    import cupy

    both = cupy.ascontiguousarray(both)
    half = both.shape[-1] // 2
    y = cupy.empty((*both.shape[:-1], half), dtype=both.dtype)
    grid, sizes = (-(-y.size // THREADS),), (np.uint64(y.size), np.uint64(half))
    launch(f"gated_{name}_value", 1, both.dtype, grid, THREADS, y, both, *sizes)

    def pull(g: Array) -> Array:
        out = cupy.empty_like(both)
        launch(f"gated_{name}_pull", 1, both.dtype, grid, THREADS, out, cupy.ascontiguousarray(g), both, *sizes)
        return out

    return y, pull
