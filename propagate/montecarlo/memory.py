"""How many draws are run at a time, and whether all blocks are remembered until the way back or run a second time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from propagate.model import Model
from propagate.montecarlo.operators import GATED

NUMBER = 8  # bytes
BATCH = 2**28  # bytes that a batch of draws may take on the host: small enough to stay near the caches
ONE_DRAW = 2**31  # bytes that one draw may take on the host before its blocks are run twice


@dataclass(frozen=True)
class Plan:
    """Draws at a time, and blocks at a time that are remembered; where these are not all, blocks are run twice."""

    batch: int
    segment: int


def plan(model: Model, sampler: str, batch: int, one_draw: int) -> Plan:
    """As many draws as `batch` bytes hold, at least one; all blocks remembered if a draw then takes `one_draw` bytes.

    Otherwise a draw keeps the streams that enter the segments and remembers the blocks of one segment; the length of
    a segment makes that least, and memory grows with the square root of depth.

    Example:
        >>> model = Model("postnorm", depth=10_000, width=64, tokens=8)
        >>> plan(model, "weightless", batch=2**33, one_draw=2**33)
        Plan(batch=6, segment=10000)
        >>> plan(model, "weightless", batch=2**28, one_draw=2**28)
        Plan(batch=55, segment=17)
    """
    stream = NUMBER * model.tokens * model.width
    remembered, passing = (NUMBER * numbers for numbers in _numbers(model, sampler))
    segment = model.depth
    if remembered * model.depth + passing > one_draw:
        segment = min(model.depth, max(1, math.isqrt(model.depth * stream // remembered)))
    taken = remembered * segment + passing + stream * math.ceil(model.depth / segment)
    return Plan(max(1, batch // taken), segment)


def _numbers(model: Model, sampler: str) -> tuple[int, int]:
    """Of one block of one draw: what is remembered until the way back, and what lives while the block is worked on."""
    d, n, t = model.width, model.hidden * (2 if model.activation in GATED else 1), model.tokens
    matrices = 4 * d * d + d * n + model.hidden * d
    conditions = t * ((3 * d + model.hidden) + (5 * d + n))  # rows and seen normals of four maps
    weights = matrices if sampler == "dense" else conditions
    softmax = model.heads * t * t
    return weights + t * (6 * d + 2 * n) + softmax, t * (10 * d + 3 * n) + 3 * softmax
