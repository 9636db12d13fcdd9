"""The root of a covariance."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def symmetric_root(matrix: Array) -> Array:
    """Of positive semi-definite matrices (..., n, n): the one root that no convention of a solver enters.

    Example:
        >>> symmetric_root(np.diag([4.0, 9.0])).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    values, vectors = np.linalg.eigh(matrix)
    roots = np.sqrt(np.maximum(values, 0.0))[..., None, :]
    return np.asarray((vectors * roots) @ vectors.swapaxes(-1, -2))
