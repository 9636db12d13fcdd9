"""Blocks of models that step through lists of sublayers themselves, as x-transformers and vit-pytorch do.

No module is such a block, and its skips end between modules. The model is run once to see in which order the lists are
called; those that come again and again in one order are a block. Its stream is what the next one's first module is
given, if that is what the last module gave, alone or with a skip: no number comes out of a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from propagate.checks import ModelError
from propagate.tracing.find import parts, unwrapped
from propagate.tracing.streams import replaced, stream_of, tensors

LISTS = (nn.ModuleList, nn.ModuleDict)


class Listed(nn.ModuleList):
    """A block that is no module of the model: lists, one after the other.

    Attributes:
        count: how many calls of their parts one call of the block is.
    """

    def __init__(self, lists: Sequence[nn.Module], count: int) -> None:
        super().__init__(lists)
        self.count = count


class Watcher(Protocol):
    """What is told of blocks, as hooks tell it of those that are modules."""

    asleep: bool

    def step_in(self, block: nn.Module, stream: Tensor) -> None: ...

    def leave(self, block: nn.Module, args: Any, output: Any) -> Any: ...


def blocks_in_lists(blocks: Sequence[nn.Module], run: Callable[[], Any]) -> list[nn.Module]:
    """The blocks that lists of sublayers make, one for each call; others as they are, and lists that nothing calls.

    Args:
        blocks: modules of one kind.
        run: calls the model.

    Example:
        >>> steps = [nn.ModuleList([nn.LayerNorm(4), nn.Linear(4, size)]) for size in (4, 4, 4)]
        >>> def run():
        ...     x = torch.ones(1, 2, 4)
        ...     for norm, linear in steps:
        ...         x = x + linear(norm(x))
        >>> [block.count for block in blocks_in_lists(steps, run)]
        [2, 2, 2]
    """
    if not all(isinstance(block, LISTS) for block in blocks):
        return list(blocks)
    visits = _visits(blocks, run)
    period = _period([_matrices(which) for which, _ in visits])
    made: dict[Any, nn.Module] = {}
    found = []
    for at in range(0, len(visits), period):
        group = visits[at : at + period]
        lists, count = list(dict.fromkeys(which for which, _ in group)), sum(calls for _, calls in group)
        key = (*lists, count)
        if key not in made:
            made[key] = Listed(lists, count)
        found.append(made[key])
    return found or list(blocks)


def _visits(lists: Sequence[nn.Module], run: Callable[[], Any]) -> list[tuple[nn.Module, int]]:
    """In order, which list's parts were called, and how many calls that were before another's turn or its own again."""
    visits: list[tuple[nn.Module, int]] = []
    first: list[nn.Module] = []

    def note(part: nn.Module) -> None:
        which = owners[part]
        if visits and visits[-1][0] is which and part is not first[-1]:
            visits[-1] = which, visits[-1][1] + 1
        else:
            visits.append((which, 1))
            first.append(part)

    owners = {part: which for which in reversed(lists) for _, part in parts(which)}
    calls = _Outermost(owners, note)
    try:
        with torch.no_grad():
            run()
    finally:
        calls.remove()
    return visits


def _matrices(which: nn.Module) -> tuple[Any, ...]:
    return tuple(p.shape for p in which.parameters() if p.dim() > 1)


def _period(kinds: Sequence[Any]) -> int:
    """After how many lists their kinds come again; 1 where they do not and one kind comes twice."""
    for period in range(1, len(kinds)):
        if len(kinds) % period == 0 and all(a == b for a, b in zip(kinds, kinds[period:], strict=False)):
            return period
    return len(kinds) if kinds and len(set(kinds)) == len(kinds) else 1


class _Outermost:
    """Hooks that tell of calls of some modules, but not of those inside of one another's."""

    def __init__(self, modules: Any, before: Callable[[nn.Module], None]) -> None:
        self.depth = 0
        self.handles = []
        for module in modules:
            self.handles.append(module.register_forward_pre_hook(self._enter(before)))
            self.handles.append(module.register_forward_hook(self._leave))

    def _enter(self, before: Callable[[nn.Module], None]) -> Any:
        def hook(module: nn.Module, _: Any) -> None:
            self.depth += 1
            if self.depth == 1:
                before(module)

        return hook

    def _leave(self, *_: Any) -> None:
        self.depth -= 1

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


