"""How a cross-entropy uses the two matrices at a network's ends, the embedding and the unembedding.

Rows of the embedding are met by one token each, but for tokens that are the same entry, 1 / vocabulary of the pairs,
which is left out: K is 1 / vocabulary on its diagonal. The unembedding reads what the readout gives, Gaussian
coordinates, and the cotangent of its column v at token t is (p_tv - [v is the target of t]) / tokens, p the softmax.
Second moments over the whole vocabulary are those of `losses_met`. Single entries see that columns are of two kinds,
targets of some token and all others, and that a softmax has no Gaussian law: logits are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from propagate.losses import CrossEntropy
from propagate.model import ModelError
from propagate.theory.gaussian.roots import symmetric_root
from propagate.theory.losses_met import Leaving
from propagate.theory.pairs.moments import Moments
from propagate.theory.tokens.drawn_units import REPLICAS, normals, resolved
from propagate.theory.tokens.gram import Array, Gram
from propagate.theory.uses import Use

DRAWN = 4096  # entries of a vocabulary; of a larger one so many, where none has a large share of the softmax
EVEN = 3.0  # standard deviation of logits up to which none has


def embedding_use(loss: CrossEntropy, root: float, width: int, g: Any) -> Use:
    """Of the table: T tokens are as many rows of one-hot vectors.

    Args:
        loss: the cross-entropy.
        root: standard deviation of a row's coordinate.
        width: of the stream.
        g: moments of the cotangent at the embedded tokens.

    Example: the gradient is the cotangent itself, row by row.
        >>> use = embedding_use(CrossEntropy(1000), 1.0, 64, Moments(0.5, 0.5))
        >>> round(use.gradient(tokens=4) / (64 * 4 * 0.5), 2)
        1.0
    """
    size = loss.vocabulary
    x = (
        Moments(1 / size, 1 / size)
        if isinstance(g, Moments)
        else Gram.exchangeable(1 / size, 1 / size, g.matrix.shape[-1])
    )
    return Use(size, width, math.sqrt(size) * root, x, g, rows=True)


def unembedding_uses(leaving: Leaving, width: int, x: Any, *, by_entry: bool) -> list[Use]:
    """Of the head: as one matrix, or for what looks at single entries the columns of targets and the others.

    Args:
        leaving: what the loss sends back.
        width: of the stream.
        x: moments of what the readout gives.
        by_entry: whether single entries count.

    Raises:
        ModelError: by single entries, unless the vocabulary is larger than the number of tokens, and a large one's
            logits are no larger than `EVEN`.
    """
    size, tokens, gain = leaving.vocabulary, len(leaving.shares), leaving.gain

    def use(columns: int, gram: Array, draw: Any = None) -> Use:
        moments = Gram.of(gram) if isinstance(x, Gram) else Moments(gram[0, 0], gram[0, 0] - gram[0, -1])
        return Use(width, columns, gain, x, moments, draw_g=draw)

    whole = leaving.residuals / (size * tokens**2)
    if not by_entry:
        return [use(size, whole)]
    if size <= tokens:
        raise ModelError(
            f"predict_step by single entries needs a vocabulary larger than tokens={tokens}, got CrossEntropy({size})"
        )
    spread = gain * math.sqrt(float(np.max(resolved(x, tokens).variance)))
    if size > DRAWN and spread > EVEN:
        raise ModelError(
            f"predict_step by single entries covers logits up to a standard deviation of {EVEN:g} on vocabularies above"
            f" {DRAWN}, got {spread:.3g} on {size}"
        )
    others = leaving.shares / tokens**2
    drawn = _Columns(x, tokens, size, gain)
    targets = size / tokens * whole - (size - tokens) / tokens * others
    return [use(tokens, targets, drawn.targets), use(size - tokens, others, drawn.others)]


@dataclass(frozen=True)
class _Columns:
    """Cotangents of the unembedding's columns, drawn."""

    x: Any
    tokens: int
    vocabulary: int
    gain: float

    def others(self, seed: Sequence[int], count: int, kept: Any) -> Array:
        """Of entries that are nobody's target, (replicas, entries, 1, tokens)."""
        return self._softmax(seed)[:, :count, None].astype(kept)

    def targets(self, seed: Sequence[int], count: int, kept: Any) -> Array:
        """Of as many targets of each token."""
        shares = self._softmax(seed)
        times = max(min(count, shares.shape[1]) // self.tokens, 1)
        shares = shares[:, : times * self.tokens]
        less = np.tile(np.eye(self.tokens), (times, 1)) / self.tokens
        return np.asarray((shares - less)[:, :, None].astype(kept))

    def _softmax(self, seed: Sequence[int]) -> Array:
        gram = resolved(self.x, self.tokens).matrix
        root = np.broadcast_to(symmetric_root(gram), (max(len(gram), REPLICAS), *gram.shape[1:]))
        entries = min(self.vocabulary, DRAWN)
        draws = normals([*seed, 4], np.float64)((len(root), entries, self.tokens))
        weights = np.exp(self.gain * draws @ root)
        return np.asarray(weights / (weights.sum(axis=1, keepdims=True) * (self.vocabulary / entries * self.tokens)))
