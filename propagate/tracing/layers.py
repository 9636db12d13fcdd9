"""Attention, FFN and norms as torch modules, with the initialisation that their descriptions state.

Streams are tensors of shape (..., tokens, width). Weights have the block's law, with entries of standard deviation
gain / sqrt(fan_in), as in torch.nn.init. Norms have the eps of their description, and learned gains that start at 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from propagate import sublayers
from propagate.activations import Activation, as_activation
from propagate.latent import SelfAttention
from propagate.model import ModelError
from propagate.norms import Norm
from propagate.tracing.expressions import on_tensors
from propagate.tracing.setting import Setting, apply, check_fields

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": functional.relu,
    "squared_relu": lambda x: functional.relu(x).square(),
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
"""Forms that stand in for those made from the expression; tests tie them to it."""
ATTENTION_FIELDS = frozenset({"heads", "key_value_heads", "head_size", "causal", "window", "mask", "rope", "logit_std"})
ATTENTION_FIELDS |= {"query_gain", "key_gain", "value_gain", "out_gain", "normed"}
"""What the modules here follow of an attention's description; with anything else it is refused."""


def function_of(activation: Activation | str) -> Callable[[Tensor], Tensor]:
    """What an activation makes of its argument, or a gated one of its gate's.

    Example:
        >>> function_of("reglu")(torch.tensor([-1.0, 2.0])).tolist()
        [0.0, 2.0]
    """
    core = as_activation(activation).core
    return FUNCTIONS[core.name] if core.shipped and core.name in FUNCTIONS else on_tensors(core)


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


def times(multiplier: float, weight: Tensor) -> Tensor:
    """A weight matrix, or what it gives, with its multiplier: the same tensor where that is 1."""
    return weight if multiplier == 1.0 else multiplier * weight


