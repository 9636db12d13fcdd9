"""Reads a placement's equations with streams of arrays, records each step, and runs the steps backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from propagate.model import Model, ModelError
from propagate.montecarlo.attention import attention
from propagate.montecarlo.backend import Array, Backend
from propagate.montecarlo.cuda.weightless import Fused
from propagate.montecarlo.experts import mixture, norm_of_parts
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.operators import (
    ACTIVATIONS,
    GATED,
    NORMS,
    dropout,
    output_rms,
    tanh,
)
from propagate.montecarlo.pulls import AddingPull, Pull, chain
from propagate.montecarlo.samplers import Sampler
from propagate.placement import Layout, join, split
from propagate.scaling import Gains

Arrays = tuple[Array, ...]
StatePull = Callable[[Arrays], Arrays]
MATRICES = 4  # sites in the range that a call of an operator owns
CALLS = 16  # ranges that a block may use: one a sublayer call, one more for shared experts, one more for dropout


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
            elif isinstance(pull, AddingPull):
                arrived[stream] = pull.add(arrived[made], arrived[stream])
            else:
                arrived[stream] = self.backend.add(arrived[stream], pull(arrived[made]))
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

    def norm(self, operator: Callable[..., tuple[Array, Pull]]) -> Stream:
        """The same, by an operator that can add up two parts itself."""
        backend = self.tape.backend
        value, pull = operator(backend, *(self.parts if backend.name == "cupy" else (self.value,)))
        return self._derive((value,), (self, pull))

    def __add__(self, other: Stream) -> Stream:
        return self._derive((self.value, other.value), (self, lambda g: g), (other, lambda g: g))

    def __mul__(self, factor: float | Array) -> Stream:
        return self.apply(lambda x: (x * factor, lambda g: g * factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | Array) -> Stream:
        return self * (1 / divisor)


@dataclass(frozen=True, slots=True)
class Block:
    """What a placement's equations see: the sublayers, the norm, and where in the network they are."""

    model: Model
    backend: Backend
    sampler: Sampler
    index: int
    gains: Gains
    sites: Iterator[int]
    normals: Normals | None = None

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
        return x.norm(NORMS[self.model.at(self.index).norm.kind])

    def attention(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        site, inside = self._site(), self.model.inner_norms("attention", normed)
        return self._dropped(x.apply(lambda value: attention(self, site, value, inside)))

    def ffn(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        """The dense FFN or the mixture of experts, whichever the model has."""
        site, inside = self._site(), self.model.inner_norms("ffn", normed)
        experts = self.model.experts
        if experts is None:
            return self._dropped(x.apply(lambda value: _ffn(self, site, value, 1, inside)))
        y = x.apply(lambda value: mixture(self, site, value, inside))
        if experts.shared:  # side by side they are one FFN, as many times as wide
            shared_site = self._site()
            shared = x.apply(lambda value: _ffn(self, shared_site, value, experts.shared, inside))
            y = y + shared * math.sqrt(experts.shared)
        return self._dropped(y)

    def tanh(self, x: Stream) -> Stream:
        return x.apply(lambda value: tanh(self.backend, value))

    def std(self, x: Stream) -> Array:
        """One number a draw, of shape (draws, 1, 1)."""
        return self.backend.xp.sqrt((x.value * x.value).mean(axis=(-1, -2), keepdims=True))

    def _site(self) -> int:
        """The first site of a range of MATRICES that nothing else has."""
        site = next(self.sites, None)
        if site is None:
            raise ModelError(f"a block may use at most {CALLS} sublayers, shared experts and dropouts together")
        return site

    def _dropped(self, x: Stream) -> Stream:
        if self.model.dropout == 0:
            return x
        assert self.normals is not None
        noise = self.normals(self._site(), x.value.shape[1:])
        return x.apply(lambda value: dropout(self.backend, value, noise, self.model.dropout))


def block_of(model: Model, backend: Backend, sampler: Sampler, index: int, normals: Normals | None = None) -> Block:
    """The block a placement's equations see at `index`: 0 for the embedding, depth + 1 for the readout.

    `normals` decide what dropout drops; a model without dropout needs none.
    """
    sites = iter(range(index * CALLS * MATRICES, (index + 1) * CALLS * MATRICES, MATRICES))
    return Block(model, backend, sampler, index, model.gains(max(index, 1)), sites, normals)


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


def _ffn(block: Block, site: int, x: Array, count: int, normed: frozenset[str]) -> tuple[Array, Pull]:
    """So many FFNs side by side, each with hidden units that pass a norm of their own."""
    model, gains, sampler = block.model, block.gains, block.sampler
    hidden = count * model.hidden
    gain_out = gains.ffn_out if "hidden" in normed else gains.ffn_out / output_rms(model.activation)
    plain_relu = model.activation == "relu" and not normed
    if plain_relu and isinstance(sampler, Fused) and sampler.covers(model.tokens, model.width, hidden):
        return sampler.relu_ffn(x, site, hidden, model.width, gains.ffn_in, gain_out)
    before, pull_in = sampler(x, site, hidden * (2 if model.activation in GATED else 1), gains.ffn_in)
    after, pull_activation = ACTIVATIONS[model.activation](block.backend, before)
    parts, pull_norm = norm_of_parts(block, "hidden", normed, after.reshape(*after.shape[:2], count, -1))
    y, pull_out = sampler(parts.reshape(after.shape), site + 1, model.width, gain_out)
    back = chain(pull_out, lambda g: pull_norm(g.reshape(parts.shape)).reshape(after.shape), pull_activation, pull_in)
    return y, back
