"""Reads a placement's equations with streams of moments, records each step, and runs the steps backward.

The tape of one block is all that is needed at a time: between blocks the streams collapse to as many atoms with their
joint moments, and cost grows linearly with depth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import add, methodcaller
from typing import Any, ClassVar, NamedTuple

from propagate.model import ModelError
from propagate.placement import Layout, join, split
from propagate.theory.gaussian.functions import Scalar, sqrt
from propagate.theory.pairs.elementwise import Split, tanh
from propagate.theory.pairs.experts import Mixture
from propagate.theory.pairs.moments import NOTHING, Atom, Combination, Joint, Moments, correlated, joint_moments
from propagate.theory.pairs.products import Met, Products, behind_elementwise, entering, parts, products
from propagate.theory.reading.tape import sent_back

Pull = Callable[[Combination], Combination]
Sublayer = Callable[[Any, frozenset[str]], tuple[Any, Callable[[Any], Any]]]
"""From moments, of any resolution, and the names of what is normed inside, to the output's moments and the pull."""
ZERO = Combination({})


@dataclass(eq=False, slots=True)
class Tape:
    """The steps of one block: (a stream, one it was made from, how its cotangent reaches that one), in order.

    `lacking` says that the pull must see the very cotangents that arrive, for which two modes do not stand: because of
    what they lack, or to tell what reaches each matrix.
    """

    lacking: bool = False
    steps: list[tuple[Stream, Stream, Pull]] = field(default_factory=list)

    def record(self, value: Combination, *sources: tuple[Stream, Pull]) -> Stream:
        stream = Stream(value, self)
        for source, pull in sources:
            self.steps.append((stream, source, pull))
        return stream

    def pull(
        self, outputs: Sequence[Stream], cotangents: Sequence[Combination], sources: Sequence[Stream]
    ) -> list[Combination]:
        """The cotangents at `sources`, from those at `outputs`."""
        arrived = sent_back(self.steps, zip(outputs, cotangents, strict=True), add)
        return [arrived.get(source, ZERO) for source in sources]


def _same(cotangent: Combination) -> Combination:
    return cotangent


class Stream:
    """A stream of moments, with the arithmetic that placements use."""

    __slots__ = ("tape", "value")
    __array_ufunc__: ClassVar[None] = None  # an array times a stream is the stream's business

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

    RMSNorm and LayerNorm of a stream act alike in this limit: both divide by the root of the variance, because every
    branch's output has mean zero over coordinates. Only inside an FFN, where activations have a mean, do they differ.

    Attributes:
        inner_norms: `Model.inner_norms`.
        attention_map, ffn_map, tanh_map: the sublayers, for moments of one resolution.
        norm_scale: what a norm multiplies a stream by, from its moments.
    """

    index: Scalar
    depth: Scalar
    first: bool
    last: bool
    tape: Tape
    attention_map: Sublayer
    ffn_map: Sublayer
    inner_norms: Callable[[str, Any], frozenset[str]]
    tanh_map: Callable[[Any], Split] = tanh
    experts_map: Mixture | None = None
    dropout: float = 0.0
    norm_scale: Callable[[Any], Scalar] = methodcaller("norm_scale")

    def norm(self, x: Stream) -> Stream:
        scale = self.norm_scale(x.value.moments())
        if self.experts_map is None:
            return self.tape.record(x.value * scale, (x, lambda cotangent: cotangent * scale))
        # one direction of very many, which only the gates of experts notice
        return self.tape.record(x.value * scale, (x, lambda cotangent: _orthogonal(cotangent * scale, x.value)))

    def attention(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        return self._dropped(_branch(self.tape, self.attention_map, x, self.inner_norms("attention", normed)))

    def ffn(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        """The dense FFN or the mixture of experts, whichever the model has."""
        inside = self.inner_norms("ffn", normed)
        if self.experts_map is None:
            return self._dropped(_branch(self.tape, self.ffn_map, x, inside))
        output, kept, pull = self.experts_map(x.value.moments(), inside)
        atom = Atom(output)

        def back(cotangent: Combination) -> Combination:
            arriving = cotangent.moments()
            if arriving is NOTHING:
                return ZERO
            seen = parts(products(cotangent, cotangent), atom, x.value, self._odds)
            return Combination.of(Atom(pull(arriving, seen)))

        mixed = self.tape.record(Combination.of(atom), (x, back))
        return self._dropped(mixed if isinstance(kept, int | float) and kept == 0 else mixed + x * kept)

    def tanh(self, x: Stream) -> Stream:
        if not x.value.gaussian:
            raise ModelError(
                "tanh must be of a stream of Gaussian coordinates, but a tanh has gone into this one other than through"
                " a sublayer's matrices (identity experts hand their input on)"
            )
        slope, rest, pull, curvature = self.tanh_map(x.value.moments())

        def pulled(cotangent: Combination) -> Combination:
            arriving = cotangent.moments()
            if arriving is NOTHING:
                return ZERO
            atom = Atom(pull(arriving))
            if self.experts_map is not None and curvature is not None:
                atom.products = {atom: behind_elementwise(x.value, arriving.entries(), *curvature())}
            linear: Combination = cotangent * slope
            return linear + Combination.of(atom)

        return self.tape.record(x.value * slope + Combination.of(Atom(rest, gaussian=False)), (x, pulled))

    def std(self, x: Stream) -> Scalar:
        return x.value.moments().std()

    @property
    def _odds(self) -> Scalar:
        return self.dropout / (1 - self.dropout)

    def _dropped(self, x: Stream) -> Stream:
        """Dropout multiplies by masks of mean 1: it adds a stream uncorrelated with all else, also between tokens."""
        if self.dropout == 0:
            return x
        odds = sqrt(self._odds)

        def noisy(value: Combination) -> Combination:
            moments = value.moments()
            return value if moments is NOTHING else value + Combination.of(Atom(moments.unshared().times(odds)))

        return self.tape.record(noisy(x.value), (x, noisy))


def _orthogonal(cotangent: Combination, stream: Combination) -> Combination:
    return cotangent if cotangent.moments() is NOTHING else cotangent.orthogonal_to(stream)


def _branch(tape: Tape, sublayer: Sublayer, x: Stream, normed: frozenset[str]) -> Stream:
    output, pull = sublayer(x.value.moments(), normed)

    def pulled(cotangent: Combination) -> Combination:
        arriving = cotangent.moments()
        return ZERO if arriving is NOTHING else Combination.of(Atom(pull(arriving)))

    return tape.record(Combination.of(Atom(output)), (x, pulled))


class State(NamedTuple):
    """What passes from block to block.

    Attributes:
        joint: the streams' joint moments.
        layout: where streams and plain numbers stand.
        gaussian: whether the coordinates of each stream are; by default all are.
    """

    joint: Joint
    layout: Layout = None
    gaussian: tuple[bool, ...] = ()


def alone(moments: Moments) -> State:
    """The state of one stream alone."""
    return State(((moments,),))


Carried = Mapping[tuple[int, int], Products]
"""What scalar products of two cotangents that reach a block, by their numbers, with the streams that pass there know
beyond second moments per coordinate; directions by the streams' numbers."""


