"""An activation's expression as a function of tensors, for torch's autograd."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from propagate.activations import Activation
from propagate.expressions import form, symbol


@lru_cache(maxsize=64)
def on_tensors(activation: Activation) -> Callable[[Tensor], Tensor]:
    """The function of an activation that is not gated; its derivative is autograd's.

    Example:
        >>> from propagate.activations import as_activation
        >>> z = torch.tensor([-100.0, 0.0, 100.0], requires_grad=True)
        >>> on_tensors(as_activation("softplus"))(z).sum().backward()
        >>> z.grad.round(decimals=6).tolist()
        [0.0, 0.5, 1.0]
    """
    import sympy

    parts = form(activation)
    value, slope = (sympy.lambdify(symbol(), part, "torch") for part in (parts.value, parts.slope))
    end = parts.straight

    def on(function: Callable[[Tensor], Tensor | float], z: Tensor) -> Tensor:
        return torch.as_tensor(function(z), dtype=z.dtype, device=z.device).expand_as(z)

    def at(x: Tensor) -> Tensor:
        if end is None:
            return on(value, x)
        z = x.clamp(-end, end)
        beyond = x - z
        return on(value, z) + beyond * on(slope, z.detach())  # of which autograd sees the straight lines beyond

    return at
