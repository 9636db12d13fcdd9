"""Columns of a table by sublayer call, from the records of a walk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagate.theory.reading.blocks import Call

Array = NDArray[np.float64]
MOMENTS = ("variance", "covariance", "deviation")


def named(calls: Sequence[Call]) -> dict[str, Call]:
    """The calls of a block that give a stream, by their verb and number, as in a trace: "norm2" is its second norm.

    Example:
        >>> from propagate.theory.pairs.moments import Combination
        >>> [norm, other] = (Call("norm", None, None, Combination({})) for _ in range(2))
        >>> list(named([norm, other]))
        ['norm1', 'norm2']
    """
    counts, found = Counter[str](), dict[str, Call]()
    for call in calls:
        counts[call.verb] += 1
        found[f"{call.verb}{counts[call.verb]}"] = call
    return {name: call for name, call in found.items() if call.verb != "tanh"}


def call_moments(blocks: Sequence[Sequence[Call]], statistics: Callable[[Any], dict[str, Any]]) -> dict[str, Array]:
    """Moments of every call, arrays (block, replica, moment) by name; NaN where a block has no such call.

    Args:
        blocks: the records of blocks 1 ... depth; block 0, the embedding, is NaN.
        statistics: from moments to their numbers, one a replica, by name.
    """
    by_block = [named(calls) for calls in blocks]
    found: dict[str, Array] = {}
    for at, calls in enumerate(by_block, start=1):
        for name, call in calls.items():
            numbers = statistics(call.left.moments())
            values = np.stack([np.ravel(numbers[moment]) for moment in MOMENTS], axis=-1)
            found.setdefault(name, np.full((len(by_block) + 1, *values.shape), np.nan))[at] = values
    return found


def call_columns(moments: dict[str, Array]) -> dict[str, Array]:
    """`call_variance`, ... of shape (blocks, calls): means over replicas; and `_se`, their standard errors.

    Example: one block with one call, in two replicas.
        >>> columns = call_columns({"ffn1": np.array([[[np.nan] * 3] * 2, [[1.0, 0.0, 1.0], [3.0, 0.0, 3.0]]])})
        >>> columns["call_variance"].tolist(), columns["call_variance_se"].tolist()
        ([[nan], [2.0]], [[nan], [1.0]])
    """
    stacked = np.stack(list(moments.values()), axis=2)  # (blocks, replicas, calls, moments)
    replicas = stacked.shape[1]
    mean = stacked.mean(axis=1)
    error = stacked.std(axis=1, ddof=1) / np.sqrt(replicas) if replicas > 1 else 0.0 * mean
    columns: dict[str, Array] = {}
    for i, moment in enumerate(MOMENTS):
        columns |= {f"call_{moment}": mean[..., i], f"call_{moment}_se": error[..., i]}
    return columns
