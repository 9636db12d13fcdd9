"""The theory's own standard error where the averages of small heads are read off tables of drawn ones.

A table serves all blocks, so that what it is off by adds up along the network: of each block by the share of the
output's variance that its branches made. It is less where a branch's FFN made that; and no width reduces it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def standard_errors(
    columns: Mapping[str, Array], kept: Array, errors: Mapping[int, float], *, streams: bool = False
) -> dict[str, Array]:
    """Columns `<name>_se`.

    Args:
        columns: second moments of the streams and of their gradients, blocks along the first axis.
        kept: share of each block's output that its skips kept, the least of all streams; blocks along the first axis.
        errors: relative standard errors of the averages, by block.
        streams: whether columns have an axis of streams, the second.

    Example: one block, all of whose output is its branches'.
        >>> names = ("variance", "covariance", "deviation")
        >>> columns = {prefix + name: np.array([1.0, 2.0]) for prefix in ("", "grad_") for name in names}
        >>> found = standard_errors(columns, np.zeros(1), {1: 0.003})
        >>> found["variance_se"].tolist(), found["grad_variance_se"].tolist()
        ([0.0, 0.006], [0.003, 0.0])
    """
    of_block = np.array([errors.get(index, 0.0) for index in range(1, len(kept) + 1)])
    added = of_block.reshape(-1, *(1,) * (kept.ndim - 1)) * np.clip(1 - np.nan_to_num(kept), 0.0, 1.0)
    added = added[:, None] if streams else added
    none = np.zeros_like(added[:1])
    along = {
        "": np.concatenate([none, np.cumsum(added, axis=0)]),
        "grad_": np.concatenate([np.cumsum(added[::-1], axis=0)[::-1], none]),
    }
    relative_to = {"variance": "variance", "covariance": "variance", "deviation": "deviation"}
    return {
        f"{prefix}{name}_se": np.asarray(total * np.abs(columns[prefix + scale]))
        for prefix, total in along.items()
        for name, scale in relative_to.items()
    }
