"""Moments along a network whose blocks come several times with the same weights.

Fresh output matrices make a branch's output uncorrelated with all that entered it. With the weights of a block used
once more in a later copy this still holds but for the one branch that has the same weights: in the wide limit outputs
of one matrix at different inputs are jointly Gaussian, with the inputs' second moments times its variance, whatever the
inputs are made of, that matrix's own earlier outputs included: no transpose of a matrix enters the way forward
(arXiv:1910.12478, of recurrent networks; arXiv:2006.14548 for the way back). So a sublayer
acts on the tokens of all its copies as on so many more tokens of one sequence, of which each copy attends to its own
alone. A stream is a combination of parts, one a call and copy, each correlated with the parts of the same call in other
copies and with no other.

Backward the same holds for cotangents, which are linear in one that comes from outside and is independent of all
weights: what a transpose meets that the matrix itself has made is of mean zero with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from propagate.masks import Mask
from propagate.model import Model, ModelError
from propagate.placement import check_streams, join, split
from propagate.sublayers import FFN, Attention, Sublayer, registered
from propagate.theory.reading.reader import Block, Made, Stream, Tape
from propagate.theory.tokens.apply import Setting, applied, norm_scale
from propagate.theory.tokens.gram import Array, Gram
from propagate.theory.walks import repeated
from propagate.threads import one_thread_each

APART = 1e-9  # of the variance: what is less between two tokens is lost in the sums that are taken here


class Part:
    """What one call gives in one copy, forward or back. Two parts are never equal.

    Attributes:
        gram: (replicas, tokens, tokens) second moments.
        crossed: with parts of the same call in other copies, this one's tokens along the rows.
    """

    __slots__ = ("crossed", "gram")

    def __init__(self, gram: Array) -> None:
        self.gram = gram
        self.crossed: dict[Part, Array] = {}


class Sum:
    """A linear combination of parts, coefficients being numbers or (replicas, tokens)."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[Part, Any]) -> None:
        self.terms = terms

    @classmethod
    def of(cls, part: Part) -> Sum:
        return cls({part: 1.0})

    def __add__(self, other: Sum) -> Sum:
        terms = dict(self.terms)
        for part, coefficient in other.terms.items():
            terms[part] = terms[part] + coefficient if part in terms else coefficient
        return Sum(terms)

    def __mul__(self, factor: Any) -> Sum:
        return Sum({part: coefficient * factor for part, coefficient in self.terms.items()})

    def with_(self, other: Sum) -> Any:
        """E x_t y_s per coordinate, of this and another; 0.0 where nothing is common.

        Example:
            >>> one, twin = Part(np.ones((1, 1, 1))), Part(np.ones((1, 1, 1)))
            >>> one.crossed[twin] = twin.crossed[one] = 0.5 * np.ones((1, 1, 1))
            >>> both = Sum.of(one) + Sum.of(twin)
            >>> float(both.with_(both)[0, 0, 0]), float((both * 2.0).with_(Sum.of(one))[0, 0, 0])
            (3.0, 3.0)
        """
        total: Any = 0.0
        for part, coefficient in self.terms.items():
            if part in other.terms:
                total = total + _weighted(part.gram, coefficient, other.terms[part])
            for twin, crossed in part.crossed.items():
                if twin in other.terms:
                    total = total + _weighted(crossed, coefficient, other.terms[twin])
        return total

    @property
    def gram(self) -> Gram:
        """Its own second moments."""
        return Gram.of(self.with_(self))


def _weighted(matrix: Array, left: Any, right: Any) -> Array:
    rows = left[..., :, None] if np.ndim(left) else left
    columns = right[..., None, :] if np.ndim(right) else right
    return np.asarray(rows * columns * matrix)


@dataclass(eq=False)
class Shared:
    """One call of a sublayer, of all copies that have been met.

    Attributes:
        read, gave: input and output of each, forward.
        pull: of the tokens of all together.
        arrived, sent: cotangents of each that has been met on the way back, by the copy's number.
    """

    read: list[Sum] = field(default_factory=list)
    gave: list[Part] = field(default_factory=list)
    pull: Callable[[Gram], Gram] | None = None
    arrived: dict[int, Sum] = field(default_factory=dict)
    sent: dict[int, Part] = field(default_factory=dict)


