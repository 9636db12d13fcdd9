"""Whether a network keeps the token that it is to predict from itself."""

from __future__ import annotations

import numpy as np
import torch

from propagate.model import Model, ModelError
from propagate.sublayers import Attention
from propagate.tracing.build import build


def check_causal(model: Model) -> None:
    """ModelError if a token's output depends on later tokens, by the masks of its attention or by its gradient.

    The gradient also sees sublayers of one's own.

    Example:
        >>> check_causal(Model("prenorm", depth=1, width=8, heads=2, tokens=3))
        Traceback (most recent call last):
        propagate.checks.ModelError: model must be causal to be trained on next tokens: set causal=True
    """
    tokens = model.tokens
    if tokens < 2:
        raise ModelError(f"tokens must be at least 2 to be trained on next tokens, got {tokens}")
    must = "model must be causal to be trained on next tokens"
    for index in range(1, model.depth + 1):
        attention = model.at(index).attention
        if isinstance(attention, Attention) and np.triu(attention.visible(tokens), 1).any():
            raise ModelError(
                f"{must}: {'set causal=True' if attention.mask is None else f'the mask of block {index} is not'}"
            )
    network = build(model, dtype=torch.float64)
    stream = torch.randn(1, tokens, model.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stream.requires_grad_()
    output = network(stream)
    for first in sorted({1, tokens // 2, tokens - 1}):
        (gradient,) = torch.autograd.grad(output[:, :first].sum(), stream, retain_graph=True)
        if bool((gradient[:, first:] != 0).any()):
            raise ModelError(f"{must}: what leaves the network at token {first - 1} depends on later tokens")