class BlockMap(NamedTuple):
    """What a block does to second moments: forward at one input, backward as a linear map.

    Attributes:
        output: what leaves.
        pull: from the joint moments of the cotangents at the streams that leave to those at the streams that enter.
        pull_lacking: the same together with what cotangents lack along streams, which only experts notice.
        skips: entry (i, j) is the factor with which stream j reaches stream i along skips alone, branches left out.
    """

    output: State
    pull: Callable[[Joint], Joint]
    pull_lacking: Callable[[Joint, Carried], tuple[Joint, Carried]]
    skips: tuple[tuple[Scalar, ...], ...]


def read(equations: Callable[[Any], Any], tape: Tape, start: State) -> BlockMap:
    """Run equations on streams that start with the given moments, then their tape backward.

    Example:
        >>> twice = read(lambda x: x + x, Tape(), alone(Moments(1.0, 0.5)))
        >>> twice.output.joint[0][0], twice.pull(((Moments(1.0, 0.25),),))[0][0]
        (Moments(variance=4.0, deviation=2.0), Moments(variance=4.0, deviation=1.0))
    """
    entered = correlated(start.joint)
    for atom, gaussian in zip(entered, start.gaussian, strict=False):
        atom.gaussian = gaussian
    sources = [Stream(Combination.of(atom), tape) for atom in entered]
    streams, layout = split(equations(join(sources, start.layout)), Stream)
    values = [stream.value for stream in streams]

    def pull(cotangents: Joint) -> Joint:
        arriving = [Combination.of(atom) for atom in correlated(cotangents)]
        return joint_moments(tape.pull(streams, arriving, sources))

    def pull_lacking(cotangents: Joint, carried: Carried) -> tuple[Joint, Carried]:
        atoms = correlated(cotangents)
        for i, atom in enumerate(atoms):
            atom.products = {atoms[j]: known.along(values.__getitem__) for (k, j), known in carried.items() if k == i}
        sent = tape.pull(streams, [Combination.of(atom) for atom in atoms], sources)
        numbered = list(enumerate(sent))
        met: Met = {}
        return joint_moments(sent), {
            (i, j): entering(products(g, h, met), entered) for i, g in numbered for j, h in numbered
        }

    skips = tuple(tuple(value.terms.get(atom, 0.0) for atom in entered) for value in values)
    output = State(joint_moments(values), layout, tuple(value.gaussian for value in values))
    if len(sources) == len(streams) == 1 and isinstance(start.joint[0][0], Moments) and not tape.lacking:
        on_two_modes = _on_two_modes(pull, tape)
        return BlockMap(output, on_two_modes, lambda cotangents, _: (on_two_modes(cotangents), {}), skips)
    return BlockMap(output, pull, pull_lacking, skips)


def _on_two_modes(pull: Callable[[Joint], Joint], tape: Tape) -> Callable[[Joint], Joint]:
    """The pull of one exchangeable stream: linear in two numbers, so two pulls say it all, and the tape is emptied.

    Nothing of a block then outlives it, however deep the network.
    """
    ((shared,),) = pull(((Moments(1.0, 0.0),),))
    ((independent,),) = pull(((Moments(1.0, 1.0),),))
    tape.steps.clear()

    def combined(cotangents: Joint) -> Joint:
        covariance, deviation = cotangents[0][0].covariance, cotangents[0][0].deviation
        variance = covariance * shared.variance + deviation * independent.variance
        return ((Moments(variance, covariance * shared.deviation + deviation * independent.deviation),),)

    return combined
