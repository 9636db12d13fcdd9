"""One update of an optimiser on rows of parameters, a row a member with a rate of its own.

All is elementwise and in place, and nothing comes from the host but what an update never changes, so that it can stand
in a CUDA graph. Under a rule of transfer rows of one kind have its factors in their description.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor

from propagate.model import ModelError
from propagate.optimizers import SGD, Adam, Muon, Optimizer, Sign

Moments = dict[str, Tensor]


class Now(NamedTuple):
    """What changes from step to step.

    Attributes:
        rate: of each member, (members, 1), in float64.
        updates: how many were made, this one among them; one number, in float64.
    """

    rate: Tensor
    updates: Tensor


def check_elementwise(optimizer: Optimizer) -> None:
    """ModelError for Muon, whose step is not.

    Example:
        >>> check_elementwise(Adam(0.1))
    """
    if isinstance(optimizer, Muon):
        raise ModelError("together must be 1 with Muon, whose exact factors are taken matrix by matrix")


def moments_for(optimizer: Optimizer, rows: Tensor) -> Moments:
    """What an optimiser keeps, at first.

    Example:
        >>> list(moments_for(Adam(0.1), torch.zeros(2, 3)))
        ['mean', 'square']
    """
    check_elementwise(optimizer)
    if isinstance(optimizer, Adam):
        return {"mean": torch.zeros_like(rows), "square": torch.zeros_like(rows)}
    return {"moved": torch.zeros_like(rows)} if optimizer.momentum else {}


@singledispatch
def update(optimizer: Any, rows: Tensor, gradient: Tensor, moments: Moments, now: Now) -> None:
    """Change rows and moments in place.

    Args:
        optimizer: the description, of which the rate is not read.
        rows: (members, parameters).
        gradient: of them; may be overwritten.
        moments: of `moments_for`.
        now: rates.

    Example: two members with two rates.
        >>> rows = torch.zeros(2, 1)
        >>> now = Now(torch.tensor([[0.1], [0.5]]).double(), torch.ones(1).double())
        >>> update(SGD(1.0), rows, torch.ones(2, 1), {}, now)
        >>> rows.flatten()
        tensor([-0.1000, -0.5000])
    """
    raise ModelError(f"optimizer must be SGD, Sign or Adam, got {optimizer!r}")


@update.register
def _(optimizer: SGD, rows: Tensor, gradient: Tensor, moments: Moments, now: Now) -> None:
    _decay(optimizer, rows, now)
    rows.sub_(now.rate.to(rows.dtype) * _moved(optimizer, gradient, moments))


@update.register
def _(optimizer: Sign, rows: Tensor, gradient: Tensor, moments: Moments, now: Now) -> None:
    _decay(optimizer, rows, now)
    rows.sub_(now.rate.to(rows.dtype) * _moved(optimizer, gradient, moments).sign())


@update.register
def _(optimizer: Adam, rows: Tensor, gradient: Tensor, moments: Moments, now: Now) -> None:
    first, second = optimizer.betas
    _decay(optimizer, rows, now)
    mean = moments["mean"].lerp_(gradient, 1 - first)
    square = moments["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
    rate = (now.rate / (1 - first**now.updates)).to(rows.dtype)
    size = (1 - second**now.updates).sqrt().to(rows.dtype)
    eps = max(optimizer.eps, torch.finfo(rows.dtype).tiny)  # a gradient of 0 moves nothing, also where eps is 0
    rows.sub_(rate * (mean / ((square.sqrt() / size).add_(eps))))


def _moved(optimizer: SGD | Sign, gradient: Tensor, moments: Moments) -> Tensor:
    return moments["moved"].mul_(optimizer.momentum).add_(gradient) if optimizer.momentum else gradient


def _decay(optimizer: SGD | Sign | Adam, rows: Tensor, now: Now) -> None:
    if optimizer.decay:
        rows.mul_((1 - optimizer.decay * now.rate).to(rows.dtype))
