"""Softmax attention and norms as torch is asked for them, whatever module asks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from propagate.tracing.products import factors_of

SOFTMAXES = (functional.softmax, torch.softmax, Tensor.softmax)
NORMS = (functional.layer_norm, functional.rms_norm)
ATTENTIONS = (functional.scaled_dot_product_attention, functional.multi_head_attention_forward)
LENGTHS = 1e-3
"""Relative spread of the squared lengths of vectors that passed a norm, in float32."""


class Core(NamedTuple):
    """Softmax attention as torch was asked for it.

    Attributes:
        query, key: (..., heads, tokens, size), as they meet.
        scale: factor on the logits.
        biased: whether something finite is added to logits.
        sources: the functions of autograd's graph that gave queries, keys and values; None where one was not seen.
        apart: where every head asks by itself, what each asked.
    """

    query: Tensor
    key: Tensor
    scale: float
    biased: bool
    sources: tuple[Any, Any, Any] | None = None
    apart: tuple[Core, ...] = ()

    @property
    def heads(self) -> int:
        return self.query.shape[-3]

    @property
    def size(self) -> int:
        return self.query.shape[-1]

    @property
    def normed(self) -> tuple[str, ...]:
        """Of queries and keys, those of one length, as nothing but a norm makes them."""
        return tuple(name for name, x in (("query", self.query), ("key", self.key)) if _of_one_length(x))

    def split(self, sequences: int) -> Core:
        """With an axis of heads, where they lie on one with the sequences or are several axes."""
        query, key = (_split(x, sequences) for x in (self.query, self.key))
        return self._replace(query=query, key=key)


class Attended(NamedTuple):
    """What a block's sublayers that mix tokens asked torch for.

    Attributes:
        cores: softmax attention, one for each of them; fewer where torch's own layer is not looked into.
        softmax: whether there were as many softmaxes over tokens as there are of them.
        uneven: what attends to other tokens than another of its kind: "heads", "sequences", or "heads or sequences".
        beside: whether a key and a value stand beside those of the tokens.
        biased: whether something finite is added to logits.
    """

    cores: tuple[Core, ...]
    softmax: bool
    uneven: tuple[str, ...]
    beside: bool
    biased: bool

    @property
    def core(self) -> Core | None:
        """The first, if there is one."""
        return self.cores[0] if self.cores else None


class Cores(TorchFunctionMode):
    """Notes every softmax attention, and every norm, that torch is asked for.

    Attributes:
        found: softmax attention whose queries and keys were seen.
        count: how many attentions; torch's own layer of attention is not looked into.
        norms: each as a module, what it read and what it gave.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def clear(self) -> None:
        """Before a block."""
        self.found: list[Core] = []
        self.norms: list[tuple[nn.Module, Tensor, Tensor]] = []
        self.count = self._softmaxes = 0
        self._uneven: set[str] = set()
        self._beside = self._biased = False
        self._product: tuple[Tensor, Tensor, Tensor] | None = None  # queries, keys, and one times the other
        self._sources: tuple[Any, Any, Any] | None = None
        self._weighing: tuple[int, ...] | None = None  # of attention's weights, until they meet the values

    def attended(self, mixing: int, sequences: int) -> Attended | None:
        """Of a block with so many sublayers that mix tokens; None where their attentions are not as many."""
        found = [core.split(sequences) for core in self.found]
        if self.count > 0 == mixing:
            return None  # none sees another token of its own: across from other tokens
        if self.count > mixing:
            each, rest = divmod(len(found), mixing)
            if rest or self.count > len(found):
                return None
            whole = [_together(found[at * each : (at + 1) * each]) for at in range(mixing)]
            if None in whole:
                return None
            found = [core for core in whole if core is not None]
        biased = self._biased or any(core.biased for core in found)
        softmax = self._softmaxes >= mixing
        return Attended(tuple(found), softmax, tuple(sorted(self._uneven)), self._beside, biased)

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
        self.count += func in ATTENTIONS
        self._softmaxes += func in ATTENTIONS
        if func is functional.scaled_dot_product_attention:
            self._asked_for(args, kwargs)
        elif func is functional.multi_head_attention_forward:
            self._whole_layer(args, kwargs)
        output = func(*args, **kwargs)
        if func in NORMS:
            self.norms.append((_module(func, args, kwargs), args[0], output))
        factors = factors_of(func, args, kwargs, output)
        if factors is not None and self._weighing in [_pairs(x) for x in (factors.first, factors.second)]:
            values = factors.second if _pairs(factors.first) == self._weighing else factors.first
            core, self._weighing = self.found[-1], None
            assert core.sources is not None
            self.found[-1] = core._replace(sources=(*core.sources[:2], values.grad_fn))
        elif factors is not None and factors.rows is not None and output.shape[-1] == output.shape[-2]:
            self._product = factors.rows.detach(), factors.columns.detach(), factors.product.detach().clone()
            self._sources = factors.rows.grad_fn, factors.columns.grad_fn, None
        elif func in SOFTMAXES and args[0].dim() > 2:
            self._softmaxes += args[0].shape[-1] >= args[0].shape[-2]
            if self._product is not None and _pairs(args[0]) == _pairs(self._product[2]):
                self._note_uneven(args[0] > torch.finfo(args[0].dtype).min / 4)
                self.found.append(_written_out(*self._product, args[0].detach())._replace(sources=self._sources))
                self._product, self._weighing = None, _pairs(args[0])
                self.count += 1
        return output

    def _asked_for(self, args: Any, kwargs: Any) -> None:
        """Of torch's function of attention."""
        given = (*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs))[:3]
        mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
        scale = kwargs.get("scale") or given[0].shape[-1] ** -0.5
        sources = tuple(x.grad_fn for x in given)
        self.found.append(Core(given[0].detach(), given[1].detach(), scale, _is_bias(mask), sources))
        if mask is not None:
            self._note_uneven(_seen(mask[None] if mask.dim() == 3 and given[0].dim() == 4 else mask))

    def _whole_layer(self, args: Any, kwargs: Any) -> None:
        """Of what torch's layer of attention is given, beside the tokens."""
        own = dict(
            zip(("query", "key", "value", "width", "heads", "weight", "bias", "bias_k", "bias_v"), args, strict=False)
        )
        mask, padding = kwargs.get("attn_mask"), kwargs.get("key_padding_mask")
        zero = args[9] if len(args) > 9 else kwargs.get("add_zero_attn", False)
        self._beside |= bool(zero) or own.get("bias_k", kwargs.get("bias_k")) is not None
        self._biased |= _is_bias(mask)
        if mask is not None and mask.dim() > 2:
            self._note_uneven(~mask.unflatten(0, (-1, own["heads"])) if mask.dtype == torch.bool else _seen(mask))
        if padding is not None:
            keep = ~padding if padding.dtype == torch.bool else _seen(padding)
            self._note_uneven(keep[:, None, None, :])

    def _note_uneven(self, seen: Tensor) -> None:
        """`seen` is (..., tokens, tokens), with heads before those if there are four axes."""
        if seen.dim() < 3:
            return
        if seen.dim() == 3:
            self._uneven |= {"heads or sequences"} if bool((seen != seen[:1]).any()) else set()
            return
        if bool((seen != seen[..., :1, :, :]).any()):
            self._uneven.add("heads")
        if bool((seen != seen[:1]).any()):
            self._uneven.add("sequences")


