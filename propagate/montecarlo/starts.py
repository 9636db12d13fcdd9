"""Token arrays with a prescribed token Gram matrix: the inputs of a network and the cotangents of its outputs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from propagate.montecarlo.backend import Array
from propagate.montecarlo.normals import Normals


def exchangeable_root(variance: float, covariance: float, tokens: int) -> NDArray[np.float64]:
    """Symmetric square root of the (tokens, tokens) matrix with `variance` on and `covariance` off the diagonal.

    Example:
        >>> root = exchangeable_root(1.0, 0.25, 3)
        >>> (root @ root).round(12).tolist()[0]
        [1.0, 0.25, 0.25]
    """
    deviation = math.sqrt(max(variance - covariance, 0.0))
    mean = math.sqrt(max(variance + (tokens - 1) * covariance, 0.0))
    return deviation * np.eye(tokens) + (mean - deviation) / tokens


def gram_root(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Symmetric square root of a positive semi-definite matrix.

    Example:
        >>> gram_root(np.diag([4.0, 9.0])).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    values, vectors = np.linalg.eigh(gram)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def with_gram(root: NDArray[np.float64], normals: Normals, site: int, width: int) -> Array:
    """Arrays of shape (draws, tokens, width) whose second moments per coordinate are root @ root.

    In every draw the tokens are `root` times random orthonormal directions, so the Gram matrix is exact. Where there
    are more tokens than coordinates no such directions exist; the Gram matrix then holds in expectation.

    Example:
        >>> from propagate.montecarlo.backend import choose_backend
        >>> x = with_gram(np.eye(2), Normals(choose_backend("numpy"), seed=0, draws=range(1)), site=0, width=8)
        >>> (x[0] @ x[0].T / 8).round(12).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    xp = normals.backend.xp
    tokens = len(root)
    directions = normals(site, (width, tokens))
    if tokens <= width:
        directions = math.sqrt(width) * xp.linalg.qr(directions)[0]
    return xp.asarray(root) @ directions.swapaxes(-1, -2)
