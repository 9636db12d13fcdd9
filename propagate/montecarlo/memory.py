"""How many draws are run at a time, and whether all blocks are remembered until the way back or run a second time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from propagate.model import Model
from propagate.montecarlo.operators import GATED

BATCH = 2**28  # bytes that a batch of draws may take on the host: small enough to stay near the caches
ONE_DRAW = 2**31  # bytes that one draw may take on the host before its blocks are run twice


@dataclass(frozen=True)
class Plan:
    """Draws at a time, and blocks at a time that are remembered; where these are not all, blocks are run twice."""

    batch: int
    segment: int


def plan(model: Model, backend: str, precision: str, sampler: str, *, batch: int, one_draw: int) -> Plan:
    """As many draws as `batch` bytes hold, at least one; all blocks remembered if a draw then takes `one_draw` bytes.

    Otherwise a draw keeps the streams that enter the segments and remembers the blocks of one segment; the length of
    a segment makes that least, and memory grows with the square root of depth.

    Example:
        >>> model = Model("postnorm", depth=10_000, width=64, tokens=8)
        >>> plan(model, "numpy", "float64", "weightless", batch=2**33, one_draw=2**33)
        Plan(batch=6, segment=10000)
        >>> plan(model, "numpy", "float64", "weightless", batch=2**28, one_draw=2**28)
        Plan(batch=57, segment=17)
    """
    size = np.dtype(precision).itemsize
    stream = size * model.tokens * model.width
    remembered, passing = (size * numbers for numbers in _numbers(model, backend, sampler))
    segment = model.depth
    if remembered * model.depth + passing > one_draw:
        segment = min(model.depth, max(1, math.isqrt(model.depth * stream // remembered)))
    taken = remembered * segment + passing + stream * math.ceil(model.depth / segment)
    return Plan(max(1, batch // taken), segment)


def _numbers(model: Model, backend: str, sampler: str) -> tuple[int, int]:
    """Of one block of one draw: what is remembered until the way back, and what lives while the block is worked on.

    Left out: matrices of tokens by tokens, but for those of every head, and at most 1 MiB where normals are made.
    """
    experts = 1 if model.experts is None else model.experts.count + model.experts.shared
    d, m, t = model.width, model.hidden * experts, model.tokens
    n = m * (2 if model.activation in GATED else 1)
    softmax = model.heads * t * t
    if sampler == "dense":
        maps = 4 * d * d + d * n + m * d
    else:  # what enters the four maps and, where a device does not make them anew, the normals they met it with
        maps = t * (3 * d + m) + (t * (5 * d + n) if backend == "numpy" else 0)
    return maps + t * (6 * d + 2 * n) + softmax, t * (10 * d + 3 * n) + 3 * softmax
