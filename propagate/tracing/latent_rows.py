"""Latent attention read off a torch block's matrices, where they have the names of DeepSeek's.

One matrix makes the latents of keys and values and the keys that all heads share, another a head's own keys and values,
head by head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from propagate.latent import LatentAttention
from propagate.model import ModelError
from propagate.scaling import Gains
from propagate.tracing.cores import Core
from propagate.tracing.statistics import precise

MARK = "key_value_down"
"""The role of a matrix that no other attention has."""


@dataclass(frozen=True)
class LatentRows:
    """The matrices of one block's latent attention, entries (fan_out, fan_in).

    Attributes:
        query, query_down: the latter None where queries read the stream.
        down, up: of keys and values.
        write: the output matrix.
        heads: how many.
    """

    query: Tensor
    query_down: Tensor | None
    down: Tensor
    up: Tensor
    write: Tensor
    heads: int

    @classmethod
    def of(cls, rows: dict[str, list[tuple[str, Tensor]]], heads: int) -> LatentRows:
        """From a block's weights by role."""
        found = {role: rows[role][0][1] for role in ("query", MARK, "key_value_up", "attention_out") if role in rows}
        if len(found) < 4:
            raise ModelError("latent attention must have matrices q_proj or q_b_proj, kv_a_proj, kv_b_proj and o_proj")
        query_down = rows["query_down"][0][1] if "query_down" in rows else None
        return cls(found["query"], query_down, found[MARK], found["key_value_up"], found["attention_out"], heads)

    @classmethod
    def each(cls, rows: dict[str, list[tuple[str, Tensor]]], heads: int) -> list[LatentRows]:
        """Of all attentions of a block."""
        count = len(rows[MARK])
        return [
            cls.of({role: found[i:] for role, found in rows.items() if i < len(found)}, heads) for i in range(count)
        ]

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @property
    def value(self) -> int:
        """Coordinates of a head's value."""
        return self.write.shape[1] // self.heads

    @property
    def plain(self) -> int:
        """Of its own key."""
        return self.up.shape[0] // self.heads - self.value

    def cut_down(self, g: Tensor) -> Sequence[Tensor]:
        """The latents' part, and the shared keys'."""
        return torch.split(g, [self.rank, g.shape[0] - self.rank])

    def cut_up(self, g: Tensor) -> Sequence[Tensor]:
        """Keys' part and values'."""
        return torch.split(g.reshape(self.heads, -1, g.shape[-1]), [self.plain, self.value], dim=1)

    def gains(self) -> Gains:
        """Of queries, a head's own keys, values and the output."""
        key, value = self.cut_up(self.up)
        return Gains(_gain(self.query), _gain(key), _gain(value), _gain(self.write))

    def description(self, block: nn.Module, core: Core | None, rope: float | None, seen: dict[str, Any]) -> Any:
        """What it is, its gains being relative to `gains`: shared keys to a head's own."""
        width, (latents, shared) = self.down.shape[1], self.cut_down(self.down)
        rank = None if self.query_down is None else self.query.shape[1]
        plain = LatentAttention(
            self.heads,
            self.plain,
            self.down.shape[0] - self.rank,
            self.value,
            rank,
            self.rank,
            scale_correction=_corrected(block, width, rank, self.rank),
            rope=rope,
            logit_std=1.0 if core is None else round(core.scale * math.sqrt(core.size), 5),
            **seen,
        )
        down = {} if self.query_down is None else {"query_down_gain": _gain(self.query_down)}
        own = _gain(self.cut_up(self.up)[0])
        return plain.with_(
            rotary_gain=_gain(shared) / own if shared.numel() else 1.0, key_value_down_gain=_gain(latents), **down
        )


def evened(read: Sequence[LatentAttention]) -> list[LatentAttention]:
    """Of blocks that differ by what a draw makes gains differ, one description.

    Example:
        >>> one, other = (LatentAttention(rotary_gain=gain) for gain in (1.0, 1.02))
        >>> [kind.rotary_gain for kind in evened([one, other])]
        [1.01, 1.01]
    """
    names = ("rotary_gain", "query_down_gain", "key_value_down_gain")
    values = {name: [float(getattr(one, name)) for one in read] for name in names}
    if any(max(gains) > 1.1 * min(gains) for gains in values.values()):
        return list(read)
    return [one.with_(**{name: sum(gains) / len(gains) for name, gains in values.items()}) for one in read]


def _gain(weight: Tensor) -> float:
    return math.sqrt(float(precise(weight).square().mean()) * weight.shape[-1])


def _corrected(block: nn.Module, width: int, query_rank: int | None, rank: int) -> bool:
    """Whether the module has LongCat-Flash's factors.

    Raises:
        ModelError: for other factors.
    """
    for part in block.modules():
        factors = [getattr(part, f"mla_scale_{name}_lora", None) for name in ("q", "kv")]
        if any(factor is not None for factor in factors):
            expected = [math.sqrt(width / one) for one in (query_rank or width, rank)]
            if not all(
                isinstance(factor, float) and math.isclose(factor, one, rel_tol=1e-6)
                for factor, one in zip(factors, expected, strict=True)
            ):
                raise ModelError(f"the factors {factors} of latents are not sqrt(width / rank); say it with attention=")
            return True
    return False