class Projection(nn.Linear):
    """A linear map without bias that knows its initialisation: a law, and a gain for each part of its output.

    Its weights are not numbers before they are drawn. `sizes` are those of the parts; equal ones by default.

    Attributes:
        multiplier: of its output, and no part of the weights: 1, but under a rule of transfer.
    """

    def __init__(
        self, fan_in: int, fan_out: int, *gains: float, law: str = "normal", sizes: tuple[int, ...] = ()
    ) -> None:
        super().__init__(fan_in, fan_out, bias=False)
        self.gains, self.law, self.multiplier = gains, law, 1.0
        self.sizes = sizes or (fan_out // len(gains),) * len(gains)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, times(self.multiplier, self.weight))

    def reset_parameters(self) -> None:
        """Nothing: `draw` does it, once dtype and device are known."""

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

    With its mask, window, rotary positions and grouped heads. Tables of what is seen and of the turns are buffers for
    as many tokens as the block has; of other numbers of tokens they are made as they come.
    """

    seen: Tensor | None
    turns: Tensor | None

    def __init__(self, attention: sublayers.Attention, block: Setting) -> None:
        super().__init__()
        size, keys = attention.size, attention.size * attention.kv_heads
        self.attention, self.sizes = attention, (attention.inside, keys, keys)
        self.scale = attention.logit_std / math.sqrt(size)
        parts = (attention.query_gain, attention.key_gain, attention.value_gain)
        self.read = Projection(block.width, sum(self.sizes), *parts, law=block.weights, sizes=self.sizes)
        self.inner = nn.ModuleDict(
            {name: block.inner_norm(size, wanted=name in attention.normed) for name in ("query", "key", "value")}
        )
        self.inner["heads"] = block.inner_norm(attention.inside, wanted="heads" in attention.normed)
        self.write = Projection(attention.inside, block.width, attention.out_gain, law=block.weights)
        self.dropout = nn.Dropout(block.dropout)
        partly = attention.window is not None or attention.mask is not None
        self.register_buffer("seen", seen_by(attention, block.tokens) if partly else None, persistent=False)
        turns = None if attention.rope is None else turns_of(attention.frequencies, block.tokens)
        self.register_buffer("turns", turns, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.heads(x)
        seen = None if self.seen is None else seen_for(x.shape[-2], self.seen, self.attention)
        causal = self.attention.causal and seen is None
        # more than one axis of sequences, as in an ensemble, would fall off torch's fast kernels
        flat_query, flat_key, flat_value = (x.flatten(0, -4) if x.dim() > 4 else x for x in (query, key, value))
        mixed = functional.scaled_dot_product_attention(
            flat_query, flat_key, flat_value, attn_mask=seen, is_causal=causal, scale=self.scale
        )
        mixed = mixed.reshape(query.shape) if query.dim() > 4 else mixed
        return _tensor(self.dropout(self.write(self.inner["heads"](_merge_heads(mixed)))))

    def largest_logit(self, x: Tensor) -> Tensor:
        """Over sequences, heads and pairs of tokens that see one another, of the logits that the stream x makes."""
        query, key, _ = self.heads(x)
        seen = seen_by(self.attention, x.shape[-2]).to(x.device)
        return torch.where(seen, self.scale * query @ key.mT, -torch.inf).amax()

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (..., heads, tokens, head size) each, normed and turned."""
        attention, group = self.attention, self.attention.heads // self.attention.kv_heads
        query, key, value = (
            self.inner[name](split_heads(part, attention.size))
            for name, part in zip(("query", "key", "value"), self.read(x).split(self.sizes, dim=-1), strict=True)
        )
        if self.turns is not None:
            turns = turns_for(x.shape[-2], self.turns, attention)
            query, key = turned(query, turns), turned(key, turns)
        key, value = (part.repeat_interleave(group, dim=-3) for part in (key, value))
        return query, key, value


class UniformAttention(nn.Module):
    """The limit of logit_std 0: every token averages the values it may see, and there is no query and no key."""

    seen: Tensor

    def __init__(self, attention: sublayers.Attention, block: Setting) -> None:
        super().__init__()
        self.attention, size = attention, attention.size
        self.inner = nn.ModuleDict(
            {
                "value": block.inner_norm(size, wanted="value" in attention.normed),
                "heads": block.inner_norm(attention.inside, wanted="heads" in attention.normed),
            }
        )
        self.read = Projection(block.width, size * attention.kv_heads, attention.value_gain, law=block.weights)
        self.write = Projection(attention.inside, block.width, attention.out_gain, law=block.weights)
        self.dropout = nn.Dropout(block.dropout)
        self.register_buffer("seen", seen_by(attention, block.tokens), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        attention = self.attention
        values = self.inner["value"](split_heads(self.read(x), attention.size))
        values = _merge_heads(values.repeat_interleave(attention.heads // attention.kv_heads, dim=-3))
        seen = seen_for(x.shape[-2], self.seen, attention).to(x.dtype)
        mixed = seen @ values / seen.sum(-1, keepdim=True)
        return _tensor(self.dropout(self.write(self.inner["heads"](mixed))))


class FeedForward(nn.Module):
    """W_out phi(W_in x), or W_out (phi(W_gate x) * W_in x) where the activation is gated."""

    def __init__(self, ffn: sublayers.FFN, block: Setting) -> None:
        super().__init__()
        self.gated = ffn.activation.gated
        self.activation = ffn.activation.core
        gains = (ffn.in_gain * ffn.gate_gain, ffn.in_gain) if self.gated else (ffn.in_gain,)
        self.read = Projection(block.width, ffn.units * len(gains), *gains, law=block.weights)
        self.inner = block.inner_norm(ffn.units, wanted="hidden" in ffn.normed)
        size = 1.0 if "hidden" in ffn.normed else output_rms(self.activation)  # of what the output matrix reads
        self.write = Projection(ffn.units, block.width, ffn.out_gain / size, law=block.weights)
        self.dropout = nn.Dropout(block.dropout)

    def forward(self, x: Tensor) -> Tensor:
        phi, hidden = function_of(self.activation), self.read(x)
        if self.gated:
            gate, linear = hidden.chunk(2, dim=-1)
            return _tensor(self.dropout(self.write(self.inner(phi(gate) * linear))))
        return _tensor(self.dropout(self.write(self.inner(phi(hidden)))))


@apply.register
def _(attention: sublayers.Attention, block: Setting) -> nn.Module:
    check_fields(attention, ATTENTION_FIELDS)
    return (UniformAttention if attention.logit_std == 0 else Attention)(attention, block)


@apply.register
def _(ffn: sublayers.FFN, block: Setting) -> nn.Module:
    check_fields(ffn, frozenset({"activation", "ratio", "hidden", "in_gain", "gate_gain", "out_gain", "normed"}))
    return FeedForward(ffn, block)


@apply.register
def _(norm: Norm, block: Setting) -> nn.Module:
    """With learned gain (and bias) at 1 (and 0)."""
    check_fields(norm, frozenset({"kind", "eps"}))
    return (nn.LayerNorm if norm.centred else nn.RMSNorm)(block.width, eps=norm.eps)


@lru_cache(maxsize=64)
def output_rms(activation: Activation | str) -> float:
    """Root mean square of an activation's output at standard normal input.

    Example:
        >>> round(output_rms("relu") ** 2, 10)
        0.5
    """
    z = torch.linspace(-12, 12, 48_001, dtype=torch.float64, device="cpu")  # 0, ReLU's kink, is a node
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(torch.trapezoid(function_of(activation)(z) ** 2 * density, z).item())


def seen_by(attention: SelfAttention, tokens: int) -> Tensor:
    """Which token, the row, attends to which."""
    return torch.as_tensor(attention.visible(tokens))


def seen_for(tokens: int, table: Tensor, attention: SelfAttention) -> Tensor:
    """The table for as many tokens as there are."""
    if tokens == len(table):
        return table
    if attention.mask is not None:
        raise ModelError(f"mask must have {tokens} rows, one a token, got {len(table)}")
    return table[:tokens, :tokens] if tokens < len(table) else seen_by(attention, tokens).to(table.device)


def turns_of(frequencies: tuple[float, ...], tokens: int) -> Tensor:
    """Cosine and sine of the angle of every token and pair of coordinates, (2, tokens, pairs)."""
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] * torch.tensor(frequencies, dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()])


def turns_for(tokens: int, table: Tensor, attention: SelfAttention) -> Tensor:
    """The angles' cosines and sines for as many tokens as there are."""
    if tokens <= table.shape[1]:
        return table[:, :tokens]
    return turns_of(attention.frequencies, tokens).to(table)


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Rotary positions: coordinate i of a head turns with the one half a head further."""
    cos, sin = turns.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def split_heads(x: Tensor, size: int) -> Tensor:
    """(..., tokens, all heads) -> (..., heads, tokens, size)."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size).transpose(-2, -3)


def _merge_heads(x: Tensor) -> Tensor:
    return x.transpose(-2, -3).flatten(-2)


def _tensor(value: Tensor) -> Tensor:  # nn.Module.__call__ returns Any
    return value
