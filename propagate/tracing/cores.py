"""Softmax attention and norms as torch is asked for them, whatever module asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm)
SOFTMAXES = (functional.softmax, torch.softmax, Tensor.softmax)
NORMS = (functional.layer_norm, functional.rms_norm)


class Core(NamedTuple):
    """Softmax attention as torch was asked for it.

    Attributes:
        query: (..., heads, tokens, size), as it meets the keys.
        scale: factor on the logits.
        biased: whether something finite is added to logits.
        sources: the functions of autograd's graph that gave queries, keys and values; None where one was not seen.
    """

    query: Tensor
    scale: float
    biased: bool
    sources: tuple[Any, Any, Any] | None = None

    @property
    def heads(self) -> int:
        return self.query.shape[-3]

    @property
    def size(self) -> int:
        return self.query.shape[-1]


class Cores(TorchFunctionMode):
    """Notes every softmax attention, and every norm, that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Core] = []
        self.count = 0  # torch's own layer of attention is not looked into
        self.norms: list[tuple[nn.Module, Tensor, Tensor]] = []
        self._product: tuple[Tensor, Tensor] | None = None  # queries, and they times the keys
        self._sources: tuple[Any, Any, Any] | None = None
        self._weighing: torch.Size | None = None  # shape of attention's weights, until they meet the values

    def clear(self) -> None:
        """Before a block."""
        self.found, self.norms, self.count = [], [], 0

    def norms_besides(self, known: Sequence[Tensor], source: Tensor) -> list[tuple[nn.Module, Tensor, Tensor]]:
        """The norms of streams that the block asked torch for itself, without a module: each as one, what it read and
        gave."""
        return [
            norm
            for norm in self.norms
            if norm[2].shape[-1] == source.shape[-1]
            and norm[2].numel() == source.numel()
            and not any(norm[2] is output for output in known)
        ]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.count += func in (functional.scaled_dot_product_attention, functional.multi_head_attention_forward)
        if func is functional.scaled_dot_product_attention:
            query, mask = (
                args[0] if args else kwargs["query"],
                kwargs.get("attn_mask", args[3] if len(args) > 3 else None),
            )
            scale = kwargs.get("scale") or query.shape[-1] ** -0.5
            given = (*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs))[:3]
            sources = tuple(x.grad_fn for x in given)
            self.found.append(Core(query.detach(), scale, _is_bias(mask), sources))
        output = func(*args, **kwargs)
        if func in NORMS:
            self.norms.append((_module(func, args, kwargs), args[0], output))
        factors = _factors(func, args)
        if factors is not None and self._weighing == factors[0].shape:  # weights times values
            core, self._weighing = self.found[-1], None
            assert core.sources is not None
            self.found[-1] = core._replace(sources=(*core.sources[:2], factors[1].grad_fn))
        elif factors is not None and factors[0].dim() == 4 and output.shape[-1] == output.shape[-2]:
            self._product = factors[0].detach(), output.detach().clone()
            self._sources = factors[0].grad_fn, factors[1].grad_fn, None
        elif func in SOFTMAXES and self._product is not None and args[0].shape == self._product[1].shape:
            self.found.append(_written_out(*self._product, args[0].detach())._replace(sources=self._sources))
            self._product, self._weighing = None, args[0].shape
            self.count += 1
        return output


def _module(func: Any, args: Any, kwargs: Any) -> nn.Module:
    """The norm that a function of torch was asked for; what it multiplies and adds is none of its own here."""
    shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
    place = {functional.layer_norm: 4, functional.rms_norm: 3}[func]
    eps = args[place] if len(args) > place else kwargs.get("eps", 1e-5 if place == 4 else None)
    if func is functional.layer_norm:
        return nn.LayerNorm(shape, eps, elementwise_affine=False)
    return nn.RMSNorm(shape, eps, elementwise_affine=False)


def _factors(func: Any, args: Any) -> tuple[Tensor, Tensor] | None:
    """The two tensors of a product of matrices."""
    if func in PRODUCTS:
        return args[0], args[1]
    if func is torch.einsum and len(args) == 3 and isinstance(args[0], str):
        return args[1], args[2]
    return None


def _written_out(query: Tensor, product: Tensor, logits: Tensor) -> Core:
    """Attention whose logits a model computes itself: the last token's, as a multiple of products.

    With a bias on them that multiple is not told apart from it, and the usual one is taken.
    """
    x, y = product[..., -1, :].double(), logits[..., -1, :].double()
    seen = y > torch.finfo(logits.dtype).min / 4
    x, y = x[seen] - x[seen].mean(), y[seen] - y[seen].mean()
    scale = float((x @ y) / (x @ x))
    biased = not bool((y - scale * x).norm() <= 0.05 * y.norm())
    return Core(query, query.shape[-1] ** -0.5 if biased else scale, biased)


def _is_bias(mask: Tensor | None) -> bool:
    if mask is None or not mask.is_floating_point():
        return False
    return bool(((mask != 0) & (mask > torch.finfo(mask.dtype).min / 4)).any())
