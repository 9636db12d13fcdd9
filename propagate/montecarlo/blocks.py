"""Reads a placement's equations with streams of arrays, records each step, and runs the steps backward."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

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
    softmax,
)
from propagate.montecarlo.samplers import Sampler
from propagate.scaling import Gains

MATRICES = 4  # sites that one sublayer call may use
CALLS = 16  # sublayer calls that one block may make


@dataclass(eq=False, slots=True)
class Tape:
    """The steps of one block: (a stream, one it was made from, how its cotangent reaches that one), in order."""

    steps: list[tuple[Stream, Stream, Pull]] = field(default_factory=list)

    def pull(self, output: Stream, cotangent: Array, source: Stream) -> Array:
        """The cotangent at `source`, from the one at `output`."""
        arrived: dict[Stream, Array] = {output: cotangent}
        for made, stream, pull in reversed(self.steps):
            if made in arrived:
                part = pull(arrived[made])
                arrived[stream] = arrived[stream] + part if stream in arrived else part
        return arrived[source]


@dataclass(eq=False, slots=True)
class Stream:
    """An array of shape (draws, tokens, width), with the arithmetic that placements use."""

    value: Array
    tape: Tape

    def _derive(self, value: Array, *sources: tuple[Stream, Pull]) -> Stream:
        stream = Stream(value, self.tape)
        self.tape.steps.extend((stream, source, pull) for source, pull in sources)
        return stream

    def apply(self, operator: Callable[[Array], tuple[Array, Pull]]) -> Stream:
        """The stream that an operator with a pull makes of this one."""
        value, pull = operator(self.value)
        return self._derive(value, (self, pull))

    def __add__(self, other: Stream) -> Stream:
        return self._derive(self.value + other.value, (self, lambda g: g), (other, lambda g: g))

    def __mul__(self, factor: float) -> Stream:
        return self.apply(lambda x: (x * factor, lambda g: g * factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Stream:
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

    def attention(self, x: Stream) -> Stream:
        site = next(self.sites)
        return x.apply(lambda value: _attention(self, site, value))

    def ffn(self, x: Stream) -> Stream:
        site = next(self.sites)
        return x.apply(lambda value: _ffn(self, site, value))


def block_of(model: Model, backend: Backend, sampler: Sampler, index: int) -> Block:
    """The block a placement's equations see at `index`: 0 for the embedding, depth + 1 for the readout."""
    sites = itertools.count(index * CALLS * MATRICES, MATRICES)
    return Block(model, backend, sampler, index, model.gains(max(index, 1)), sites)


def read(equations: Callable[[Any, Any], Any], block: Any, x: Array) -> tuple[Array, Pull]:
    """Run a placement's equations on an array: the array that leaves, and the pull from its cotangent to x's.

    `block` is a `Block`, or offers what it does.
    """
    tape = Tape()
    source = Stream(x, tape)
    output = equations(source, block)
    if not isinstance(output, Stream):
        raise TypeError(f"a placement must return one stream, got {output!r}")
    return output.value, lambda g: tape.pull(output, g, source)


def _ffn(block: Block, site: int, x: Array) -> tuple[Array, Pull]:
    model, gains, sampler = block.model, block.gains, block.sampler
    hidden = model.hidden * (2 if model.activation in GATED else 1)
    gain_out = gains.ffn_out / output_rms(model.activation)
    if model.activation == "relu" and isinstance(sampler, Fused) and sampler.covers(model.tokens, model.width, hidden):
        return sampler.relu_ffn(x, site, hidden, model.width, gains.ffn_in, gain_out)
    before, pull_in = sampler(x, site, hidden, gains.ffn_in)
    after, pull_activation = ACTIVATIONS[model.activation](block.backend, before)
    y, pull_out = sampler(after, site + 1, model.width, gain_out)
    return y, lambda g: pull_in(pull_activation(pull_out(g)))


def _attention(block: Block, site: int, x: Array) -> tuple[Array, Pull]:
    model, gains = block.model, block.gains
    heads_out, pull_heads = (_uniform if model.logit_std == 0 else _softmax_heads)(block, site, x)
    y, pull_out = block.sampler(heads_out, site + 1, model.width, gains.value * gains.attention_out)
    return y, lambda g: pull_heads(pull_out(g))


def _uniform(block: Block, site: int, x: Array) -> tuple[Array, Pull]:
    """Every token averages the values it may see."""
    xp, tokens = block.backend.xp, x.shape[-2]
    weights = xp.tril(xp.ones((tokens, tokens))) if block.model.causal else xp.ones((tokens, tokens))
    weights = (weights / weights.sum(axis=-1, keepdims=True)).astype(x.dtype)
    values, pull = block.sampler(x, site, block.model.width)
    return weights @ values, lambda g: pull(weights.T @ g)


def _softmax_heads(block: Block, site: int, x: Array) -> tuple[Array, Pull]:
    """Softmax attention of all heads, concatenated: (draws, tokens, width) -> the same shape."""
    model, xp = block.model, block.backend.xp
    draws, tokens, width = x.shape
    size = width // model.heads

    def split(array: Array) -> Array:
        return array.reshape(draws, tokens, model.heads, size).swapaxes(1, 2)

    def merge(array: Array) -> Array:
        return array.swapaxes(1, 2).reshape(draws, tokens, width)

    projected, pull_projection = block.sampler(x, site, 3 * width)
    if in_one_pass(block.backend, tokens):
        scale = model.logit_std / math.sqrt(size)
        out, pull_heads = one_pass_attention(projected, model.heads, scale, causal=model.causal)
        return out, lambda g: pull_projection(pull_heads(g))
    query, key, value = (split(part) for part in xp.split(projected, 3, axis=-1))
    scale = model.logit_std / math.sqrt(size)
    logits = scale * (query @ key.swapaxes(-1, -2))
    if model.causal:
        logits = xp.where(xp.tri(tokens, dtype=bool), logits, -xp.inf)
    weights, pull_softmax = softmax(block.backend, logits)

    def pull(g: Array) -> Array:
        g = split(g)
        logit_cotangent = scale * pull_softmax(g @ value.swapaxes(-1, -2))
        parts = (
            logit_cotangent @ key,
            logit_cotangent.swapaxes(-1, -2) @ query,
            weights.swapaxes(-1, -2) @ g,
        )
        return pull_projection(xp.concatenate([merge(part) for part in parts], axis=-1))

    return merge(weights @ value), pull
