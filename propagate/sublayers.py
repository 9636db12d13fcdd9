"""Descriptions of sublayers: sizes, gains and inner norms, frozen, and nothing of how they are computed.

Each witness has one function `apply`, a `functools.singledispatch` on these classes. A description of one's own is a
frozen dataclass on `Sublayer`; a witness that has no function for it says so by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from propagate.activations import as_activation
from propagate.checks import ModelError, check_flag, choice, integer, number, shown
from propagate.masks import Mask, Visible, all_visible, visible
from propagate.scaling import Gains, Number


@dataclass(frozen=True)
class Sublayer:
    """Base of every description that `block.apply` takes: one frozen dataclass a kind of sublayer.

    Attributes:
        inner_norms: names of the inner projections that can pass the model's norm; listed in a field `normed`.
        alike: whether it treats all tokens alike, so that exchangeable tokens stay exchangeable.

    Example:
        >>> @dataclass(frozen=True)
        ... class TokenShift(Sublayer):
        ...     gain: float = 1.0
        >>> TokenShift(gain=2.0).call
        'tokenshift'
    """

    inner_norms: ClassVar[tuple[str, ...]] = ()
    alike: ClassVar[bool] = True

    @property
    def call(self) -> str:
        """What calls of it are named after, before their number in the block."""
        return type(self).__name__.lower()

    def exchangeable(self, tokens: int) -> bool:
        """Whether it treats all of so many tokens alike."""
        return self.alike

    def fitted(self, width: int, tokens: int) -> Self:
        """Checked against the size of the stream, with sizes that follow from it filled in.

        Raises:
            ModelError: names the field, the value and what is allowed.
        """
        return self

    def scaled(self, gains: Gains) -> Self:
        """With its gains times a block's."""
        return self

    def norming(self, names: Iterable[str]) -> Self:
        """With these inner projections normed too.

        Raises:
            ModelError: for names that it does not have.
        """
        wanted = as_names("normed", names, self.inner_norms)
        return self.with_(normed=tuple(sorted({*getattr(self, "normed", ()), *wanted}))) if wanted else self

    def with_(self, **changes: Any) -> Self:
        """A copy with other values, which are not checked again: blocks are many, and gains may be symbols.

        Example:
            >>> FFN("relu").with_(out_gain=2.0).out_gain
            2.0
        """
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, **changes)
        return copy


def of_head(given: int | None, width: int, heads: int) -> int:
    """Coordinates of a head: those given, or its share of the width.

    Raises:
        ModelError: unless there is such a share.
    """
    if given is not None:
        return given
    if width % heads:
        raise ModelError(f"heads must divide the width, got heads={heads} for width={width}")
    return width // heads


def scaled_projections(kind: Any, gains: Gains) -> dict[str, Number]:
    """What a block's gains make of those of queries, keys, values and output."""
    return {
        "query_gain": kind.query_gain * gains.query,
        "key_gain": kind.key_gain * gains.key,
        "value_gain": kind.value_gain * gains.value,
        "out_gain": kind.out_gain * gains.attention_out,
    }


