"""What `fluctuations` covers, found out by reading a placement's equations without numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from propagate.model import Model, ModelError
from propagate.placement import split
from propagate.theory.units import KNOWN


class Stream:
    """Any stream: whatever is done with one gives another."""

    __array_ufunc__: ClassVar[None] = None  # an array times a stream is the stream's business

    def __add__(self, other: Stream) -> Stream:
        return self

    def __mul__(self, factor: Any) -> Stream:
        return self

    __rmul__ = __mul__
    __truediv__ = __mul__


@dataclass(frozen=True, slots=True)
class Block:
    """What a placement's equations see; raises ModelError at what is not covered."""

    model: Model
    index: int

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

    def std(self, x: Stream) -> NoReturn:
        self._refuse("the root mean square of a stream as a number")

    def _sublayer(self, name: str, x: Stream, normed: Sequence[str]) -> Stream:
        inside = self.model.inner_norms(name, normed)
        if inside:
            self._refuse(f"norms of {', '.join(sorted(inside))} inside {name}")
        return x

    def _refuse(self, what: str) -> NoReturn:
        raise ModelError(f"fluctuations does not cover {what}, got {self.model.placement!r}")


def check_covered(model: Model) -> None:
    """ModelError unless `fluctuations` covers the model.

    Raises:
        ModelError: for an activation whose units are not known, norms inside sublayers, tanh or the size of a stream,
            or several streams.

    Example:
        >>> check_covered(Model("olmo2", depth=2))
        Traceback (most recent call last):
        propagate.checks.ModelError: fluctuations does not cover norms of key, query inside attention, got OLMo2()
    """
    if model.activation not in KNOWN:
        raise ModelError(f"fluctuations covers {', '.join(sorted(KNOWN))}, got activation={model.activation!r}")
    placement = model.equations
    state = placement.embed(Stream(), Block(model, 0))
    for index in range(1, model.depth + 1):
        state = placement.block(state, Block(model, index))
    if split(state, Stream)[1] is not None:
        raise ModelError(f"fluctuations does not cover several streams or numbers between blocks, got {placement!r}")
    placement.readout(state, Block(model, model.depth + 1))
