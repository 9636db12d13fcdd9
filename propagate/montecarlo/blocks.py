"""Reads a placement's equations with streams of arrays, records each step, and runs the steps backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import propagate.montecarlo.attention
import propagate.montecarlo.crossing
import propagate.montecarlo.experts
import propagate.montecarlo.ffn
import propagate.montecarlo.latent
import propagate.montecarlo.recurrent  # noqa: F401  # these register what the package covers
from propagate.layers import Layer
from propagate.model import Model
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import Backend
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.norms import norm, norm_of_kind
from propagate.montecarlo.operators import NORMS, dropout, tanh
from propagate.montecarlo.parameter_gradients import Norms
from propagate.montecarlo.pulls import Pull
from propagate.montecarlo.samplers import Sampler
from propagate.montecarlo.sublayers import CALLS as CALLS
from propagate.montecarlo.sublayers import MATRICES as MATRICES
from propagate.montecarlo.sublayers import Call, applied, site_of
from propagate.montecarlo.sublayers import apply as apply
from propagate.montecarlo.sums import added
from propagate.placement import Layout, check_factor, check_term, join, split
from propagate.sublayers import Sublayer, registered

Arrays = tuple[Array, ...]
StatePull = Callable[[Arrays], Arrays]


@dataclass(eq=False, slots=True)
class Tape:
    """The steps of one block: (a stream, one it was made from, how its cotangent reaches that one), in order.

    Streams are known by number: a tape that held them would be held by them, and such rings of references keep a
    block's arrays until Python's collector happens to run.
    """

    backend: Backend
    steps: list[tuple[int, int, Pull]] = field(default_factory=list)
    streams: int = 0

    def stream(self, *parts: Array) -> Stream:
        """A new stream, of one array or of the sum of two."""
        self.streams += 1
        return Stream(parts, self, self.streams)

    def pull(self, outputs: Sequence[int], cotangents: Arrays, sources: Sequence[Stream]) -> Arrays:
        """The cotangents at `sources`, from those at the streams numbered `outputs`."""
        arrived: dict[int, Array] = {}
        for number, cotangent in zip(outputs, cotangents, strict=True):
            arrived[number] = self.backend.add(arrived[number], cotangent) if number in arrived else cotangent
        for made, stream, pull in reversed(self.steps):
            if made not in arrived:
                continue
            if stream not in arrived:
                arrived[stream] = pull(arrived[made])
            else:
                arrived[stream] = added(self.backend, pull, arrived[made], arrived[stream])
        return tuple(arrived[x.number] if x.number in arrived else 0 * x.value for x in sources)


@dataclass(eq=False, slots=True)
class Stream:
    """An array of shape (draws, tokens, width), with the arithmetic that placements use.

    A sum stays two arrays until its value is asked for: a norm on a device adds them as it reads them.
    """

    parts: tuple[Array, ...]
    tape: Tape
    number: int
    __array_ufunc__: ClassVar[None] = None  # an array times a stream is the stream's business

    @property
    def value(self) -> Array:
        if len(self.parts) > 1:
            self.parts = (self.tape.backend.add(*self.parts),)
        return self.parts[0]

    def _derive(self, parts: tuple[Array, ...], *sources: tuple[Stream, Pull]) -> Stream:
        stream = self.tape.stream(*parts)
        self.tape.steps.extend((stream.number, source.number, pull) for source, pull in sources)
        return stream

    def apply(self, operator: Callable[[Array], tuple[Array, Pull]]) -> Stream:
        """The stream that an operator with a pull makes of this one."""
        value, pull = operator(self.value)
        return self._derive((value,), (self, pull))

    def of_parts(self, operator: Callable[..., tuple[Array, Pull]]) -> Stream:
        """The same, by an operator that can add up two parts itself."""
        value, pull = operator(*self.parts)
        return self._derive((value,), (self, pull))

    def __add__(self, other: Stream) -> Stream:
        check_term(self, other)
        return self._derive((self.value, other.value), (self, lambda g: g), (other, lambda g: g))

    def __mul__(self, factor: float | Array) -> Stream:
        check_factor(self, factor)
        return self.apply(lambda x: (x * factor, lambda g: g * factor))

    __rmul__ = __mul__

    def __radd__(self, zero: int) -> Stream:
        """`sum` of streams begins with 0."""
        return self if zero == 0 else self + zero  # type: ignore[operator]  # which is refused

    def __neg__(self) -> Stream:
        return self * -1

    def __sub__(self, other: Stream) -> Stream:
        return self + -other

    def __truediv__(self, divisor: float | Array) -> Stream:
        check_factor(self, divisor)
        return self * (1 / divisor)


@dataclass(frozen=True, slots=True)
class Block:
    """What a placement's equations see: the sublayers, the norm, and where in the network they are.

    With `norms`, sublayers note their matrices' gradients there while cotangents return.
    """

    model: Model
    backend: Backend
    sampler: Sampler
    index: int
    layer: Layer
    ranges: Iterator[int]
    normals: Normals | None = None
    norms: Norms | None = None

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
        function, kind = registered(norm.registry, self.layer.norm), self.layer.norm
        if function is norm_of_kind and self.backend.name == "cupy":
            return x.of_parts(lambda *parts: NORMS[kind.kind](self.backend, *parts, eps=kind.eps))
        return x.apply(lambda value: function(kind, value, self.backend))

    def attention(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        return self._applied(self.layer.norming(self.layer.attention, normed), x)

    def ffn(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        """The dense FFN, or the mixture of experts in its place."""
        return self._applied(self.layer.norming(self.layer.ffn, normed), x)

    def experts(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        return self._applied(self.layer.norming(self.layer.mixture, normed), x)

    def apply(self, description: Sublayer, x: Stream, normed: Sequence[str] = ()) -> Stream:
        """Any sublayer, as described."""
        return self._applied(self.layer.in_force(description, normed), x)

    def tanh(self, x: Stream) -> Stream:
        return x.apply(lambda value: tanh(self.backend, value))

    def std(self, x: Stream) -> Array:
        """One number a draw, of shape (draws, 1, 1)."""
        return self.backend.xp.sqrt((x.value * x.value).mean(axis=(-1, -2), keepdims=True))

    def _applied(self, description: Sublayer, x: Stream) -> Stream:
        own = (self.sampler, self.ranges, self.norms, self.normals)
        call = Call(description.call, self.index, self.backend, self.layer, *own)
        return self._dropped(x.apply(lambda value: applied(description, value, call)))

    def _dropped(self, x: Stream) -> Stream:
        if self.model.dropout == 0:
            return x
        assert self.normals is not None
        noise = self.normals(site_of(self.ranges), x.value.shape[1:])
        return x.apply(lambda value: dropout(self.backend, value, noise, self.model.dropout))


def block_of(
    model: Model,
    backend: Backend,
    sampler: Sampler,
    index: int,
    normals: Normals | None = None,
    norms: Norms | None = None,
    weights_of: int | None = None,
) -> Block:
    """The block a placement's equations see at `index`: 0 for the embedding, depth + 1 for the readout.

    `normals` decide what dropout drops; a model without dropout needs none. `norms` takes down the squared norms of the
    gradients of the block's matrices. `weights_of` is the block whose matrices it has, by default itself.
    """
    own = index if weights_of is None else weights_of
    ranges = iter(range(own * CALLS * MATRICES, (own + 1) * CALLS * MATRICES, MATRICES))
    return Block(model, backend, sampler, index, model.at(index), ranges, normals, norms)


class State(NamedTuple):
    """What passes from block to block: the arrays of the streams, and where they and plain numbers stand."""

    streams: Arrays
    layout: Layout = None


def read_state(equations: Callable[[Any, Any], Any], block: Any, state: State) -> tuple[State, StatePull]:
    """Run a placement's equations on a state: what leaves, and the pull from its cotangents to the state's.

    `block` is a `Block`, or offers what it does.
    """
    tape = Tape(block.backend)
    sources = [tape.stream(x) for x in state.streams]
    outputs, layout = split(equations(join(sources, state.layout), block), Stream)
    numbers = [output.number for output in outputs]
    return State(tuple(output.value for output in outputs), layout), lambda g: tape.pull(numbers, g, sources)


def read(equations: Callable[[Any, Any], Any], block: Any, x: Array) -> tuple[Array, Pull]:
    """The same for one stream: the array that leaves, and the pull from its cotangent to x's."""
    state, pull = read_state(equations, block, State((x,)))
    (y,) = state.streams
    return y, lambda g: pull((g,))[0]
