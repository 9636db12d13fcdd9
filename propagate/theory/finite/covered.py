"""What bias and fluctuations cover, found out by reading a placement's equations without numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NoReturn

from propagate.model import Model, ModelError
from propagate.placement import split
from propagate.theory.tokens.gram import Gram

NORM, TANH = "a norm", "tanh"
BENT = "tanh of a stream, unless a sublayer or the output head reads it"
FAINT = 1e-8  # share of the mean over tokens below which its noise is not resolved


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Any stream: whatever is done with one gives another. That a tanh went into it is told to `block`."""

    block: Block
    bent: bool = False
    __array_ufunc__: ClassVar[None] = None  # an array times a stream is the stream's business

    def __add__(self, other: Stream) -> Stream:
        if self.bent or other.bent:
            self.block.refuse(BENT)
        return self

    def __radd__(self, zero: int) -> Stream:
        """`sum` of streams begins with 0."""
        return self if zero == 0 else NotImplemented

    def __neg__(self) -> Stream:
        return self * -1

    def __sub__(self, other: Stream) -> Stream:
        return self + -other

    def __mul__(self, factor: Any) -> Stream:
        return self

    __rmul__ = __mul__
    __truediv__ = __mul__


@dataclass(frozen=True, slots=True)
class Block:
    """What a placement's equations see; raises ModelError at what is not covered.

    Attributes:
        what: who asks: "bias" or "fluctuations".
        met: filled with what is used beside sublayers alone; of it the closed form of the fluctuations covers norms.
    """

    model: Model
    index: int
    what: str
    met: set[str] = field(default_factory=set)

    @property
    def depth(self) -> int:
        return self.model.depth

    @property
    def first(self) -> bool:
        return self.index == 1

    @property
    def last(self) -> bool:
        return self.index == self.model.depth

    def norm(self, x: Stream) -> Stream:
        self.met.add(NORM)
        return self._straight(x)

    def attention(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        return self._sublayer("attention", normed)

    def ffn(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        return self._sublayer("ffn", normed)

    def tanh(self, x: Stream) -> Stream:
        if self.model.dropout > 0:
            self.refuse("tanh of a stream with dropout")
        self.met.add(TANH)
        return replace(self._straight(x), bent=True)

    def std(self, x: Stream) -> float:
        self._straight(x)
        self.met.add("a stream's size")
        return 1.0

    def _sublayer(self, name: str, normed: Sequence[str]) -> Stream:
        inside = self.model.inner_norms(name, normed)
        if "hidden" in inside and self.model.norm == "layer":
            self.refuse("LayerNorm of hidden units")
        if inside:
            self.met.add("norms inside sublayers")
        return Stream(self)

    def _straight(self, x: Stream) -> Stream:
        if x.bent:
            self.refuse(BENT)
        return x

    def refuse(self, what: str) -> NoReturn:
        raise ModelError(f"{self.what} does not cover {what}, got {self.model.placement!r}")


def check_sampled(model: Model, what: str, start: Gram, cotangent: Gram) -> None:
    """ModelError where samples have nothing to be relative to: a branch, or the mean over tokens, that is 0.

    Example:
        >>> check_sampled(Model("prenorm", depth=2, ffn_gain=0.0), "bias", Gram.of([[1.0]]), Gram.of([[1.0]]))
        Traceback (most recent call last):
        propagate.checks.ModelError: ffn_gain must be positive for bias, got 0 in block 1
    """
    for index in range(1, model.depth + 1):
        gains = model.gains(index)
        for name, gain in (
            ("value_gain", gains.value),
            ("attention_gain", gains.attention_out),
            ("ffn_gain", gains.ffn_out),
        ):
            if gain == 0:
                raise ModelError(f"{name} must be positive for {what}, got 0 in block {index}")
    covariance = float(start.matrix[0, -1])
    if model.tokens > 1 and start.matrix.mean() <= FAINT * start.variance.mean():
        raise ModelError(f"covariance must lie above -variance / (tokens - 1) for {what}, got {covariance!r}")
    if not cotangent.variance.all():
        raise ModelError(f"grad_variance must be positive for {what}, got 0")


def check_covered(model: Model, what: str) -> bool:
    """Whether the fluctuations have a closed form; ModelError unless `what`, bias or fluctuations, covers the model.

    Experts are refused whole. What a router sends back is made of inner products of cotangents and experts' outputs, of
    order e, over e: their corrections are needed to order e^3, where samples have inner products to order e^2. And
    which experts are chosen jumps as the stream changes, so that averages over drawn routers are not differentiated
    path by path.

    Raises:
        ModelError: for weights that are not normal, rotary positions, experts, LayerNorm of hidden units; and for tanh
            with dropout or beside LayerNorm, or of which anything but a sublayer or the output head is made.

    Example: several streams, and tanh of one, are followed by samples.
        >>> check_covered(Model("prenorm", depth=2), "bias"), check_covered(Model("residual", depth=2), "bias")
        (True, False)
        >>> check_covered(Model("dyt", depth=2), "bias"), check_covered(Model("dyt", depth=2, dropout=0.1), "bias")
        Traceback (most recent call last):
        propagate.checks.ModelError: bias does not cover tanh of a stream with dropout, got DyT(alpha=0.5)
    """
    for name, plain in (("experts", None), ("rope", None)):
        if getattr(model, name) != plain:
            raise ModelError(f"{what} needs {name}={plain}, got {getattr(model, name)!r}")
    if model.weights != "normal":
        raise ModelError(f"{what} needs weights='normal', got {model.weights!r}")
    met = _met(model, what)
    if model.norm == "layer" and met >= {NORM, TANH}:
        raise ModelError(f"{what} does not cover tanh of a stream beside norm='layer', got {model.placement!r}")
    plain = model.exchangeable and model.kv_heads == model.heads and model.dropout == 0
    return plain and not met - {NORM}


def has_tanh(model: Model) -> bool:
    """Whether the placement takes tanh of a stream.

    Example:
        >>> has_tanh(Model("dyt", depth=1)), has_tanh(Model("prenorm", depth=1, activation="tanh"))
        (True, False)
    """
    return TANH in _met(model, "bias")


def _met(model: Model, what: str) -> set[str]:
    """What the placement's equations use; ModelError at what is not covered."""
    placement, met = model.equations, set[str]()
    block = Block(model, 0, what, met)
    state = placement.embed(Stream(block), block)
    for index in range(model.depth + 1):
        if index:
            block = Block(model, index, what, met)
            state = placement.block(state, block)
        streams, _ = split(state, Stream)
        if len(streams) > 1:
            met.add("several streams")
        if any(stream.bent for stream in streams):
            block.refuse(BENT)
    placement.readout(state, Block(model, model.depth + 1, what, met))
    return met
