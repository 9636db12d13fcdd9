"""Cross-attention as a torch module, and the memory that all of a network's have in common."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from propagate.checks import ModelError, shown
from propagate.crossing import CrossAttention
from propagate.tracing.layers import Projection, split_heads
from propagate.tracing.setting import Setting, apply, check_fields

FIELDS = frozenset(field.name for field in dataclasses.fields(CrossAttention))


class CrossHeads(nn.Module):
    """Softmax attention to a memory; see `CrossAttention`.

    Attributes:
        memory: (..., memory tokens, width). At first it is drawn with the moments of the description, the same in all
            blocks of a network; see `remember`.
    """

    def __init__(self, kind: CrossAttention, block: Setting) -> None:
        super().__init__()
        self.kind, self.scale = kind, kind.logit_std / math.sqrt(kind.size)
        self.query = Projection(block.width, kind.inside, float(kind.query_gain), law=block.weights)
        told = (float(kind.key_gain), float(kind.value_gain))
        self.told = Projection(block.width, 2 * kind.inside, *told, law=block.weights)
        size = {"query": kind.size, "key": kind.size, "value": kind.size, "heads": kind.inside}
        self.inner = nn.ModuleDict(
            {name: block.inner_norm(width, wanted=name in kind.normed) for name, width in size.items()}
        )
        self.write = Projection(kind.inside, block.width, float(kind.out_gain), law=block.weights)
        self.dropout = nn.Dropout(block.dropout)
        self.memory: Tensor
        self.register_buffer("memory", _drawn(kind, block.width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kind = self.kind
        key, value = self.told(self.memory.to(x)).chunk(2, dim=-1)
        query, key, value = (
            self.inner[name](split_heads(part, kind.size))
            for name, part in (("query", self.query(x)), ("key", key), ("value", value))
        )
        key, value = (part.expand(*query.shape[:-2], *part.shape[-2:]) for part in (key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, scale=self.scale)
        written: Tensor = self.dropout(self.write(self.inner["heads"](mixed.transpose(-2, -3).flatten(-2))))
        return written


def _drawn(kind: CrossAttention, width: int) -> Tensor:
    """A memory of the description's moments, which the seed of the network alone decides."""
    values, vectors = np.linalg.eigh(kind.memory.gram)
    root = torch.as_tensor(vectors * np.sqrt(np.maximum(values, 0.0)), dtype=torch.float64, device="cpu")
    generator = torch.Generator("cpu").manual_seed((torch.initial_seed() + 1) % 2**63)
    normals = torch.randn(kind.memory.tokens, width, generator=generator, dtype=torch.float64, device="cpu")
    return root @ normals


def remember(network: nn.Module, memory: Any) -> None:
    """Gives all cross-attentions of a network another memory: what its encoder made of a batch, say.

    Args:
        network: that `propagate.build` made.
        memory: a tensor (memory tokens, width), or (sequences, memory tokens, width).

    Raises:
        ModelError: for a network that attends to no memory, or what is no such tensor.

    Example:
        >>> import propagate as pg
        >>> class Remembering(pg.Placement):
        ...     def block(self, x, block):
        ...         return x + block.apply(pg.CrossAttention(pg.Memory.alike(3)), block.norm(x))
        >>> network = pg.build(pg.Model(Remembering(), depth=2, width=16, tokens=4))
        >>> encoded = torch.randn(5, 7, 16, requires_grad=True)
        >>> pg.tracing.remember(network, encoded)
        >>> network(torch.randn(5, 4, 16)).sum().backward()
        >>> encoded.grad.shape
        torch.Size([5, 7, 16])
    """
    found = [part for part in network.modules() if isinstance(part, CrossHeads)]
    if not found:
        raise ModelError(f"remember needs a network that attends to a memory, got {type(network).__name__}")
    width = found[0].query.in_features
    if not isinstance(memory, Tensor) or memory.dim() not in (2, 3) or memory.shape[-1] != width:
        raise ModelError(f"memory must be a tensor (memory tokens, {width}), got {shown(memory)}")
    for part in found:
        part.memory = memory


@apply.register
def _(kind: CrossAttention, block: Setting) -> nn.Module:
    check_fields(kind, FIELDS)
    return CrossHeads(kind, block)
