"""A loss of the user's own, taken of what a model gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from propagate.checks import ModelError, shown


def value_of(loss: Callable[[Any], Any], output: Any) -> Tensor:
    """The number that a loss gives; its own error is the cause of the one that is raised.

    Raises:
        ModelError: where the loss raises an error, gives no single number, or one that no gradient leads back from.

    Example:
        >>> import torch
        >>> value_of(torch.argmax, torch.ones(3, requires_grad=True))
        Traceback (most recent call last):
        propagate.checks.ModelError: loss must be differentiable in what the model gives, got tensor(0)
    """
    try:
        value = loss(output)
    except ModelError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(f"loss could not be taken of what the model gives, of {given}: {said}") from error
    if not isinstance(value, Tensor) or value.dim() > 0:
        raise ModelError(f"loss must give a tensor with one number, got {shown(value)}")
    if not value.requires_grad:
        raise ModelError(f"loss must be differentiable in what the model gives, got {shown(value)}")
    return value
