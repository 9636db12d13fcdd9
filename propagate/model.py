"""The frozen description of a network: the only thing every witness reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from propagate.checks import WHOLE, choice, integer, number, shown
from propagate.checks import ModelError as ModelError
from propagate.checks import check_flag as check_flag
from propagate.experts import Experts
from propagate.layers import KINDS, Layer, Parts, layer_of, parts_by_block
from propagate.norms import Norm, as_norm
from propagate.outline import norms_of_nothing, outline
from propagate.placement import Placement, placement
from propagate.recurrent import Mixer
from propagate.scaling import Scaling, product_of_gains
from propagate.sublayers import FFN, Attention, as_names

DEEPEST = 10**6  # blocks: a prediction of so many takes minutes
WEIGHTS = ("normal", "uniform", "truncated_normal", "orthogonal")
SHORTHAND = {
    "attention": {
        "heads": "heads",
        "key_value_heads": "key_value_heads",
        "causal": "causal",
        "window": "window",
        "mask": "mask",
        "rope": "rope",
        "logit_std": "logit_std",
        "value_gain": "value_gain",
        "attention_gain": "out_gain",
    },
    "ffn": {"activation": "activation", "ffn_ratio": "ratio", "ffn_gain": "out_gain"},
}
"""Fields of a Model that stand for fields of its descriptions."""


@dataclass(frozen=True, repr=False)
class Model:
    """A deep Transformer at random initialisation.

    Attributes:
        placement: a name (see `propagate.placements()`) or a `Placement` instance.
        depth: number of blocks.
        width: coordinates of the residual stream.
        tokens: tokens in the sequence.
        heads: attention heads; they divide the width.
        activation: a name (see `propagate.activations.ACTIVATIONS`), or an `Activation` of your own.
        ffn_ratio: hidden width of the FFN over `width` (each half of a gated FFN has this width).
        norm: "rms" (RMSNorm) or "layer" (LayerNorm), without learned gain and bias, or a `Norm`.
        normed: inner projections that pass the norm in every sublayer, beside those that the placement names: any of
            "query", "key", "value" (head by head), "heads" (the heads' joint output), "hidden" (of the FFN).
        causal: a token attends to itself and to earlier tokens only.
        window: with `causal`, to this many tokens only, itself and the ones just before it; None means all.
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
        experts: an `Experts` puts a mixture of experts in place of every FFN, or beside them where the placement calls
            `block.experts`; None is none.
        dropout: probability with which an entry of a branch's output is set to 0, the others being divided by
            1 - dropout; masks are independent between tokens, and the cotangent meets the same one.
        key_value_heads: heads that have keys and values of their own (grouped-query attention, arXiv:2305.13245); they
            divide `heads`, which share them in groups. None means all of them, 1 is multi-query attention. Expected
            second moments do not depend on it, forward or backward, at any width; their fluctuations do.
        attention: an `Attention`, in place of the short fields `heads`, `key_value_heads`, `causal`, `window`, `mask`,
            `rope`, `logit_std`, `value_gain` and `attention_gain`, which then say the same; or a `LatentAttention`
            or a `LinearAttention`.
        ffn: an `FFN`, in place of `activation`, `ffn_ratio` and `ffn_gain`.
        layers: what blocks have of their own: a function of the index, or a mapping from indices, or a list over all
            blocks, to mappings from "attention", "ffn", "experts" and "norm" to descriptions.

    Raises:
        ModelError: names the field, the value and what is allowed.

    Example:
        >>> from propagate.scaling import ScaleInit
        >>> round(Model("spannorm", depth=24, scaling=ScaleInit(0.5)).at(1).ffn.out_gain, 3)
        0.204
    """

    placement: str | Placement
    depth: int
    width: int = 512
    tokens: int = 32
    heads: int = 8
    activation: Any = "relu"
    ffn_ratio: float = 4.0
    norm: str | Norm = "rms"
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
    attention: Mixer | None = None
    ffn: FFN | None = None
    layers: Any = None
    _parts: ClassVar[tuple[Parts, ...]]
    _layers: ClassVar[dict[int, Layer]]  # asked for often, and made once
    _own: ClassVar[dict[int, dict[str, Any]]]

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "placement", as_placement(self.placement))
        for field in ("depth", "width", "tokens"):
            most = {"depth": DEEPEST}.get(field, WHOLE)
            set_(self, field, integer(field, getattr(self, field), at_most=most))
        choice("weights", self.weights, WEIGHTS)
        set_(self, "dropout", number("dropout", self.dropout, positive=False))
        if self.dropout >= 1:
            raise ModelError(f"dropout must be below 1, got {shown(self.dropout)}")
        if self.scaling is not None and not callable(getattr(self.scaling, "gains", None)):
            raise ModelError(f"scaling must be None or have gains(index, depth), got {shown(self.scaling)}")
        known = dict.fromkeys((*Attention.inner_norms, *FFN.inner_norms))
        set_(self, "normed", as_names("normed", self.normed, known))
        attention = self._described("attention", Attention, SHORTHAND["attention"])
        ffn = self._described("ffn", FFN, SHORTHAND["ffn"])
        parts = Parts(attention, ffn, self.experts, as_norm(self.norm))
        if self.width < parts.norm.smallest:
            raise ModelError(
                f"width must be at least {parts.norm.smallest} for norm={parts.norm.kind!r}, got {self.width}"
            )
        set_(self, "_layers", {})
        set_(self, "_parts", parts_by_block(parts, self.layers, self.depth))
        set_(self, "_own", {i: own for i, each in enumerate(self._parts, 1) if (own := each.unlike(parts))})
        for index in range(1, self.depth + 1) if self.layers is not None else (1,):
            self.at(index)

    @classmethod
    def from_config(cls, name: str, **changes: Any) -> Model:
        """A released system at its published sizes and initialisation; see `propagate.configuration`.

        Args:
            name: "llama-3-8b" and others (`propagate.configurations`).
            changes: other values of "depth", "tokens", "weights", "dropout" and "scaling".

        Raises:
            ModelError: for an unknown name, with those that are known, and for other changes.

        Example:
            >>> Model.from_config("llama-3-8b", tokens=64).width
            4096
        """
        from propagate.systems import configuration

        return cls(**configuration(name).fields(**changes))

    def _described(self, field: str, kind: type[Any], shorthand: dict[str, str]) -> Any:
        """The description of one sublayer, from its own field or from the short ones, which then say the same."""
        given = getattr(self, field)
        if given is None:
            found = kind(**{name: getattr(self, short) for short, name in shorthand.items()})
        elif not isinstance(given, KINDS[field][0]):
            raise ModelError(f"{field} must be None or {KINDS[field][1]}, got {shown(given)}")
        else:
            found = given
        defaults = {one.name: one.default for one in dataclasses.fields(self)}
        for short, name in shorthand.items():
            value, own = getattr(self, short), getattr(found, name, defaults[short])  # a kind may lack the field
            if given is not None and not (_same(value, defaults[short]) or _same(value, own)):
                raise ModelError(
                    f"{short} must be left out beside {field}=, which has {name}={own!r}, got {shown(value)}"
                )
            object.__setattr__(self, short, own)
        return found

    def __repr__(self) -> str:
        """As for any dataclass, but for the newer fields where they say nothing; `layers` by what blocks have."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        newer = {"attention": self.attention, "ffn": self.ffn, "layers": self._own or None}
        said = {name: value for name, value in (values | newer).items() if value is not None or name not in newer}
        return f"Model({', '.join(f'{name}={value!r}' for name, value in said.items())})"

    def __str__(self) -> str:
        """In a few lines: sizes, and what the blocks are made of, those alike together.

        Example:
            >>> print(Model("spannorm", depth=24, width=64, heads=4, activation="swiglu"))
            SpanNorm(norm_first_skip=False), depth 24, width 64, tokens 32, norm rms
            blocks 1 to 24: attention heads 4, head_size 16; ffn swiglu, hidden 256
        """
        from propagate.summary import summary

        return summary(self)

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to a worker: of `layers`, which may be a function that cannot be, what blocks have of it."""
        return self.__dict__ | {"layers": self._own or None}

    def at(self, index: int) -> Layer:
        """What block `index` (1 ... depth) is made of, sizes and gains in force; the embedding has what block 1 has,
        the readout what the last has.

        Example: every sixth block of Gemma's attends to all tokens, the others to a window.
            >>> local, whole = Attention(causal=True, window=4), Attention(causal=True)
            >>> pattern = lambda index: {"attention": whole if index % 6 == 0 else local}
            >>> model = Model("sandwichnorm", depth=26, layers=pattern)
            >>> [model.at(index).attention.window for index in (5, 6)]
            [4, None]
        """
        index = max(index, 1)
        if index not in self._layers:
            self._layers[index] = self._layer(index)
        return self._layers[index]

    def _layer(self, index: int) -> Layer:
        parts = self._parts[min(index, self.depth) - 1]
        gains = product_of_gains((self.equations, self.scaling), index, self.depth)
        beside = parts.experts is not None and any(
            call.verb == "experts" for call in outline(self.equations, self.depth, index)
        )
        return layer_of(parts, gains, self.width, self.tokens, self.normed, beside=beside)

    @property
    def parts(self) -> tuple[Parts, ...]:
        """What blocks 1 ... depth are made of, before sizes and the block's gains are in force."""
        return self._parts

    @property
    def exchangeable(self) -> bool:
        """Whether attention treats all tokens alike, in every block."""
        return all(parts.attention.exchangeable(self.tokens) for parts in set(self._parts))

    @cached_property
    def uneven(self) -> bool:
        """Whether any block has experts. Asked at every block, it looks through all of them once."""
        return any(parts.experts is not None for parts in self._parts)

    @property
    def equations(self) -> Placement:
        """The placement as an instance."""
        assert isinstance(self.placement, Placement)
        return self.placement


def _same(value: Any, other: Any) -> bool:
    """Whether two values of a field are the same one; an array is no other's equal."""
    return value is other or (value == other) is True


def check_norms(model: Model) -> None:
    """ModelError where a placement norms what a gain of 0 leaves nothing of.

    Example:
        >>> check_norms(Model("periln", depth=2, ffn_gain=0.0))
        Traceback (most recent call last):
        propagate.checks.ModelError: ffn_gain must be positive where block 1 of PeriLN() norms it, got 0
    """
    index = norms_of_nothing(model.equations, model.depth, lambda index: frozenset(model.at(index).silent))
    if index is not None:
        where = {0: "embed", model.depth + 1: "readout"}.get(index, f"block {index}")
        zero = dict.fromkeys(name for names in model.at(index).silent.values() for name in names)
        raise ModelError(f"{' and '.join(zero)} must be positive where {where} of {model.placement!r} norms it, got 0")


def check_model(model: Any) -> None:
    """ModelError unless it is a Model."""
    if not isinstance(model, Model):
        raise ModelError(f"model must be a propagate.Model, got {shown(model)}")


def as_placement(value: Any) -> Placement:
    """A placement from its name, or the instance itself; ModelError otherwise."""
    if isinstance(value, Placement):
        return value
    if not isinstance(value, str):
        raise ModelError(f"placement must be a name or a Placement instance, got {shown(value)}")
    return placement(value)