@dataclass(eq=False)
class TiedAlgebra:
    """What norms and sublayers of one block do, in one of its copies.

    Attributes:
        model: the stack.
        layer: of the block.
        block, copy: numbers; the block's is that in the first copy.
        calls: of this block, in order, common to all copies.
        samples: draws of attention's logits.
        made: calls met in this copy.
    """

    model: Model
    layer: Any
    block: int
    copy: int
    calls: list[Shared]
    samples: int
    made: int = 0

    def norm(self, x: Sum) -> Made[Sum]:
        kind = self.layer.norm
        scale = registered(norm_scale.registry, kind)(kind, distinct(x.gram))
        return x * scale, lambda cotangent: cotangent * scale

    def tanh(self, x: Sum) -> Made[Sum]:
        raise ModelError(
            "predict_growth does not cover tanh of a stream, whose copies know one another beyond their second"
            f" moments, got {self.model.placement!r}"
        )

    def std(self, x: Sum) -> Any:
        return x.gram.std()

    def sublayer(self, verb: str, description: Sublayer, x: Sum) -> Made[Sum]:
        if type(description) not in (Attention, FFN):
            raise ModelError(
                f"predict_growth covers Attention and FFN, got {type(description).__name__}; simulate_growth has others"
            )
        self.made += 1
        if len(self.calls) < self.made:
            self.calls.append(Shared())
        call, copy, tokens = self.calls[self.made - 1], self.copy, self.layer.tokens
        call.read.append(x)
        together = _together(call.read)
        setting = Setting(
            self.layer.width,
            tokens * len(call.read),
            self.layer.norm,
            None,
            self.samples,
            (self.block, self.made, 0),
        )
        found = applied(_each_its_own(description, tokens, len(call.read)), Gram.of(together), setting)
        call.pull = found.pull
        assert isinstance(found.output, Gram)
        part = _last(found.output.matrix, call.gave, tokens)
        call.gave.append(part)

        def back(cotangent: Sum) -> Sum:
            assert call.pull is not None
            call.arrived[copy] = cotangent
            met = sorted(call.arrived)
            size = len(call.read) * tokens
            entering = np.zeros((*_some(cotangent).shape[:-2], size, size))
            for i in met:
                for j in met:
                    rows, columns = (slice(k * tokens, (k + 1) * tokens) for k in (i, j))
                    entering[..., rows, columns] = call.arrived[i].with_(call.arrived[j])
            returned = call.pull(Gram.of(entering)).matrix
            rows = slice(copy * tokens, (copy + 1) * tokens)
            sent = Part(returned[..., rows, rows])
            for other, twin in call.sent.items():
                crossed = returned[..., rows, other * tokens : (other + 1) * tokens]
                sent.crossed[twin], twin.crossed[sent] = crossed, crossed.swapaxes(-1, -2)
            call.sent[copy] = sent
            return Sum.of(sent)

        return Sum.of(part), back


def distinct(gram: Gram) -> Gram:
    """The moments, if no two tokens are so alike that sums have lost what is between them.

    Raises:
        ModelError: if they are.
    """
    tokens = gram.matrix.shape[-1]
    if tokens > 1:
        apart = gram.deviation.sum(axis=(-1, -2)).mean() / (tokens * (tokens - 1))
        if apart < APART * gram.variance.mean() and apart != 0:
            raise ModelError(
                "predict_growth follows tokens while 1 - correlation is above 1e-9, and here they come nearer: take"
                " fewer blocks, or simulate_growth"
            )
    return gram


def _some(x: Sum) -> Array:
    return next(iter(x.terms)).gram


def _together(read: list[Sum]) -> Array:
    """Second moments of the tokens of all copies, one copy's after another's."""
    shape, tokens = _some(read[0]).shape, _some(read[0]).shape[-1]
    found = np.zeros((*shape[:-2], tokens * len(read), tokens * len(read)))
    for i, one in enumerate(read):
        for j in range(i + 1):
            rows, columns = (slice(k * tokens, (k + 1) * tokens) for k in (i, j))
            found[..., rows, columns] = one.with_(read[j])
            found[..., columns, rows] = found[..., rows, columns].swapaxes(-1, -2)
    return found


