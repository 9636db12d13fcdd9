"""Reads a placement's equations with streams of arrays, records each step, and runs the steps backward."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

from propagate.model import Model
from propagate.montecarlo.backend import Array, Backend
from propagate.montecarlo.cuda.weightless import Fused
from propagate.montecarlo.operators import (
    ACTIVATIONS,
    GATED,
    NORMS,
    Pull,
    in_one_pass,
    one_pass_attention,
    output_rms,
    rotary,
    softmax,
    tanh,
)
from propagate.montecarlo.samplers import Sampler
from propagate.placement import Layout, join, split
from propagate.scaling import Gains

Arrays = tuple[Array, ...]
StatePull = Callable[[Arrays], Arrays]
MATRICES = 4  # sites that one sublayer call may use
CALLS = 16  # sublayer calls that one block may make


@dataclass(eq=False, slots=True)
class Tape:
    """The steps of one block: (a stream, one it was made from, how its cotangent reaches that one), in order.

    Streams are known by number: a tape that held them would be held by them, and such rings of references keep a
    block's arrays until Python's collector happens to run.
    """

    steps: list[tuple[int, int, Pull]] = field(default_factory=list)
    streams: int = 0

    def stream(self, value: Array) -> Stream:
        """A new stream."""
        self.streams += 1
        return Stream(value, self, self.streams)

    def pull(self, outputs: Sequence[int], cotangents: Arrays, sources: Sequence[Stream]) -> Arrays:
        """The cotangents at `sources`, from those at the streams numbered `outputs`."""
        arrived: dict[int, Array] = {}
        for number, cotangent in zip(outputs, cotangents, strict=True):
            arrived[number] = arrived[number] + cotangent if number in arrived else cotangent
        for made, stream, pull in reversed(self.steps):
            if made in arrived:
                part = pull(arrived[made])
                arrived[stream] = arrived[stream] + part if stream in arrived else part
        return tuple(arrived[x.number] if x.number in arrived else 0 * x.value for x in sources)


@dataclass(eq=False, slots=True)
class Stream:
    """An array of shape (draws, tokens, width), with the arithmetic that placements use."""

    value: Array
    tape: Tape
    number: int
    __array_ufunc__: ClassVar[None] = None  # an array times a stream is the stream's business

    def _derive(self, value: Array, *sources: tuple[Stream, Pull]) -> Stream:
        stream = self.tape.stream(value)
        self.tape.steps.extend((stream.number, source.number, pull) for source, pull in sources)
        return stream

    def apply(self, operator: Callable[[Array], tuple[Array, Pull]]) -> Stream:
        """The stream that an operator with a pull makes of this one."""
        value, pull = operator(self.value)
        return self._derive(value, (self, pull))

    def __add__(self, other: Stream) -> Stream:
        return self._derive(self.value + other.value, (self, lambda g: g), (other, lambda g: g))

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
        return x.apply(lambda value: NORMS[self.model.norm](self.backend, value))

    def attention(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        site, inside = next(self.sites), self.model.inner_norms("attention", normed)
        return x.apply(lambda value: _attention(self, site, value, inside))

    def ffn(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        site, inside = next(self.sites), self.model.inner_norms("ffn", normed)
        return x.apply(lambda value: _ffn(self, site, value, inside))

    def tanh(self, x: Stream) -> Stream:
        return x.apply(lambda value: tanh(self.backend, value))

    def std(self, x: Stream) -> Array:
        """One number a draw, of shape (draws, 1, 1)."""
        return self.backend.xp.sqrt((x.value * x.value).mean(axis=(-1, -2), keepdims=True))


def block_of(model: Model, backend: Backend, sampler: Sampler, index: int) -> Block:
    """The block a placement's equations see at `index`: 0 for the embedding, depth + 1 for the readout."""
    sites = itertools.count(index * CALLS * MATRICES, MATRICES)
    return Block(model, backend, sampler, index, model.gains(max(index, 1)), sites)


class State(NamedTuple):
    """What passes from block to block: the arrays of the streams, and where they and plain numbers stand."""

    streams: Arrays
    layout: Layout = None


def read_state(equations: Callable[[Any, Any], Any], block: Any, state: State) -> tuple[State, StatePull]:
    """Run a placement's equations on a state: what leaves, and the pull from its cotangents to the state's.

    `block` is a `Block`, or offers what it does.
    """
    tape = Tape()
    sources = [tape.stream(x) for x in state.streams]
    outputs, layout = split(equations(join(sources, state.layout), block), Stream)
    numbers = [output.number for output in outputs]
    return State(tuple(output.value for output in outputs), layout), lambda g: tape.pull(numbers, g, sources)


def read(equations: Callable[[Any, Any], Any], block: Any, x: Array) -> tuple[Array, Pull]:
    """The same for one stream: the array that leaves, and the pull from its cotangent to x's."""
    state, pull = read_state(equations, block, State((x,)))
    (y,) = state.streams
    return y, lambda g: pull((g,))[0]


