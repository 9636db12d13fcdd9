"""Elementwise work of an ensemble joined by `torch.compile`: a block's text, compiled once for all that it fits.

A text is the operations of one block, as they are met when it is run on tensors: what its equations make of numbers
alone has happened by then, and need not be compiled. Its numbers beside streams, as a branch's gain that falls with the
depth, are inputs, so that blocks may differ in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen

from propagate.placement import Layout, join, split
from propagate.tracing.build import Block, LanguageModel

MOST = 6
"""Texts, at most, that are compiled; blocks with others are run as they are."""
SCALED = tuple(getattr(torch.ops.aten, name).Tensor for name in ("add", "sub", "mul", "div"))
Tensors = Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Text:
    """The operations of a block, of its weights, the streams that enter it, and numbers.

    Attributes:
        graph: them.
        numbers: of this block.
        entering, leaving: the layouts of streams.
    """

    graph: GraphModule
    numbers: Tensors
    entering: Layout
    leaving: Layout

    def is_of(self, other: Text) -> bool:
        """Whether the two differ in weights and numbers alone."""
        tables, others = dict(self.graph.named_buffers()), dict(other.graph.named_buffers())  # such as masks
        return (
            self.graph.code == other.graph.code
            and (self.entering, self.leaving) == (other.entering, other.leaving)
            and tables.keys() == others.keys()
            and all(torch.equal(table, others[name]) for name, table in tables.items())
        )


class Fused(nn.Module):
    """A block that trains by a compiled text; without gradients it is run as it is."""

    def __init__(self, block: Block, text: Text, function: Callable[..., Tensors]) -> None:
        super().__init__()
        self.block, self.text, self.function = block, text, function

    def forward(self, state: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.block(state)
        streams, _ = split(state, Tensor)
        with torch.autocast(streams[0].device.type, enabled=False):  # the text has its casts
            left = self.function(*self.block.parameters(), *streams, *self.text.numbers)
        return join(left, self.text.leaving)


def fuse(learner: LanguageModel, ids: Tensor, backend: str) -> None:
    """Compile blocks, in place.

    Args:
        learner: with its weights in place, called as in training (in its number types).
        ids: some token ids that it takes.
        backend: of `torch.compile`.
    """
    torch.compiler.reset()  # else what was compiled for earlier ensembles counts against a limit
    network, found = learner.network, list[tuple[Text, Callable[..., Tensors]]]()
    state = network.embed(learner.embedding(ids))
    for index, block in enumerate(network.blocks):
        assert isinstance(block, Block)
        text, state = _read(block, state)
        function = next((function for one, function in found if one.is_of(text)), None)
        if function is None and len(found) < MOST:
            function = torch.compile(text.graph, backend=backend, fullgraph=True, dynamic=False)
            found.append((text, function))
        if function is not None:
            network.blocks[index] = Fused(block, text, function)


def _read(block: Block, state: Any) -> tuple[Text, Any]:
    """A block's text, as it is met on a state, and the state that leaves it."""
    streams, entering = split(state, Tensor)
    names, weights = [name for name, _ in block.named_parameters()], list(block.parameters())
    given = [stream.detach().requires_grad_() for stream in streams]
    leaving: list[Layout] = []

    def call(*flat: Tensor) -> list[Tensor]:
        own = dict(zip(names, flat[: len(names)], strict=True))
        left, layout = split(functional_call(block, own, (join(flat[len(names) :], entering),)), Tensor)
        leaving.append(layout)
        return list(left)

    graph = make_fx(call)(*weights, *given)
    graph.graph.set_codegen(CodeGen())  # of tensors alone, in and out
    graph.graph.eliminate_dead_code()
    numbers = [torch.tensor(number, dtype=given[0].dtype, device=given[0].device) for number in _taken_out(graph)]
    with torch.no_grad():
        left = graph(*weights, *given, *numbers)
    return Text(graph, numbers, entering, leaving[0]), join(left, leaving[0])


def _taken_out(graph: GraphModule) -> list[float]:
    """The numbers that streams are multiplied by, or that are added to them, which become inputs, the last."""
    found: list[float] = []
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in graph.graph.nodes:
        if node.target in SCALED and isinstance(node.args[1], float):
            found.append(node.args[1])
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"number_{len(found)}")
            node.update_arg(1, last)
    graph.recompile()
    return found
