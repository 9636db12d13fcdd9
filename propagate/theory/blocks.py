"""Reads a placement's equations with streams of moments, records each step, and runs the steps backward.

The tape of one block is all that is kept: a single stream is uncorrelated with nothing but itself, so between blocks
its combination of atoms collapses to one atom, and cost grows linearly with depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from propagate.theory.experts import Mixture, lacking
from propagate.theory.functions import Scalar, sqrt
from propagate.theory.moments import Atom, Combination, Moments
from propagate.theory.sublayers import Sublayer

Pull = Callable[[Combination], Combination]


@dataclass(eq=False, slots=True)
class Tape:
    """The steps of one block: (a stream, one it was made from, how its cotangent reaches that one), in order."""

    steps: list[tuple[Stream, Stream, Pull]] = field(default_factory=list)

    def record(self, value: Combination, *sources: tuple[Stream, Pull]) -> Stream:
        stream = Stream(value, self)
        for source, pull in sources:
            self.steps.append((stream, source, pull))
        return stream

    def pull(self, output: Stream, cotangent: Combination, source: Stream) -> Combination:
        """The cotangent at `source`, from the one at `output`."""
        cotangents = {output: cotangent}
        for made, stream, pull in reversed(self.steps):
            if made in cotangents:
                part = pull(cotangents[made])
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
        return self.__mul__(1 / divisor)


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
    experts_map: Mixture | None = None
    dropout: float = 0.0

    def norm(self, x: Stream) -> Stream:
        scale = x.value.moments().norm_scale()
        if self.experts_map is None:
            return self.tape.record(x.value * scale, (x, lambda cotangent: cotangent * scale))
        # one direction of very many, which only the gates of experts notice
        return self.tape.record(x.value * scale, (x, lambda cotangent: (cotangent * scale).orthogonal_to(x.value)))

    def attention(self, x: Stream) -> Stream:
        return self._dropped(_branch(self.tape, self.attention_map, x))

    def ffn(self, x: Stream) -> Stream:
        """The dense FFN or the mixture of experts, whichever the model has."""
        if self.experts_map is None:
            return self._dropped(_branch(self.tape, self.ffn_map, x))
        output, kept, pull = self.experts_map(x.value.moments())
        atom = Atom(output)

        def back(cotangent: Combination) -> Combination:
            return Combination.of(Atom(pull(cotangent.moments(), lacking(cotangent, atom))))

        return self._dropped(self.tape.record(Combination.of(atom), (x, back)) + x * kept)

    def _dropped(self, x: Stream) -> Stream:
        """Dropout multiplies by masks of mean 1: it adds a stream uncorrelated with all else, also between tokens."""
        if self.dropout == 0:
            return x
        odds = sqrt(self.dropout / (1 - self.dropout))

        def noisy(value: Combination) -> Combination:
            return value + Combination.of(Atom(value.moments().unshared().times(odds)))

        return self.tape.record(noisy(x.value), (x, noisy))


def _branch(tape: Tape, sublayer: Sublayer, x: Stream) -> Stream:
    output, pull = sublayer(x.value.moments())
    return tape.record(
        Combination.of(Atom(output)),
        (x, lambda cotangent: Combination.of(Atom(pull(cotangent.moments())))),
    )


class BlockMap(NamedTuple):
    """What a block does to second moments: forward at one input, backward as a linear map.

    Attributes:
        output: moments of the stream that leaves.
        shared: moments of the cotangent at the input, for a unit cotangent at the output that all tokens share.
        independent: the same for a unit cotangent that is independent between tokens.
        skip: gain of a second moment along the skip path alone, branches left out.
    """

    output: Moments
    shared: Moments
    independent: Moments
    skip: Scalar

    def pull(self, cotangent: Moments) -> Moments:
        """Moments of the cotangent at the input, from those at the output.

        Example:
            >>> twice = read(lambda x: x + x, Tape(), Moments(1.0, 0.5))
            >>> twice.output, twice.pull(Moments(1.0, 0.25))
            (Moments(variance=4.0, deviation=2.0), Moments(variance=4.0, deviation=1.0))
        """
        covariance, deviation = cotangent.covariance, cotangent.deviation
        return Moments(
            covariance * self.shared.variance + deviation * self.independent.variance,
            covariance * self.shared.deviation + deviation * self.independent.deviation,
        )


def read(equations: Callable[[Stream], Stream], tape: Tape, start: Moments) -> BlockMap:
    """Run equations on a stream that starts with the given moments, then their tape backward.

    The tape is emptied: nothing of a block outlives it but its map, however deep the network.
    """
    entered = Atom(start)
    source = Stream(Combination.of(entered), tape)
    output = equations(source)

    def pulled(cotangent: Moments) -> Moments:
        return tape.pull(output, Combination.of(Atom(cotangent)), source).moments()

    shared, independent = pulled(Moments(1.0, 0.0)), pulled(Moments(1.0, 1.0))
    tape.steps.clear()
    return BlockMap(output.value.moments(), shared, independent, output.value.terms.get(entered, 0.0) ** 2)