class Steps:
    """Hooks that tell a watcher of blocks in lists: where each begins, and what has left it."""

    def __init__(self, watcher: Watcher, blocks: Sequence[Listed], module: nn.Module) -> None:
        self.watcher, self.blocks = watcher, blocks
        self.starts = {sum(block.count for block in blocks[:at]): at for at in range(len(blocks) + 1)}
        self.calls = self.depth = 0
        self.block: Listed | None = None
        self.streams: list[Tensor] = []  # of the block at hand, what its parts were given and gave; that last
        within = {part for block in blocks for part in block.modules()}
        self.parts = list(dict.fromkeys(part for block in blocks for _, part in parts(block)))
        self.outside = [part for part in module.modules() if part not in within]
        self.around = [part for part in self.outside if not within.isdisjoint(part.modules())]

    def before(self) -> Iterator[Any]:
        """Hooks that come before a watcher's own."""
        for part in self.parts:
            yield part.register_forward_pre_hook(self._enter, with_kwargs=True)
        for part in self.outside:
            yield part.register_forward_pre_hook(self._next, with_kwargs=True)

    def after(self) -> Iterator[Any]:
        """Hooks that come after a watcher's own."""
        for part in self.parts:
            yield part.register_forward_hook(self._gave)
        for part in self.around:
            yield part.register_forward_hook(self._ended)

    def _enter(self, part: nn.Module, args: Any, kwargs: Any) -> None:
        if self.watcher.asleep:
            return
        self.depth += 1
        if self.depth > 1:
            return
        given = stream_of([*args, *kwargs.values()])
        if self.calls in self.starts and given is not None and self.starts[self.calls] < len(self.blocks):
            block = self.blocks[self.starts[self.calls]]
            if self.block is not None:
                if not self._is_left(given):
                    raise self._unseen()
                self.watcher.leave(self.block, None, given)
            self.block, self.streams = block, []
            self.watcher.step_in(block, given)
        self.calls += 1
        self.streams += [] if given is None else [given]

    def _gave(self, part: nn.Module, args: Any, output: Any) -> None:
        if self.watcher.asleep:
            return
        self.depth -= 1
        if self.depth == 0 and (gave := stream_of([output])) is not None:
            self.streams.append(gave)

    def _next(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Before a module outside of the blocks, the first that is given what left the last of them."""
        if self._over and (given := stream_of([*args, *kwargs.values()])) is not None and self._is_left(given):
            self._end(given)

    def _ended(self, module: nn.Module, args: Any, output: Any) -> None:
        """After the module that steps through the blocks."""
        if self._over:
            left = next((x for x in tensors(output) if self._is_left(x)), None)
            if left is None:
                raise self._unseen()
            self._end(left)

    @property
    def _over(self) -> bool:
        return self.block is not None and self.depth == 0 and self.starts.get(self.calls) == len(self.blocks)

    def _end(self, left: Tensor) -> None:
        assert self.block is not None
        self.watcher.leave(self.block, None, left)
        self.block = None

    def _is_left(self, x: Tensor) -> bool:
        """Whether a tensor is what the block's last part gave, or that and one of the block's streams."""
        *earlier, last = self.streams
        if x.shape != last.shape:
            return False
        return torch.equal(x, last) or any(
            stream.shape == x.shape and (torch.equal(x, last + stream) or torch.equal(x, stream + last))
            for stream in earlier
        )

    def _unseen(self) -> ModelError:
        at = self.starts.get(self.calls, 1)
        return ModelError(
            f"what left block {at}, of the lists that the model steps through, is not what its last module gave, alone"
            " or with one skip, so it is not seen; put each list into a module whose forward makes a block of it"
        )


def on_its_own(inputs: Any) -> Any:
    """What a model is called with, its streams copied and of a graph: where blocks are listed they are written to."""
    for x in [x for x in tensors(inputs) if x.is_floating_point()]:
        inputs = replaced(inputs, x, x.detach().requires_grad_().clone())
    return inputs


def all_listed(blocks: Sequence[nn.Module]) -> list[Listed]:
    """The blocks, if they are in lists; else none."""
    found = [block for block in map(unwrapped, blocks) if isinstance(block, Listed)]
    return found if len(found) == len(blocks) else []
