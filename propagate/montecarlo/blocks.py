"""Reads a placement's equations with streams of arrays, records each step, and runs the steps backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from propagate.model import Model, ModelError
from propagate.montecarlo.backend import Array, Backend
from propagate.montecarlo.experts import mixture
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.operators import (
    ACTIVATIONS,
    GATED,
    NORMS,
    Pull,
    dropout,
    in_one_pass,
    one_pass_attention,
    output_rms,
    softmax,
)
from propagate.montecarlo.samplers import Sampler
from propagate.scaling import Gains

MATRICES = 4  # sites in the range that a call of an operator owns
CALLS = 16  # ranges that a block may use: one a sublayer call, one more for shared experts, one more for dropout


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
        return x.apply(lambda value: NORMS[self.model.norm](self.backend, value))

    def attention(self, x: Stream) -> Stream:
        site = self._site()
        return self._dropped(x.apply(lambda value: _attention(self, site, value)))

    def ffn(self, x: Stream) -> Stream:
        """The dense FFN or the mixture of experts, whichever the model has."""
        site = self._site()
        experts = self.model.experts
        if experts is None:
            return self._dropped(x.apply(lambda value: _ffn(self, site, value, self.model.hidden)))
        y = x.apply(lambda value: mixture(self, site, value))
        if experts.shared:  # side by side they are one FFN, as many times as wide
            shared_site, hidden = self._site(), experts.shared * self.model.hidden
            y = y + x.apply(lambda value: _ffn(self, shared_site, value, hidden)) * math.sqrt(experts.shared)
        return self._dropped(y)

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


def read(equations: Callable[[Any, Block], Any], block: Block, x: Array) -> tuple[Array, Pull]:
    """Run a placement's equations on an array: the array that leaves, and the pull from its cotangent to x's."""
    tape = Tape()
    source = Stream(x, tape)
    output = equations(source, block)
    if not isinstance(output, Stream):
        raise TypeError(f"a placement must return one stream, got {output!r}")
    return output.value, lambda g: tape.pull(output, g, source)


def _ffn(block: Block, site: int, x: Array, hidden: int) -> tuple[Array, Pull]:
    model, gains = block.model, block.gains
    before, pull_in = block.sampler(x, site, hidden * (2 if model.activation in GATED else 1))
    after, pull_activation = ACTIVATIONS[model.activation](block.backend, _times(before, gains.ffn_in))
    y, pull_out = block.sampler(after, site + 1, model.width)
    scale = gains.ffn_out / output_rms(model.activation)
    return _times(y, scale), lambda g: pull_in(_times(pull_activation(pull_out(_times(g, scale))), gains.ffn_in))


def _times(x: Array, factor: float) -> Array:
    """Most factors are 1, and a pass over the array is not free."""
    return x if factor == 1 else x * factor


def _attention(block: Block, site: int, x: Array) -> tuple[Array, Pull]:
    model, gains = block.model, block.gains
    heads_out, pull_heads = (_uniform if model.logit_std == 0 else _softmax_heads)(block, site, x)
    y, pull_out = block.sampler(heads_out, site + 1, model.width)
    scale = gains.value * gains.attention_out
    return _times(y, scale), lambda g: pull_heads(pull_out(_times(g, scale)))


def _uniform(block: Block, site: int, x: Array) -> tuple[Array, Pull]:
    """Every token averages the values it may see."""
    xp, tokens = block.backend.xp, x.shape[-2]
    weights = xp.tril(xp.ones((tokens, tokens))) if block.model.causal else xp.ones((tokens, tokens))
    weights = (weights / weights.sum(axis=-1, keepdims=True)).astype(x.dtype)
    heads, size = block.model.kv_heads, block.model.width // block.model.heads
    values, pull = block.sampler(x, site, heads * size)
    if heads == block.model.heads:
        return weights @ values, lambda g: pull(weights.T @ g)
    split = (x.shape[0], tokens, heads, 1, size)  # every value head serves a group of the heads
    groups = (x.shape[0], tokens, heads, block.model.heads // heads, size)
    shared = xp.broadcast_to((weights @ values).reshape(split), groups).reshape(x.shape)
    return shared, lambda g: pull(weights.T @ g.reshape(groups).sum(axis=3).reshape(values.shape))


def _softmax_heads(block: Block, site: int, x: Array) -> tuple[Array, Pull]:
    """Softmax attention of all heads, concatenated: (draws, tokens, width) -> the same shape."""
    model, xp = block.model, block.backend.xp
    draws, tokens, width = x.shape
    size, group = width // model.heads, model.heads // model.kv_heads
    shared_width = width // group

    def split(array: Array) -> Array:
        return array.reshape(draws, tokens, -1, size).swapaxes(1, 2)

    def merge(array: Array) -> Array:
        return array.swapaxes(1, 2).reshape(draws, tokens, -1)

    def spread(array: Array) -> Array:
        """A key or value head to every query head of its group."""
        return xp.repeat(array, group, axis=1) if group > 1 else array

    def gather(array: Array) -> Array:
        return array.reshape(draws, -1, group, tokens, size).sum(axis=2) if group > 1 else array

    projected, pull_projection = block.sampler(x, site, width + 2 * shared_width)
    if group == 1 and in_one_pass(block.backend, tokens):
        scale = model.logit_std / math.sqrt(size)
        out, pull_heads = one_pass_attention(projected, model.heads, scale, causal=model.causal)
        return out, lambda g: pull_projection(pull_heads(g))
    query, key, value = (split(part) for part in xp.split(projected, (width, width + shared_width), axis=-1))
    key, value = spread(key), spread(value)
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
            gather(logit_cotangent.swapaxes(-1, -2) @ query),
            gather(weights.swapaxes(-1, -2) @ g),
        )
        return pull_projection(xp.concatenate([merge(part) for part in parts], axis=-1))

    return merge(weights @ value), pull
