"""What the blocks of a network are made of, one by one: they may differ, and have every gain in force."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from propagate.checks import ModelError, choice, shown
from propagate.crossing import CrossAttention
from propagate.experts import Experts
from propagate.latent import LatentAttention
from propagate.norms import Norm, as_norm
from propagate.recurrent import LinearAttention, Mixer
from propagate.scaling import Gains
from propagate.sublayers import FFN, Attention, Sublayer

D = TypeVar("D", bound=Sublayer)
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "attention": (
        (Attention, LatentAttention, LinearAttention),
        "a propagate.Attention, propagate.LatentAttention or propagate.LinearAttention",
    ),
    "ffn": ((FFN,), "a propagate.FFN"),
    "experts": ((Experts, type(None)), "None or propagate.Experts, such as Experts(8)"),
    "norm": ((Norm,), "a name or a propagate.Norm"),
}
"""What a block may have of its own."""


@dataclass(frozen=True)
class Parts:
    """What a block is made of, before its gains and sizes are in force.

    Raises:
        ModelError: for what is no description of its kind.
    """

    attention: Mixer
    ffn: FFN
    experts: Experts | None
    norm: Norm

    def __post_init__(self) -> None:
        for field, (kinds, name) in KINDS.items():
            if not isinstance(getattr(self, field), kinds):
                raise ModelError(f"{field} must be {name}, got {shown(getattr(self, field))}")

    def unlike(self, other: Parts) -> dict[str, Any]:
        """What is not as in other parts."""
        return {name: value for name, value in self.__dict__.items() if value != other.__dict__[name]}

    def with_(self, own: Mapping[str, Any], where: str) -> Parts:
        """With some parts replaced; ModelError for others, `where` naming the block."""
        if not isinstance(own, Mapping):
            raise ModelError(f"layers must give a mapping for {where}, got {shown(own)}")
        for name in own:
            choice(f"layers, {where}:", name, tuple(self.__dict__))
        changed = {**self.__dict__, **own}
        try:
            return Parts(**changed | {"norm": as_norm(changed["norm"])})
        except ModelError as error:
            raise ModelError(f"layers, {where}: {error}") from None


def parts_by_block(common: Parts, layers: Any, depth: int) -> tuple[Parts, ...]:
    """The parts of blocks 1 ... depth.

    Args:
        common: of blocks that have none of their own.
        layers: None; or a function of the index; or a mapping from some indices, or a sequence over all; to a mapping
            from "attention", "ffn", "experts" or "norm" to its description.
        depth: number of blocks.

    Raises:
        ModelError: for anything else.

    Example: the first of three blocks is dense.
        >>> common = Parts(Attention(), FFN(), Experts(8), Norm())
        >>> [parts.experts is None for parts in parts_by_block(common, {1: {"experts": None}}, 3)]
        [True, False, False]
    """
    if layers is None:
        return (common,) * depth
    indices = range(1, depth + 1)
    if callable(layers):
        rows = {index: layers(index) for index in indices}
    elif isinstance(layers, Mapping):
        wrong = [index for index in layers if index not in indices]
        if wrong:
            raise ModelError(f"layers must be of blocks 1 to {depth}, got {shown(wrong[0])}")
        rows = dict(layers)
    elif isinstance(layers, Sequence) and not isinstance(layers, str) and len(layers) == depth:
        rows = dict(zip(indices, layers, strict=True))
    else:
        raise ModelError(
            f"layers must be None, a function of the block's index, a mapping or {depth} mappings, got {shown(layers)}"
        )
    return tuple(common.with_(rows.get(index) or {}, f"block {index}") for index in indices)


@dataclass(frozen=True)
class Layer:
    """What one block is made of, sizes and gains in force.

    Attributes:
        width, tokens: of the stream.
        gains: of the placement and the scaling together.
        inner_norms: names of the inner projections that every sublayer norms which has them.
        norm: of streams, and of inner projections.
        attention: what `block.attention` is.
        ffn: what `block.ffn` is: the dense FFN, or the mixture of experts in its place.
        experts: what `block.experts` is.
        dense: the FFN of experts that have none of their own, without gains.
    """

    width: int
    tokens: int
    gains: Gains
    inner_norms: tuple[str, ...]
    norm: Norm
    attention: Mixer
    ffn: FFN | Experts
    experts: Experts | None
    dense: FFN

    @property
    def silent(self) -> dict[str, list[str]]:
        """Gains of 0 that leave nothing of a sublayer's output, or of a projection that is normed, by its verb.

        Example:
            >>> layer_of(Parts(Attention(), FFN(out_gain=0.0), None, Norm()), Gains(), 512, 32, (), beside=False).silent
            {'ffn': ['ffn_gain']}
        """
        found: dict[str, list[str]] = {}
        for verb, description in (("attention", self.attention), ("ffn", self.ffn), ("experts", self.experts)):
            zero = [name for name, gain in _gains(description) if gain == 0]
            if zero:
                found[verb] = zero
        return found

    @property
    def mixture(self) -> Experts:
        """What `block.experts` is; ModelError where the block has none."""
        if self.experts is None:
            raise ModelError("experts must be given where the placement calls block.experts, got None")
        return self.experts

    def in_force(self, description: D, normed: Iterable[str] = ()) -> D:
        """Any description as this block applies it: its sizes filled in, times the block's gains, with inner norms.

        Raises:
            ModelError: for what is no description, sizes that do not fit, inner norms that it does not have, or heads
                too small to be normed.
        """
        if not isinstance(description, Sublayer):
            raise ModelError(f"block.apply takes a description, such as propagate.FFN(), got {shown(description)}")
        own = (self.dense, self.width, self.tokens, self.gains, self.inner_norms)
        found: D = _in_force(description, *own)
        return self.norming(found, normed)

    def norming(self, description: D, normed: Iterable[str] = ()) -> D:
        """What is in force already, with further inner norms; ModelError for those it cannot have."""
        found = description.norming(normed) if normed else description
        if isinstance(found, Attention | CrossAttention) and found.normed:
            self._check_normed(found)
        if isinstance(found, LatentAttention):
            self._check_ranks(found)
        return found

    def _check_ranks(self, attention: LatentAttention) -> None:
        """ModelError where a norm has too few coordinates."""
        for name in ("query_rank", "key_value_rank"):
            rank = getattr(attention, name)
            if rank is not None and rank < self.norm.smallest:
                raise ModelError(
                    f"{name} must be at least {self.norm.smallest} for norm={self.norm.kind!r}, got {rank}"
                )

    def _check_normed(self, attention: Attention | CrossAttention) -> None:
        """ModelError where a head is too small for its norm, or nothing is there to norm."""
        if {"query", "key", "value"} & set(attention.normed) and attention.size < self.norm.smallest:
            raise ModelError(
                f"heads must leave {self.norm.smallest} coordinates or more to each head that"
                f" norm={self.norm.kind!r} norms, got heads={attention.heads} for width={self.width}"
            )
        read = {"value": "value", "heads": "value"} | ({"query": "query", "key": "key"} if attention.logit_std else {})
        for name, projection in read.items():
            if name in attention.normed and getattr(attention, f"{projection}_gain") == 0:
                raise ModelError(f"{projection}_gain must be positive where the {name} of attention pass a norm, got 0")


def _gains(description: Sublayer | None) -> list[tuple[str, Any]]:
    """Gains on the way to a sublayer's output, by the names that a user knows."""
    if isinstance(description, Attention | LatentAttention | LinearAttention):
        return [("value_gain", description.value_gain), ("attention_gain", description.out_gain)]
    if isinstance(description, Experts):
        return [] if description.identity else _gains(description.expert)
    return [("ffn_gain", description.out_gain)] if isinstance(description, FFN) else []


