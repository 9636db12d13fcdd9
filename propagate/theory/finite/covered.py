"""What bias and fluctuations cover, found out by reading a placement's equations without numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import numpy as np

from propagate.layers import Layer
from propagate.model import Model, ModelError
from propagate.norms import Norm
from propagate.placement import split
from propagate.sublayers import FFN, Attention, Sublayer
from propagate.theory.reading.reader import Block, Made, Stream, Tape
from propagate.theory.tokens.gram import Gram

NORM, TANH = "a norm", "tanh"
BENT = "tanh of a stream, unless a sublayer or the output head reads it"
RESOLVED = 1e-10  # share of the variance that deviations are, above which second differences of them are kept
KEPT = 1e-6  # share to which they are made larger, for the next block, where they have become smaller; see `widening`
FAINT = 1e-8  # share of the mean over tokens below which its noise is not resolved


@dataclass(frozen=True, slots=True)
class Nature:
    """What is known of a stream without numbers: whether a tanh went into it. Sums of such streams are refused."""

    coverage: Coverage
    bent: bool = False

    def __add__(self, other: Nature) -> Nature:
        if self.bent or other.bent:
            self.coverage.refuse(BENT)
        return self

    def __mul__(self, factor: Any) -> Nature:
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Coverage:
    """What norms and sublayers of one block do to the nature of a stream; raises ModelError at what is not covered.

    Attributes:
        what: who asks: "bias" or "fluctuations".
        met: filled with what is used beside sublayers alone; of it the closed form of the fluctuations covers norms.
        called: filled with the sublayers that it calls, as in force.
    """

    model: Model
    index: int
    what: str
    met: set[str] = field(default_factory=set)
    called: list[Sublayer] = field(default_factory=list)

    @property
    def layer(self) -> Layer:
        return self.model.at(self.index)

    def norm(self, x: Nature) -> Made[Nature]:
        self._normed()
        self.met.add(NORM)
        return self._straight(x), _unused

    def sublayer(self, verb: str, description: Sublayer, x: Nature) -> Made[Nature]:
        cover = COVERED.get(type(description))
        if cover is None:
            self.refuse(f"{type(description).__name__}")
        cover(self, description)
        self.called.append(description)
        if not any(_alike(description, own) for own in (self.layer.attention, self.layer.ffn)):
            self.met.add("sublayers of a block's own")
        if getattr(description, "normed", ()):
            self._normed()
            self.met.add("norms inside sublayers")
        return Nature(self), _unused

    def tanh(self, x: Nature) -> Made[Nature]:
        if self.model.dropout > 0:
            self.refuse("tanh of a stream with dropout")
        self.met.add(TANH)
        return replace(self._straight(x), bent=True), _unused

    def std(self, x: Nature) -> float:
        self._straight(x)
        self.met.add("a stream's size")
        return 1.0

    def _normed(self) -> None:
        norm = self.layer.norm
        if type(norm) is not Norm or norm.eps != 0:
            self.refuse("a norm with eps" if type(norm) is Norm else type(norm).__name__)

    def _straight(self, x: Nature) -> Nature:
        if x.bent:
            self.refuse(BENT)
        return x

    def refuse(self, what: str) -> NoReturn:
        raise ModelError(f"{self.what} does not cover {what}, got {self.model.placement!r}")


def _unused(cotangent: Any) -> NoReturn:
    raise NotImplementedError("nothing is pulled back")


def _alike(description: Sublayer, own: Sublayer) -> bool:
    """Whether it is a block's own sublayer, but for inner norms that a call names."""
    return type(description) is type(own) and description.with_(normed=()) == own.with_(normed=())


def _cover_attention(block: Coverage, kind: Attention) -> None:
    model = block.model
    if kind.rope is not None and block.layer.norm.centred and {"query", "key"} & set(kind.normed):
        block.refuse("LayerNorm of queries or keys with rotary positions")
    if kind.inside != model.width:
        block.refuse(f"heads whose size is not width / heads ({kind.size} for {model.width} / {kind.heads})")
    if not kind.exchangeable(model.tokens) or kind.kv_heads != kind.heads:
        block.met.add("heads that share keys, or a mask")


def _cover_ffn(block: Coverage, kind: FFN) -> None:
    if "hidden" in kind.normed and block.layer.norm.centred:
        block.refuse("LayerNorm of hidden units")


COVERED: dict[type, Callable[[Coverage, Any], None]] = {Attention: _cover_attention, FFN: _cover_ffn}
"""What is asked of each sublayer; others are refused."""
GAINS = {Attention: {"value_gain": "value_gain", "out_gain": "attention_gain"}, FFN: {"out_gain": "ffn_gain"}}
"""Those without which a branch is 0, and what errors call them."""


def check_sampled(model: Model, what: str, start: Gram, cotangent: Gram) -> None:
    """ModelError where samples have nothing to be relative to: a branch, the mean over tokens, or the difference of
    two, that is 0.

    Example:
        >>> check_sampled(Model("prenorm", depth=2, ffn_gain=0.0), "bias", Gram.of([[1.0]]), Gram.of([[1.0]]))
        Traceback (most recent call last):
        propagate.checks.ModelError: ffn_gain must be positive for bias, got 0 in block 1
    """
    for block in _read(model, what)[1:-1]:
        for kind in block.called:
            for gain, name in GAINS[type(kind)].items():
                if getattr(kind, gain) == 0:
                    raise ModelError(f"{name} must be positive for {what}, got 0 in block {block.index}")
    covariance = float(start.matrix[0, -1])
    if model.tokens > 1 and start.matrix.mean() <= FAINT * start.variance.mean():
        raise ModelError(f"covariance must lie above -variance / (tokens - 1) for {what}, got {covariance!r}")
    if not cotangent.variance.all():
        raise ModelError(f"grad_variance must be positive for {what}, got 0")
    _check_distinct(what, start)


