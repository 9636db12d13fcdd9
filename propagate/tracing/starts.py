"""What enters a torch network at its two ends, drawn afresh for every network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from propagate.arrays import moment, real_array, second_moments
from propagate.losses import CrossEntropy, Loss
from propagate.model import Model, ModelError
from propagate.start import Start


class Entering(NamedTuple):
    """Streams or token ids, and the cotangent or the ids of the tokens to predict.

    Attributes:
        inputs: (1, tokens, width), or (1, tokens) whole numbers.
        target: of the same shape.
        embedding, unembedding: where tokens are ids, the initial matrices (width, vocabulary) and (vocabulary, width).
    """

    inputs: Tensor
    target: Tensor
    embedding: Tensor | None = None
    unembedding: Tensor | None = None


Ends = Callable[[torch.Generator], Entering]


def ends_of(model: Model, start: Start, loss: Loss, dtype: torch.dtype) -> Ends:
    """A function that draws both ends of a network.

    Raises:
        ModelError: for moments that no tokens have.

    Example:
        >>> from propagate.losses import Linear
        >>> ends = ends_of(Model("prenorm", depth=1, tokens=3), Start(variance=2.0), Linear(), torch.float64)
        >>> round(float(ends(torch.Generator()).inputs.square().mean()), 6)
        2.0
    """
    tokens, width = model.tokens, model.width
    if isinstance(loss, CrossEntropy):
        if any(name != "variance" for name in start):
            raise ModelError(f"start must say only the variance of the embedding's rows for {loss!r}, got {start!r}")
        size = math.sqrt(moment("variance", start.variance, positive=True))

        def words(generator: torch.Generator) -> Entering:
            ids, target = (torch.randint(loss.vocabulary, (1, tokens), generator=generator) for _ in range(2))
            rows, columns = (torch.randn((loss.vocabulary, width), generator=generator, dtype=dtype) for _ in range(2))
            embedding, unembedding = size * rows.T, loss.gain * width**-0.5 * columns
            return Entering(ids, target, embedding, unembedding)

        return words
    root = _root(_gram(start.gram, start.variance, start.covariance, tokens, ""), dtype)
    back = _root(_gram(start.grad_gram, start.grad_variance, start.grad_covariance, tokens, "grad_"), dtype)
    given = None if start.inputs is None else real_array("inputs", start.inputs, (tokens, width))

    def streams(generator: torch.Generator) -> Entering:
        inputs = _with_gram(root, width, generator) if given is None else torch.as_tensor(given, dtype=dtype)[None]
        return Entering(inputs, _with_gram(back, width, generator))

    return streams


def _gram(gram: Any, variance: Any, covariance: Any, tokens: int, prefix: str) -> Any:
    if gram is not None:
        return second_moments(f"{prefix}gram", gram, tokens, positive=not prefix)
    size, common = moment(f"{prefix}variance", variance, positive=True), moment(f"{prefix}covariance", covariance)
    lowest = -size / (tokens - 1) * (1 + 1e-12) if tokens > 1 else -math.inf
    if not lowest <= common <= size:
        raise ModelError(
            f"{prefix}covariance must lie between -{prefix}variance / (tokens - 1) and {prefix}variance, got {common!r}"
        )
    return (size - common) * np.eye(tokens) + common


def _root(gram: Any, dtype: torch.dtype) -> Tensor:
    values, vectors = np.linalg.eigh(gram)
    return torch.as_tensor((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T, dtype=dtype)


def _with_gram(root: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Random tokens (1, tokens, width) with these second moments: exactly, where there are no more than coordinates."""
    normals = torch.randn((width, len(root)), generator=generator, dtype=torch.float64).to(root)
    directions = torch.linalg.qr(normals)[0] * math.sqrt(width) if len(root) <= width else normals
    return (root @ directions.T)[None]
