"""The two ends of a network, sampled: random embeddings of random tokens, and the reverse pass of a cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.operators import softmax
from propagate.montecarlo.statistics import Floats, second_moments


def embedded(
    frequencies: Sequence[float],
    std: float,
    *,
    width: int,
    tokens: int,
    draws: int,
    seed: int,
    scale: float = 1.0,
    position_std: float = 0.0,
) -> dict[str, Floats]:
    """Variance and covariance of embedded texts of independent tokens, one number a draw.

    Example:
        >>> found = embedded([1, 1], 1.0, width=64, tokens=8, draws=3, seed=0)
        >>> found["covariance"].shape
        (3,)
    """
    random = np.random.default_rng(seed)
    weights = np.asarray(frequencies, dtype=float)
    x = np.empty((draws, tokens, width))
    for draw in range(draws):
        table = std * random.standard_normal((len(weights), width))
        text = random.choice(len(weights), size=tokens, p=weights / weights.sum())
        x[draw] = scale * table[text] + position_std * random.standard_normal((tokens, width))
    variance, covariance, _ = second_moments(x)
    return {"variance": variance, "covariance": covariance}


def cross_entropy(x: Floats, unembedding: Floats, targets: Floats) -> tuple[Floats, Floats]:
    """Cotangents of the sum over tokens of their cross-entropies: at the stream, and at the unembedding.

    Args:
        x: (draws, tokens, width).
        unembedding: (draws, vocabulary, width).
        targets: (draws, tokens), whole numbers.

    Example: two entries; the loss falls where x turns to the target's row.
        >>> x, rows = np.array([[[1.0, 0.0]]]), np.array([[[1.0, 0.0], [-1.0, 0.0]]])
        >>> cross_entropy(x, rows, np.array([[0]]))[0].round(4).tolist()
        [[[-0.2384, 0.0]]]
    """
    residual, _ = softmax(choose_backend("numpy"), x @ unembedding.swapaxes(-1, -2))
    draws, tokens = targets.shape
    residual[np.arange(draws)[:, None], np.arange(tokens), targets] -= 1
    return residual @ unembedding, residual.swapaxes(-1, -2) @ x
