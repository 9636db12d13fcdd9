"""Which calls a placement makes, found by reading its equations with streams that hold nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from propagate.placement import Placement
from propagate.sublayers import Sublayer


class Call(NamedTuple):
    """One call.

    Attributes:
        verb: "attention", "ffn", "experts", "apply", "norm", "tanh" or "std".
        normed: inner projections that the call norms.
        description: of what `apply` was given.
    """

    verb: str
    normed: tuple[str, ...] = ()
    description: Sublayer | None = None


class Stream:
    """Any stream: whatever is done with one gives another."""

    __array_ufunc__: ClassVar[None] = None  # an array times a stream is the stream's business

    def __add__(self, other: Any) -> Stream:
        return self

    __radd__ = __sub__ = __mul__ = __rmul__ = __truediv__ = __add__

    def __neg__(self) -> Stream:
        return self


@dataclass(frozen=True, slots=True)
class Block:
    """What a placement's equations see; writes down what they call."""

    index: int
    depth: int
    made: list[Call] = field(default_factory=list)

    @property
    def first(self) -> bool:
        return self.index == 1

    @property
    def last(self) -> bool:
        return self.index == self.depth

    def attention(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        return self._call(x, "attention", normed)

    def ffn(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        return self._call(x, "ffn", normed)

    def experts(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        return self._call(x, "experts", normed)

    def apply(self, description: Sublayer, x: Stream, normed: Sequence[str] = ()) -> Stream:
        return self._call(x, "apply", normed, description)

    def norm(self, x: Stream) -> Stream:
        return self._call(x, "norm")

    def tanh(self, x: Stream) -> Stream:
        return self._call(x, "tanh")

    def std(self, x: Stream) -> float:
        self._call(x, "std")
        return 1.0

    def _call(self, x: Stream, verb: str, normed: Iterable[str] = (), description: Sublayer | None = None) -> Stream:
        self.made.append(Call(verb, tuple(normed), description))
        return x


def outline(placement: Placement, depth: int, index: int) -> list[Call]:
    """The calls of one block, in order.

    Example:
        >>> from propagate.placement import placement
        >>> [call.verb for call in outline(placement("spannorm"), depth=4, index=2)]
        ['attention', 'norm', 'ffn', 'norm']
    """
    block = Block(index, depth)
    state: Any = placement.embed(Stream(), Block(0, depth))
    placement.block(state, block)
    return block.made
