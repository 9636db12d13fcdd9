"""Sequences of a corpus: to train on, in an order that only the seed decides, and the same held-out ones for all."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from propagate.documents import SIDES, Corpus
from propagate.model import ModelError

HELD_OUT = 32
"""Held-out sequences, at most, over which a loss is averaged."""


def check_long_enough(corpus: Corpus, tokens: int) -> None:
    """ModelError unless each side has a sequence of so many tokens, and one more to predict."""
    for side in SIDES:
        length = len(corpus.stream(side))
        if length <= tokens:
            raise ModelError(f"corpus must hold more than tokens={tokens} tokens that are {side}, got {length}")


def batch_of(corpus: Corpus, tokens: int, batch: int, seed: int, step: int) -> Tensor:
    """Token ids (batch, tokens + 1): sequences that begin anywhere in the training documents.

    Example: a step's sequences do not depend on the steps before it.
        >>> from propagate.documents import corpus
        >>> text = corpus()
        >>> [batch_of(text, 4, 2, seed=0, step=step).shape for step in (0, 1)]
        [torch.Size([2, 5]), torch.Size([2, 5])]
    """
    return _windows(corpus.stream("training"), begins_of(corpus, tokens, batch, seed, step), tokens)


def begins_of(corpus: Corpus, tokens: int, batch: int, seed: int, step: int) -> NDArray[np.int64]:
    """Where in the training documents the sequences of a step begin, (batch,)."""
    length = len(corpus.stream("training"))
    return np.random.default_rng([seed, step]).integers(0, length - tokens, batch)


def held_out_of(corpus: Corpus, tokens: int) -> Tensor:
    """Token ids (sequences, tokens + 1), at even distances over the held-out documents: 32, or as many as there are."""
    stream = corpus.stream("held_out")
    count = min(HELD_OUT, (len(stream) - 1) // tokens)
    return _windows(stream, np.linspace(0, len(stream) - tokens - 1, count).astype(int), tokens)


def _windows(stream: NDArray[np.unsignedinteger], begins: NDArray[np.integer], tokens: int) -> Tensor:
    return torch.from_numpy(stream[begins[:, None] + np.arange(tokens + 1)].astype(np.int64))
