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
from propagate.masks import Mask, Visible, all_visible, visible
from propagate.placement import Placement, placement
from propagate.scaling import Gains, Number, Scaling

ACTIVATIONS = ("linear", "relu", "squared_relu", "gelu", "silu", "tanh", "swiglu", "geglu")
NORMS = ("rms", "layer")
WEIGHTS = ("normal", "uniform", "truncated_normal", "orthogonal")
INNER_NORMS = {"attention": ("query", "key", "value", "heads"), "ffn": ("hidden",)}


@dataclass(frozen=True)
class Model:
    """A deep Transformer at random initialisation.

    Attributes:
        placement: a name (see `propagate.placements()`) or a `Placement` instance.
        depth: number of blocks.
        width: coordinates of the residual stream.
        tokens: tokens in the sequence.
        heads: attention heads; they divide the width.
        activation: "linear", "relu", "squared_relu", "gelu", "silu", "tanh", "swiglu" or "geglu".
        ffn_ratio: hidden width of the FFN over `width` (each half of a gated FFN has this width).
        norm: "rms" (RMSNorm) or "layer" (LayerNorm), without learned gain and bias.
        normed: inner projections that pass the norm in every sublayer, beside those that the placement names: any of
            "query", "key", "value" (head by head), "heads" (the heads' joint output), "hidden" (of the FFN).
        causal: a token attends to itself and to earlier tokens only.
        window: with `causal`, it attends to this many tokens only, itself and the ones just before it; None means all.
        mask: in place of `causal`, any (tokens, tokens) matrix of booleans, row t telling which tokens token t attends
            to, at least one; kept as a hashable `Mask`.
        rope: base of rotary positions (arXiv:2104.09864), such as 10000.0, for queries and keys of all heads; None
            means no positions.
        logit_std: standard deviation of an attention logit between unit-variance, uncorrelated tokens; 0 means
            uniform attention.
        value_gain: gain of the value projection (standard deviation of an entry times sqrt(fan_in)).
        attention_gain: gain of the attention's output projection.
        ffn_gain: root mean square of the FFN's output when its input has variance 1.
        scaling: anything with `gains(index, depth)`, such as `ScaleInit()`; None means no scaling.
        weights: law of the weight matrices, "normal", "uniform", "truncated_normal" (cut at two standard deviations)
            or "orthogonal" (orthonormal rows or columns), each with entries of variance gain^2 / fan_in. The wide
            limit is the same for all.
        experts: an `Experts` puts a mixture of experts in place of every FFN; None is a dense FFN.
        dropout: probability with which an entry of a branch's output is set to 0, the others being divided by
            1 - dropout; masks are independent between tokens, and the cotangent meets the same one.
        key_value_heads: heads that have keys and values of their own (grouped-query attention, arXiv:2305.13245); they
            divide `heads`, which share them in groups. None means all of them, 1 is multi-query attention. Expected
            second moments do not depend on it, forward or backward, at any width; their fluctuations do.

    Raises:
        ModelError: names the field, the value and what is allowed.

    Example:
        >>> Model("spannorm", depth=24).gains(1)
        Gains(query=1.0, key=1.0, value=1.0, attention_out=1.0, ffn_in=1.0, ffn_out=1.0)
    """

    placement: str | Placement
    depth: int
    width: int = 512
    tokens: int = 32
    heads: int = 8
    activation: str = "relu"
    ffn_ratio: float = 4.0
    norm: str = "rms"
    normed: tuple[str, ...] = ()
    causal: bool = False
    window: int | None = None
    mask: Any = None
    rope: float | None = None
    logit_std: float = 1.0
    value_gain: float = 1.0
    attention_gain: float = 1.0
    ffn_gain: float = 1.0
    scaling: Scaling | None = None
    weights: str = "normal"
    experts: Experts | None = None
    dropout: float = 0.0
    key_value_heads: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "placement", as_placement(self.placement))
        for field in ("depth", "width", "tokens", "heads"):
            object.__setattr__(self, field, _integer(field, getattr(self, field)))
        if self.key_value_heads is not None:
            object.__setattr__(self, "key_value_heads", _integer("key_value_heads", self.key_value_heads))
        _choice("activation", self.activation, ACTIVATIONS)
        _choice("norm", self.norm, NORMS)
        _choice("weights", self.weights, WEIGHTS)
        for field in ("logit_std", "value_gain", "attention_gain", "ffn_gain"):
            object.__setattr__(self, field, _number(field, getattr(self, field), positive=False))
        object.__setattr__(self, "ffn_ratio", _number("ffn_ratio", self.ffn_ratio, positive=True))
        known = [name for names in INNER_NORMS.values() for name in names]
        object.__setattr__(self, "normed", _names("normed", self.normed, known))
        check_flag("causal", self.causal)
        if self.width % self.heads:
            raise ModelError(f"heads must divide the width, got heads={self.heads} for width={self.width}")
        self._check_mask()
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

    def _check_mask(self) -> None:
        if self.window is not None:
            object.__setattr__(self, "window", _integer("window", self.window))
            if not self.causal:
                raise ModelError(f"window must be None unless causal=True, got {self.window}")
        if self.mask is not None:
            try:
                mask = Mask.of(self.mask)
            except ValueError as error:
                raise ModelError(f"mask must be {error}") from None
            if len(mask.rows) != self.tokens:
                raise ModelError(f"mask must have {self.tokens} rows, one a token, got {len(mask.rows)}")
            if self.causal:
                raise ModelError(f"mask must be None with causal=True (it says all by itself), got {mask}")
            object.__setattr__(self, "mask", mask)
        if self.rope is not None:
            object.__setattr__(self, "rope", _number("rope", self.rope, positive=True))
            if self.width // self.heads % 2:
                raise ModelError(
                    f"rope must be None for heads of odd width {self.width // self.heads}, got {self.rope}"
                )

    @property
    def visible(self) -> Visible:
        """Which token, the row, attends to which, (tokens, tokens)."""
        return visible(self.tokens, self.causal, self.window, self.mask)

    @property
    def exchangeable(self) -> bool:
        """Whether attention treats all tokens alike."""
        return self.rope is None and all_visible(self.tokens, self.causal, self.mask)

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Angles, in radians a token, by which rotary positions turn the pairs of coordinates of a head."""
        if self.rope is None:
            return ()
        size = self.width // self.heads
        return tuple(self.rope ** (-2 * pair / size) for pair in range(size // 2))

    @property
    def head_size(self) -> int:
        """Coordinates of an attention head."""
        return self.width // self.heads

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

    def inner_norms(self, sublayer: str, normed: Any = ()) -> frozenset[str]:
        """What one call of a sublayer norms inside: what the call names, and the model's own `normed`.

        Raises:
            ModelError: for names that the sublayer does not have.

        Example:
            >>> sorted(Model("prenorm", depth=1, normed=("query", "hidden")).inner_norms("attention", ("key",)))
            ['key', 'query']
        """
        if not normed and not self.normed:
            return frozenset()
        allowed = INNER_NORMS[sublayer]
        found = frozenset(_names("normed", normed, allowed)) | (frozenset(allowed) & frozenset(self.normed))
        if self.norm == "layer" and self.width // self.heads < 3 and found & {"query", "key", "value"}:
            raise ModelError(
                f"heads must leave 3 coordinates or more to each head that norm='layer' norms, got heads={self.heads}"
                f" for width={self.width}"
            )
        return found


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


def _names(field: str, value: Any, allowed: Any) -> tuple[str, ...]:
    """A tuple of allowed names, each once."""
    if isinstance(value, str) or not isinstance(value, tuple | list | set | frozenset):
        raise ModelError(f"{field} must be a tuple of names, got {value!r}")
    for name in value:
        _choice(field, name, tuple(allowed))
    return tuple(sorted(set(value)))
