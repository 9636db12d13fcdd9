"""Hooks that watch one forward pass: the stream at every block, and the second moments of every sublayer call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from propagate.model import ModelError
from propagate.tracing.find import branches, parts, stream_of
from propagate.tracing.statistics import second_moments

Moments = dict[str, float]


class Recorder:
    """What the hooks saw.

    Attributes:
        states: what enters the first block, then what leaves each block, in the order of the calls: one stream or, of
            a network that `build` made, all of them.
        ends: of several streams, the embedded tokens that they are made of and what the readout joins them into.
        called: the block modules, in the order of the calls: one module may be called many times.
        calls: for each of those calls, moments of what its sublayers gave, by name ("attention1": the first attention).
    """

    def __init__(self, keep: Tensor | None) -> None:
        self.keep = keep
        self.states: list[tuple[Tensor, ...]] = []
        self.ends: list[Tensor] = []
        self.called: list[nn.Module] = []
        self.calls: list[dict[str, Moments]] = []
        self._counts: Counter[str] = Counter()
        self._waiting: list[tuple[str, Tensor]] = []

    @property
    def several(self) -> bool:
        """Whether more than one stream passes from block to block."""
        return bool(self.ends)

    def kept(self, x: Tensor) -> Tensor:
        """Which tokens count: all, unless a mask was given."""
        batch, tokens = flat(x).shape[:2]
        if self.keep is None:
            return torch.ones(batch, tokens, dtype=torch.bool, device=x.device)
        if tuple(self.keep.shape) != (batch, tokens):
            raise ModelError(f"mask must have shape {(batch, tokens)}, got {tuple(self.keep.shape)}")
        return self.keep.to(x.device)

    def embed(self, part: nn.Module, args: Any) -> Any:
        """Before several streams are made of the embedded tokens: these start the gradient's graph."""
        leaf = args[0].detach().requires_grad_()
        self.ends.append(leaf)
        return (leaf,)

    def embedded(self, part: nn.Module, args: Any, output: Any) -> Any:
        """After several streams were made."""
        return self._apart(output)

    def joined(self, part: nn.Module, args: Any, output: Tensor) -> None:
        """After several streams were joined."""
        self.ends.append(output)

    def enter(self, block: nn.Module, args: Any, kwargs: Any) -> Any:
        """Before a block: a fresh list of calls; the first block's stream starts the gradient's graph."""
        self.calls.append({})
        self._counts, self._waiting = Counter(), []
        if self.states:
            return None
        found = stream_of([*args, *kwargs.values()])
        if found is None:
            raise ModelError(f"the block {type(block).__name__} was given no stream of shape (..., tokens, width)")
        leaf = found.detach().requires_grad_()
        self.states.append((leaf,))
        return _replaced(args, found, leaf), {key: _replaced(value, found, leaf) for key, value in kwargs.items()}

    def leave(self, block: nn.Module, args: Any, output: Any) -> Any:
        """After a block."""
        self.called.append(block)
        if self.several:
            return self._apart(output)
        found, before = stream_of([output]), self.states[0][0].shape
        if found is None or found.shape != before:
            shape = None if found is None else tuple(found.shape)
            raise ModelError(f"a block must keep the stream's shape {tuple(before)}, got {shape}")
        self.states.append((found,))
        return None

    def _apart(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """The state, every stream a tensor of its own: one that occurs twice has two gradients."""
        state = tuple(entry.view_as(entry) if isinstance(entry, Tensor) else entry for entry in state)
        self.states.append(tuple(entry for entry in state if isinstance(entry, Tensor)))
        return state

    def saw(self, kind: str, output: Any) -> None:
        """After a module that may be a sublayer call."""
        found = stream_of([output])
        if found is not None and self.states and found.shape == self.states[0][0].shape:
            self._waiting.append((kind, found))

    def close(self, output: Any) -> None:
        """After a part of a block: its last branch counts, and its last norm if that gave the part's own output."""
        own = stream_of([output])
        found = [entry for entry in self._waiting if entry[0] != "norm"][-1:]
        found += [entry for entry in self._waiting if entry[0] == "norm" and entry[1] is own][-1:]
        self._waiting = []
        for kind, value in found:
            self._counts[kind] += 1
            self.calls[-1][f"{kind}{self._counts[kind]}"] = second_moments(flat(value), self.kept(value))


@contextmanager
def watching(
    blocks: Sequence[nn.Module], keep: Tensor | None, ends: tuple[nn.Module, nn.Module] | None = None
) -> Iterator[Recorder]:
    """Hooks on the blocks and their sublayers, gone on the way out, whatever happens.

    `ends` are the modules that make several streams of one, and one of them again.
    """
    recorder, handles = Recorder(keep), []
    try:
        if ends is not None:
            handles.append(ends[0].register_forward_pre_hook(recorder.embed))
            handles.append(ends[0].register_forward_hook(recorder.embedded))
            handles.append(ends[1].register_forward_hook(recorder.joined))
        for block in dict.fromkeys(blocks):
            handles.append(block.register_forward_pre_hook(recorder.enter, with_kwargs=True))
            for path, part in parts(block):
                for kind, _, module in branches(path, part):
                    if not isinstance(module, nn.Dropout):
                        handles.append(module.register_forward_hook(_seer(recorder, kind)))
                handles.append(part.register_forward_hook(lambda module, args, output: recorder.close(output)))
            handles.append(block.register_forward_hook(recorder.leave))
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def flat(x: Tensor) -> Tensor:
    """(..., tokens, width) as (sequences, tokens, width)."""
    return x.reshape(-1, *x.shape[-2:])


def _seer(recorder: Recorder, kind: str) -> Any:
    return lambda module, args, output: recorder.saw(kind, output)


def _replaced(values: Any, old: Tensor, new: Tensor) -> Any:
    if values is old:
        return new
    if isinstance(values, tuple | list):
        return type(values)(_replaced(value, old, new) for value in values)
    return values
