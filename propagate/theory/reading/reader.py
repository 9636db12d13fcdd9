"""Reads a placement's equations: one stream, one tape and one block, whatever is carried in place of arrays.

What is carried - combinations of moments, responses to noise, vectors of a finite network - adds up and is multiplied
by numbers. An `Algebra` says what norms and sublayers do to it, and how a cotangent of that kind returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import add
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from propagate.layers import Layer
from propagate.placement import check_factor, check_term
from propagate.sublayers import Sublayer

V = TypeVar("V")
Pull = Callable[[Any], Any]
"""From the cotangent of what was made to that of what it was made from."""
Made = tuple[V, Pull]


class Algebra(Protocol[V]):
    """What is done to what is carried, and the pull of each."""

    def norm(self, x: V) -> Made[V]: ...
    def sublayer(self, verb: str, description: Sublayer, x: V) -> Made[V]: ...
    def tanh(self, x: V) -> Made[V]: ...
    def std(self, x: V) -> Any: ...


@dataclass(eq=False, slots=True)
class Tape(Generic[V]):
    """The steps of one block: (a stream, one it was made from, how its cotangent reaches that one), in order."""

    steps: list[tuple[Stream[V], Stream[V], Pull]] = field(default_factory=list)

    def record(self, value: V, *sources: tuple[Stream[V], Pull]) -> Stream[V]:
        stream = Stream(value, self)
        for source, pull in sources:
            self.steps.append((stream, source, pull))
        return stream

    def pull(
        self, outputs: Iterable[Stream[V]], cotangents: Iterable[Any], sources: Iterable[Stream[V]]
    ) -> list[Any | None]:
        """The cotangents at `sources`, from those at `outputs`; None where nothing arrives.

        Example: z = y + x with y = 3 x.
            >>> tape = Tape()
            >>> x = tape.record(1.0)
            >>> tape.pull([3 * x + x], [1.0], [x])
            [4.0]
        """
        arrived: dict[Stream[V], Any] = {}
        for stream, cotangent in zip(outputs, cotangents, strict=True):
            arrived[stream] = add(arrived[stream], cotangent) if stream in arrived else cotangent
        for made, stream, pull in reversed(self.steps):
            if made in arrived:
                part = pull(arrived[made])
                arrived[stream] = add(arrived[stream], part) if stream in arrived else part
        return [arrived.get(source) for source in sources]


def _same(cotangent: Any) -> Any:
    return cotangent


class Stream(Generic[V]):
    """A stream with the arithmetic that placements use."""

    __slots__ = ("tape", "value")
    __array_ufunc__: ClassVar[None] = None  # an array times a stream is the stream's business

    def __init__(self, value: V, tape: Tape[V]) -> None:
        self.value: Any = value
        self.tape = tape

    def __add__(self, other: Stream[V]) -> Stream[V]:
        check_term(self, other)
        return self.tape.record(self.value + other.value, (self, _same), (other, _same))

    def __radd__(self, zero: int) -> Stream[V]:
        """`sum` of streams begins with 0."""
        return self if zero == 0 else self + zero  # type: ignore[operator]  # which is refused

    def __neg__(self) -> Stream[V]:
        return self * -1

    def __sub__(self, other: Stream[V]) -> Stream[V]:
        return self + -other

    def __mul__(self, factor: Any) -> Stream[V]:
        check_factor(self, factor)
        return self.tape.record(self.value * factor, (self, lambda cotangent: cotangent * factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Stream[V]:
        check_factor(self, divisor)
        return self.__mul__(1 / divisor)


@dataclass(frozen=True, slots=True)
class Block(Generic[V]):
    """What a placement's equations see: the sublayers, the norm, and where in the network they are.

    Attributes:
        layer: what the block is made of.
        algebra: what is done to what is carried.
    """

    index: Any
    depth: Any
    first: bool
    last: bool
    layer: Layer
    algebra: Algebra[V]

    def norm(self, x: Stream[V]) -> Stream[V]:
        value, pull = self.algebra.norm(x.value)
        return x.tape.record(value, (x, pull))

    def attention(self, x: Stream[V], normed: Sequence[str] = ()) -> Stream[V]:
        return self._sublayer("attention", self.layer.norming(self.layer.attention, normed), x)

    def ffn(self, x: Stream[V], normed: Sequence[str] = ()) -> Stream[V]:
        """The dense FFN or, where the placement calls no `experts`, the mixture of experts in its place."""
        return self._sublayer("ffn", self.layer.norming(self.layer.ffn, normed), x)

    def experts(self, x: Stream[V], normed: Sequence[str] = ()) -> Stream[V]:
        return self._sublayer("experts", self.layer.norming(self.layer.mixture, normed), x)

    def apply(self, description: Sublayer, x: Stream[V], normed: Sequence[str] = ()) -> Stream[V]:
        return self._sublayer(description.call, self.layer.in_force(description, normed), x)

    def tanh(self, x: Stream[V]) -> Stream[V]:
        value, pull = self.algebra.tanh(x.value)
        return x.tape.record(value, (x, pull))

    def std(self, x: Stream[V]) -> Any:
        return self.algebra.std(x.value)

    def _sublayer(self, verb: str, description: Sublayer, x: Stream[V]) -> Stream[V]:
        value, pull = self.algebra.sublayer(verb, description, x.value)
        return x.tape.record(value, (x, pull))
