"""The frozen description of a network: the only thing every witness reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from propagate.checks import ModelError as ModelError
from propagate.checks import check_flag as check_flag
from propagate.checks import choice as _choice
from propagate.checks import integer as _integer
from propagate.checks import number as _number
from propagate.experts import Experts
from propagate.placements import Placement, placement
from propagate.scaling import Gains, Number, Scaling

ACTIVATIONS = ("linear", "relu", "squared_relu", "gelu", "silu", "tanh", "swiglu", "geglu")
NORMS = ("rms", "layer")


@dataclass(frozen=True)
class Model:
    """A deep Transformer at random initialisation.

    Attributes:
        placement: a name (see `propagate.placements()`) or a `Placement` instance.
        depth: number of blocks.
        width: coordinates of the residual stream.
        tokens: tokens in the sequence.
        heads: attention heads; they divide the width.
        key_value_heads: heads that have keys and values of their own (grouped-query attention, arXiv:2305.13245); they
            divide `heads`, which share them in groups. None means all of them, 1 is multi-query attention. Expected
            second moments do not depend on it, forward or backward, at any width; their fluctuations do.
        activation: "linear", "relu", "squared_relu", "gelu", "silu", "tanh", "swiglu" or "geglu".
        ffn_ratio: hidden width of the FFN over `width` (each half of a gated FFN has this width).
        norm: "rms" (RMSNorm) or "layer" (LayerNorm), without learned gain and bias.
        causal: a token attends to itself and to earlier tokens only.
        logit_std: standard deviation of an attention logit between unit-variance, uncorrelated tokens; 0 means
            uniform attention.
        value_gain: gain of the value projection (standard deviation of an entry times sqrt(fan_in)).
        attention_gain: gain of the attention's output projection.
        ffn_gain: root mean square of the FFN's output when its input has variance 1.
        scaling: anything with `gains(index, depth)`, such as `ScaleInit()`; None means no scaling.
        experts: an `Experts` puts a mixture of experts in place of every FFN; None is a dense FFN.
        dropout: probability with which an entry of a branch's output is set to 0, the others being divided by
            1 - dropout; masks are independent between tokens, and the cotangent meets the same one.

    Raises:
        ModelError: names the field, the value and what is allowed.

    Example:
        >>> Model("spannorm", depth=24).gains(1)
        Gains(value=1.0, attention_out=1.0, ffn_in=1.0, ffn_out=1.0)
    """

    placement: str | Placement
    depth: int
    width: int = 512
    tokens: int = 32
    heads: int = 8
    key_value_heads: int | None = None
    activation: str = "relu"
    ffn_ratio: float = 4.0
    norm: str = "rms"
    causal: bool = False
    logit_std: float = 1.0
    value_gain: float = 1.0
    attention_gain: float = 1.0
    ffn_gain: float = 1.0
    scaling: Scaling | None = None
    experts: Experts | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "placement", as_placement(self.placement))
        for field in ("depth", "width", "tokens", "heads"):
            object.__setattr__(self, field, _integer(field, getattr(self, field)))
        if self.key_value_heads is not None:
            object.__setattr__(self, "key_value_heads", _integer("key_value_heads", self.key_value_heads))
        _choice("activation", self.activation, ACTIVATIONS)
        _choice("norm", self.norm, NORMS)
        for field in ("logit_std", "value_gain", "attention_gain", "ffn_gain"):
            object.__setattr__(self, field, _number(field, getattr(self, field), positive=False))
        object.__setattr__(self, "ffn_ratio", _number("ffn_ratio", self.ffn_ratio, positive=True))
        check_flag("causal", self.causal)
        if self.width % self.heads:
            raise ModelError(f"heads must divide the width, got heads={self.heads} for width={self.width}")
        if self.heads % self.kv_heads:
            raise ModelError(
                f"key_value_heads must divide the heads, got key_value_heads={self.key_value_heads}"
                f" for heads={self.heads}"
            )
        smallest = 1 if self.norm == "rms" else 3
        if self.width < smallest:
            raise ModelError(f"width must be at least {smallest} for norm={self.norm!r}, got {self.width}")
        if self.hidden < 1:
            raise ModelError(f"ffn_ratio leaves no hidden unit, got ffn_ratio={self.ffn_ratio} at width={self.width}")
        if self.scaling is not None and not callable(getattr(self.scaling, "gains", None)):
            raise ModelError(f"scaling must be None or have gains(index, depth), got {self.scaling!r}")
        if self.experts is not None:
            if not isinstance(self.experts, Experts):
                raise ModelError(f"experts must be None or propagate.Experts, such as Experts(8), got {self.experts!r}")
            if self.hidden % self.experts.split:
                raise ModelError(
                    f"experts.split must divide the hidden width, got split={self.experts.split} for {self.hidden}"
                )
        object.__setattr__(self, "dropout", _number("dropout", self.dropout, positive=False))
        if self.dropout >= 1:
            raise ModelError(f"dropout must be below 1, got {self.dropout!r}")

    @property
    def hidden(self) -> int:
        """Hidden width of the FFN."""
        return round(self.ffn_ratio * self.width)

    @property
    def kv_heads(self) -> int:
        """Heads that have keys and values of their own."""
        return self.heads if self.key_value_heads is None else self.key_value_heads

    @property
    def equations(self) -> Placement:
        """The placement as an instance."""
        assert isinstance(self.placement, Placement)
        return self.placement

    def gains(self, index: Number) -> Gains:
        """Gains of block `index` (1 ... depth): the model's own, times the placement's, times the scaling's."""
        own = Gains(value=self.value_gain, attention_out=self.attention_gain, ffn_out=self.ffn_gain)
        gains = own * self.equations.gains(index, self.depth)
        return gains * self.scaling.gains(index, self.depth) if self.scaling else gains


def check_model(model: Any) -> None:
    """ModelError unless it is a Model."""
    if not isinstance(model, Model):
        raise ModelError(f"model must be a propagate.Model, got {model!r}")


def as_placement(value: Any) -> Placement:
    """A placement from its name, or the instance itself; ModelError otherwise."""
    if isinstance(value, Placement):
        return value
    if not isinstance(value, str):
        raise ModelError(f"placement must be a name or a Placement instance, got {value!r}")
    try:
        return placement(value)
    except (LookupError, TypeError) as error:
        raise ModelError(str(error)) from None