def _in_force(description: Any, dense: FFN, width: int, tokens: int, gains: Gains, inner_norms: tuple[str, ...]) -> Any:
    if isinstance(description, Experts) and description.ffn is None:
        description = description.with_(ffn=dense)
    fitted = description.fitted(width, tokens).scaled(gains)
    if isinstance(fitted, LatentAttention):  # which refuses those of attention
        return fitted.norming(inner_norms)
    return fitted.norming([name for name in inner_norms if name in fitted.inner_norms])


@lru_cache(maxsize=4096)
def layer_of(
    parts: Parts, gains: Gains, width: int, tokens: int, inner_norms: tuple[str, ...], *, beside: bool
) -> Layer:
    """One block's parts in force.

    `beside` says that the experts stand beside the dense FFN, not in its place.

    Example:
        >>> parts = Parts(Attention(), FFN(), Experts(8), Norm())
        >>> layer = layer_of(parts, Gains(ffn_out=0.5), 512, 32, (), beside=False)
        >>> layer.attention.size, layer.ffn.expert.units, layer.ffn.expert.out_gain
        (64, 2048, 0.5)
    """

    def in_force(description: Any) -> Any:
        return _in_force(description, parts.ffn, width, tokens, gains, inner_norms)

    attention, dense = in_force(parts.attention), in_force(parts.ffn)
    experts = None if parts.experts is None else in_force(parts.experts)
    return Layer(
        width,
        tokens,
        gains,
        inner_norms,
        parts.norm,
        attention=attention,
        ffn=dense if beside or experts is None else experts,
        experts=experts,
        dense=parts.ffn,
    )
