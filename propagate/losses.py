"""Losses that a network is trained on, as descriptions only; each witness has its own function for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from propagate.checks import ModelError, integer, number, shown

MOST_ENTRIES = 2**24  # of a vocabulary


@dataclass(frozen=True)
class Linear:
    """The sum over tokens and coordinates of G * x, with the fixed cotangent G of the `Start`, the same at every step.

    x is the stream that leaves the last block; of several streams, what the readout joins them in. It is a sum, not a
    mean.

    Example:
        >>> Linear()
        Linear()
    """


@dataclass(frozen=True)
class CrossEntropy:
    """Mean over tokens of the cross-entropy (natural logarithm) of a target, on a vocabulary.

    Ids and targets of all tokens are uniform at random, drawn once a network and the same at every step. A table of
    independent Gaussian rows, of the start's variance, embeds the ids; behind the placement's readout stands an
    unembedding matrix of its own, with entries of standard deviation gain / sqrt(width). Both are trained.

    Attributes:
        vocabulary: entries, at least 2.
        gain: of the unembedding, positive: the standard deviation of a logit where the readout's variance is 1.

    Raises:
        ModelError: for a value out of its range.

    Example:
        >>> CrossEntropy(1000).gain
        1.0
    """

    vocabulary: int
    gain: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(
            self,
            "vocabulary",
            integer("CrossEntropy.vocabulary", self.vocabulary, at_least=2, at_most=MOST_ENTRIES),
        )
        number("CrossEntropy.gain", self.gain, positive=True)


Loss = Linear | CrossEntropy


def check_loss(loss: Any) -> None:
    """ModelError unless it is one of the losses here.

    Example:
        >>> check_loss("mse")
        Traceback (most recent call last):
        propagate.checks.ModelError: loss must be propagate.Linear() or propagate.CrossEntropy(vocabulary), got 'mse'
    """
    if not isinstance(loss, Linear | CrossEntropy):
        raise ModelError(f"loss must be propagate.Linear() or propagate.CrossEntropy(vocabulary), got {shown(loss)}")
