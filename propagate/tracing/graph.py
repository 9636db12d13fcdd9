"""What a tensor was made from, by autograd's graph."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor


def first_met(output: Tensor, ends: Collection[Any]) -> list[Any]:
    """Those of some functions (`Tensor.grad_fn`) that an output was made from, none only by way of another.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> y, z = 2 * x, 3 * x
        >>> first_met((y + 1).exp() * z, {y.grad_fn, z.grad_fn}) == [z.grad_fn, y.grad_fn]
        True
    """
    if output.grad_fn is None:
        return []
    met: list[Any] = []
    waiting: list[Any] = [function for function, _ in output.grad_fn.next_functions]
    known: set[Any] = {None}
    while waiting:
        function = waiting.pop()
        if function in known:
            continue
        known.add(function)
        if function in ends:
            met.append(function)
        else:
            waiting.extend(earlier for earlier, _ in function.next_functions)
    return met