def _each_its_own(description: Any, tokens: int, copies: int) -> Any:
    """Attention of as many sequences: a token sees those of its own copy. Rotary angles between these stay."""
    if copies == 1 or not isinstance(description, Attention):
        return description
    seen = np.kron(np.eye(copies, dtype=bool), np.asarray(description.visible(tokens), dtype=bool))
    return description.with_(causal=False, window=None, mask=Mask.of(seen))


def _last(matrix: Array, earlier: list[Part], tokens: int) -> Part:
    """The part of the last copy, correlated with those of the others."""
    rows = slice(len(earlier) * tokens, None)
    part = Part(matrix[..., rows, rows])
    for number, twin in enumerate(earlier):
        crossed = matrix[..., rows, number * tokens : (number + 1) * tokens]
        part.crossed[twin], twin.crossed[part] = crossed, crossed.swapaxes(-1, -2)
    return part


class TiedPath(NamedTuple):
    """Moments along the stack.

    Attributes:
        forward, backward: of the streams and their cotangents, at blocks 0 ... depth.
        readout, embedding: of what the readout gives, and of the cotangent at the embedded tokens.
    """

    forward: list[list[Gram]]
    backward: list[list[Gram]]
    readout: Gram
    embedding: Gram


@one_thread_each()
def walk_tied(
    stack: Model, period: int, start: Gram, cotangent: Gram, *, replicas: int, samples: int, through_readout: bool
) -> TiedPath:
    """The Gram matrices along a stack whose blocks have the weights of those `period` before them, and back.

    Args:
        stack: the whole network.
        period: blocks of one copy.
        start, cotangent: (tokens, tokens), at its ends.
        replicas, samples: independent evaluations, and draws of attention's logits in each.
        through_readout: the cotangent enters behind the readout; of several streams it always does.
    """
    calls: dict[int, list[Shared]] = {}
    placement = stack.equations

    def run(equations: Any, index: int, streams: Any, layout: Any) -> tuple[list[Sum], Any, Any]:
        copy, block = divmod(index - 1, period) if 0 < index <= stack.depth else (0, index - 1)
        algebra = TiedAlgebra(stack, stack.at(index), block + 1, copy, calls.setdefault(block, []), samples)
        within: Any = Block(index, stack.depth, index == 1, index == stack.depth, stack.at(index), algebra)
        tape: Tape[Sum] = Tape()
        sources = [Stream(x, tape) for x in streams]
        made, layout = split(equations(join(sources, layout), within), Stream)
        none = Sum({Part(np.zeros_like(_some(streams[0]))): 0.0})

        def pull(cotangents: list[Sum]) -> list[Sum]:
            return [none if one is None else one for one in tape.pull(made, cotangents, sources)]

        return [one.value for one in made], layout, pull

    streams, layout, pull_embed = run(placement.embed, 0, [Sum.of(Part(repeated(start, replicas).matrix))], None)
    several, forward, pulls = len(streams), [[x.gram for x in streams]], []
    for index in range(1, stack.depth + 1):
        streams, layout, pull = run(placement.block, index, streams, layout)
        check_streams(placement, "block", found=len(streams), expected=several)
        forward.append([distinct(x.gram) for x in streams])
        pulls.append(pull)
    joined, _, pull_readout = run(placement.readout, stack.depth + 1, streams, layout)
    check_streams(placement, "readout", found=len(joined), expected=1)
    arriving = [Sum.of(Part(repeated(cotangent, replicas).matrix))]
    if through_readout or several > 1:
        arriving = pull_readout(arriving)
    backward = [[g.gram for g in arriving]]
    for pull in reversed(pulls):
        arriving = pull(arriving)
        backward.append([g.gram for g in arriving])
    (at_embedding,) = pull_embed(arriving)
    return TiedPath(forward, backward[::-1], joined[0].gram, at_embedding.gram)