def _check_distinct(what: str, start: Gram) -> None:
    """ModelError where two tokens are the same and others are not: what those send back was measured to be another."""
    size = start.variance.max()
    apart = start.variance[:, None] + start.variance - 2 * start.matrix
    same = np.argwhere(np.triu(apart <= 2 * RESOLVED * size, k=1))
    if len(same) and apart.max() > 2 * RESOLVED * size:
        one, other = (int(token) + 1 for token in same[0])
        raise ModelError(f"{what} does not cover tokens of which some are the same, got tokens {one} and {other}")


def check_resolved(what: str, columns: Mapping[str, Any]) -> None:
    """ModelError where tokens are so alike, at the start or from one block to the next, that samples do not hold their
    differences; those that become alike over several blocks are followed, see `widening`.

    Example:
        >>> check_resolved("bias", {"variance": [1.0] * 4, "deviation": [0.5, 1e-5, 1e-9, 1e-12]})
        >>> check_resolved("bias", {"variance": [1.0, 1.0], "deviation": [0.5, 1e-20]})
        Traceback (most recent call last):
        propagate.checks.ModelError: bias covers tokens that differ by 1e-10 of their variance, got 1e-20 in block 1
    """
    if "deviation" not in columns:
        return
    variance, deviation = (np.asarray(columns[name], dtype=float) for name in ("variance", "deviation"))
    share = np.divide(deviation, variance, out=np.ones_like(variance), where=variance > 0)
    made_larger = 1.0
    for block, row in enumerate(share.reshape(len(share), -1)):
        known = row[np.isfinite(row)]
        held = known * made_larger
        if held.min() < RESOLVED:
            least = known.min()
            raise ModelError(
                f"{what} covers tokens that differ by {RESOLVED:g} of their variance, got {least:.3g} in block {block}"
            )
        made_larger *= widening(held.max())


def widening(share: float) -> float:
    """By how much squares of deviations of tokens that have become nearly one are made larger, before the next block.

    What is small is lost beside the mean over tokens by rounding. As long as deviations are small, a network answers to
    them linearly: of larger ones comes as much more, in every network, and of the mean what came of it before, to the
    order of a deviation.

    Example:
        >>> round(widening(1e-8)), widening(1e-3)
        (100, 1.0)
    """
    return KEPT / share if RESOLVED <= share < KEPT else 1.0


def check_covered(model: Model, what: str) -> bool:
    """Whether the fluctuations have a closed form; ModelError unless `what`, bias or fluctuations, covers the model.

    Experts are refused whole. What a router sends back is made of inner products of cotangents and experts' outputs, of
    order e, over e: their corrections are needed to order e^3, where samples have inner products to order e^2. And
    which experts are chosen jumps as the stream changes, so that averages over drawn routers are not differentiated
    path by path.

    Raises:
        ModelError: for weights that are not normal, experts, LayerNorm of hidden units, or of queries and keys with
            rotary positions, norms with eps, heads whose size is not width / heads, sublayers and norms of one's own;
            and for tanh with dropout or beside LayerNorm, or of which anything but a sublayer or the output head is
            made.

    Example: several streams, and tanh of one, are followed by samples.
        >>> check_covered(Model("prenorm", depth=2), "bias"), check_covered(Model("residual", depth=2), "bias")
        (True, False)
        >>> check_covered(Model("dyt", depth=2), "bias"), check_covered(Model("dyt", depth=2, dropout=0.1), "bias")
        Traceback (most recent call last):
        propagate.checks.ModelError: bias does not cover tanh of a stream with dropout, got DyT(alpha=0.5)
    """
    for parts in model.parts:
        if parts.experts is not None:
            raise ModelError(f"{what} needs experts=None, got {parts.experts!r}")
    if model.weights != "normal":
        raise ModelError(f"{what} needs weights='normal', got {model.weights!r}")
    met = _met(model, what)
    if any(parts.norm.centred for parts in model.parts) and met >= {NORM, TANH}:
        raise ModelError(f"{what} does not cover tanh of a stream beside norm='layer', got {model.placement!r}")
    return model.dropout == 0 and not met - {NORM}


def has_tanh(model: Model) -> bool:
    """Whether the placement takes tanh of a stream.

    Example:
        >>> has_tanh(Model("dyt", depth=1)), has_tanh(Model("prenorm", depth=1, activation="tanh"))
        (True, False)
    """
    return TANH in _met(model, "bias")


def _met(model: Model, what: str) -> set[str]:
    """What the placement's equations use beside sublayers; ModelError at what is not covered."""
    return set[str]().union(*(block.met for block in _read(model, what)))


def _read(model: Model, what: str) -> list[Coverage]:
    """Of the embedding, the blocks and the readout, once their equations have been read."""
    placement, found, tape = model.equations, list[Coverage](), Tape[Nature]()
    state: Any = None
    for index in range(model.depth + 2):
        coverage = Coverage(model, index, what)
        block = Block(index, model.depth, index == 1, index == model.depth, coverage.layer, coverage)
        state = Stream(Nature(coverage), tape) if index == 0 else state
        state = {0: placement.embed, model.depth + 1: placement.readout}.get(index, placement.block)(state, block)
        found.append(coverage)
        if index <= model.depth:
            streams, _ = split(state, Stream)
            if len(streams) > 1:
                coverage.met.add("several streams")
            if any(stream.value.bent for stream in streams):
                coverage.refuse(BENT)
    return found
