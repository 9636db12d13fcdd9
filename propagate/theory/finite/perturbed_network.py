"""How far networks of finite width lie from the limit in the mean, and apart: signed, to first order in 1 / width.

A placement's equations are read with streams of vectors that hold the fluctuations of a finite network (see
`perturbation`), forward through all blocks and back. Sums and norms need no rules of their own: what a norm does to a
vector, and the projection in its reverse pass, are exact. So the terms that are easily forgotten are there: a norm
removes one direction of a cotangent, and the next norm on the same skip finds it already gone; the mean of 1 / |x|^2 is
not 1 / the mean; the token-mean mode of a cotangent leaks into the deviations as 1 / width.

Between blocks only inner products are kept: the vectors are turned into a frame of their own rows. A cotangent that
enters a block from behind is known along the block's output and isotropic elsewhere. Where tanh acts on streams,
sampled coordinates of their directions are kept too.

The result is a mean over samples, with its standard error; draws are the same in every run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from propagate.model import Model
from propagate.placement import Layout, join, split
from propagate.scaling import Gains
from propagate.theory.finite.covered import has_tanh
from propagate.theory.finite.perturbation import (
    COORDINATES,
    Array,
    Frame,
    Noise,
    Returned,
    factored,
    inner,
    padded,
    root,
)
from propagate.theory.finite.perturbed_attention import attention, matrix_of, moments_of
from propagate.theory.finite.perturbed_dropout import dropout
from propagate.theory.finite.perturbed_ffn import ffn
from propagate.theory.finite.perturbed_tanh import tanh
from propagate.theory.reading.tape import sent_back

Cotangent = Any
"""Vectors, or for a stream with directions of its own a `Returned`."""
Pull = Callable[[Cotangent], Cotangent]


@dataclass(eq=False)
class Tape:
    """The steps of one block, as in `blocks.Tape`."""

    steps: list[tuple[Stream, Stream, Pull]] = field(default_factory=list)

    def record(self, x: Array, *sources: tuple[Stream, Pull], apart: bool = False) -> Stream:
        stream = Stream(x, self, apart)
        self.steps.extend((stream, source, pull) for source, pull in sources)
        return stream

    def pull(
        self, outputs: Sequence[Stream], cotangents: Sequence[Cotangent], sources: Sequence[Stream]
    ) -> list[Array]:
        """The cotangents at `sources`, from those at `outputs`."""
        arrived = sent_back(self.steps, zip(outputs, cotangents, strict=True), _sum)
        return [arrived[source] if source in arrived else 0 * source.x for source in sources]


def _sum(x: Cotangent, y: Cotangent) -> Cotangent:
    if isinstance(x, Returned):
        return x + y
    size = max(x.shape[-1], y.shape[-1])
    return padded(x, size) + padded(y, size)


@dataclass(eq=False, slots=True)
class Stream:
    """Vectors (evaluations, tokens, directions), with the arithmetic that placements use.

    Attributes:
        x: the vectors.
        tape: of the block.
        apart: whether they lie along directions of their own, as many as tokens, in place of the block's frame.
    """

    x: Array
    tape: Tape
    apart: bool = False
    __array_ufunc__: ClassVar[None] = None  # an array times a stream is the stream's business

    def __add__(self, other: Stream) -> Stream:
        return self.tape.record(_sum(self.x, other.x), (self, lambda g: g), (other, lambda g: g))

    def __radd__(self, zero: int) -> Stream:
        """`sum` of streams begins with 0."""
        return self if zero == 0 else NotImplemented

    def __neg__(self) -> Stream:
        return self * -1

    def __sub__(self, other: Stream) -> Stream:
        return self + -other

    def __mul__(self, factor: Any) -> Stream:
        scale = factor if isinstance(factor, np.ndarray) else float(factor)
        return self.tape.record(self.x * scale, (self, lambda g: g * scale), apart=self.apart)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Stream:
        return self.__mul__(1 / divisor)


@dataclass(frozen=True, slots=True)
class Block:
    """What a placement's equations see, as far as `covered` lets them.

    Attributes:
        constant: the vector that a LayerNorm removes.
        calls: numbers the attentions where tokens differ; None where they are exchangeable.
    """

    model: Model
    index: int
    first: bool
    last: bool
    tape: Tape
    frame: Frame
    gains: Gains
    constant: Array | None
    calls: Iterator[int] | None

    @property
    def depth(self) -> int:
        return self.model.depth

    def norm(self, x: Stream) -> Stream:
        centred = self._centred(x.x)
        scale = 1 / np.sqrt((centred**2).sum(axis=-1, keepdims=True))
        y = centred * scale

        def pull(g: Array) -> Array:
            size = max(y.shape[-1], g.shape[-1])
            along, g = padded(y, size), padded(g, size)
            return self._centred(scale * (g - along * (g * along).sum(axis=-1, keepdims=True)))

        return self.tape.record(y, (x, pull))

    def _centred(self, x: Array) -> Array:
        if self.constant is None:
            return x
        along = padded(self.constant, x.shape[-1])
        return np.asarray(x - (x @ along.swapaxes(1, 2)) @ along)

    def attention(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        inside = self.model.inner_norms("attention", normed)
        name = None if self.calls is None else (self.index, next(self.calls))
        return self._branch(x, lambda entering: attention(self.model, self.gains, inside, name, self.frame, entering))

    def ffn(self, x: Stream, normed: Sequence[str] = ()) -> Stream:
        inside = self.model.inner_norms("ffn", normed)
        return self._branch(x, lambda entering: ffn(self.model, self.gains, inside, self.frame, entering))

    def _branch(self, x: Stream, sublayer: Callable[[Array], tuple[Array, Callable[[Array], Returned]]]) -> Stream:
        if x.apart:
            y, returned = sublayer(x.x)
            return self.tape.record(y, (x, returned))
        lower, span = factored(x.x)
        y, pull = sublayer(lower)
        return self._dropped(self.tape.record(y, (x, lambda g: pull(g).vectors(self.frame, span))))

    def tanh(self, x: Stream) -> Stream:
        y, pull = tanh(self.frame, x.x)
        return self.tape.record(y, (x, pull), apart=True)

    def _dropped(self, x: Stream) -> Stream:
        if self.model.dropout == 0:
            return x
        y, pull = dropout(self.model.dropout, self.frame, x.x)
        return self.tape.record(y, (x, pull))

    def std(self, x: Stream) -> Array:
        return np.asarray(np.sqrt((x.x**2).sum(axis=(-1, -2), keepdims=True) / self.model.tokens))


class Done(NamedTuple):
    """A block that was run forward, until the cotangent comes back."""

    block: Block
    entered: list[Stream]
    left: list[Stream]
    span: Array


class Grams(NamedTuple):
    """Gram matrices (evaluations, tokens, tokens) of every stream at blocks 0 ... depth, forward and backward.

    `readout` is of what the readout gives, `embedding` of the cotangent at the embedded tokens: of several streams.
    """

    forward: list[list[Array]]
    backward: list[list[Array]]
    readout: Array
    embedding: Array


def evaluated(model: Model, noise: Noise, start: Array, cotangent: Array, *, through_readout: bool) -> Grams:
    """One set of evaluations of the network, from exact Gram matrices (tokens, tokens) at both ends."""
    tokens, several = model.tokens, False
    alike = model.exchangeable and all(is_exchangeable(gram) for gram in (start, cotangent))
    rows = np.broadcast_to(root(start), (2 * noise.pairs + 1, tokens, tokens))
    frame = Frame(noise, 0, np.zeros((2 * noise.pairs, 0, COORDINATES)) if has_tanh(model) else None)
    frame.isometry(tokens)
    if model.norm == "layer":
        constant = frame.isometry(1)
        rows = np.concatenate([frame.padded(rows), constant], axis=1)
    layout: Layout = None
    done, forward = list[Done](), list[list[Array]]()
    for index in range(model.depth + 2):
        found, layout, rows = _forward(model, frame, index, rows, layout, alike=alike)
        frame = frame.turned(found.span)
        done.append(found)
        several = len(found.left) > 1 or several
        if index <= model.depth:
            forward.append([inner(stream.x, stream.x) for stream in found.left])
    readout = inner(done[-1].left[0].x, done[-1].left[0].x)
    if not (several or through_readout):
        done.pop()
    arriving = [_entering(cotangent, done[-1])]
    backward = [] if len(done) == model.depth + 2 else [[inner(g, g) for g in arriving]]
    for before, found in zip(done[-2::-1], done[:0:-1], strict=True):
        back = found.block.tape.pull(found.left, arriving, found.entered)
        backward.append([inner(g, g) for g in back])
        arriving = _handed_on(back, found, before)
    back = done[0].block.tape.pull(done[0].left, arriving, done[0].entered)
    return Grams(forward, backward[::-1], readout, inner(back[0], back[0]))


def _forward(
    model: Model, frame: Frame, index: int, rows: Array, layout: Layout, *, alike: bool
) -> tuple[Done, Layout, Array]:
    placement, tokens = model.equations, model.tokens
    equations = {0: placement.embed, model.depth + 1: placement.readout}.get(index, placement.block)
    count = rows.shape[1] - (model.norm == "layer")
    tape = Tape()
    constant = rows[:, count:] if model.norm == "layer" else None
    gains = model.gains(max(index, 1))
    calls = None if alike else itertools.count()
    block = Block(model, index, index == 1, index == model.depth, tape, frame, gains, constant, calls)
    entered = [Stream(rows[:, i : i + tokens], tape) for i in range(0, count, tokens)]
    left, layout = split(equations(join(entered, layout), block), Stream)
    if index > model.depth:  # nothing is handed on
        return Done(block, entered, list(left), rows), layout, rows
    kept = [stream.x for stream in left] + ([] if constant is None else [constant])
    lower, span = factored(np.concatenate([frame.padded(x) for x in kept], axis=1))
    return Done(block, entered, list(left), span), layout, lower


def is_exchangeable(gram: Array) -> bool:
    """Whether no token differs from another.

    Example:
        >>> is_exchangeable(np.eye(3)), is_exchangeable(np.diag([1.0, 2.0]))
        (True, False)
    """
    return bool(np.allclose(gram, matrix_of(moments_of(gram), len(gram)), rtol=1e-9, atol=0.0))


def _entering(cotangent: Array, last: Done) -> Cotangent:
    """A cotangent of this Gram matrix, at the one stream that leaves a block."""
    frame, factor, tokens = last.block.frame, root(cotangent), len(cotangent)
    if not last.left[0].apart:
        return factor @ frame.isometry(tokens)
    shape = 2 * frame.noise.pairs + 1, tokens, tokens
    return Returned(np.broadcast_to(factor, shape), np.zeros(shape), isotropic=True)


def _handed_on(back: list[Array], found: Done, before: Done) -> list[Array]:
    """Cotangents in the frame of the block before: known along its output, isotropic elsewhere."""
    size = max(g.shape[-1] for g in back)
    rows = np.concatenate([padded(g, size) for g in back], axis=1)
    known, count = before.span.shape[1], rows.shape[1]
    lower, elsewhere = factored(np.concatenate([rows[..., known:], np.zeros((*rows.shape[:2], count))], axis=-1))
    behind, frame, tokens = found.block.frame, before.block.frame, before.block.model.tokens
    of_elsewhere = behind.seen(np.concatenate([0 * rows[..., :known], elsewhere[..., : size - known]], axis=-1))
    along = rows[..., :known] @ before.span
    g = lower @ frame.isometry(count, without=before.span, coordinates=of_elsewhere) + frame.padded(along)
    return [g[:, i : i + tokens] for i in range(0, count, tokens)]
