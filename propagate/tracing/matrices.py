"""The weight matrices of a block by the names that theory and simulation give them, and their gradients' sizes.

Known are blocks that `build` made, and those of architectures that `describe` reads. A parameter may hold several
matrices (queries, keys and values; a gate and what it opens), and a matrix of a mixture is those of its experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from propagate.model import ModelError
from propagate.tracing.build import Block
from propagate.tracing.crossing import CrossHeads
from propagate.tracing.experts import Mixture
from propagate.tracing.gains import Cut, Rows, Sizes, fused_cut, rows_of, sizes_of
from propagate.tracing.latent import LatentHeads
from propagate.tracing.latent_rows import MARK, LatentRows
from propagate.tracing.layers import Attention, FeedForward, Projection, UniformAttention
from propagate.tracing.recurrent import Recurrence
from propagate.tracing.statistics import precise
from propagate.tracing.unread import shared_by

FFN = ("gate", "in", "out")
MATRICES = (
    "query_down",
    "query",
    "key_value_down",
    "key_rotary",
    "key",
    "value",
    "decay",
    "output_gate",
    "attention_out",
    "cross_query",
    "cross_key",
    "cross_value",
    "cross_out",
    "router",
    *(f"{kind}_{p}" for kind in ("ffn", "shared") for p in FFN),
)


class Weight(NamedTuple):
    """A parameter, and how its gradient is cut into those of matrices with these names."""

    parameter: Tensor
    names: tuple[str, ...]
    cut: Cut


def matrices_of(module: nn.Module, blocks: Sequence[nn.Module]) -> list[list[Weight]]:
    """The weights of every block; empty lists where matrices are not known by name, or where blocks share them.

    Example:
        >>> layers = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2) for _ in range(2)))
        >>> [name for weight in matrices_of(layers, list(layers))[0] for name in weight.names]
        ['query', 'key', 'value', 'attention_out', 'ffn_in', 'ffn_out']
    """
    if len({id(block) for block in blocks}) < len(blocks) or shared_by(blocks):
        return [[] for _ in blocks]
    config = getattr(module, "config", None)
    return [list(_weights(block, config)) for block in blocks]


def squared_norms(weights: Sequence[Weight], gradients: Mapping[int, Tensor | None]) -> dict[str, float]:
    """Squared Frobenius norms by matrix, from gradients by the identity of the parameter.

    None is a gradient of 0; of parameters that have none, as frozen ones, the norm is NaN.
    """
    found: dict[str, float] = {}
    for parameter, names, cut in weights:
        gradient = gradients.get(id(parameter))
        missing = 0.0 if id(parameter) in gradients else math.nan
        squares = [missing] * len(names)
        if gradient is not None:
            squares = [float(precise(part).square().sum()) for part in cut(gradient)]
        for name, square in zip(names, squares, strict=True):
            found[name] = found.get(name, 0.0) + square
    return found


def _weights(block: nn.Module, config: Any) -> Iterator[Weight]:
    if isinstance(block, Block):
        for sublayer in block.sublayers.values():
            yield from _of_sublayer(sublayer)
        return
    try:
        rows = rows_of(block)
        sizes = sizes_of(block, rows, None, config)
    except ModelError:
        return
    yield from _of_names(block, rows, sizes)


def _of_sublayer(sublayer: nn.Module) -> Iterator[Weight]:
    """Of one that `build` made."""
    if isinstance(sublayer, Attention):
        sizes = list(sublayer.read.sizes)
        yield Weight(sublayer.read.weight, ("query", "key", "value"), lambda g: torch.split(g, sizes))
        yield Weight(sublayer.write.weight, ("attention_out",), _whole)
    elif isinstance(sublayer, LatentHeads | Recurrence):
        for name, projection in sublayer.weights.items():
            assert isinstance(projection, Projection)
            yield Weight(projection.weight, (name,), _whole)
    elif isinstance(sublayer, CrossHeads):
        yield Weight(sublayer.query.weight, ("cross_query",), _whole)
        yield Weight(sublayer.told.weight, ("cross_key", "cross_value"), lambda g: g.chunk(2))
        yield Weight(sublayer.write.weight, ("cross_out",), _whole)
    elif isinstance(sublayer, UniformAttention):
        yield Weight(sublayer.read.weight, ("value",), _whole)
        yield Weight(sublayer.write.weight, ("attention_out",), _whole)
    elif isinstance(sublayer, FeedForward):
        yield from _of_ffn(sublayer, "ffn")
    elif isinstance(sublayer, Mixture):
        yield Weight(sublayer.router.weight, ("router",), _whole)
        for kind, experts in (("ffn", sublayer.routed), ("shared", sublayer.shared)):
            for expert in experts:
                yield from _of_ffn(expert, kind)


def _of_ffn(ffn: nn.Module, kind: str) -> Iterator[Weight]:
    assert isinstance(ffn, FeedForward)
    if ffn.gated:
        yield Weight(ffn.read.weight, (f"{kind}_gate", f"{kind}_in"), lambda g: g.chunk(2))
    else:
        yield Weight(ffn.read.weight, (f"{kind}_in",), _whole)
    yield Weight(ffn.write.weight, (f"{kind}_out",), _whole)


def _of_names(block: nn.Module, rows: Rows, sizes: Sizes) -> Iterator[Weight]:
    """Of a block whose matrices are known by name."""
    for role, weights in rows.items():
        for path, weight in weights:
            if role == "fused":
                if cut := fused_cut(block, path, sizes):
                    yield Weight(weight, ("query", "key", "value"), cut)
            elif role == MARK:
                yield Weight(weight, (MARK, "key_rotary"), LatentRows.of(rows, sizes.heads).cut_down)
            elif role == "key_value_up":
                yield Weight(weight, ("key", "value"), LatentRows.of(rows, sizes.heads).cut_up)
            elif role == "ffn_both":
                yield Weight(weight, ("ffn_gate", "ffn_in"), lambda g: g.chunk(2, dim=-2))
            else:
                yield Weight(weight, (role,), _whole)


def _whole(gradient: Tensor) -> Sequence[Tensor]:
    return (gradient,)
