"""Operators made from an activation's expression: NumPy's by `lambdify`, CuPy's as elementwise kernels printed in C."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from propagate.activations import Activation
from propagate.expressions import form, symbol
from propagate.model import ModelError
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import Backend
from propagate.montecarlo.pulls import Pull

if TYPE_CHECKING:
    import sympy

Function = Callable[[Array], Array]


def elementwise(activation: Activation) -> Callable[[Backend, Array], tuple[Array, Pull]]:
    """The operator of an activation that is not gated, from its expression.

    Example:
        >>> from propagate.activations import as_activation
        >>> from propagate.montecarlo.backend import choose_backend
        >>> y, pull = elementwise(as_activation("leaky_relu"))(choose_backend("numpy"), np.array([-1.0, 2.0]))
        >>> y.tolist(), pull(np.ones(2)).tolist()
        ([-0.01, 2.0], [0.01, 1.0])
    """

    def operator(backend: Backend, x: Array) -> tuple[Array, Pull]:
        if backend.name == "numpy":
            value, slope = _on_host(activation)
            return value(x), lambda g: g * slope(x)
        forward, back = _on_device(activation, str(x.dtype))
        return forward(x), lambda g: back(g, x)

    return operator


@lru_cache(maxsize=64)
def _on_host(activation: Activation) -> tuple[Function, Function]:
    """The value and the slope of arrays, of their own type."""
    import sympy

    parts = form(activation)
    end = parts.straight
    value, slope = (sympy.lambdify(symbol(), part, ["scipy", "numpy"]) for part in (parts.value, parts.slope))

    def inside(function: Any, x: Array) -> Array:
        with np.errstate(all="ignore"):  # of cases that do not hold
            return np.broadcast_to(np.asarray(function(x), dtype=x.dtype), x.shape)

    def at(x: Array) -> Array:
        if end is None:
            return inside(value, x)
        z = np.clip(x, -end, end)
        return inside(value, z) + (x - z) * inside(slope, z)

    return at, lambda x: inside(slope, x if end is None else np.clip(x, -end, end))


@lru_cache(maxsize=64)
def _on_device(activation: Activation, dtype: str) -> tuple[Any, Any]:
    """The value, and the pull from (cotangent, argument), as CuPy's kernels."""
    import cupy

    value, pull = device_code(activation, dtype)
    name = f"{activation.name}_of_expression"
    return (
        cupy.ElementwiseKernel("T x", "T y", value, f"{name}_value"),
        cupy.ElementwiseKernel("T g, T x", "T y", pull, f"{name}_pull"),
    )


def device_code(activation: Activation, dtype: str) -> tuple[str, str]:
    """Bodies of elementwise kernels in C: y from x, and y = g times the slope at x, all of one type T.

    Raises:
        ModelError: for functions that C does not have.

    Example:
        >>> from propagate.activations import as_activation
        >>> print(device_code(as_activation("erf"), "float32")[0])
        const T z = x;
        y = (erff(z));
    """
    parts = form(activation)
    value, slope = (_in_c(activation, part, dtype) for part in (parts.value, parts.slope))
    if parts.straight is None:
        return f"const T z = x;\ny = {value};", f"const T z = x;\ny = g * ({slope});"
    inside = f"const T z = x < (T){-parts.straight!r} ? (T){-parts.straight!r} : x > (T){parts.straight!r}"
    inside += f" ? (T){parts.straight!r} : x;"
    return f"{inside}\ny = {value} + (x - z) * ({slope});", f"{inside}\ny = g * ({slope});"


def _in_c(activation: Activation, expression: sympy.Expr, dtype: str) -> str:
    import sympy
    from sympy.codegen.ast import float32, float64, real
    from sympy.codegen.rewriting import create_expand_pow_optimization
    from sympy.printing.codeprinter import PrintMethodNotImplementedError

    kind = {"float32": float32, "float64": float64}[dtype]
    products = create_expand_pow_optimization(4)(expression)  # powf takes its time
    try:
        return f"({sympy.ccode(products, type_aliases={real: kind}, strict=True)})".replace("\n", " ")
    except PrintMethodNotImplementedError as error:
        raise ModelError(f"activation {activation.name!r} must be made of functions that CUDA has ({error})") from None
