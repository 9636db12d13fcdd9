"""Hooks that watch one forward pass: the stream at every block, and the second moments of every sublayer call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from propagate.model import ModelError
from propagate.tracing.build import Block
from propagate.tracing.find import candidates, has_norm, is_norm, parts, unwrapped
from propagate.tracing.layout import Axes, Layout, layout_by_hand, layout_of
from propagate.tracing.lists import Steps, all_listed
from propagate.tracing.statistics import second_moments
from propagate.tracing.streams import Choice, State, replaced, state_of, stream_of, tensors
from propagate.tracing.sublayers import Call, has_matrix, is_bare, sublayers

Moments = dict[str, float]
FACTOR = 1e-3
"""What tells a factor from 1, and a multiple from what is none; of bfloat16, which rounds by more, none is found."""

OWN_TENSORS = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
"""What is asked of gradients while a checkpointed block runs is none of what its checkpoint keeps."""


class Recorder:
    """What the hooks saw.

    Attributes:
        states: what enters the first block, then what leaves each block, in the order of the calls: one stream or, of
            a network that `build` made, all of them.
        places: for each of those streams, the tensor in the graph whose gradient is the stream's.
        ends: of several streams, the embedded tokens that they are made of and what the readout joins them into.
        called: the block modules, in the order of the calls: one module may be called many times.
        calls: for each of those calls, moments of what its sublayers gave, by name ("attention1": the first attention).
        layout: which axes of a stream are tokens.
        inside: whether a block is running.
        asleep: whether nothing is to be seen: a checkpointed block runs again in a reverse pass, which is no new call.
    """

    def __init__(self, keep: Tensor | None, axes: Axes = None, stream: Choice = None) -> None:
        self.keep, self.axes, self.stream = keep, axes, stream
        self.states: list[tuple[Tensor, ...]] = []
        self.places: list[tuple[Tensor, ...]] = []
        self.ends: list[Tensor] = []
        self.called: list[nn.Module] = []
        self.calls: list[dict[str, Moments]] = []
        self._layout: Layout | None = None
        self._handed_on: State | None = None
        self._seen: list[Call] = []
        self._named: dict[str, Tensor] = {}
        self._waiting: list[tuple[nn.Module, Tensor, list[Tensor]]] = []  # what inner modules gave, and were given
        self._entered: list[Tensor | None] = []
        self.inside = self.asleep = False

    @property
    def source(self) -> Tensor:
        """The stream that the block at hand was given."""
        assert self._handed_on is not None
        return self._handed_on.handed_on

    @property
    def handed_on(self) -> Tensor:
        """What the next block will be given, once one has ended."""
        return self.source

    @property
    def seen(self) -> Sequence[Call]:
        """What may be sublayers, of the block that was called last."""
        return self._seen

    @property
    def several(self) -> bool:
        """Whether more than one stream passes from block to block."""
        return bool(self.ends)

    @property
    def layout(self) -> Layout:
        """Of the stream, known once a block has ended."""
        if self._layout is None:
            raise ModelError("the model called none of its blocks; point at those it uses with blocks=")
        return self._layout

    def flat(self, x: Tensor) -> Tensor:
        """A stream as (sequences, tokens, width)."""
        return self.layout.flat(x)

    @property
    def kept(self) -> Tensor:
        """Which tokens count, (sequences, tokens): all, unless a mask was given."""
        first = self.states[0][0]
        batch, tokens = self.flat(first).shape[:2]
        if self.keep is None:
            return torch.ones(batch, tokens, dtype=torch.bool, device=first.device)
        if tuple(self.keep.shape) != (batch, tokens):
            raise ModelError(f"mask must have shape {(batch, tokens)}, got {tuple(self.keep.shape)}")
        return self.keep.to(first.device)

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
        if self.asleep:
            return None
        self._begin()
        if self.several:
            return None
        found = stream_of([*args, *kwargs.values()])
        if found is None:
            raise ModelError(
                f"the block {type(block).__name__} was given no stream of shape (..., tokens, width);"
                " point at the blocks with blocks="
            )
        if self._handed_on is not None:
            check_handed_on(found, self._handed_on.handed_on, len(self.called))
            return None
        leaf = found.detach().requires_grad_()
        given = leaf.clone()  # a block may change its input in place
        self.states.append((leaf,))
        self.places.append((leaf,))
        self._handed_on = State(leaf, leaf, given)
        return replaced(args, found, given), {key: replaced(value, found, given) for key, value in kwargs.items()}

    def step_in(self, block: nn.Module, stream: Tensor) -> None:
        """Before a block of lists: its stream stays the tensor that it is, which the skips read too."""
        self._begin()
        if self._handed_on is None:
            self.states.append((stream if stream.requires_grad else stream.requires_grad_(),))
            self.places.append(self.states[-1])
        self._handed_on = State(stream, stream, stream)

    def _begin(self) -> None:
        self._seen, self._named, self._waiting, self._entered, self.inside = [], {}, [], [], True

    def leave(self, block: nn.Module, args: Any, output: Any) -> Any:
        """After a block."""
        if self.asleep:
            return None
        self.inside, self.asleep = False, True
        try:
            with OWN_TENSORS:
                return self._left(block, output)
        finally:
            self.asleep = False

    def _left(self, block: nn.Module, output: Any) -> Any:
        self.called.append(block)
        if self.several:
            source = self.states[-1][0]
            output = self._apart(output)
            self._layout = self._layout or layout_by_hand(self.axes, source.dim()) or layout_of(source, source, block)
        else:
            assert self._handed_on is not None
            source, found = self._handed_on.handed_on, state_of(block, output, self.states[0][0], self.stream)
            self._layout = self._layout or layout_by_hand(self.axes, source.dim())
            self._layout = self._layout or layout_of(source, found.value, block)
            self.states.append((found.value,))
            self.places.append((found.place,))
            self._handed_on = found
            output = found.output
        named, counts = dict(self._named), Counter[str]()
        for kind, call in sublayers(self._seen, source, self._layout):
            counts[kind] += 1
            named[f"{kind}{counts[kind]}"] = call.output
        rows = {name: self.flat(value.reshape(source.shape)) for name, value in named.items()}
        self.calls.append({name: second_moments(value, self.kept) for name, value in rows.items()})
        return output

    def _apart(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """The state, every stream a tensor of its own: one that occurs twice has two gradients."""
        state = tuple(entry.view_as(entry) if isinstance(entry, Tensor) else entry for entry in state)
        self.states.append(tuple(entry for entry in state if isinstance(entry, Tensor)))
        self.places.append(self.states[-1])
        return state

    def begin(self, part: nn.Module, args: Any, kwargs: Any) -> None:
        """Before a part of a block."""
        if not self.inside:
            return
        rows = self._rows([*args, *kwargs.values()])
        self._entered.append(next((x for x in rows if self._is_stream(x)), next(iter(rows), None)))

    def saw(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """After a module that may be a sublayer call or, if it is one matrix, a piece of one."""
        if not self.inside:
            return
        found = [x for x in self._rows([output]) if self._is_stream(x) or is_bare(module)]
        given = [x for x in self._rows([*args, *kwargs.values()]) if self._is_stream(x)]
        self._waiting += [(module, x, given) for x in found[:1]]

    def _rows(self, values: Sequence[Any]) -> list[Tensor]:
        """The tensors that have a vector for each token, also with tokens and sequences flattened."""
        count = self.states[0][0].numel() // self.states[0][0].shape[-1] if self.states else 0
        return [x for x in tensors(values) if x.is_floating_point() and x.dim() > 1 and x.shape[:-1].numel() == count]

    def _is_stream(self, x: Tensor) -> bool:
        return x.shape[-1] == self.states[0][0].shape[-1]

    def name(self, name: str, output: Tensor) -> None:
        """After a call whose name is known, in a block that `build` made."""
        if self.inside:
            self._named[name] = output

    def close(self, path: str, part: nn.Module, output: Any) -> Any:
        """After a part of a block: what it gave, before it added its own skip; and its last norm, if it ends in one.

        What is handed on is a copy: the block may change it in place.
        """
        if not self.inside:
            return None
        entered = self._entered.pop()
        waiting, self._waiting = self._waiting, []
        own = waiting[-1][1] if waiting and waiting[-1][0] is part else None
        if is_norm(part):
            self._seen += [Call(path, part, entered, own, norm=True)] if own is not None else []
        else:
            inner = [row for row in waiting if row[0] is not part]
            if has_norm(part):
                branches = [row for row in inner if not is_norm(row[0]) and has_matrix(row[0])]
            else:
                branches = [] if own is None else [waiting[-1]]
            self._seen += [Call(path, part, entered, _bare(row, inner)) for row in branches[-1:]]
            norms = [(module, value) for module, value, _ in inner if is_norm(module) and value is own]
            self._seen += [Call(path, module, entered, value, norm=True) for module, value in norms[-1:]]
        stream = next((x for x in tensors(output) if own is not None and x is own), None)
        return None if stream is None else replaced(output, stream, stream.clone())


def check_handed_on(found: Tensor, left: Tensor, count: int) -> None:
    """Numbers never come out of a guess: what enters a block is what left the one before, number `count`."""
    if found is not left and (found.shape != left.shape or not torch.equal(found, left)):
        raise ModelError(
            f"what enters block {count + 1} is not what left block {count}: these are not the blocks of one"
            " stream, or the model changes it in between; point at the blocks with blocks="
        )


def _bare(
    row: tuple[nn.Module, Tensor, list[Tensor]], inner: Sequence[tuple[nn.Module, Tensor, list[Tensor]]]
) -> Tensor:
    """What a module gave without the skip that it, or a module inside of it, has added to a branch, or a factor."""
    module, output, given = row
    own = {id(part) for part in module.modules()}
    within = [one for one in inner if id(one[0]) in own and one[0] is not module]
    for inside, value, further in reversed(within):
        skips = [x for x in (*given, *further) if x.numel() == output.numel() == value.numel()]
        if any(_is_sum(output, value, skip.reshape(output.shape)) for skip in skips):
            return value
        if _matrices(inside) == _matrices(module) and _is_multiple(output, value):
            return value
    return output


def _is_sum(output: Tensor, value: Tensor, skip: Tensor) -> bool:
    branch = value.reshape(output.shape)
    return torch.equal(output, skip + branch) or torch.equal(output, branch + skip)


def _matrices(module: nn.Module) -> set[Tensor]:
    return {parameter for parameter in module.parameters() if parameter.dim() > 1}


def _is_multiple(output: Tensor, value: Tensor) -> bool:
    """Whether a wrapper gave what is inside of it times one number other than 1, as LayerScale does at first."""
    if value.shape != output.shape:
        return False
    x, y = (part.detach().double().flatten() for part in (value, output))
    factor = float(x @ y) / float(x @ x) if bool(x.any()) else 1.0
    return abs(factor - 1) > FACTOR and bool((y - factor * x).norm() <= FACTOR * y.norm()) and factor != 0


@contextmanager
def watching(
    recorder: Recorder, module: nn.Module, blocks: Sequence[nn.Module], ends: tuple[nn.Module, nn.Module] | None
) -> Iterator[None]:
    """Hooks on the blocks and their sublayers, gone on the way out, whatever happens.

    `ends` are the modules of the model that make several streams of one, and one of them again.
    """
    handles: list[Any] = []
    listed = all_listed(blocks)
    steps = Steps(recorder, listed, module) if listed else None
    try:
        handles += steps.before() if steps else ()
        if ends is not None:
            handles.append(ends[0].register_forward_pre_hook(recorder.embed))
            handles.append(ends[0].register_forward_hook(recorder.embedded))
            handles.append(ends[1].register_forward_hook(recorder.joined))
        begun, known = set[nn.Module](), set[nn.Module]()  # what several blocks share is watched once
        for block in dict.fromkeys(blocks):
            handles.append(block.register_forward_pre_hook(recorder.enter, with_kwargs=True))
            if isinstance(unwrapped(block), Block):
                of_build: Any = unwrapped(block)
                handles += [m.register_forward_hook(_namer(recorder, n)) for n, m in of_build.sublayers.items()]
                handles.append(block.register_forward_hook(recorder.leave))
                continue
            for path, part in parts(block):
                if part in begun:
                    continue
                begun.add(part)
                handles.append(part.register_forward_pre_hook(recorder.begin, with_kwargs=True))
                for _, module in candidates(path, part):
                    if module not in known:
                        handles.append(module.register_forward_hook(recorder.saw, with_kwargs=True))
                    known.add(module)
                handles.append(part.register_forward_hook(_closer(recorder, path)))
            handles.append(block.register_forward_hook(recorder.leave))
        handles += steps.after() if steps else ()
        yield
    finally:
        for handle in handles:
            handle.remove()


def _closer(recorder: Recorder, path: str) -> Any:
    return lambda module, args, output: recorder.close(path, module, output)


def _namer(recorder: Recorder, name: str) -> Any:
    return lambda module, args, output: recorder.name(name, output)
