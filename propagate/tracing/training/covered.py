"""Whether a network can be trained on next tokens: it keeps them from itself, and every block hears of the loss."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from propagate.checks import check_memory
from propagate.model import Model, ModelError
from propagate.tracing.build import Network, build


def check_covered(model: Model) -> None:
    """ModelError if a token's output depends on later tokens, or if no gradient reaches the matrices of some block.

    Masks of attention are read; of sublayers of one's own the gradient tells.

    Example:
        >>> check_covered(Model("prenorm", depth=1, width=8, heads=2, tokens=3))
        Traceback (most recent call last):
        propagate.checks.ModelError: model must be causal to be trained on next tokens: set causal=True
    """
    tokens = model.tokens
    if tokens < 2:
        raise ModelError(f"tokens must be at least 2 to be trained on next tokens, got {tokens}")
    check_memory(f"tokens={tokens} that attend to one another", 9.0 * tokens**2)
    if model.dropout:
        raise ModelError(f"dropout must be 0.0 to be trained, got {model.dropout!r}")
    for index in range(1, model.depth + 1):
        attention = model.at(index).attention
        if np.triu(attention.visible(tokens), 1).any():
            way = "set causal=True" if attention.mask is None else f"the mask of block {index} is not"
            raise ModelError(f"model must be causal to be trained on next tokens: {way}")
    network = build(model, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    stream, cotangent = (torch.randn(1, tokens, model.width, dtype=torch.float64, generator=generator) for _ in "xg")
    output = network(stream.requires_grad_())
    _check_blind(stream, output)
    _check_heard(network, output, cotangent)


def _check_blind(stream: Tensor, output: Tensor) -> None:
    """Outputs of the first tokens do not depend on the others, at a few places."""
    tokens = stream.shape[-2]
    for first in sorted({1, tokens // 2, tokens - 1}):
        (gradient,) = torch.autograd.grad(output[:, :first].sum(), stream, retain_graph=True)
        if bool((gradient[:, first:] != 0).any()):
            raise ModelError(
                "model must be causal to be trained on next tokens: "
                f"what leaves the network at token {first - 1} depends on later tokens"
            )


def _check_heard(network: Network, output: Tensor, cotangent: Tensor) -> None:
    of_blocks = [[p for p in block.parameters() if p.dim() > 1] for block in network.blocks]
    wanted = [one for block in of_blocks for one in block]
    found = iter(torch.autograd.grad(output, wanted, cotangent, allow_unused=True) if wanted else ())
    for index, block in enumerate(of_blocks, start=1):
        gradients = [next(found) for _ in block]
        if block and not any(g is not None and bool((g != 0).any()) for g in gradients):
            raise ModelError(
                f"no gradient reaches the matrices of block {index}, which would never be trained: "
                f"numbers in a placement's text, such as {network.model.equations!r}'s, stay as they are"
            )
