"""The norm that a description means, on arrays."""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NoReturn

from propagate.checks import ModelError
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import Backend
from propagate.montecarlo.operators import NORMS
from propagate.montecarlo.pulls import Pull
from propagate.norms import Norm


def refuse(description: Any) -> NoReturn:
    """ModelError: nothing is registered for this kind of description."""
    raise ModelError(f"simulation does not cover {type(description).__name__}: register a function for it")


@singledispatch
def norm(description: Any, x: Array, backend: Backend) -> tuple[Array, Pull]:
    """What a norm makes of an array's last axis, and its pull, from the cotangent of that to the cotangent of x.

    Register a function of one's own for a description of one's own, a dataclass on `propagate.Norm`.

    Args:
        description: of the norm.
        x: of shape (..., coordinates).
        backend: `backend.xp` is NumPy or CuPy.

    Raises:
        ModelError: for a kind of description for which nothing is registered.

    Example: a norm that divides by the mean absolute value.
        >>> from dataclasses import dataclass
        >>> import numpy as np
        >>> from propagate.montecarlo.backend import choose_backend
        >>> @dataclass(frozen=True)
        ... class AbsNorm(Norm):
        ...     kind: str = "rms"
        >>> @norm.register(AbsNorm)
        ... def abs_norm(description, x, backend):
        ...     size = backend.xp.mean(abs(x), axis=-1, keepdims=True)
        ...     y, sign = x / size, backend.xp.sign(x)
        ...     return y, lambda g: (g - sign * backend.xp.mean(g * y, axis=-1, keepdims=True)) / size
        >>> norm(AbsNorm(), np.array([[[1.0, -3.0]]]), choose_backend("numpy"))[0].tolist()
        [[[0.5, -1.5]]]
    """
    refuse(description)


@norm.register(Norm)
def norm_of_kind(description: Norm, x: Array, backend: Backend) -> tuple[Array, Pull]:
    """RMSNorm or LayerNorm."""
    return NORMS[description.kind](backend, x, eps=description.eps)


def undoes_scale(description: Norm) -> bool:
    """Whether it is known to give the same for x and for any multiple of x.

    Example:
        >>> undoes_scale(Norm("layer")), undoes_scale(Norm("layer", eps=1e-6))
        (True, False)
    """
    return type(description) is Norm and description.eps == 0
