"""How many draws are run at a time, and whether all blocks are remembered until the way back or run a second time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from propagate.experts import Experts
from propagate.latent import LatentAttention
from propagate.model import Model
from propagate.montecarlo.calls import called
from propagate.recurrent import LinearAttention
from propagate.sublayers import FFN, Attention, Sublayer

BATCH = 2**28  # bytes that a batch of draws may take on the host: small enough to stay near the caches
ONE_DRAW = 2**31  # bytes that one draw may take on the host before its blocks are run twice


@dataclass(frozen=True)
class Plan:
    """Draws at a time, and blocks at a time that are remembered; where these are not all, blocks are run twice.

    `taken` is how many bytes a draw takes.
    """

    batch: int
    segment: int
    taken: int = field(default=0, compare=False, repr=False)


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
    blocks = [_numbers(model, index, backend, sampler) for index in range(1, model.depth + 1)]
    remembered, passing = (size * max(numbers) for numbers in zip(*blocks, strict=True))  # of the largest block
    segment = model.depth
    if remembered * model.depth + passing > one_draw:
        segment = min(model.depth, max(1, math.isqrt(model.depth * stream // remembered)))
    taken = remembered * segment + passing + stream * math.ceil(model.depth / segment)
    return Plan(max(1, batch // taken), segment, taken)


class Numbers(NamedTuple):
    """Of one sublayer of one draw.

    Attributes:
        weights: entries of its matrices.
        met: of what enters its matrices, until the way back.
        normals: of what they met it with, if they are never made.
        kept: of whatever else is remembered until the way back.
        wide: coordinates of the widest array, beside the stream's own.
        square: entries of tokens by tokens.
    """

    weights: int
    met: int
    normals: int
    kept: int
    wide: int = 0
    square: int = 0


def _numbers(model: Model, index: int, backend: str, sampler: str) -> tuple[int, int]:
    """Of one block of one draw: what is remembered until the way back, and what lives while the block is worked on.

    Left out: matrices of tokens by tokens, but for those of every head, and at most 1 MiB where normals are made.
    """
    d, t = model.width, model.tokens
    parts = [numbers_of(one, d, t) for one in called(model, index)]
    if sampler == "dense":
        maps = sum(part.weights for part in parts)
    else:  # what enters the maps and, where a device does not make them anew, the normals they met it with
        maps = sum(part.met + (part.normals if backend == "numpy" else 0) for part in parts)
    kept = sum(part.kept for part in parts) + 3 * t * d
    wide = max((part.wide for part in parts), default=0)
    square = max((part.square for part in parts), default=0)
    return maps + kept, t * (10 * d + 3 * wide) + 3 * square


def numbers_of(one: Sublayer, d: int, t: int) -> Numbers:
    """Of a sublayer in force, in a stream of so many coordinates and tokens."""
    if isinstance(one, FFN | Experts):
        expert, count = (one.expert, one.count + one.shared) if isinstance(one, Experts) else (one, 1)
        m = expert.units * count
        n = m * (2 if expert.activation.gated else 1)
        return Numbers(d * n + m * d, t * (d + m), t * (d + n), 2 * t * n, wide=n)
    if isinstance(one, Attention):
        inside, both = one.inside, 2 * one.size * one.kv_heads
        square = one.heads * t * t
        return Numbers(
            d * (inside + both) + inside * d,
            t * (d + inside),
            t * (inside + both + d),
            t * (inside + both) + square,
            square=square,
        )
    if isinstance(one, LatentAttention):
        sides = [(fan_in, fan_out) for _, fan_in, fan_out, _ in one.matrices(d)]
        met, made = (t * sum(each) for each in zip(*sides, strict=True))
        square = one.heads * t * t
        return Numbers(sum(i * o for i, o in sides), met, made, made + met + square, square=square)
    if isinstance(one, LinearAttention):
        sides = [(fan_in, fan_out) for _, fan_in, fan_out, _ in one.matrices(d)]
        met, made = (t * sum(each) for each in zip(*sides, strict=True))
        states = t * one.size * one.inside
        return Numbers(sum(i * o for i, o in sides), met, made, 2 * made + states)
    return Numbers(4 * d * d, 2 * t * d, 4 * t * d, 3 * t * d)  # one's own: a guess, that it is like attention
