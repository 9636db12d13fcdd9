"""Token arrays with a prescribed token Gram matrix: the inputs of a network and the cotangents of its outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagate import start
from propagate.arrays import check_size, moment, real_array, second_moments
from propagate.model import Model, ModelError
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.factor import factor
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.statistics import Floats


@dataclass(frozen=True)
class Ends:
    """What enters a network: roots of the token Gram matrices of inputs and cotangents, or the inputs themselves, of
    all draws, (tokens, width), or of each."""

    cotangent_root: Floats
    input_root: Floats
    inputs: Floats | None = None

    @property
    def exchangeable(self) -> bool:
        """Whether all tokens have the same second moments."""
        return self.inputs is None and all(_exchangeable(root) for root in (self.cotangent_root, self.input_root))


def _exchangeable(root: Floats) -> bool:
    return bool(
        np.ptp(np.diagonal(root)) == 0 and (len(root) == 1 or np.ptp(root[~np.eye(len(root), dtype=bool)]) == 0)
    )


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
    xp, dtype = normals.backend.xp, normals.backend.dtype
    tokens = len(root)
    directions = normals(site, (tokens, width))
    if tokens <= width:
        _, change, basis = factor(xp, directions)
        return (math.sqrt(width) * xp.asarray(root) @ change).astype(dtype) @ basis
    return xp.asarray(root, dtype=dtype) @ directions


def tokens_of(ends: Ends, normals: Normals, site: int, width: int) -> Array:
    """The tokens that enter, (draws, tokens, width): in every draw those given, or some of the given Gram matrix."""
    if ends.inputs is None:
        return with_gram(ends.input_root, normals, site, width)
    own = ends.inputs if ends.inputs.ndim == 2 else ends.inputs[normals.draws.start : normals.draws.stop]
    inputs = normals.backend.xp.asarray(own, dtype=normals.backend.dtype)
    if ends.inputs.ndim > 2:
        return inputs
    return normals.backend.xp.repeat(inputs[None], len(normals.draws), axis=0)


def ends_of(model: Model, given: start.Start, draws: int | None = None) -> Ends:
    """What enters a network, checked; of so many draws, inputs may be of each. See `simulate` for the errors raised."""
    gram, grad_gram, inputs = given.gram, given.grad_gram, given.inputs
    if grad_gram is None:
        cotangent_root = _root(
            "grad_variance", "grad_covariance", given.grad_variance, given.grad_covariance, model.tokens
        )
    else:
        cotangent_root = gram_root(second_moments("grad_gram", grad_gram, model.tokens, positive=False))
    if inputs is not None:
        each = () if draws is None or getattr(inputs, "ndim", 2) != 3 else (draws,)
        array = real_array("inputs", inputs, (*each, model.tokens, model.width))
        check_size("inputs", np.sqrt((array * array).mean(axis=-1)))
        if not (array != 0).any(axis=-1).all():
            raise ModelError("inputs must hold no token that is zero everywhere: a norm would divide by zero")
        return Ends(cotangent_root, np.eye(model.tokens), array)
    if gram is None:
        return Ends(cotangent_root, _root("variance", "covariance", given.variance, given.covariance, model.tokens))
    return Ends(cotangent_root, gram_root(second_moments("gram", gram, model.tokens, positive=True)))


def _root(name: str, other: str, variance: Any, covariance: Any, tokens: int) -> Floats:
    size, common = moment(name, variance, positive=True), moment(other, covariance)
    lowest = -size / (tokens - 1) * (1 + 1e-12) if tokens > 1 else -np.inf
    if not lowest <= common <= size:
        raise ModelError(f"{other} must lie between -{name} / (tokens - 1) and {name}, got {covariance!r}")
    return exchangeable_root(size, common, tokens)
