"""The weight matrices of a block by the names that theory and simulation give them, and their gradients' sizes.

Known are blocks that `build` made, and those of architectures that `describe` reads. A parameter may hold several
matrices (queries, keys and values; a gate and what it opens), and a matrix of a mixture is those of its experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from propagate.tracing.build import Block
from propagate.tracing.describe import PLACEMENTS
from propagate.tracing.experts import Mixture
from propagate.tracing.layers import Attention, FeedForward, UniformAttention
from propagate.tracing.roles import by_role
from propagate.tracing.statistics import precise

FFN = ("gate", "in", "out")
MATRICES = (
    "query",
    "key",
    "value",
    "attention_out",
    "router",
    *(f"{kind}_{p}" for kind in ("ffn", "shared") for p in FFN),
)
Cut = Callable[[Tensor], Sequence[Tensor]]


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
    if len({id(block) for block in blocks}) < len(blocks):
        return [[] for _ in blocks]
    named = getattr(getattr(module, "config", None), "model_type", None) in PLACEMENTS
    return [list(_weights(block, named)) for block in blocks]


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


def _weights(block: nn.Module, named: bool) -> Iterator[Weight]:
    if isinstance(block, Block):
        for sublayer in block.sublayers.values():
            yield from _of_sublayer(sublayer)
    elif named or isinstance(block, nn.TransformerEncoderLayer):
        yield from _of_names(block)


def _of_sublayer(sublayer: nn.Module) -> Iterator[Weight]:
    """Of one that `build` made."""
    if isinstance(sublayer, Attention):
        sizes = list(sublayer.read.sizes)
        yield Weight(sublayer.read.weight, ("query", "key", "value"), lambda g: torch.split(g, sizes))
        yield Weight(sublayer.write.weight, ("attention_out",), _whole)
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


def _of_names(block: nn.Module) -> Iterator[Weight]:
    """Of a block of an architecture that `describe` knows."""
    for role, weights in by_role(block).items():
        for path, weight in weights:
            if role == "fused":
                if cut := _fused(block, path):
                    yield Weight(weight, ("query", "key", "value"), cut)
            elif role == "ffn_both":
                yield Weight(weight, ("ffn_gate", "ffn_in"), lambda g: g.chunk(2, dim=-2))
            else:
                yield Weight(weight, (role,), _whole)


def _fused(block: nn.Module, path: str) -> Cut | None:
    """How queries, keys and values lie in one parameter: side by side or, in GPT-NeoX, so within every head."""
    owner, _, _ = path.rpartition(".")
    if type(block.get_submodule(owner)).__name__ == "Conv1D":  # stored transposed
        return lambda g: g.chunk(3, dim=-1)
    if not path.endswith("query_key_value.weight"):
        return lambda g: g.chunk(3)
    size = getattr(block.get_submodule(owner.rpartition(".")[0]), "head_size", None)
    return None if size is None else lambda g: g.reshape(-1, 3, size, g.shape[-1]).unbind(1)


def _whole(gradient: Tensor) -> Sequence[Tensor]:
    return (gradient,)
