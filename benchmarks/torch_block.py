"""The same block in torch: fresh weights for each draw, draws in a batch, autograd to the input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from propagate.model import Model


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    return torch.cuda.get_device_name() if device() == "cuda" else "CPU"


def wait() -> None:
    if device() == "cuda":
        torch.cuda.synchronize()


def linear(x: Tensor, fan_out: int, weight_gradient: bool) -> Tensor:
    """x W with fresh normal W of variance 1/fan_in, as torch makes it fastest: drawn at its final size."""
    draws, _, fan_in = x.shape
    weight = torch.empty(draws, fan_in, fan_out, device=x.device).normal_(std=fan_in**-0.5)
    return torch.bmm(x, weight.requires_grad_(weight_gradient))


def norm(x: Tensor) -> Tensor:
    return x * x.square().mean(-1, keepdim=True).rsqrt()


def attention(x: Tensor, heads: int, weight_gradient: bool) -> Tensor:
    draws, tokens, width = x.shape
    split = linear(x, 3 * width, weight_gradient).reshape(draws, tokens, 3, heads, width // heads)
    mixed = functional.scaled_dot_product_attention(*split.permute(2, 0, 3, 1, 4))
    return linear(mixed.swapaxes(1, 2).reshape(draws, tokens, width), width, weight_gradient)


def ffn(x: Tensor, hidden: int, weight_gradient: bool) -> Tensor:
    width = x.shape[-1]
    return linear(functional.relu(linear(x, hidden, weight_gradient)), width, weight_gradient) * 2**0.5


def block(model: Model, x: Tensor, weight_gradient: bool) -> Tensor:
    """PostNorm or SpanNorm, an interior block."""
    y = norm(x + attention(x, model.heads, weight_gradient))
    skip = {"PostNorm": y, "SpanNorm": x}[type(model.equations).__name__]
    return norm(skip + ffn(y, model.at(2).ffn.units, weight_gradient))


def there_and_back(
    model: Model, x: Tensor, g: Tensor, *, blocks: int = 1, weight_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """What leaves the blocks, and the gradient at what enters them."""
    x = start = x.detach().requires_grad_()
    for _ in range(blocks):
        x = block(model, x, weight_gradient)
    x.backward(g)
    assert start.grad is not None
    return x.detach(), start.grad


def block_task(
    model: Model, draws: int, *, blocks: int = 1, weight_gradient: bool = False, compiled: bool = False
) -> Callable[[], object]:
    """Tokens and cotangents are there already; weights are fresh."""
    x, g = (torch.randn(draws, model.tokens, model.width, device=device()) for _ in range(2))
    task = torch.compile(there_and_back) if compiled else there_and_back
    return lambda: task(model, x, g, blocks=blocks, weight_gradient=weight_gradient)
