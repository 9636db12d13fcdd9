"""Elementwise work of an ensemble joined by `torch.compile`: a block's text, compiled once for all that it fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from propagate.placement import split
from propagate.tracing.build import Block, LanguageModel

MOST = 4
"""Texts, at most, that are compiled; blocks with others are run as they are."""
Weights = dict[str, Tensor]
Function = Callable[[Weights, Any], Any]


class Fused(nn.Module):
    """A block that trains by the compiled text of one like it; without gradients it is run as it is."""

    def __init__(self, block: Block, function: Function) -> None:
        super().__init__()
        self.block, self.function = block, function

    def forward(self, state: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.block(state)
        return self.function(_weights(self.block), state)


def fuse(learner: LanguageModel, ids: Tensor, backend: str) -> None:
    """Compile blocks, in place.

    A block may depend on where it stands (its gain, its place in the order of norms). It is computed by another's text
    only if that, with this block's weights, gives the very bytes that the block gives itself, of streams on their way.

    Args:
        learner: with its weights in place.
        ids: some token ids that it takes.
        backend: of `torch.compile`.
    """
    torch.compiler.reset()  # else what was compiled for earlier ensembles counts against a limit
    network = learner.network
    texts: list[tuple[Block, Function]] = []
    with torch.no_grad():
        state = network.embed(learner.embedding(ids))
        for index, block in enumerate(network.blocks):
            assert isinstance(block, Block)
            after = block(state)
            function = next((made for text, made in texts if _fits(text, block, state, after)), None)
            if function is None and len(texts) < MOST:
                function = _compiled(block, backend)
                texts.append((block, function))
            if function is not None:
                network.blocks[index] = Fused(block, function)
            state = after


def _compiled(block: Block, backend: str) -> Function:
    def call(weights: Weights, state: Any) -> Any:
        return functional_call(block, weights, (state,))

    made: Function = torch.compile(call, backend=backend, fullgraph=True, dynamic=False)
    return made


def _fits(text: Block, block: Block, state: Any, after: Any) -> bool:
    weights, own = _weights(block), _weights(text)
    if {name: one.shape for name, one in weights.items()} != {name: one.shape for name, one in own.items()}:
        return False
    found = functional_call(text, weights, (state,))
    return all(map(torch.equal, split(found, Tensor)[0], split(after, Tensor)[0]))


def _weights(block: nn.Module) -> Weights:
    return dict(block.named_parameters())
