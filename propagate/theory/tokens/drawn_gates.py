"""The law of coordinates behind the gates of a mixture of experts, and of cotangents at a router's logits.

Of experts side by side a coordinate is that of an expert at random, times the gates that tokens have for it, 0 of most.
A router's columns are few and not alike: given the gates the cotangent at a candidate's logit is a sum over the width,
hence Gaussian over tokens, with second moments of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from propagate.model import ModelError
from propagate.theory.gaussian.roots import symmetric_root
from propagate.theory.tokens.drawn_units import REPLICAS, Draw, normals
from propagate.theory.tokens.gram import Array

LARGEST = 2**25  # numbers in the second moments of all candidates
FEWEST = 16  # units of a replica


def of_random_experts(gates: Array | None, draw: Draw) -> Draw:
    """Units of a dense FFN, each times the gates of an expert at random.

    Args:
        gates: (replicas, tokens, experts).
        draw: of the dense FFN, (replicas, units, 1, tokens).

    Example: one of two experts is chosen by the first token, the other by the second.
        >>> both = of_random_experts(np.eye(2)[None], lambda seed, count, kept: np.ones((1, count, 1, 2)))
        >>> units = both([0], 128, float)[0, :, 0]
        >>> units.shape, sorted({tuple(unit) for unit in units.tolist()})
        ((128, 2), [(0.0, 1.0), (1.0, 0.0)])
    """

    def drawn(seed: Sequence[int], count: int, kept: Any) -> Array:
        if gates is None:
            raise ModelError("predict_step does not cover experts at the means of their gates")
        units = draw(seed, max(count * REPLICAS // max(len(gates), REPLICAS), FEWEST), kept)
        random = np.random.default_rng([*seed, 2])
        chosen = random.integers(gates.shape[-1], size=units.shape[:2])
        own = np.take_along_axis(gates.swapaxes(-1, -2), chosen[..., None], axis=1)
        return np.asarray(units * own[:, :, None].astype(kept, copy=False))

    return drawn


def of_logits(width: int, second_moments: Callable[[], Array], seed: Sequence[int], count: int, kept: Any) -> Array:
    """Cotangents at the logits of every candidate, (replicas, draws * candidates, 1, tokens).

    Args:
        width: of the stream.
        second_moments: gives (replicas, candidates, tokens, tokens), over the width.
        seed, count, kept: see `Draw`.

    Example: candidates of very different sizes, each with its own.
        >>> sizes = np.array([1.0, 100.0])[:, None, None] * np.eye(2)
        >>> columns = of_logits(4, lambda: sizes[None], [0], 4096, float).reshape(-1, 2, 2)
        >>> (columns**2).mean(axis=(0, 2)).round(-1).tolist()
        [0.0, 400.0]
    """
    moments = second_moments()
    if moments.size > LARGEST:
        raise ModelError(
            f"predict_step of a router by single entries takes at most {LARGEST} second moments, got {moments.size}:"
            " fewer experts or tokens, or SGD"
        )
    replicas, candidates, tokens, _ = moments.shape
    times = max(count * REPLICAS // max(replicas, REPLICAS) // candidates, 2)
    draws = normals([*seed, 3], np.float64)((replicas, times, candidates, tokens))
    roots = symmetric_root(width * moments)
    columns = (roots[:, None] @ draws[..., None])[..., 0]
    return np.asarray(columns.reshape(replicas, times * candidates, 1, tokens).astype(kept))
