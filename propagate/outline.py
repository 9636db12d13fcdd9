"""Which calls a placement makes, found by reading its equations with streams that hold nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from propagate.placement import Placement, check_factor, check_streams, check_term, split
from propagate.sublayers import Sublayer


class Call(NamedTuple):
    """One call.

    Attributes:
        verb: "attention", "ffn", "experts", "apply", "norm", "tanh" or "std".
        normed: inner projections that the call norms.
        description: of what `apply` was given.
        of_nothing: whether what it reads is 0 in every network.
        reads: the call that alone made what it reads, if one did: nothing was added.
    """

    verb: str
    normed: tuple[str, ...] = ()
    description: Sublayer | None = None
    of_nothing: bool = False
    reads: Call | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream of which nothing is known, unless it is `zero`; and the call that alone made it, if one did."""

    zero: bool = False
    made_by: Call | None = None
    __array_ufunc__: ClassVar[None] = None  # an array times a stream is the stream's business

    def __add__(self, other: Any) -> Stream:
        check_term(self, other)
        return Stream(self.zero and other.zero)

    __sub__ = __add__

    def __radd__(self, zero: int) -> Stream:
        """`sum` of streams begins with 0."""
        return self if zero == 0 else self + zero

    def __mul__(self, factor: Any) -> Stream:
        check_factor(self, factor)
        return Stream(self.zero or (isinstance(factor, int | float) and factor == 0), self.made_by)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Stream:
        check_factor(self, divisor)
        return self

    def __neg__(self) -> Stream:
        return self


@dataclass(frozen=True, slots=True)
class Block:
    """What a placement's equations see; writes down what they call.

    `silent` are the verbs whose sublayers give 0, because of a gain that is.
    """

    index: int
    depth: int
    silent: frozenset[str] = frozenset()
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
        self.made.append(Call(verb, tuple(normed), description, x.zero, x.made_by))
        return Stream(x.zero or verb in self.silent, self.made[-1])


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


def norms_of_nothing(placement: Placement, depth: int, silent: Callable[[int], frozenset[str]]) -> int | None:
    """The first block, 0 for the embedding and depth + 1 for the readout, that norms what is 0 in every network.

    Args:
        placement: the equations.
        depth: number of blocks.
        silent: of a block, the verbs whose sublayers give 0.

    Example: Peri-LN norms what its sublayers give.
        >>> from propagate.placement import placement
        >>> norms_of_nothing(placement("periln"), 4, lambda index: frozenset({"ffn"} if index == 3 else ()))
        3
    """
    state: Any = Stream()
    streams = 1
    for index in range(depth + 2):
        equations = {0: placement.embed, depth + 1: placement.readout}.get(index, placement.block)
        block = Block(index, depth, silent(index))
        state = equations(state, block)
        found = len(split(state, Stream)[0])
        if index > 0:
            last = index == depth + 1
            part = "readout" if last else "block"
            check_streams(placement, part, found=found, expected=1 if last else streams)
        streams = found
        if any(call.of_nothing for call in block.made if call.verb in ("norm", "std")):
            return index
    return None
