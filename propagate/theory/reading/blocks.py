"""Reads a placement's equations with streams of moments, records each step, and runs the steps backward.

The tape of one block is all that is needed at a time: between blocks the streams collapse to as many atoms with their
joint moments, and cost grows linearly with depth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import add, methodcaller
from typing import Any, ClassVar, NamedTuple

from propagate.checks import ModelError
from propagate.layers import Layer
from propagate.placement import Layout, join, split
from propagate.sublayers import Sublayer
from propagate.theory.gaussian.functions import Scalar, sqrt
from propagate.theory.pairs.elementwise import Split, tanh
from propagate.theory.pairs.moments import NOTHING, Atom, Combination, Joint, Moments, correlated, joint_moments
from propagate.theory.pairs.products import Met, Products, behind_elementwise, entering, parts, products
from propagate.theory.reading.tape import sent_back

Pull = Callable[[Combination], Combination]
ZERO = Combination({})


class NotExchangeable(Exception):
    """A sublayer that tells tokens apart was asked for its map of exchangeable ones: a walk must resolve them."""


class Applied(NamedTuple):
    """What a sublayer makes of its input's moments.

    Attributes:
        output: moments of its output, less `kept` times the input.
        pull: from those of the cotangent at that output to those of what comes back.
        kept: by what it hands its own input on, which identity experts do.
        through_gates: whether the pull also takes what the cotangent's products with this output and with the input
            know beyond second moments (`Seen`), which only gates of experts notice.
    """

    output: Any
    pull: Callable[..., Any]
    kept: Any = 0.0
    through_gates: bool = False


@dataclass(eq=False, slots=True)
class Call:
    """The record of one call of a sublayer or a norm: all that is asked of a walk is a function of these.

    Attributes:
        verb: "attention", "ffn", "experts", "norm", "tanh", or what a description names its calls after.
        description: as in force there; of norms the model's.
        entered: moments of its input.
        left: what it gives, dropout included.
        pull: its own, which knows how it was made.
        arrived: moments of every cotangent that came to its output, dropout passed, and what its products know beyond
            them. Empty where two modes stand for all cotangents.
    """

    verb: str
    description: Any
    entered: Any
    left: Combination
    pull: Any = None
    arrived: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Tape:
    """The steps of one block: (a stream, one it was made from, how its cotangent reaches that one), in order.

    `exact` says that the pull must see the very cotangents that arrive, for which two modes do not stand: because of
    what they lack, or to tell what reaches each matrix.
    """

    exact: bool = False
    steps: list[tuple[Stream, Stream, Pull]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

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

    def __radd__(self, zero: int) -> Stream:
        """`sum` of streams begins with 0."""
        return self if zero == 0 else NotImplemented

    def __neg__(self) -> Stream:
        return self * -1

    def __sub__(self, other: Stream) -> Stream:
        return self + -other

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
        layer: what the block is made of.
        apply_map: what a description in force makes of moments, of the resolution that is being carried.
        norm_scale: what a norm multiplies a stream by, from its moments.
        tanh_map: the hyperbolic tangent of a stream.
        dropout: of the branches' outputs.
        uneven: whether anywhere in the network experts notice what second moments do not hold.
    """

    index: Scalar
    depth: Scalar
    first: bool
    last: bool
    tape: Tape
    layer: Layer
    apply_map: Callable[[Sublayer, Any], Applied]
    norm_scale: Callable[[Any], Scalar] = methodcaller("norm_scale")
    tanh_map: Callable[[Any], Split] = tanh
    dropout: float = 0.0
    uneven: bool = False

    def norm(self, x: Stream) -> Stream:
        moments = x.value.moments()
        scale = self.norm_scale(moments)
        value = x.value * scale
        self.tape.calls.append(Call("norm", self.layer.norm, moments, value))
        if not self.uneven:
            return self.tape.record(value, (x, lambda cotangent: cotangent * scale))
        # one direction of very many, which only the gates of experts notice
        return self.tape.record(value, (x, lambda cotangent: _orthogonal(cotangent * scale, x.value)))

    def attention(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        return self._branch("attention", self.layer.norming(self.layer.attention, normed), x)

    def ffn(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        """The dense FFN or, where the placement calls no `experts`, the mixture of experts in its place."""
        return self._branch("ffn", self.layer.norming(self.layer.ffn, normed), x)

    def experts(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        return self._branch("experts", self.layer.norming(self.layer.mixture, normed), x)

    def apply(self, description: Sublayer, x: Stream, normed: Sequence[str] = ()) -> Stream:
        return self._branch(description.call, self.layer.in_force(description, normed), x)

    def _branch(self, verb: str, description: Sublayer, x: Stream) -> Stream:
        moments = x.value.moments()
        applied = self.apply_map(description, moments)
        atom, call = Atom(applied.output), Call(verb, description, moments, ZERO, applied.pull)
        self.tape.calls.append(call)

        def back(cotangent: Combination) -> Combination:
            arriving = cotangent.moments()
            if arriving is NOTHING:
                return ZERO
            if not applied.through_gates:
                call.arrived.append((arriving, None))
                return Combination.of(Atom(applied.pull(arriving)))
            seen = parts(products(cotangent, cotangent), atom, x.value, self._odds)
            call.arrived.append((arriving, seen))
            return Combination.of(Atom(applied.pull(arriving, seen)))

        made = self.tape.record(Combination.of(atom), (x, back))
        if not (isinstance(applied.kept, int | float) and applied.kept == 0):
            made = made + x * applied.kept
        if self.dropout:
            made = self._dropped(made)
        call.left = made.value
        return made

    def tanh(self, x: Stream) -> Stream:
        if not x.value.gaussian:
            raise ModelError(
                "tanh must be of a stream of Gaussian coordinates, but a tanh has gone into this one other than through"
                " a sublayer's matrices (identity experts hand their input on)"
            )
        moments = x.value.moments()
        slope, rest, pull, curvature = self.tanh_map(moments)

        def pulled(cotangent: Combination) -> Combination:
            arriving = cotangent.moments()
            if arriving is NOTHING:
                return ZERO
            atom = Atom(pull(arriving))
            if self.uneven and curvature is not None:
                atom.products = {atom: behind_elementwise(x.value, arriving.entries(), *curvature())}
            linear: Combination = cotangent * slope
            return linear + Combination.of(atom)

        value = x.value * slope + Combination.of(Atom(rest, gaussian=False))
        self.tape.calls.append(Call("tanh", None, moments, value))
        return self.tape.record(value, (x, pulled))

    def std(self, x: Stream) -> Scalar:
        return x.value.moments().std()

    @property
    def _odds(self) -> Scalar:
        return self.dropout / (1 - self.dropout)

    def _dropped(self, x: Stream) -> Stream:
        """Dropout multiplies by masks of mean 1: it adds a stream uncorrelated with all else, also between tokens."""
        odds = sqrt(self._odds)

        def noisy(value: Combination) -> Combination:
            moments = value.moments()
            return value if moments is NOTHING else value + Combination.of(Atom(moments.unshared().times(odds)))

        return self.tape.record(noisy(x.value), (x, noisy))


def _orthogonal(cotangent: Combination, stream: Combination) -> Combination:
    return cotangent if cotangent.moments() is NOTHING else cotangent.orthogonal_to(stream)


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
        calls: the records of its calls, in order.
    """

    output: State
    pull: Callable[[Joint], Joint]
    pull_lacking: Callable[[Joint, Carried], tuple[Joint, Carried]]
    skips: tuple[tuple[Scalar, ...], ...]
    calls: list[Call]


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
    if len(sources) == len(streams) == 1 and isinstance(start.joint[0][0], Moments) and not tape.exact:
        on_two_modes = _on_two_modes(pull, tape)
        return BlockMap(output, on_two_modes, lambda cotangents, _: (on_two_modes(cotangents), {}), skips, tape.calls)
    return BlockMap(output, pull, pull_lacking, skips, tape.calls)


def _on_two_modes(pull: Callable[[Joint], Joint], tape: Tape) -> Callable[[Joint], Joint]:
    """The pull of one exchangeable stream: linear in two numbers, so two pulls say it all, and the tape is emptied.

    Nothing of a block then outlives it, however deep the network.
    """
    ((shared,),) = pull(((Moments(1.0, 0.0),),))
    ((independent,),) = pull(((Moments(1.0, 1.0),),))
    tape.steps.clear()
    for call in tape.calls:
        call.arrived.clear()

    def combined(cotangents: Joint) -> Joint:
        covariance, deviation = cotangents[0][0].covariance, cotangents[0][0].deviation
        variance = covariance * shared.variance + deviation * independent.variance
        return ((Moments(variance, covariance * shared.deviation + deviation * independent.deviation),),)

    return combined
