"""Rotary positions: how much of the heads they turn, and by what base, as queries before and after them tell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from propagate.tracing.cores import Core

TURNS = 1e-2, 1.0
"""Angles between neighbours, in radians, that tell a base: below they are rounded, above they may be whole turns."""
ALIKE, ROUNDED = 0.03, 1e-5
"""Relative difference of an angle from a power of the base, and in radians."""


def turned(inside: Mapping[str, Tensor], core: Core | None) -> float | None:
    """The share of coordinates of the last token's queries that positions have turned; None where it was not seen."""
    queries = _queries(inside, core)
    if queries is None:
        return None
    before, after = queries
    last = before[-1] * (after[-1].norm(dim=-1) / before[-1].norm(dim=-1))[:, None]
    moved = (after[-1] - last).abs() > 1e-4 * last.abs().mean()
    return float(moved.float().mean())


def base_of(inside: Mapping[str, Tensor], core: Core | None) -> float | None:
    """The base whose powers are the angles between neighbours, of whole heads; None where there is none, or unseen.

    Coordinate i of a head turns with the next one or with the one half a head further.

    Example:
        >>> x = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
        >>> angles = torch.arange(3)[:, None] * 100.0 ** -(torch.arange(4) / 4)
        >>> pairs = torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.polar(torch.ones(3, 4), angles)
        >>> query = torch.view_as_real(pairs).flatten(-2)[:, None]
        >>> base_of({"query": x}, Core(query, query, 1.0, False))
        100.0
    """
    queries = _queries(inside, core)
    if queries is None or len(queries[0]) < 2 or queries[0].shape[-1] % 2:
        return None
    for before, after in zip(*(tuple(_pairs(x)) for x in queries), strict=True):  # (heads, pairs), of the second token
        turns = (after * before.conj()).sum(0)
        found = torch.angle(turns)
        straight = before * torch.polar(turns.abs() / before.abs().square().sum(0), found)
        if bool((after - straight).abs().square().sum() <= 1e-4 * after.abs().square().sum()):
            return _base(found.abs().tolist())
    return None


def _base(angles: list[float]) -> float | None:
    logs = [-math.log(a) * len(angles) / k for k, a in enumerate(angles) if k and TURNS[0] < a < TURNS[1]]
    if not logs:
        return None
    base = float(f"{math.exp(statistics.median(logs)):.2g}")
    expected = [base ** -(k / len(angles)) for k in range(len(angles))]
    apart = [abs(a - b) > ALIKE * b + ROUNDED for a, b in zip(angles, expected, strict=True)]
    return None if any(apart) else base


def _pairs(x: Tensor) -> Iterator[Tensor]:
    """The second token's vectors as complex numbers, in both ways that coordinates go in pairs."""
    token = x[1].double()
    yield torch.view_as_complex(token.reshape(*token.shape[:-1], -1, 2))
    yield torch.complex(*token.chunk(2, dim=-1))


def _queries(inside: Mapping[str, Tensor], core: Core | None) -> tuple[Tensor, Tensor] | None:
    """Before and after positions, each (tokens, heads, size), of the first sequence."""
    if core is None or "query" not in inside or inside["query"].numel() != core.query.numel():
        return None
    queries = core.query.reshape(-1, *core.query.shape[-3:]).transpose(-2, -3)  # (sequences, tokens, heads, size)
    made = inside["query"]
    if made.dim() == 3 and made.shape[:2] != queries.shape[:2] and made.shape[1] == len(queries):
        made = made.transpose(0, 1)  # tokens first
    return made.reshape(queries.shape)[0], queries[0]


def rope_of(config: Any, at: int, share: float | None, base: float | None, unsaid: list[str]) -> float | None:
    """Base of the rotary positions of a block, if there are any and they turn whole heads.

    Args:
        config: of the library transformers, or any.
        at: the block's number, from 0.
        share: how much of the heads was seen to be turned.
        base: what was seen of it.
        unsaid: words are added to it.
    """
    given = getattr(config, "rope_parameters", None) or {}
    kinds = getattr(config, "layer_types", None)
    if kinds and at < len(kinds) and isinstance(given.get(kinds[at]), dict):
        given = given[kinds[at]]
    if share == 0.0 or (share is None and not given):
        return None
    whole = given.get("rope_type", "default") == "default" and given.get("partial_rotary_factor", 1.0) == 1.0
    if whole and "rope_theta" in given:
        return float(given["rope_theta"])
    if base is None or given:
        unsaid.append("rotary positions of parts of the heads, or rescaled ones")
    return None if given else base
