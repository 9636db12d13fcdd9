"""How far a network of finite width may lie from the limit: a stated allowance, not a fitted one.

Each sublayer's norm removes one of the width's directions from the cotangent and adds relative fluctuations of the same
order, so the mean logarithm of a second moment moves by about 1/width a sublayer (PostNorm: measured -2 depth / width;
placements whose skip is large: less). The token-deviation mode of the cotangent also receives about 2/width of the
energy in the token-mean mode, once. Both vanish as the width grows; the slope is tested.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagate.theory.moments import Moments

LEAK = 2.0  # measured 1.6-1.9 for linear PostNorm at widths 128-1024


def allowances(depth: int, width: int, tokens: int, backward: list[Moments]) -> dict[str, NDArray[Any]]:
    """Relative allowance of each quantity at blocks 0 ... depth; of covariances, relative to the variance.

    Example:
        >>> allowances(1, 100, 2, [Moments(1.0, 1.0)] * 2)["variance_allowance"].tolist()
        [0.0, 0.02]
    """
    block = np.arange(depth + 1.0)
    forward, back = 2 * block / width, 2 * (depth - block) / width
    variance = np.array([g.variance for g in backward], dtype=float)
    deviation = np.array([g.deviation for g in backward], dtype=float)
    mean_mode = variance - deviation * (tokens - 1) / tokens
    shape = (-1,) + (1,) * (variance.ndim - 1)
    forward = np.broadcast_to(forward.reshape(shape), variance.shape)
    back = np.broadcast_to(back.reshape(shape), variance.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        leak = np.where(back > 0, LEAK / width * mean_mode / deviation, 0.0)
    return {
        "variance_allowance": forward,
        "covariance_allowance": forward,
        "deviation_allowance": forward,
        "grad_variance_allowance": back,
        "grad_covariance_allowance": back,
        "grad_deviation_allowance": back + leak,
    }