def _together(heads: Sequence[Core]) -> Core | None:
    """One attention of several of one head each, with values of their own; None where they are no such."""
    first = heads[0]
    sources = {id(core.sources[2]) for core in heads if core.sources is not None and core.sources[2] is not None}
    alike = all(core.query.shape == first.query.shape and abs(core.scale - first.scale) < 1e-3 for core in heads)
    if first.heads > 1 or not alike or len(sources) < len(heads):
        return None
    query, key = (torch.cat([getattr(core, name) for core in heads], -3) for name in ("query", "key"))
    return Core(query, key, first.scale, any(core.biased for core in heads), None, tuple(heads))


def _pairs(x: Tensor) -> tuple[int, ...]:
    """What stays of a shape over pairs of tokens when sequences and heads are put on other axes."""
    return x.numel(), *x.shape[-2:]


def _module(func: Any, args: Any, kwargs: Any) -> nn.Module:
    """The norm that a function of torch was asked for; what it multiplies and adds is none of its own here."""
    shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
    place = {functional.layer_norm: 4, functional.rms_norm: 3}[func]
    eps = args[place] if len(args) > place else kwargs.get("eps", 1e-5 if place == 4 else None)
    if func is functional.layer_norm:
        return nn.LayerNorm(shape, eps, elementwise_affine=False)
    return nn.RMSNorm(shape, eps, elementwise_affine=False)


def _written_out(query: Tensor, key: Tensor, product: Tensor, logits: Tensor) -> Core:
    """Attention whose logits a model computes itself: the last token's, as a multiple of products.

    With a bias on them that multiple is told less well, and that of the usual ones is taken which is nearest.
    """
    x, y = product.reshape(logits.shape)[..., -1, :].double(), logits[..., -1, :].double()
    seen = y > torch.finfo(logits.dtype).min / 4
    x, y = x[seen] - x[seen].mean(), y[seen] - y[seen].mean()
    scale = float((x @ y) / (x @ x))
    biased = not bool((y - scale * x).norm() <= 0.05 * y.norm())
    if query.dim() == 3 and logits.dim() > 3:
        query = query.reshape(*logits.shape[:-1], query.shape[-1])
    return Core(query, key, _usual(scale, query.shape[-1]) if biased else scale, biased)


def _usual(scale: float, size: int) -> float:
    """1, or one over a head's size or its root."""
    ends = (1.0, 1.0 / math.sqrt(size), 1.0 / size)
    return min(ends, key=lambda end: abs(math.log(end / scale))) if scale > 0 else ends[1]


def _split(x: Tensor, sequences: int) -> Tensor:
    if x.dim() == 3 and len(x) % sequences == 0:
        return x.reshape(sequences, -1, *x.shape[1:])
    return x.flatten(1, -3) if x.dim() > 4 else x


def _of_one_length(x: Tensor) -> bool:
    """Head by head or, in a type that tells, all heads of a token together."""
    squares = x.double().square().sum(-1)
    kinds = [squares, squares.sum(-2)] if x.dim() > 3 and x.dtype in (torch.float32, torch.float64) else [squares]
    least = max(LENGTHS, 4 * torch.finfo(x.dtype).eps)
    return any(one.numel() > 3 and bool(one.std() <= least * one.mean()) for one in kinds)


def _seen(mask: Tensor) -> Tensor:
    return mask > torch.finfo(mask.dtype).min / 4 if mask.is_floating_point() else mask.bool()


def _is_bias(mask: Tensor | None) -> bool:
    if mask is None or not mask.is_floating_point():
        return False
    return bool(((mask != 0) & (mask > torch.finfo(mask.dtype).min / 4)).any())
