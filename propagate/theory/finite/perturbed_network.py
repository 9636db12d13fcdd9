"""How far networks of finite width lie from the limit in the mean, and apart: signed, to first order in 1 / width.

A placement's equations are read with streams of vectors that hold the fluctuations of a finite network (see
`perturbation`), forward through all blocks and back. Sums and norms need no rules of their own: what a norm does to a
vector, and the projection in its reverse pass, are exact. So the terms that are easily forgotten are there: a norm
removes one direction of a cotangent, and the next norm on the same skip finds it already gone; the mean of 1 / |x|^2 is
not 1 / the mean; the token-mean mode of a cotangent leaks into the deviations as 1 / width.

Between blocks only inner products are kept: the vectors are turned into a frame of their own rows. A cotangent that
enters a block from behind is known along the block's output and isotropic elsewhere. Where tanh acts on streams,
sampled coordinates of their directions are kept too. Tokens that have become nearly one are moved apart (`widened`).

The result is a mean over samples, with its standard error; draws are the same in every run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from propagate.layers import Layer
from propagate.model import Model
from propagate.placement import Layout, join, split
from propagate.sublayers import FFN, Attention, Sublayer
from propagate.theory.finite.covered import has_tanh, widening
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
from propagate.theory.finite.perturbed_attention import attention, energies_of, matrix_of, moments_of
from propagate.theory.finite.perturbed_dropout import dropout
from propagate.theory.finite.perturbed_ffn import ffn
from propagate.theory.finite.perturbed_tanh import tanh
from propagate.theory.reading.reader import Block, Made, Stream, Tape


@dataclass(frozen=True, slots=True)
class Vectors:
    """What a stream, or a cotangent, is in all evaluations: (evaluations, tokens, directions).

    Attributes:
        x: the vectors.
        apart: whether they lie along directions of their own, as many as tokens, in place of the block's frame; the
            cotangents of such a stream are `Returned`.
    """

    x: Array
    apart: bool = False

    def __add__(self, other: Vectors) -> Vectors:
        size = max(self.x.shape[-1], other.x.shape[-1])
        return Vectors(padded(self.x, size) + padded(other.x, size))

    def __mul__(self, factor: Any) -> Vectors:
        return Vectors(self.x * (factor if isinstance(factor, np.ndarray) else float(factor)), self.apart)


@dataclass(frozen=True, slots=True)
class VectorAlgebra:
    """What norms and sublayers do to vectors, as far as `covered` lets them.

    Attributes:
        layer: what the block is made of.
        constant: the vector that a LayerNorm removes; None where none does.
        calls: numbers the attentions where tokens differ; None where they are exchangeable.
    """

    model: Model
    index: int
    frame: Frame
    layer: Layer
    constant: Array | None
    calls: Iterator[int] | None

    def norm(self, x: Vectors) -> Made[Vectors]:
        centred = self._centred(x.x)
        scale = 1 / np.sqrt((centred**2).sum(axis=-1, keepdims=True))
        y = centred * scale

        def pull(cotangent: Vectors) -> Vectors:
            size = max(y.shape[-1], cotangent.x.shape[-1])
            along, g = padded(y, size), padded(cotangent.x, size)
            return Vectors(self._centred(scale * (g - along * (g * along).sum(axis=-1, keepdims=True))))

        return Vectors(y), pull

    def _centred(self, x: Array) -> Array:
        if self.constant is None or not self.layer.norm.centred:
            return x
        along = padded(self.constant, x.shape[-1])
        return np.asarray(x - (x @ along.swapaxes(1, 2)) @ along)

    def sublayer(self, verb: str, description: Sublayer, x: Vectors) -> Made[Vectors]:
        width, norm, frame = self.model.width, self.layer.norm, self.frame
        if isinstance(description, Attention):
            name = None if self.calls is None else (self.index, next(self.calls))
            return self._branch(x, lambda at: attention(description, norm, width, name, frame, at))
        assert isinstance(description, FFN)  # all else is not `covered`
        return self._branch(x, lambda at: ffn(description, width, frame, at))

    def _branch(
        self, x: Vectors, sublayer: Callable[[Array], tuple[Array, Callable[[Array], Returned]]]
    ) -> Made[Vectors]:
        if x.apart:
            y, returned = sublayer(x.x)
            return Vectors(y), lambda g: returned(g.x)
        lower, span = factored(x.x)
        y, pull = sublayer(lower)
        if self.model.dropout == 0:
            return Vectors(y), lambda g: Vectors(pull(g.x).vectors(self.frame, span))
        y, pull_dropout = dropout(self.model.dropout, self.frame, y)
        return Vectors(y), lambda g: Vectors(pull(pull_dropout(g.x)).vectors(self.frame, span))

    def tanh(self, x: Vectors) -> Made[Vectors]:
        y, pull = tanh(self.frame, x.x)
        return Vectors(y, apart=True), lambda returned: Vectors(pull(returned))

    def std(self, x: Vectors) -> Array:
        return np.asarray(np.sqrt((x.x**2).sum(axis=(-1, -2), keepdims=True) / self.model.tokens))


class Done(NamedTuple):
    """A block that was run forward, until the cotangent comes back."""

    tape: Tape[Vectors]
    frame: Frame
    entered: list[Stream[Vectors]]
    left: list[Stream[Vectors]]
    span: Array

    def pull(self, arriving: list[Any]) -> list[Array]:
        """The cotangents at the streams that entered."""
        back = self.tape.pull(self.left, arriving, self.entered)
        return [0 * x.value.x if g is None else g.x for g, x in zip(back, self.entered, strict=True)]


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
    if _centred(model):
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
            forward.append([inner(stream.value.x, stream.value.x) for stream in found.left])
    readout = inner(done[-1].left[0].value.x, done[-1].left[0].value.x)
    if not (several or through_readout):
        done.pop()
    arriving = [_entering(cotangent, done[-1])]
    backward = [] if len(done) == model.depth + 2 else [[inner(g.x, g.x) for g in arriving if isinstance(g, Vectors)]]
    for before, found in zip(done[-2::-1], done[:0:-1], strict=True):
        back = found.pull(arriving)
        backward.append([inner(g, g) for g in back])
        arriving = [*_handed_on(back, found, before, tokens)]
    back = done[0].pull(arriving)
    return Grams(forward, backward[::-1], readout, inner(back[0], back[0]))


def _forward(
    model: Model, frame: Frame, index: int, rows: Array, layout: Layout, *, alike: bool
) -> tuple[Done, Layout, Array]:
    placement, tokens = model.equations, model.tokens
    equations = {0: placement.embed, model.depth + 1: placement.readout}.get(index, placement.block)
    count = rows.shape[1] - _centred(model)
    tape: Tape[Vectors] = Tape()
    constant, layer = rows[:, count:] if _centred(model) else None, model.at(index)
    calls = None if alike else itertools.count()
    algebra = VectorAlgebra(model, index, frame, layer, constant, calls)
    block = Block(index, model.depth, index == 1, index == model.depth, layer, algebra)
    entered = [Stream(Vectors(rows[:, i : i + tokens]), tape) for i in range(0, count, tokens)]
    left, layout = split(equations(join(entered, layout), block), Stream)
    if index > model.depth:  # nothing is handed on
        return Done(tape, frame, entered, list(left), rows), layout, rows
    kept = [stream.value.x for stream in left] + ([] if constant is None else [constant])
    lower, span = factored(np.concatenate([frame.padded(x) for x in kept], axis=1))
    return Done(tape, frame, entered, list(left), span), layout, widened(lower, tokens, len(left))


def widened(rows: Array, tokens: int, streams: int) -> Array:
    """Rows (evaluations, rows, directions), those of a few streams of tokens first, with deviations from the means over
    tokens made larger by one factor in all evaluations and streams, where they have become small; see `widening`.

    Example:
        >>> rows = np.array([[[1.0, 1e-4], [1.0, -1e-4]]])
        >>> widened(rows, tokens=2, streams=1).round(5).tolist()
        [[[1.0, 0.00071], [1.0, -0.00071]]]
    """
    if tokens == 1:
        return rows
    of_streams = rows[:, : streams * tokens].reshape(len(rows), streams, tokens, -1)
    mean, deviation = energies_of(inner(of_streams[-1], of_streams[-1])).T
    largest = float((deviation * tokens / (mean + (tokens - 1) * deviation)).max())
    factor = math.sqrt(widening(largest))
    if factor == 1:
        return rows
    means = of_streams.mean(axis=2, keepdims=True)
    apart = (means + factor * (of_streams - means)).reshape(len(rows), streams * tokens, -1)
    return np.concatenate([apart, rows[:, streams * tokens :]], axis=1)


def _centred(model: Model) -> bool:
    return any(parts.norm.centred for parts in model.parts)


def is_exchangeable(gram: Array) -> bool:
    """Whether no token differs from another.

    Example:
        >>> is_exchangeable(np.eye(3)), is_exchangeable(np.diag([1.0, 2.0]))
        (True, False)
    """
    return bool(np.allclose(gram, matrix_of(moments_of(gram), len(gram)), rtol=1e-9, atol=0.0))


def _entering(cotangent: Array, last: Done) -> Vectors | Returned:
    """A cotangent of this Gram matrix, at the one stream that leaves a block."""
    frame, factor, tokens = last.frame, root(cotangent), len(cotangent)
    if not last.left[0].value.apart:
        return Vectors(factor @ frame.isometry(tokens))
    shape = 2 * frame.noise.pairs + 1, tokens, tokens
    return Returned(np.broadcast_to(factor, shape), np.zeros(shape), isotropic=True)


def _handed_on(back: list[Array], found: Done, before: Done, tokens: int) -> list[Vectors]:
    """Cotangents in the frame of the block before: known along its output, isotropic elsewhere."""
    size = max(g.shape[-1] for g in back)
    rows = np.concatenate([padded(g, size) for g in back], axis=1)
    known, count = before.span.shape[1], rows.shape[1]
    lower, elsewhere = factored(np.concatenate([rows[..., known:], np.zeros((*rows.shape[:2], count))], axis=-1))
    behind, frame = found.frame, before.frame
    of_elsewhere = behind.seen(np.concatenate([0 * rows[..., :known], elsewhere[..., : size - known]], axis=-1))
    along = rows[..., :known] @ before.span
    g = lower @ frame.isometry(count, without=before.span, coordinates=of_elsewhere) + frame.padded(along)
    return [Vectors(g[:, i : i + tokens]) for i in range(0, count, tokens)]
