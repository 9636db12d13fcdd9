"""The residual stream among what a block returns: one tensor, or a branch and a residual that are added later."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from propagate.checks import ModelError, shown
from propagate.tracing.find import unwrapped

Choice = int | Literal["sum"] | None


class State(NamedTuple):
    """The stream that left a block.

    Attributes:
        value: the stream.
        place: a tensor of the graph whose gradient is the stream's.
        handed_on: the first tensor of the stream's shape that the next block is given.
        output: what the block returned, with tensors of its own in place of the stream's: a later block may change
            them in place.
    """

    value: Tensor
    place: Tensor
    handed_on: Tensor
    output: Any = None


def state_of(block: nn.Module, output: Any, first: Tensor, choice: Choice) -> State:
    """The stream among what a block returned.

    Args:
        block: what returned it.
        output: a tensor, or tuples, lists, mappings or dataclasses that hold some.
        first: the stream that entered the first block, whose shape it keeps.
        choice: which of several tensors of that shape, counted from 0, or "sum" of the first two.

    Raises:
        ModelError: where there is no tensor of that shape, or several and nothing says which.

    Example: blocks that return their branch apart from the residual say so in their arguments.
        >>> import torch
        >>> class Block(nn.Module):
        ...     def forward(self, x, residual=None):
        ...         return 2 * x, x
        >>> x = torch.ones(1, 2, 3)
        >>> state_of(Block(), Block()(x), x, None).value.mean()
        tensor(3.)
    """
    found = list({id(x): x for x in tensors(output) if x.shape == first.shape and x.is_floating_point()}.values())
    if not found:
        shapes = [tuple(x.shape) for x in tensors(output)]
        raise ModelError(f"a block must keep the stream's shape {tuple(first.shape)}, got {shapes or 'no tensor'}")
    if choice is None and len(found) > 1:
        if "residual" not in inspect.signature(unwrapped(block).forward).parameters:
            raise ModelError(
                f"the block {type(block).__name__} returns {len(found)} tensors of the stream's shape;"
                " say which is the stream with stream=0, 1, ..., or stream='sum' of a branch and a residual"
            )
        choice = "sum"
    clones = [x.clone() for x in found]
    for old, new in zip(found, clones, strict=True):
        output = replaced(output, old, new)
    if isinstance(choice, str) and choice == "sum":
        if len(found) != 2:
            raise ModelError(f"stream='sum' needs two tensors of the stream's shape, got {len(found)}")
        return State(found[0] + found[1], clones[1], clones[0], output)  # the block may have used what it returns
    at = 0 if choice is None else choice
    if not isinstance(at, int) or isinstance(at, bool) or not 0 <= at < len(found):
        raise ModelError(f"stream must be 'sum' or a whole number below {len(found)}, got {shown(choice)}")
    return State(found[at], found[at], clones[at], output)


def tensors(values: Any) -> Iterator[Tensor]:
    """Every tensor in tuples, lists, mappings and dataclasses, in order.

    Example:
        >>> import torch
        >>> len(list(tensors([torch.ones(1), {"x": (torch.ones(2), None)}])))
        2
    """
    if isinstance(values, Tensor):
        yield values
        return
    if dataclasses.is_dataclass(values) and not isinstance(values, type) and not isinstance(values, Mapping):
        values = [getattr(values, field.name) for field in dataclasses.fields(values)]
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, tuple | list):
        for value in values:
            yield from tensors(value)


def stream_of(values: Any) -> Tensor | None:
    """The first floating-point tensor with tokens and coordinates among arguments or outputs.

    Example:
        >>> import torch
        >>> stream_of([None, torch.ones(2, dtype=torch.long), (torch.zeros(3, 4),)]).shape
        torch.Size([3, 4])
    """
    return next((x for x in tensors(values) if x.is_floating_point() and x.dim() >= 2), None)


def replaced(values: Any, old: Tensor, new: Tensor) -> Any:
    """The same values with one tensor in place of another; what holds it is copied, not changed.

    Example:
        >>> import torch
        >>> x, y = torch.ones(1), torch.zeros(1)
        >>> replaced((x, [x, 3]), x, y)
        (tensor([0.]), [tensor([0.]), 3])
    """
    if values is old:
        return new
    if isinstance(values, Tensor) or not any(x is old for x in tensors(values)):
        return values
    if isinstance(values, tuple | list):
        made = [replaced(value, old, new) for value in values]
        return type(values)(*made) if hasattr(values, "_fields") else type(values)(made)
    if isinstance(values, Mapping):
        made_of: Any = type(values)
        return made_of({key: replaced(value, old, new) for key, value in values.items()})
    fields = {field.name: replaced(getattr(values, field.name), old, new) for field in dataclasses.fields(values)}
    return dataclasses.replace(values, **fields)
