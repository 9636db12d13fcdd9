"""The description of multi-head latent attention, whose queries, keys and values pass a few coordinates on their way.

With h what enters, N the block's norm, d the width, d_q and d_kv the two ranks (arXiv:2405.04434, Section 2.1):

    c_q = N(W_DQ h),    query = a_q W_UQ c_q                   of each head, its last coordinates turned by positions
    c_kv = N(W_DKV h),  key = [a_kv W_UK c_kv ; W_KR h]        the second part turned, and shared by all heads
                        value = a_kv W_UV c_kv

a_q = sqrt(d / d_q) and a_kv = sqrt(d / d_kv) are the scale correction of LongCat-Flash (arXiv:2509.01322); without
it both are 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from propagate.checks import ModelError, check_flag, integer, number
from propagate.masks import Visible, all_visible, visible
from propagate.scaling import Gains, Number
from propagate.sublayers import (
    Attention,
    Sublayer,
    check_rows,
    checked_mask,
    of_head,
    rotary_frequencies,
    scaled_projections,
)

GAINS = ("query", "key", "rotary", "value", "out", "query_down", "key_value_down")
NORM_NAMES = frozenset(Attention.inner_norms)


@dataclass(frozen=True)
class LatentAttention(Sublayer):
    """Multi-head latent attention (MLA, arXiv:2405.04434), with or without LongCat-Flash's scale correction.

    Gains are standard deviations of a matrix's entries times sqrt(fan_in), and the fan-in of a matrix that reads a
    latent is its rank: of entries that are all drawn with one standard deviation, as `of_std` has them, the gains
    differ, and it is those that the correction makes up for.

    Attributes:
        heads: attention heads.
        head_size: coordinates of a query or key without positions; None is width / heads.
        rope_size: further ones, turned by positions, whose keys all heads share; None is half of `head_size`.
        value_size: coordinates of a value; None is `head_size`.
        query_rank: coordinates that queries pass; None means that they are made from the stream at once.
        key_value_rank: coordinates that keys and values pass; None is 4 `head_size`.
        scale_correction: whether queries are multiplied by sqrt(width / query_rank), keys without positions and values
            by sqrt(width / key_value_rank).
        causal, window, mask: which token attends to which; see `Model`.
        rope: base of rotary positions (arXiv:2104.09864); None means no positions.
        logit_std: factor on the logits, beside 1 / sqrt(head_size + rope_size); 0 is uniform attention.
        query_gain, key_gain, rotary_gain, value_gain, out_gain: of W_UQ (or of the one matrix of the queries), W_UK,
            W_KR, W_UV and the output matrix.
        query_down_gain, key_value_down_gain: of W_DQ and W_DKV; the norm undoes them, but for its `eps`.

    Raises:
        ModelError: names the field, the value and what is allowed.

    Example: DeepSeek-V3's sizes.
        >>> kind = LatentAttention(128, 128, query_rank=1536, scale_correction=True).fitted(width=7168, tokens=8)
        >>> kind.size, kind.rank, [round(kind.scale_of(name, 7168), 3) for name in ("query", "key", "value")]
        (192, 512, [2.16, 3.742, 3.742])
    """

    heads: int = 8
    head_size: int | None = None
    rope_size: int | None = None
    value_size: int | None = None
    query_rank: int | None = None
    key_value_rank: int | None = None
    scale_correction: bool = False
    causal: bool = False
    window: int | None = None
    mask: Any = None
    rope: float | None = None
    logit_std: float = 1.0
    query_gain: Number = 1.0
    key_gain: Number = 1.0
    rotary_gain: Number = 1.0
    value_gain: Number = 1.0
    out_gain: Number = 1.0
    query_down_gain: Number = 1.0
    key_value_down_gain: Number = 1.0
    normed: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "heads", integer("heads", self.heads))
        for field, least in (("head_size", 1), ("rope_size", 0), ("value_size", 1), ("window", 1)):
            if getattr(self, field) is not None:
                set_(self, field, integer(field, getattr(self, field), at_least=least))
        for field in ("query_rank", "key_value_rank"):
            if getattr(self, field) is not None:
                set_(self, field, integer(field, getattr(self, field)))
        check_flag("scale_correction", self.scale_correction)
        set_(self, "mask", checked_mask(self.causal, self.window, self.mask))
        for field, name in (
            ("logit_std", "logit_std"),
            *((f"{of}_gain", "attention_gain" if of == "out" else f"{of}_gain") for of in GAINS),
        ):
            set_(self, field, number(name, getattr(self, field), positive=name.endswith("down_gain")))
        if self.rope is not None:
            set_(self, "rope", number("rope", self.rope, positive=True))

    @classmethod
    def of_std(cls, std: float, width: int, **fields: Any) -> LatentAttention:
        """Of matrices whose entries all have this standard deviation, as released models have them.

        Args:
            std: of every entry.
            width: of the stream.
            fields: all others but gains; see `LatentAttention`.

        Example: queries and the rotary keys are alike with the correction, whatever the rank.
            >>> sizes = {"heads": 64, "head_size": 128, "query_rank": 1536}
            >>> kind = LatentAttention.of_std(0.02, 6144, **sizes, scale_correction=True)
            >>> round(kind.query_gain * kind.scale_of("query", 6144), 4) == round(kind.rotary_gain, 4)
            True
        """
        std = number("std", std, positive=True)
        gains = [name for name in fields if name.endswith("_gain")]
        if gains:
            raise ModelError(f"{gains[0]} must be left out beside std, from which it follows, got {fields[gains[0]]!r}")
        fitted = cls(**fields).fitted(width, 1 if fields.get("mask") is None else len(fields["mask"]))
        fan_ins = {
            "query": fitted.query_rank or width,
            "key": fitted.rank,
            "rotary": width,
            "value": fitted.rank,
            "out": fitted.inside,
            "query_down": width,
            "key_value_down": width,
        }
        made: dict[str, Any] = {f"{name}_gain": std * math.sqrt(fan_in) for name, fan_in in fan_ins.items()}
        return cls(**fields, **made)

    def fitted(self, width: int, tokens: int) -> LatentAttention:
        size = of_head(self.head_size, width, self.heads)
        check_rows(self.mask, tokens)
        turned = size // 2 if self.rope_size is None else self.rope_size
        if self.rope is not None and (turned % 2 or not turned):
            raise ModelError(f"rope must be None for rope_size={turned}, which is no number of pairs, got {self.rope}")
        rank = self.key_value_rank or 4 * size
        sizes = {"head_size": size, "rope_size": turned, "value_size": self.value_size or size, "key_value_rank": rank}
        return self.with_(**sizes)

    def scaled(self, gains: Gains) -> LatentAttention:
        return self.with_(rotary_gain=self.rotary_gain * gains.key, **scaled_projections(self, gains))

    def norming(self, names: Iterable[str]) -> LatentAttention:
        """Itself: it has norms of its own.

        Raises:
            ModelError: for any name.
        """
        if wanted := sorted(NORM_NAMES.intersection(names)):
            raise ModelError(
                f"normed must not name {', '.join(wanted)} beside LatentAttention, whose queries, keys and values pass"
                " norms of their own"
            )
        return self

    @property
    def plain_size(self) -> int:
        """Coordinates of a query or key that positions do not turn, once `fitted`."""
        assert self.head_size is not None
        return self.head_size

    @property
    def turned_size(self) -> int:
        """Coordinates that they turn."""
        assert self.rope_size is not None
        return self.rope_size

    @property
    def size(self) -> int:
        """Coordinates of a query or key."""
        return self.plain_size + self.turned_size

    @property
    def of_value(self) -> int:
        """Coordinates of a head's value."""
        assert self.value_size is not None
        return self.value_size

    @property
    def inside(self) -> int:
        """Coordinates of all heads' values together."""
        return self.heads * self.of_value

    @property
    def rank(self) -> int:
        """Coordinates that keys and values pass."""
        assert self.key_value_rank is not None
        return self.key_value_rank

    def scale_of(self, name: str, width: int) -> float:
        """What a "query", "key" or "value" is multiplied by behind its matrix, in a stream of this width."""
        rank = self.query_rank if name == "query" else self.key_value_rank
        return math.sqrt(width / rank) if self.scale_correction and rank else 1.0

    def logit_power(self, width: int, of_queries: Any = 1.0, of_shared: Any = 1.0) -> Any:
        """Variance of a logit between uncorrelated tokens, whose latents have variance 1.

        Args:
            width: of the stream.
            of_queries: variance of what queries are made of.
            of_shared: variance of the stream, of which the shared keys are made.

        Example: the correction makes up for ranks below the width.
            >>> sizes = {"heads": 4, "query_rank": 64, "key_value_rank": 32}
            >>> one = LatentAttention.of_std(0.02, 512, **sizes, scale_correction=True)
            >>> round(one.fitted(512, 8).logit_power(512), 6) == round((0.02**2 * 512) ** 2, 6)
            True
        """
        query, key = (getattr(self, f"{name}_gain") * self.scale_of(name, width) for name in ("query", "key"))
        keys = self.plain_size * key * key + self.turned_size * self.rotary_gain * self.rotary_gain * of_shared
        return self.logit_std * self.logit_std * query * query * of_queries * keys / self.size

    @property
    def kv_heads(self) -> int:
        """Heads that have values of their own: all."""
        return self.heads

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Angles, in radians a token, by which positions turn the pairs of the coordinates that they turn."""
        return rotary_frequencies(self.rope, self.turned_size)

    def matrices(self, width: int) -> Iterator[tuple[str, int, int, Number]]:
        """Of each matrix its name, fan-in, fan-out and gain; without queries and keys where attention is uniform.

        Example:
            >>> kind = LatentAttention(2, 4, query_rank=6).fitted(width=8, tokens=3)
            >>> {name: sides for name, *sides, _ in kind.matrices(8)}["query"]
            [6, 12]
        """
        size, rank = self.plain_size, self.rank
        if self.logit_std:
            if self.query_rank:
                yield "query_down", width, self.query_rank, self.query_down_gain
            yield "query", self.query_rank or width, self.heads * self.size, self.query_gain
            if self.turned_size:
                yield "key_rotary", width, self.turned_size, self.rotary_gain
        yield "key_value_down", width, rank, self.key_value_down_gain
        if self.logit_std:
            yield "key", rank, self.heads * size, self.key_gain
        yield "value", rank, self.inside, self.value_gain
        yield "attention_out", self.inside, width, self.out_gain

    def visible(self, tokens: int) -> Visible:
        """Which token, the row, attends to which, (tokens, tokens)."""
        return visible(tokens, self.causal, self.window, self.mask)

    def exchangeable(self, tokens: int) -> bool:
        """Whether it treats all tokens alike."""
        return self.rope is None and all_visible(tokens, self.causal, self.mask)


SelfAttention = Attention | LatentAttention
"""Softmax attention of a stream to itself."""
