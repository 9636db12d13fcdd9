"""Activations and their pulls on a CUDA device, each one pass. The formulas are those of `montecarlo.operators`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from propagate.montecarlo.backend import Array

# in terms of x: the value, and the derivative
FORMULAS = {
    "relu": ("x > 0 ? x : T(0)", "x > 0 ? T(1) : T(0)"),
    "gelu": (
        "x * normcdf(x)",
        "normcdf(x) + x * exp(T(-0.5) * x * x) * T(0.3989422804014327)",
    ),
    "silu": ("x / (1 + exp(-x))", "(1 + x / (1 + exp(x))) / (1 + exp(-x))"),
    "tanh": ("tanh(x)", "1 - tanh(x) * tanh(x)"),
}


@lru_cache(maxsize=32)
def _kernels(name: str) -> tuple[Any, Any]:
    import cupy

    value, slope = FORMULAS[name]
    return (
        cupy.ElementwiseKernel("T x", "T y", f"y = {value}", f"{name}_value"),
        cupy.ElementwiseKernel("T x, T g", "T out", f"out = g * ({slope})", f"{name}_pull"),
    )


def activation(name: str, x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """An activation of one argument."""
    value, pull = _kernels(name)
    return value(x), lambda g: pull(x, g)


@lru_cache(maxsize=32)
def _gated_kernels(name: str) -> tuple[Any, Any]:
    import cupy

    value, slope = FORMULAS[name]
    where = "const ptrdiff_t at = i / n * 2 * n + i % n; const T x = both[at], w = both[at + n];"
    return (
        cupy.ElementwiseKernel("raw T both, int64 n", "T y", f"{where} y = ({value}) * w", f"{name}_gated"),
        cupy.ElementwiseKernel(
            "T g, raw T both, int64 n",
            "raw T out",
            f"{where} out[at] = g * w * ({slope}); out[at + n] = g * ({value})",
            f"{name}_gated_pull",
        ),
    )


def gated(name: str, both: Array) -> tuple[Array, Callable[[Array], Array]]:
    """The activation of the first half of the last axis times the second half."""
    import cupy

    both = cupy.ascontiguousarray(both)
    half = both.shape[-1] // 2
    value, pull_both = _gated_kernels(name)
    y = cupy.empty((*both.shape[:-1], half), dtype=both.dtype)
    value(both, half, y)

    def pull(g: Array) -> Array:
        out = cupy.empty_like(both)
        pull_both(cupy.ascontiguousarray(g), both, half, out)
        return out

    return y, pull
