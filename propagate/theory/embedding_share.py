"""The embedding's share of the stream: how much of a token, block by block, still lies along its embedding.

Every sublayer ends in a fresh matrix of mean zero, so what branches write is uncorrelated with the embedded token x_0.
The stream is x_l = F x_0 + (the rest), F being the factor along skips, norms, tanh (by its mean slope) and identity
experts, and x_0's share of its second moment is F^2 E x_0^2 / E x_l^2. At finite width the rest, of share 1 - s, has a
part along x_0 by chance, one of `width` directions: what is measured is s + (1 - s) / width, the floor that a share
never falls below. (To first order it is s + (1 - s)(1 - 2 s (1 - s)) / width; the difference, below 2 s / width, is
allowed for.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagate.table import EMBEDDING_SHARE
from propagate.theory.reading.network import Path

Array = NDArray[np.float64]
SECOND = 2.0  # largest coefficient of s / width that is left out


def shares(path: Path, start: Any, shape: tuple[int, ...]) -> Array:
    """In the limit of infinite width: (block, stream, *shape).

    Args:
        path: of a walk at either resolution.
        start: moments of the embedded tokens.
        shape: of variances; of Gram matrices (replicas, tokens).

    Of several streams the last is "joined": 1 at block 0, at the last block what leaves the readout, else NaN.
    """
    factors = path.embedding_factors()
    found = [
        [_share(factor, start, joint[i][i], shape) for i, factor in enumerate(of_streams)]
        for of_streams, joint in zip(factors, path.forward, strict=True)
    ]
    if path.several:
        read_off = sum(skip * factor for skip, factor in zip(path.readout_skips, factors[-1], strict=True))
        between = [np.full(shape, np.nan)] * (len(found) - 2)
        joined = [np.ones(shape), *between, _share(read_off, start, path.readout, shape)]
        found = [[*of_streams, last] for of_streams, last in zip(found, joined, strict=True)]
    return np.array(found)


def _share(factor: Any, start: Any, left: Any, shape: tuple[int, ...]) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.broadcast_to(np.square(factor) * (np.asarray(start.variance) / left.variance), shape)


def share_columns(limit: Array, forward: Array, width: int) -> dict[str, Array]:
    """What a network of this width shows, and the allowance, relative to it.

    Args:
        limit: shares at infinite width, blocks along the first axis.
        forward: allowance of the variance.
        width: of the model.

    Example: a network that keeps nothing of the embedding has 1 / width of it still.
        >>> share_columns(np.array([1.0, 0.0]), np.zeros(2), width=100)["embedding_share"].tolist()
        [1.0, 0.01]
    """
    return {
        EMBEDDING_SHARE: limit + (1 - limit) / width,
        f"{EMBEDDING_SHARE}_allowance": np.where(limit < 1, forward + SECOND / width, 0.0),
    }
