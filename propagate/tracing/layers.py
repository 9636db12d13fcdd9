"""The sublayers of a network as torch modules, with the initialisation that a `Model` states.

Streams are tensors of shape (..., tokens, width). Weights have the model's law, with entries of standard deviation
gain / sqrt(fan_in), as in torch.nn.init. Norms have eps 0, as the model has, and learned gains that start at 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from propagate.model import Model
from propagate.scaling import Gains

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": functional.relu,
    "squared_relu": lambda x: functional.relu(x).square(),
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
GATED = {"swiglu": "silu", "geglu": "gelu"}


def _normal(weight: Tensor, generator: torch.Generator) -> None:
    weight.normal_(0.0, weight.shape[1] ** -0.5, generator=generator)


def _uniform(weight: Tensor, generator: torch.Generator) -> None:
    bound = math.sqrt(3 / weight.shape[1])
    weight.uniform_(-bound, bound, generator=generator)


def _truncated_normal(weight: Tensor, generator: torch.Generator) -> None:
    nn.init.trunc_normal_(weight, std=1.0, a=-2.0, b=2.0, generator=generator)
    inside, density = math.erf(math.sqrt(2)), math.exp(-2) / math.sqrt(2 * math.pi)
    weight /= math.sqrt(weight.shape[1] * (1 - 4 * density / inside))  # the cut takes some of the variance


def _orthogonal(weight: Tensor, generator: torch.Generator) -> None:
    nn.init.orthogonal_(weight, gain=math.sqrt(max(1.0, weight.shape[0] / weight.shape[1])), generator=generator)


LAWS = {"normal": _normal, "uniform": _uniform, "truncated_normal": _truncated_normal, "orthogonal": _orthogonal}
"""In-place laws of weights (fan_out, fan_in) whose entries have mean 0 and variance 1 / fan_in, as torch.nn.init."""


class Projection(nn.Linear):
    """A linear map without bias that knows its initialisation: a law, and a gain for each part of its output.

    `sizes` are those of the parts; equal ones by default.
    """

    def __init__(
        self, fan_in: int, fan_out: int, *gains: float, law: str = "normal", sizes: tuple[int, ...] = ()
    ) -> None:
        super().__init__(fan_in, fan_out, bias=False)
        self.gains, self.law = gains, law
        self.sizes = sizes or (fan_out // len(gains),) * len(gains)

    def draw(self, generator: torch.Generator) -> None:
        """Weights afresh."""
        with torch.no_grad():
            LAWS[self.law](self.weight, generator)
            for part, gain in zip(torch.split(self.weight, list(self.sizes)), self.gains, strict=True):
                part.mul_(gain)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gains={self.gains}, law={self.law}"


class Attention(nn.Module):
    """Softmax self-attention; logits are scaled so that `logit_std` holds at initialisation and stays a constant.

    With its mask, window, rotary positions and grouped heads.
    """

    def __init__(self, model: Model, gains: Gains, normed: frozenset[str]) -> None:
        super().__init__()
        width, size = model.width, model.width // model.heads
        self.model, self.sizes = model, (width, size * model.kv_heads, size * model.kv_heads)
        self.scale = model.logit_std / math.sqrt(size)
        parts = (gains.query, gains.key, gains.value)
        self.read = Projection(width, sum(self.sizes), *parts, law=model.weights, sizes=self.sizes)
        self.inner = nn.ModuleDict(
            {name: _inner_norm(model, size, name in normed) for name in ("query", "key", "value")}
        )
        self.inner["heads"] = _inner_norm(model, width, "heads" in normed)
        self.write = Projection(width, width, gains.attention_out, law=model.weights)
        self.dropout = nn.Dropout(model.dropout)

    def forward(self, x: Tensor) -> Tensor:
        model, group = self.model, self.model.heads // self.model.kv_heads
        query, key, value = (
            self.inner[name](_split_heads(part, part.shape[-1] * model.heads // model.width))
            for name, part in zip(("query", "key", "value"), self.read(x).split(self.sizes, dim=-1), strict=True)
        )
        query, key = (_rotated(part, model.frequencies) for part in (query, key))
        key, value = (part.repeat_interleave(group, dim=-3) for part in (key, value))
        if model.window is None and model.mask is None:
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=model.causal, scale=self.scale)
        else:
            seen = _visible(model, x)
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=self.scale)
        return _tensor(self.dropout(self.write(self.inner["heads"](_merge_heads(mixed)))))


class UniformAttention(nn.Module):
    """The limit of logit_std 0: every token averages the values it may see, and there is no query and no key."""

    def __init__(self, model: Model, gains: Gains, normed: frozenset[str]) -> None:
        super().__init__()
        self.model, size = model, model.width // model.heads
        self.inner = nn.ModuleDict(
            {
                "value": _inner_norm(model, size, "value" in normed),
                "heads": _inner_norm(model, model.width, "heads" in normed),
            }
        )
        self.read = Projection(model.width, size * model.kv_heads, gains.value, law=model.weights)
        self.write = Projection(model.width, model.width, gains.attention_out, law=model.weights)
        self.dropout = nn.Dropout(model.dropout)

    def forward(self, x: Tensor) -> Tensor:
        values = self.inner["value"](_split_heads(self.read(x), self.model.kv_heads))
        values = _merge_heads(values.repeat_interleave(self.model.heads // self.model.kv_heads, dim=-3))
        seen = _visible(self.model, x).to(x.dtype)
        mixed = seen @ values / seen.sum(-1, keepdim=True)
        return _tensor(self.dropout(self.write(self.inner["heads"](mixed))))


class FeedForward(nn.Module):
    """W_out phi(W_in x), or W_out (phi(W_gate x) * W_in x) where the activation is gated."""

    def __init__(self, model: Model, gains: Gains, normed: frozenset[str]) -> None:
        super().__init__()
        self.gated = model.activation in GATED
        self.activation = GATED.get(model.activation, model.activation)
        self.read = Projection(model.width, model.hidden * (2 if self.gated else 1), gains.ffn_in, law=model.weights)
        self.inner = _inner_norm(model, model.hidden, "hidden" in normed)
        size = 1.0 if "hidden" in normed else output_rms(self.activation)  # of what the output matrix reads
        self.write = Projection(model.hidden, model.width, gains.ffn_out / size, law=model.weights)
        self.dropout = nn.Dropout(model.dropout)

    def forward(self, x: Tensor) -> Tensor:
        phi, hidden = ACTIVATIONS[self.activation], self.read(x)
        if self.gated:
            gate, linear = hidden.chunk(2, dim=-1)
            return _tensor(self.dropout(self.write(self.inner(phi(gate) * linear))))
        return _tensor(self.dropout(self.write(self.inner(phi(hidden)))))


def attention(model: Model, gains: Gains, normed: frozenset[str] = frozenset()) -> nn.Module:
    """The attention that a model asks for. `normed` names the inner projections that pass its norm.

    Example:
        >>> attention(Model("prenorm", depth=1, width=8, heads=2, logit_std=0.0), Gains()).read.weight.shape
        torch.Size([8, 8])
    """
    return (UniformAttention if model.logit_std == 0 else Attention)(model, gains, normed)


def norm(model: Model, width: int) -> nn.Module:
    """The norm that a model asks for, with learned gain (and bias) at 1 (and 0)."""
    return (nn.RMSNorm if model.norm == "rms" else nn.LayerNorm)(width, eps=0.0)


@lru_cache(maxsize=16)
def output_rms(activation: str) -> float:
    """Root mean square of an activation's output at standard normal input.

    Example:
        >>> round(output_rms("relu") ** 2, 10)
        0.5
    """
    z = torch.linspace(-12, 12, 48_001, dtype=torch.float64, device="cpu")  # 0, ReLU's kink, is a node
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(torch.trapezoid(ACTIVATIONS[activation](z) ** 2 * density, z).item())


def _inner_norm(model: Model, width: int, wanted: bool) -> nn.Module:
    return norm(model, width) if wanted else nn.Identity()


def _visible(model: Model, x: Tensor) -> Tensor:
    """Which token attends to which; a causal mask and its window are those of as many tokens as there are."""
    if model.mask is not None:
        return torch.as_tensor(model.visible, device=x.device)
    place = torch.arange(x.shape[-2], device=x.device)
    back = place[:, None] - place
    everything = torch.ones_like(back, dtype=torch.bool)
    seen = back >= 0 if model.causal else everything
    return seen if model.window is None else seen & (back < model.window)


def _rotated(x: Tensor, frequencies: tuple[float, ...]) -> Tensor:
    """Rotary positions: coordinate i of a head turns with the one half a head further."""
    if not frequencies:
        return x
    place = torch.arange(x.shape[-2], device=x.device, dtype=torch.float64)
    angle = place[:, None] * torch.tensor(frequencies, device=x.device, dtype=torch.float64)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(-2, -3)


def _merge_heads(x: Tensor) -> Tensor:
    return x.transpose(-2, -3).flatten(-2)


def _tensor(value: Tensor) -> Tensor:  # nn.Module.__call__ returns Any
    return value