def _inner_norm(block: Block, name: str, normed: frozenset[str], x: Array) -> tuple[Array, Pull]:
    """The model's norm over the last axis, if `name` is among those normed."""
    return NORMS[block.model.norm](block.backend, x) if name in normed else (x, lambda g: g)


def _ffn(block: Block, site: int, x: Array, normed: frozenset[str]) -> tuple[Array, Pull]:
    model, gains, sampler = block.model, block.gains, block.sampler
    hidden = model.hidden * (2 if model.activation in GATED else 1)
    gain_out = gains.ffn_out if "hidden" in normed else gains.ffn_out / output_rms(model.activation)
    plain_relu = model.activation == "relu" and not normed
    if plain_relu and isinstance(sampler, Fused) and sampler.covers(model.tokens, model.width, hidden):
        return sampler.relu_ffn(x, site, hidden, model.width, gains.ffn_in, gain_out)
    before, pull_in = sampler(x, site, hidden, gains.ffn_in)
    after, pull_activation = ACTIVATIONS[model.activation](block.backend, before)
    after, pull_norm = _inner_norm(block, "hidden", normed, after)
    y, pull_out = sampler(after, site + 1, model.width, gain_out)
    return y, lambda g: pull_in(pull_activation(pull_norm(pull_out(g))))


def _attention(block: Block, site: int, x: Array, normed: frozenset[str]) -> tuple[Array, Pull]:
    model, gains = block.model, block.gains
    attended, pull_heads = (_uniform if model.logit_std == 0 else _softmax_heads)(block, site, x, normed)
    attended, pull_norm = _inner_norm(block, "heads", normed, attended)
    gain = gains.attention_out * (1 if normed & {"value", "heads"} else gains.value)
    y, pull_out = block.sampler(attended, site + 1, model.width, gain)
    return y, lambda g: pull_heads(pull_norm(pull_out(g)))


@lru_cache(maxsize=8)
def _visible(backend: Backend, model: Model) -> Array:
    """The model's mask on the device, put there once."""
    return backend.xp.asarray(model.visible)


def _split_heads(model: Model, x: Array) -> Array:
    """(draws, tokens, width) -> (draws, heads, tokens, width of a head)."""
    draws, tokens, width = x.shape
    return x.reshape(draws, tokens, model.heads, width // model.heads).swapaxes(1, 2)


def _merge_heads(x: Array) -> Array:
    """The inverse of `_split_heads`."""
    draws, heads, tokens, size = x.shape
    return x.swapaxes(1, 2).reshape(draws, tokens, heads * size)


def _uniform(block: Block, site: int, x: Array, normed: frozenset[str]) -> tuple[Array, Pull]:
    """Every token averages the values it may see."""
    visible = _visible(block.backend, block.model).astype(float)
    weights = (visible / visible.sum(axis=-1, keepdims=True)).astype(x.dtype)
    values, pull = block.sampler(x, site, block.model.width)
    heads, pull_norm = _inner_norm(block, "value", normed, _split_heads(block.model, values))
    return (
        _merge_heads(weights @ heads),
        lambda g: pull(_merge_heads(pull_norm(weights.T @ _split_heads(block.model, g)))),
    )


def _softmax_heads(block: Block, site: int, x: Array, normed: frozenset[str]) -> tuple[Array, Pull]:
    """Softmax attention of all heads, concatenated: (draws, tokens, width) -> the same shape."""
    model, xp = block.model, block.backend.xp
    tokens, width = x.shape[-2:]
    projected, pull_projection = block.sampler(x, site, 3 * width)
    gain = math.prod(getattr(block.gains, name) for name in ("query", "key") if name not in normed)
    scale = gain * model.logit_std / math.sqrt(width // model.heads)
    plain = model.window is None and model.mask is None and model.rope is None
    if plain and not normed & {"query", "key", "value"} and in_one_pass(block.backend, tokens):
        out, pull_heads = one_pass_attention(projected, model.heads, scale, causal=model.causal)
        return out, lambda g: pull_projection(pull_heads(g))
    (query, pull_query), (key, pull_key), (value, pull_value) = (
        _inner_norm(block, name, normed, _split_heads(model, part))
        for name, part in zip(("query", "key", "value"), xp.split(projected, 3, axis=-1), strict=True)
    )
    turn = rotary(block.backend, model.frequencies, tokens)
    query, key = turn(query, 1), turn(key, 1)
    logits = scale * (query @ key.swapaxes(-1, -2))
    if not model.visible.all():
        logits = xp.where(_visible(block.backend, model), logits, -xp.inf)
    weights, pull_softmax = softmax(block.backend, logits)

    def pull(g: Array) -> Array:
        g = _split_heads(model, g)
        logit_cotangent = scale * pull_softmax(g @ value.swapaxes(-1, -2))
        parts = (
            pull_query(turn(logit_cotangent @ key, -1)),
            pull_key(turn(logit_cotangent.swapaxes(-1, -2) @ query, -1)),
            pull_value(weights.swapaxes(-1, -2) @ g),
        )
        return pull_projection(xp.concatenate([_merge_heads(part) for part in parts], axis=-1))

    return _merge_heads(weights @ value), pull
