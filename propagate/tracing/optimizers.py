"""The optimisers of a description as torch's, every matrix in a group of its own, with its own rate, decay and eps.

Torch's SGD, AdamW and Muon where torch has them. Weight decay is decoupled in all. Matrices are as torch stores them,
(fan_out, fan_in).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from propagate.model import ModelError
from propagate.optimizers import SGD, Adam, Muon, Optimizer, Sign
from propagate.transfer import Factors, trained_with

Groups = list[dict[str, Any]]


def torch_optimizer(
    optimizer: Optimizer, matrices: Sequence[Tensor], factors: Sequence[Factors], *, approximate: bool = False
) -> torch.optim.Optimizer:
    """An optimiser of torch over matrices, each with the factors of a rule of transfer.

    Args:
        optimizer: its description.
        matrices: leaves of shape (fan_out, fan_in).
        factors: of each.
        approximate: of Muon, torch's own, whose orthogonal factor comes from Newton-Schulz steps in bfloat16, in place
            of the exact one.

    Raises:
        ModelError: for what is no description of an optimiser.

    Example: a matrix with half the rate.
        >>> weight = torch.zeros(1, 2, requires_grad=True)
        >>> step = torch_optimizer(Sign(lr=0.1), [weight], [Factors(lr=0.5)])
        >>> weight.grad = torch.tensor([[3.0, -1.0]])
        >>> step.step()
        >>> weight.detach()
        tensor([[-0.0500,  0.0500]])
    """
    groups: Groups = []
    for matrix, one in zip(matrices, factors, strict=True):
        own = trained_with(optimizer, one)
        groups.append({"params": [matrix], "lr": own.lr, "weight_decay": 0.0, "shrink": own.lr * own.decay})
        if isinstance(own, Adam):
            groups[-1] |= {"weight_decay": own.decay, "eps": _eps(own.eps, matrix)}
    if approximate and isinstance(optimizer, Muon):
        return _newton_schulz(optimizer, groups)
    return _made(optimizer, groups)


@singledispatch
def _made(optimizer: Any, groups: Groups) -> torch.optim.Optimizer:
    raise ModelError(f"optimizer must be SGD, Sign, Adam or Muon, got {optimizer!r}")


@_made.register
def _(optimizer: SGD, groups: Groups) -> torch.optim.Optimizer:
    made = torch.optim.SGD(groups, lr=optimizer.lr, momentum=optimizer.momentum)
    made.register_step_pre_hook(_decay)  # torch's own weight decay is part of the gradient
    return made


@_made.register
def _(optimizer: Adam, groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=optimizer.lr, betas=optimizer.betas)


@_made.register
def _(optimizer: Sign, groups: Groups) -> torch.optim.Optimizer:
    return OfMomentum(groups, torch.sign, momentum=optimizer.momentum)


@_made.register
def _(optimizer: Muon, groups: Groups) -> torch.optim.Optimizer:
    def step(moved: Tensor) -> Tensor:
        fan_out, fan_in = moved.shape
        return optimizer.size(fan_in, fan_out) * polar(moved)

    return OfMomentum(groups, step, momentum=optimizer.momentum, nesterov=optimizer.nesterov)


def _newton_schulz(optimizer: Muon, groups: Groups) -> torch.optim.Optimizer:
    """Torch's own, whose `adjust_lr_fn` knows two of the three scales."""
    if optimizer.scale == "none":
        for group in groups:
            fan_out, fan_in = group["params"][0].shape
            group["lr"] /= Muon(1.0, scale="original").size(fan_in, fan_out)
    adjusted = "match_rms_adamw" if optimizer.scale == "rms" else "original"
    made = torch.optim.Muon(groups, momentum=optimizer.momentum, nesterov=optimizer.nesterov, adjust_lr_fn=adjusted)
    made.register_step_pre_hook(_decay)
    return made


class OfMomentum(torch.optim.Optimizer):
    """W -= lr * f(M), with M = momentum * M + gradient, or the gradient once more on top of momentum * M (Nesterov)."""

    def __init__(self, groups: Groups, of: Any, *, momentum: float, nesterov: bool = False) -> None:
        super().__init__(groups, {})
        self.of, self.momentum, self.nesterov = of, momentum, nesterov
        self.register_step_pre_hook(_decay)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # there is no closure
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                moved = self.momentum * state["moved"] + matrix.grad if state else matrix.grad.clone()
                state["moved"] = moved
                seen = matrix.grad + self.momentum * moved if self.nesterov else moved
                matrix.add_(self.of(seen), alpha=-group["lr"])


def polar(matrix: Tensor) -> Tensor:
    """U V^T of U S V^T over the singular values that are above rounding: 1e-13 of the largest, in double precision.

    Example:
        >>> polar(torch.tensor([[0.0, 5.0], [0.0, 0.0]])).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rounding = 2.0**9 * torch.finfo(matrix.dtype).eps * values[:1]
    kept = (values > rounding).to(matrix.dtype)
    return torch.as_tensor((left * kept) @ right)


def _decay(made: torch.optim.Optimizer, *_: Any) -> None:
    with torch.no_grad():
        for group in made.param_groups:
            for matrix in group["params"]:
                matrix.mul_(1 - group["shrink"])


def _eps(eps: float, matrix: Tensor) -> float:
    """Torch makes 0 / 0 of a gradient of 0 with eps 0, where a description means 0."""
    return max(eps, torch.finfo(matrix.dtype).tiny)
