"""What a router makes of its logits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagate.experts import Experts

Array = NDArray[np.float64]


def softmax_of(logits: Array) -> Array:
    """Along the last axis.

    Example:
        >>> softmax_of(np.log([1.0, 3.0])).round(12).tolist()
        [0.25, 0.75]
    """
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def largest(experts: Experts, logits: Array, softmax: Array) -> Any:
    """Which candidates, on the last axis, are chosen: those of the largest softmax, with the bias if there is one.

    Example: a bias for the last overrules the logits.
        >>> logits = np.log([0.4, 0.3, 0.2, 0.1])
        >>> largest(Experts(4, 2, softmax="before", bias=(0, 0, 0, 0.25)), logits, np.exp(logits)).tolist()
        [True, False, False, True]
    """
    scores = logits if experts.bias is None else softmax + np.array(experts.bias)
    dropped = experts.candidates - experts.chosen
    return scores >= np.partition(scores, dropped, axis=-1)[..., dropped, None]
