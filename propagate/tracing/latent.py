"""Multi-head latent attention as a torch module, with the initialisation that its description states."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from propagate.latent import LatentAttention
from propagate.tracing.layers import Projection, seen_by, seen_for, split_heads, turned, turns_for, turns_of
from propagate.tracing.setting import Setting, apply, check_fields

FIELDS = frozenset(field.name for field in dataclasses.fields(LatentAttention))


class LatentHeads(nn.Module):
    """Softmax attention whose queries, keys and values pass a few coordinates and a norm; see `LatentAttention`.

    Matrices have the names of the description: `weights["key_value_down"]`. Without queries and keys where attention is
    uniform.
    """

    seen: Tensor | None
    turns: Tensor | None

    def __init__(self, attention: LatentAttention, block: Setting) -> None:
        super().__init__()
        self.attention = attention
        self.scales = {name: attention.scale_of(name, block.width) for name in ("query", "key", "value")}
        self.weights = nn.ModuleDict(
            {
                name: Projection(fan_in, fan_out, float(gain), law=block.weights)
                for name, fan_in, fan_out, gain in attention.matrices(block.width)
            }
        )
        self.inner = nn.ModuleDict(
            {
                "query": block.inner_norm(attention.query_rank or 1, wanted="query_down" in self.weights),
                "key_value": block.inner_norm(attention.rank, wanted=True),
            }
        )
        self.dropout = nn.Dropout(block.dropout)
        partly = not attention.logit_std or attention.window is not None or attention.mask is not None
        self.register_buffer("seen", seen_by(attention, block.tokens) if partly else None, persistent=False)
        turns = None if attention.rope is None else turns_of(attention.frequencies, block.tokens)
        self.register_buffer("turns", turns, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        latents = self.inner["key_value"](self.weights["key_value_down"](x))
        value = split_heads(self.scales["value"] * self.weights["value"](latents), self.attention.of_value)
        seen = None if self.seen is None else seen_for(x.shape[-2], self.seen, self.attention)
        if not self.attention.logit_std:
            assert seen is not None
            weights = seen.to(x.dtype)
            mixed = weights @ value / weights.sum(-1, keepdim=True)
        else:
            query, key = self.queries_and_keys(x, latents)
            mixed = functional.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=seen,
                is_causal=self.attention.causal and seen is None,
                scale=self.attention.logit_std / math.sqrt(self.attention.size),
            )
        written: Tensor = self.dropout(self.weights["attention_out"](mixed.transpose(-2, -3).flatten(-2)))
        return written

    def queries_and_keys(self, x: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Turned, (..., heads, tokens, head_size + rope_size) each."""
        kind = self.attention
        read = self.inner["query"](self.weights["query_down"](x)) if "query_down" in self.weights else x
        query = split_heads(self.scales["query"] * self.weights["query"](read), kind.size)
        key = split_heads(self.scales["key"] * self.weights["key"](latents), kind.plain_size)
        if not kind.turned_size:
            return query, key
        plain, moving = torch.split(query, [kind.plain_size, kind.turned_size], dim=-1)
        shared = self.weights["key_rotary"](x).unsqueeze(-3)
        if self.turns is not None:
            turns = turns_for(x.shape[-2], self.turns, kind)
            moving, shared = turned(moving, turns), turned(shared, turns)
        shared = shared.expand(*key.shape[:-1], kind.turned_size)
        return torch.cat([plain, moving], dim=-1), torch.cat([key, shared], dim=-1)

    def largest_logit(self, x: Tensor) -> Tensor:
        """Over sequences, heads and pairs of tokens that see one another, of the logits that the stream x makes."""
        latents = self.inner["key_value"](self.weights["key_value_down"](x))
        query, key = self.queries_and_keys(x, latents)
        logits = self.attention.logit_std / math.sqrt(self.attention.size) * query @ key.mT
        return torch.where(seen_by(self.attention, x.shape[-2]).to(x.device), logits, -torch.inf).amax()


@apply.register
def _(attention: LatentAttention, block: Setting) -> nn.Module:
    check_fields(attention, FIELDS)
    return LatentHeads(attention, block)
