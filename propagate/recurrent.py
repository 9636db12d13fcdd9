"""The description of linear attention with a decay: a sequence mixer that is a linear recurrence.

With q, k, v of each head, a decay a_t, and n coordinates of a key, the state of a head is a matrix:

    S_t = a_t S_(t-1) + k_t v_t^T,    o_t = q_t^T S_t / sqrt(n)

so that o_t = sum over s <= t of (a_(s+1) ... a_t) (q_t . k_s) v_s / sqrt(n). The decay is a number (retention,
arXiv:2307.08621; 1 is linear attention, arXiv:2006.16236, without a feature map), or made of the token, for each head
(Mamba-2's scalar, arXiv:2405.21060) or for each coordinate of its keys (gated linear attention, arXiv:2312.06635):

    a_t = sigmoid(W_a x_t + b)^power,    with b such that a_t = decay where W_a x_t = 0

exp(-A softplus(z)) = sigmoid(-z)^A, so that Mamba-2's is of this form, its A being the power.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from propagate.activations import as_activation
from propagate.checks import ModelError, choice, integer, number, shown
from propagate.latent import SelfAttention
from propagate.masks import Visible, visible
from propagate.scaling import Gains, Number
from propagate.sublayers import Sublayer, as_names, of_head, scaled_projections

GATES = ("head", "coordinate")
SMALLEST_POWER = 1e-6  # of a gate; 1 over it is the largest
MATRIX_GAINS = ("query", "key", "value", "decay", "output_gate", "out")


@dataclass(frozen=True)
class LinearAttention(Sublayer):
    """A linear recurrence over tokens, causal, with keys and values as attention has them, and no softmax.

    It stands where `Attention` does: `Model(attention=LinearAttention())`, or in `block.apply`. What is not in it:
    convolutions before it, keys that heads share, gates of low rank, a step size on what enters the state, and norms
    of each head by itself.

    Attributes:
        heads: each with a state of its own.
        key_size, value_size: coordinates of a head's queries and keys, and of its values; None is width / heads.
        decay: what the state is multiplied by at each token (with a gate: where that is 0), above 0, at most 1; a
            number, or a tuple of one a head.
        gate: None, or for what a decay is made of each token: "head" or "coordinate" (of the keys).
        gate_power: power of the gate's sigmoid, a number or a tuple of one a head.
        output_gate: an activation phi; the heads are multiplied by phi(W x), coordinate by coordinate. None is none.
        query_gain, key_gain, value_gain, decay_gain, output_gate_gain, out_gain: standard deviation of a matrix's
            entries times sqrt(fan_in).
        normed: what passes the block's norm, of all heads together: "heads", before the output gate, or "gated",
            behind it.

    Raises:
        ModelError: names the field, the value and what is allowed.

    Example: gated linear attention and Mamba-2's decay, and retention's many time scales.
        >>> gated = LinearAttention(4, 64, 128, 2 ** (-1 / 16), "coordinate", 1 / 16, "silu", normed=("heads",))
        >>> mamba = LinearAttention(8, 128, 64, 0.9, "head", gate_power=4.0, output_gate="silu", normed=("gated",))
        >>> retention = LinearAttention(4, decay=tuple(1 - 2.0 ** (-5 - head) for head in range(4)))
        >>> round(mamba.bias(0), 3)  # of 0.9 = sigmoid(b)^4
        3.623
    """

    inner_norms: ClassVar[tuple[str, ...]] = ("heads", "gated")
    alike: ClassVar[bool] = False
    causal: ClassVar[bool] = True
    mask: ClassVar[None] = None

    heads: int = 8
    key_size: int | None = None
    value_size: int | None = None
    decay: float | tuple[float, ...] = 1.0
    gate: str | None = None
    gate_power: float | tuple[float, ...] = 1.0
    output_gate: Any = None
    query_gain: Number = 1.0
    key_gain: Number = 1.0
    value_gain: Number = 1.0
    decay_gain: Number = 1.0
    output_gate_gain: Number = 1.0
    out_gain: Number = 1.0
    normed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "heads", integer("heads", self.heads))
        for field in ("key_size", "value_size"):
            if getattr(self, field) is not None:
                set_(self, field, integer(field, getattr(self, field)))
        if self.gate is not None:
            choice("gate", self.gate, GATES)
        for field in ("decay", "gate_power"):
            set_(self, field, self._of_heads(field))
        largest = max(self.decay) if isinstance(self.decay, tuple) else self.decay
        if largest > 1 or (self.gate and largest == 1):
            raise ModelError(f"decay must be {'below' if self.gate else 'at most'} 1, got {self.decay}")
        powers = self.gate_power if isinstance(self.gate_power, tuple) else (self.gate_power,)
        if not SMALLEST_POWER <= min(powers) <= max(powers) <= 1 / SMALLEST_POWER:
            raise ModelError(
                f"gate_power must lie between {SMALLEST_POWER:g} and {1 / SMALLEST_POWER:g}, got {powers[0]}"
            )
        if self.output_gate is not None:
            set_(self, "output_gate", as_activation(self.output_gate))
            if self.output_gate.gated:
                raise ModelError(f"output_gate must be no gated activation, got {self.output_gate!r}")
        for of in MATRIX_GAINS:
            name = "attention_gain" if of == "out" else f"{of}_gain"
            set_(self, f"{of}_gain", number(name, getattr(self, f"{of}_gain"), positive=False))
        for of, wanted in (
            ("decay_gain", self.gate),
            ("gate_power", self.gate),
            ("output_gate_gain", self.output_gate),
        ):
            if wanted is None and getattr(self, of) != 1:
                raise ModelError(f"{of} must be 1 without a gate, got {getattr(self, of)!r}")
        set_(self, "normed", as_names("normed", self.normed, self.inner_norms))

    def _of_heads(self, field: str) -> float | tuple[float, ...]:
        """A positive number, or one a head."""
        value = getattr(self, field)
        if not isinstance(value, tuple):
            return number(field, value, positive=True)
        if len(value) != self.heads:
            raise ModelError(f"{field} must be a number or a tuple of {self.heads}, one a head, got {shown(value)}")
        return tuple(number(field, each, positive=True) for each in value)

    def fitted(self, width: int, tokens: int) -> LinearAttention:
        key_size, value_size = (of_head(size, width, self.heads) for size in (self.key_size, self.value_size))
        return self.with_(key_size=key_size, value_size=value_size)

    def scaled(self, gains: Gains) -> LinearAttention:
        return self.with_(**scaled_projections(self, gains))

    @property
    def decays(self) -> tuple[float, ...]:
        """Of every head, where its gate is 0."""
        return self.decay if isinstance(self.decay, tuple) else (self.decay,) * self.heads

    @property
    def powers(self) -> tuple[float, ...]:
        """Of every head's gate."""
        return self.gate_power if isinstance(self.gate_power, tuple) else (self.gate_power,) * self.heads

    def bias(self, head: int) -> float:
        """What is added to a head's gate: log(p / (1 - p)) of p = decay^(1 / power).

        Example:
            >>> LinearAttention(2, decay=0.25, gate="head", gate_power=2.0).bias(1) + 1.0
            1.0
        """
        rate = -math.log(self.decays[head]) / self.powers[head]
        return -rate - math.log(-math.expm1(-rate))

    @property
    def size(self) -> int:
        """Coordinates of a query or key, once `fitted`."""
        assert self.key_size is not None
        return self.key_size

    @property
    def of_value(self) -> int:
        """Coordinates of a head's value, once `fitted`."""
        assert self.value_size is not None
        return self.value_size

    @property
    def inside(self) -> int:
        """Coordinates of all heads' values together, once `fitted`."""
        return self.heads * self.of_value

    def matrices(self, width: int) -> Iterator[tuple[str, int, int, Number]]:
        """Of each matrix its name, fan-in, fan-out and gain.

        Example:
            >>> kind = LinearAttention(2, gate="head", decay=0.5).fitted(width=8, tokens=3)
            >>> [(name, fan_out) for name, _, fan_out, _ in kind.matrices(8)]
            [('query', 8), ('key', 8), ('value', 8), ('decay', 2), ('attention_out', 8)]
        """
        keys = self.heads * self.size
        yield "query", width, keys, self.query_gain
        yield "key", width, keys, self.key_gain
        yield "value", width, self.inside, self.value_gain
        if self.gate is not None:
            yield "decay", width, keys if self.gate == "coordinate" else self.heads, self.decay_gain
        if self.output_gate is not None:
            yield "output_gate", width, self.inside, self.output_gate_gain
        yield "attention_out", self.inside, width, self.out_gain

    def visible(self, tokens: int) -> Visible:
        """Which token, the row, hears of which, (tokens, tokens): itself and all earlier ones."""
        return visible(tokens, True, None, None)


Mixer = SelfAttention | LinearAttention
"""What a block's attention may be."""
