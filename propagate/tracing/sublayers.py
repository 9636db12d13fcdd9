"""What the modules inside a block are, by what they compute: attention, FFN or norm.

A sublayer mixes tokens (attention) or treats each by itself and has matrices (FFN). Whether it mixes is read off the
gradient of one token's output; which modules are pieces of one sublayer (the two matrices of an FFN, the projections of
queries, keys and values), off autograd's graph: a piece is all that the next one hears of the block's input.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from propagate.tracing.find import named_attention, named_cross_attention
from propagate.tracing.graph import first_met
from propagate.tracing.layout import Layout, gradient_at
from propagate.tracing.named import is_matrix


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module that may be a sublayer.

    Attributes:
        path: of the module within its block.
        module: what was called.
        entered: a vector for each token that it was given, if one was seen: a stream, where there was one.
        output: the stream it gave; of one matrix, which may be a piece of a sublayer, vectors of any width.
        norm: whether it is a norm.
    """

    path: str
    module: nn.Module
    entered: Tensor | None
    output: Tensor
    norm: bool = False


def sublayers(calls: Iterable[Call], source: Tensor, layout: Layout) -> list[tuple[str, Call]]:
    """The sublayers among a block's calls, in order: ("attention", "crossattention", "ffn" or "norm", its last call).

    Args:
        calls: of the block, in the order in which they ended.
        source: the stream that entered the block.
        layout: of that stream.
    """
    found: list[tuple[Call, list[Call]]] = []
    for call in calls:
        if call.norm:
            found.append((call, []))
        elif has_matrix(call.module) or named_attention(call.path, call.module):
            pieces = _pieces(call, [one for one, _ in found if not one.norm and is_bare(one.module)], source)
            if not has_matrix(call.module) and not _may_mix(call, pieces, source, layout):
                continue  # a dropout of that name
            inner = [p for one, own in found if one in pieces for p in (one, *own)]
            found = [(one, own) for one, own in found if one not in pieces]
            found.append((call, inner))
    whole = [(call, inner) for call, inner in found if call.output.numel() == source.numel()]
    return [("norm" if call.norm else _kind(call, inner, source, layout), call) for call, inner in whole]


def has_matrix(module: nn.Module) -> bool:
    """Whether a module has a matrix: a LayerScale, a DropPath, an activation has none.

    Example:
        >>> has_matrix(nn.Linear(4, 4)), has_matrix(nn.Identity())
        (True, False)
    """
    return any(map(is_matrix, module.parameters()))


def is_bare(module: nn.Module) -> bool:
    """Whether a module is one matrix by itself, which may be a piece of a sublayer."""
    return all(name == "parametrizations" for name, _ in module.named_children())


def _may_mix(call: Call, pieces: list[Call], source: Tensor, layout: Layout) -> bool:
    return call.output.numel() == source.numel() and _kind(call, pieces, source, layout) == "attention"


def _kind(call: Call, pieces: list[Call], source: Tensor, layout: Layout) -> str:
    entered = [one.entered for one in (*pieces, call) if one.entered is not None][:1] or [source]
    mixes = mixes_tokens(call.output, entered[0], source, layout)
    if mixes is None:
        mixes = any(named_attention(one.path, one.module) for one in (call, *pieces))
    if mixes is False and any(named_cross_attention(one.path, one.module) for one in (call, *pieces)):
        return "crossattention"  # which gives each token what it asked another stream for
    return "attention" if mixes else "ffn"


def mixes_tokens(output: Tensor, entered: Tensor, source: Tensor, layout: Layout) -> bool | None:
    """Whether a token's output depends on other tokens' input; None where gradients do not tell.

    Args:
        output: what a module gave, in the shape of `source` or with tokens and sequences flattened.
        entered: what it was given, likewise, of any width.
        source: a stream of the block.
        layout: of that stream.
    """
    tokens = layout.flat(source).shape[1]
    given = layout.flat(output.reshape(source.shape))
    for token in (tokens - 1, 0) if tokens > 1 else ():  # under a mask one of them may see itself alone
        gradient = gradient_at(given, entered, (0, token))
        if gradient is None or not torch.isfinite(gradient).all():
            return None
        shape = source.shape if gradient.numel() == source.numel() else (*source.shape[:-1], -1)
        touched = layout.flat(gradient.reshape(shape))[0].abs().sum(-1) > 0
        if not bool(touched.any()):
            return None
        touched[token] = False
        if bool(touched.any()):
            return True
    return False if tokens > 1 else None


def _pieces(call: Call, earlier: list[Call], source: Tensor) -> list[Call]:
    """Those earlier matrices through which alone this call hears of the block's input."""
    nodes = {one.output.grad_fn: one for one in earlier if one.output.grad_fn is not None}
    met = first_met(call.output, {*nodes, source.grad_fn})
    return [] if source.grad_fn in met else [nodes[function] for function in met]
