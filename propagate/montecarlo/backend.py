"""Where arrays live: NumPy on the host or CuPy on a CUDA device."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from propagate.checks import choice
from propagate.model import ModelError
from propagate.montecarlo.arrays import Array

BACKENDS = ("auto", "numpy", "cupy")
PRECISIONS = ("float32", "float64")


@dataclass(frozen=True)
class Backend:
    """An array namespace and the device behind it.

    Attributes:
        name: "numpy" or "cupy".
        xp: the module with the array functions.
        erf: the error function on its arrays.
        device: the device's name, for provenance.
        precision: "float32" or "float64", the type of token arrays. Matrices of tokens by tokens are float64 always.
    """

    name: str
    xp: ModuleType
    erf: Any
    device: str
    precision: str = "float64"

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.precision)

    def add(self, a: Array, b: Array) -> Array:
        """The sum of two token arrays."""
        if self.name == "numpy":
            return a + b
        from propagate.montecarlo.cuda.activations import add

        return add(a, b)

    def to_host(self, array: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The array as NumPy's, copied from the device if need be."""
        host: np.ndarray[Any, np.dtype[np.float64]] = array.get() if self.name == "cupy" else np.asarray(array)
        return host


def choose_backend(name: str = "auto", precision: str = "float64") -> Backend:
    """The backend of that name; "auto" takes CuPy if a device answers.

    Raises:
        ModelError: for an unknown name or precision, or "cupy" where CuPy is not installed or no device answers.

    Example:
        >>> choose_backend("numpy").name
        'numpy'
    """
    choice("backend", name, BACKENDS)
    choice("precision", precision, PRECISIONS)
    missing = _why_no_cupy() if name != "numpy" else "not asked for"
    if name == "cupy" and missing:
        raise ModelError(f"backend 'cupy' is not available: {missing}; use 'numpy' or 'auto'")
    return _numpy(precision) if missing else _cupy(precision)


def _why_no_cupy() -> str:
    """Empty if CuPy works. Importing it succeeds without a device, so the device is asked too."""
    try:
        import cupy
    except Exception as error:  # a broken CUDA installation raises more than ImportError
        return f"import cupy fails ({type(error).__name__}); install propagate[gpu]"
    return "" if cupy.cuda.is_available() else "CuPy is installed, but no CUDA device answers"


def _numpy(precision: str) -> Backend:
    from scipy.special import erf

    return Backend("numpy", np, erf, "CPU", precision)


def _cupy(precision: str) -> Backend:
    import cupy
    from cupyx.scipy.special import erf

    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    return Backend("cupy", cupy, erf, name, precision)