@dataclass(frozen=True)
class Attention(Sublayer):
    """Softmax self-attention.

    Attributes:
        heads: attention heads; they divide the width unless `head_size` is given.
        key_value_heads: heads that have keys and values of their own (arXiv:2305.13245); see `Model`.
        head_size: coordinates of a head; None is width / heads.
        causal, window, mask: which token attends to which; see `Model`.
        rope: base of rotary positions (arXiv:2104.09864); None means no positions.
        logit_std: standard deviation of a logit between unit-variance, uncorrelated tokens at gains 1; 0 is uniform
            attention.
        query_gain, key_gain, value_gain, out_gain: standard deviation of a matrix's entries times sqrt(fan_in).
        normed: inner projections that pass the norm: "query", "key", "value" (head by head), "heads" (all together).

    Raises:
        ModelError: names the field, the value and what is allowed.

    Example: heads twice as large as width / heads.
        >>> wide = Attention(heads=8, head_size=128).fitted(width=512, tokens=32)
        >>> wide.inside, wide.kv_heads
        (1024, 8)
    """

    inner_norms: ClassVar[tuple[str, ...]] = ("query", "key", "value", "heads")

    heads: int = 8
    key_value_heads: int | None = None
    head_size: int | None = None
    causal: bool = False
    window: int | None = None
    mask: Any = None
    rope: float | None = None
    logit_std: float = 1.0
    query_gain: Number = 1.0
    key_gain: Number = 1.0
    value_gain: Number = 1.0
    out_gain: Number = 1.0
    normed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "heads", integer("heads", self.heads))
        for field in ("key_value_heads", "head_size", "window"):
            if getattr(self, field) is not None:
                set_(self, field, integer(field, getattr(self, field)))
        if self.heads % self.kv_heads:
            raise ModelError(
                f"key_value_heads must divide the heads, got key_value_heads={self.key_value_heads}"
                f" for heads={self.heads}"
            )
        for field, name in (
            ("logit_std", "logit_std"),
            ("query_gain", "query_gain"),
            ("key_gain", "key_gain"),
            ("value_gain", "value_gain"),
            ("out_gain", "attention_gain"),
        ):
            set_(self, field, number(name, getattr(self, field), positive=False))
        set_(self, "normed", as_names("normed", self.normed, self.inner_norms))
        set_(self, "mask", checked_mask(self.causal, self.window, self.mask))
        if self.rope is not None:
            set_(self, "rope", number("rope", self.rope, positive=True))

    def fitted(self, width: int, tokens: int) -> Attention:
        size = of_head(self.head_size, width, self.heads)
        check_rows(self.mask, tokens)
        if self.rope is not None and size % 2:
            raise ModelError(f"rope must be None for heads of odd width {size}, got {self.rope}")
        return self.with_(head_size=size)

    def scaled(self, gains: Gains) -> Attention:
        return self.with_(**scaled_projections(self, gains))

    @property
    def kv_heads(self) -> int:
        """Heads that have keys and values of their own."""
        return self.heads if self.key_value_heads is None else self.key_value_heads

    @property
    def size(self) -> int:
        """Coordinates of a head, once `fitted`."""
        assert self.head_size is not None
        return self.head_size

    @property
    def inside(self) -> int:
        """Coordinates of all heads together, once `fitted`."""
        return self.heads * self.size

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Angles, in radians a token, by which rotary positions turn the pairs of coordinates of a head."""
        return rotary_frequencies(self.rope, self.size)

    def visible(self, tokens: int) -> Visible:
        """Which token, the row, attends to which, (tokens, tokens)."""
        return visible(tokens, self.causal, self.window, self.mask)

    def exchangeable(self, tokens: int) -> bool:
        """Whether it treats all tokens alike."""
        return self.rope is None and all_visible(tokens, self.causal, self.mask)


def checked_mask(causal: Any, window: int | None, mask: Any) -> Mask | None:
    """The mask as one.

    Raises:
        ModelError: for what is none, or beside `causal`; or a window without that.

    Example:
        >>> checked_mask(False, 3, None)
        Traceback (most recent call last):
        propagate.checks.ModelError: window must be None unless causal=True, got 3
    """
    check_flag("causal", causal)
    if window is not None and not causal:
        raise ModelError(f"window must be None unless causal=True, got {window}")
    if mask is None:
        return None
    try:
        found = Mask.of(mask)
    except ValueError as error:
        raise ModelError(f"mask must be {error}") from None
    if causal:
        raise ModelError(f"mask must be None with causal=True (it says all by itself), got {found}")
    return found


def check_rows(mask: Mask | None, tokens: int) -> None:
    """ModelError unless a mask has a row for each of so many tokens."""
    if mask is not None and len(mask.rows) != tokens:
        raise ModelError(f"mask must have {tokens} rows, one a token, got {len(mask.rows)}")


def rotary_frequencies(rope: float | None, size: int) -> tuple[float, ...]:
    """Angles, in radians a token, of the pairs of so many coordinates; none without a base.

    Example:
        >>> rotary_frequencies(100.0, 4)
        (1.0, 0.1)
    """
    return () if rope is None else tuple(rope ** (-2 * pair / size) for pair in range(size // 2))


@dataclass(frozen=True)
class FFN(Sublayer):
    """A feed-forward layer, W_out phi(W_in x), or W_out (phi(W_gate x) * W_in x) where the activation is gated.

    Attributes:
        activation: a name, or an `Activation` of your own.
        ratio: hidden width over the width of the stream (of each half where it is gated).
        hidden: hidden width in units, in place of `ratio`; None is round(ratio * width).
        in_gain: gain of the input matrices, of both where it is gated.
        gate_gain: a further gain of the gate's own matrix.
        out_gain: root mean square of the output when the input has variance 1 and the other gains are 1.
        normed: ("hidden",) puts the model's norm before the output matrix.

    Raises:
        ModelError: names the field, the value and what is allowed.

    Example:
        >>> FFN("swiglu", ratio=8 / 3).fitted(width=96, tokens=4).hidden
        256
    """

    inner_norms: ClassVar[tuple[str, ...]] = ("hidden",)

    activation: Any = "relu"
    ratio: float = 4.0
    hidden: int | None = None
    in_gain: Number = 1.0
    gate_gain: Number = 1.0
    out_gain: Number = 1.0
    normed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "activation", as_activation(self.activation))
        object.__setattr__(self, "ratio", number("ffn_ratio", self.ratio, positive=True))
        if self.hidden is not None:
            object.__setattr__(self, "hidden", integer("hidden", self.hidden))
        for field, name in (("in_gain", "in_gain"), ("gate_gain", "gate_gain"), ("out_gain", "ffn_gain")):
            object.__setattr__(self, field, number(name, getattr(self, field), positive=False))
        if self.gate_gain != 1 and not self.activation.gated:
            raise ModelError(f"gate_gain must be 1 for {self.activation!r}, which has no gate, got {self.gate_gain!r}")
        object.__setattr__(self, "normed", as_names("normed", self.normed, self.inner_norms))

    def fitted(self, width: int, tokens: int) -> FFN:
        hidden = self.hidden or round(self.ratio * width)
        if hidden < 1:
            raise ModelError(f"ffn_ratio leaves no hidden unit, got ffn_ratio={self.ratio} at width={width}")
        return self.with_(hidden=hidden)

    def scaled(self, gains: Gains) -> FFN:
        return self.with_(
            in_gain=self.in_gain * gains.ffn_in,
            gate_gain=self.gate_gain * gains.ffn_gate,
            out_gain=self.out_gain * gains.ffn_out,
        )

    @property
    def units(self) -> int:
        """Hidden width, once `fitted`."""
        assert self.hidden is not None
        return self.hidden


def registered(registry: Mapping[Any, Any], description: Any) -> Any:
    """The function registered for this very kind of description, or the one that refuses all others.

    One that inherits from another kind may mean another thing: it needs a function of its own.

    Args:
        registry: of a `functools.singledispatch` function, `apply.registry`.
        description: of a sublayer or a norm.

    Example:
        >>> from functools import singledispatch
        >>> @singledispatch
        ... def covers(description):
        ...     return False
        >>> @covers.register
        ... def _(description: FFN):
        ...     return True
        >>> class Sparse(FFN): ...
        >>> [registered(covers.registry, kind)(kind) for kind in (FFN(), Sparse())]
        [True, False]
    """
    return registry.get(type(description), registry[object])


def as_names(field: str, value: Any, allowed: Iterable[str]) -> tuple[str, ...]:
    """A sorted tuple of allowed names, each once.

    Raises:
        ModelError: for what is no tuple, list or set of them.

    Example:
        >>> as_names("normed", ["key", "query", "key"], ("query", "key"))
        ('key', 'query')
    """
    if isinstance(value, str) or not isinstance(value, tuple | list | set | frozenset):
        raise ModelError(f"{field} must be a tuple of names, got {shown(value)}")
    for name in value:
        choice(field, name, tuple(allowed))
    return tuple(sorted(set(value)))
