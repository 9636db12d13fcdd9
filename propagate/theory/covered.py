"""What bias and fluctuations cover, found out by reading a placement's equations without numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

from propagate.model import Model, ModelError
from propagate.placement import split
from propagate.theory.finite.units import KNOWN
from propagate.theory.tokens.gram import Gram

FAINT = 1e-8  # share of the mean over tokens below which its noise is not resolved


class Stream:
    """Any stream: whatever is done with one gives another."""

    __array_ufunc__: ClassVar[None] = None  # an array times a stream is the stream's business

    def __add__(self, other: Stream) -> Stream:
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
        beyond: filled with what the closed form of the fluctuations does not cover.
    """

    model: Model
    index: int
    what: str
    beyond: set[str] = field(default_factory=set)

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
        return x

    def attention(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        return self._sublayer("attention", x, normed)

    def ffn(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        return self._sublayer("ffn", x, normed)

    def tanh(self, x: Stream) -> NoReturn:
        self._refuse("tanh of a stream")

    def std(self, x: Stream) -> float:
        self.beyond.add("a stream's size")
        return 1.0

    def _sublayer(self, name: str, x: Stream, normed: Sequence[str]) -> Stream:
        inside = self.model.inner_norms(name, normed)
        if "hidden" in inside and self.model.norm == "layer":
            self._refuse("LayerNorm of hidden units")
        if inside:
            self.beyond.add("norms inside sublayers")
        return x

    def _refuse(self, what: str) -> NoReturn:
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

    Raises:
        ModelError: for an activation whose units are not known, weights that are not normal, rotary positions, experts,
            LayerNorm of hidden units, or tanh.

    Example: several streams are followed by samples.
        >>> check_covered(Model("prenorm", depth=2), "bias"), check_covered(Model("residual", depth=2), "bias")
        (True, False)
        >>> check_covered(Model("dyt", depth=2), "bias")
        Traceback (most recent call last):
        propagate.checks.ModelError: bias does not cover tanh of a stream, got DyT(alpha=0.5)
    """
    for name, plain in (("experts", None), ("rope", None)):
        if getattr(model, name) != plain:
            raise ModelError(f"{what} needs {name}={plain}, got {getattr(model, name)!r}")
    if model.activation not in KNOWN:
        raise ModelError(f"{what} covers {', '.join(sorted(KNOWN))}, got activation={model.activation!r}")
    if model.weights != "normal":
        raise ModelError(f"{what} needs weights='normal', got {model.weights!r}")
    placement, beyond = model.equations, set[str]()
    state = placement.embed(Stream(), Block(model, 0, what, beyond))
    for index in range(1, model.depth + 1):
        state = placement.block(state, Block(model, index, what, beyond))
    several = split(state, Stream)[1] is not None
    placement.readout(state, Block(model, model.depth + 1, what, beyond))
    plain = model.exchangeable and model.kv_heads == model.heads and model.dropout == 0
    return plain and not (beyond or several)
