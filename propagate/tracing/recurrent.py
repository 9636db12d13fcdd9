"""Linear attention with a decay as a torch module, with the initialisation that its description states."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from propagate.recurrent import LinearAttention
from propagate.tracing.layers import Projection, function_of, split_heads
from propagate.tracing.setting import Setting, apply, check_fields

FIELDS = frozenset(field.name for field in dataclasses.fields(LinearAttention))


class Recurrence(nn.Module):
    """A linear recurrence over tokens, run token by token; see `LinearAttention`.

    Matrices have the names of the description: `weights["decay"]`.
    """

    bias: Tensor
    power: Tensor
    decay: Tensor

    def __init__(self, kind: LinearAttention, block: Setting) -> None:
        super().__init__()
        self.kind = kind
        self.weights = nn.ModuleDict(
            {
                name: Projection(fan_in, fan_out, float(gain), law=block.weights)
                for name, fan_in, fan_out, gain in kind.matrices(block.width)
            }
        )
        self.inner = nn.ModuleDict(
            {name: block.inner_norm(kind.inside, wanted=name in kind.normed) for name in kind.inner_norms}
        )
        self.dropout = nn.Dropout(block.dropout)
        of_heads: dict[str, Any] = {"decay": kind.decays}
        if kind.gate is not None:
            of_heads = {"bias": [kind.bias(head) for head in range(kind.heads)], "power": kind.powers}
        for name, values in of_heads.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.split(name, x) for name in ("query", "key", "value"))
        heads = recurrence(query, key, value, self.decays(x))
        heads = self.inner["heads"](heads.transpose(-2, -3).flatten(-2))
        if self.kind.output_gate is not None:
            heads = heads * function_of(self.kind.output_gate)(self.weights["output_gate"](x))
        written: Tensor = self.dropout(self.weights["attention_out"](self.inner["gated"](heads)))
        return written

    def split(self, name: str, x: Tensor) -> Tensor:
        """What a matrix gives, (..., heads, tokens, coordinates of a head)."""
        made = self.weights[name](x)
        return split_heads(made, made.shape[-1] // self.kind.heads)

    def decays(self, x: Tensor) -> Tensor:
        """(..., heads, tokens, 1 or coordinates of a key)."""
        if self.kind.gate is None:
            return self.decay.to(x).expand(*x.shape[:-2], -1, x.shape[-2], 1)
        return (self.power.to(x) * functional.logsigmoid(self.split("decay", x) + self.bias.to(x))).exp()


def recurrence(query: Tensor, key: Tensor, value: Tensor, decay: Tensor) -> Tensor:
    """S_t = a_t S_(t-1) + k_t v_t^T and o_t = q_t^T S_t / sqrt(n), (..., tokens, coordinates) each.

    Example:
        >>> one = torch.ones(3, 1)
        >>> recurrence(one, one, one, 0.5 * one)[:, 0].tolist()
        [1.0, 1.5, 1.75]
    """
    state, found = torch.zeros_like(key[..., 0, :, None] * value[..., 0, None, :]), []
    for q, k, v, a in zip(*(part.unbind(-2) for part in (query, key, value, decay)), strict=True):
        state = a[..., :, None] * state + k[..., :, None] * v[..., None, :]
        found.append((q[..., :, None] * state).sum(-2))
    return torch.stack(found, dim=-2) / math.sqrt(query.shape[-1])


@apply.register
def _(kind: LinearAttention, block: Setting) -> nn.Module:
    check_fields(kind, FIELDS)
    return Recurrence(kind, block)
