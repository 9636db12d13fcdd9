"""Reads a placement's equations with streams of moments, records each step, and runs the steps backward.

The tape of one block is all that is kept: a single stream is uncorrelated with nothing but itself, so between blocks
its combination of atoms collapses to one atom, and cost grows linearly with depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from propagate.theory.functions import Scalar, sqrt
from propagate.theory.moments import Atom, Combination, Moments
from propagate.theory.sublayers import Sublayer

Pull = Callable[[Combination], Combination]


@dataclass(eq=False, slots=True)
class Tape:
    """The steps of one block: each stream made, with the streams it was made from and how its cotangent reaches them."""

    steps: list[tuple[Stream, list[tuple[Stream, Pull]]]] = field(default_factory=list)

    def record(self, value: Combination, *sources: tuple[Stream, Pull]) -> Stream:
        stream = Stream(value, self)
        self.steps.append((stream, list(sources)))
        return stream

    def pull(self, output: Stream, cotangent: Combination, source: Stream) -> Combination:
        """The cotangent at `source`, from the one at `output`."""
        cotangents = {output: cotangent}
        for made, sources in reversed(self.steps):
            arrived = cotangents.get(made)
            if arrived is None:
                continue
            for stream, pull in sources:
                part = pull(arrived)
                cotangents[stream] = cotangents[stream] + part if stream in cotangents else part
        return cotangents.get(source, Combination({}))


def _same(cotangent: Combination) -> Combination:
    return cotangent


class Stream:
    """A stream of moments, with the arithmetic that placements use."""

    __slots__ = ("tape", "value")

    def __init__(self, value: Combination, tape: Tape) -> None:
        self.value = value
        self.tape = tape

    def __add__(self, other: Stream) -> Stream:
        return self.tape.record(self.value + other.value, (self, _same), (other, _same))

    def __mul__(self, factor: Scalar) -> Stream:
        return self.tape.record(self.value * factor, (self, lambda cotangent: cotangent * factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: Scalar) -> Stream:
        return self * (1 / divisor)


@dataclass(frozen=True, slots=True)
class Block:
    """What a placement's equations see: the sublayers, the norm, and where in the network they are.

    RMSNorm and LayerNorm act alike in this limit: both divide by the root of the variance, because every branch's
    output has mean zero over coordinates.
    """

    index: Scalar
    depth: Scalar
    first: bool
    last: bool
    tape: Tape
    attention_map: Sublayer
    ffn_map: Sublayer

    def norm(self, x: Stream) -> Stream:
        scale = 1 / sqrt(x.value.moments().variance)
        return self.tape.record(x.value * scale, (x, lambda cotangent: cotangent * scale))

    def attention(self, x: Stream) -> Stream:
        return _branch(self.tape, self.attention_map, x)

    def ffn(self, x: Stream) -> Stream:
        return _branch(self.tape, self.ffn_map, x)


def _branch(tape: Tape, sublayer: Sublayer, x: Stream) -> Stream:
    moments = x.value.moments()

    def pull(cotangent: Combination) -> Combination:
        return Combination.of(Atom(sublayer.backward(moments, cotangent.moments())))

    return tape.record(Combination.of(Atom(sublayer.forward(moments))), (x, pull))


@dataclass(frozen=True, slots=True)
class Step:
    """One block, read: its input and output streams on one tape.

    Example: see `read`.
    """

    source: Stream
    output: Stream

    @property
    def moments(self) -> Moments:
        """Of the stream that leaves."""
        return self.output.value.moments()

    def pull(self, cotangent: Moments) -> Moments:
        """Moments of the cotangent at the stream that enters, from those at the stream that leaves."""
        return self.output.tape.pull(self.output, Combination.of(Atom(cotangent)), self.source).moments()


def read(equations: Callable[[Stream], Stream], tape: Tape, start: Moments) -> Step:
    """Run equations on a stream that starts with the given moments.

    Example: twice a stream has four times its variance, forward and backward.
        >>> step = read(lambda x: x + x, Tape(), Moments(1.0, 0.5))
        >>> step.moments, step.pull(Moments(1.0, 1.0))
        (Moments(variance=4.0, deviation=2.0), Moments(variance=4.0, deviation=4.0))
    """
    source = Stream(Combination.of(Atom(start)), tape)
    return Step(source, equations(source))
