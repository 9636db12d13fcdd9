"""The network's moments, block by block, at either resolution: pairs of numbers or Gram matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from propagate.experts import Experts
from propagate.model import Model, ModelError
from propagate.placement import Layout, check_streams
from propagate.theory.gaussian.functions import Scalar
from propagate.theory.pairs.moments import Combination, Joint, SecondMoments
from propagate.theory.reading.blocks import BlockMap, Call, Carried, MomentAlgebra, State, alone, read
from propagate.theory.reading.reader import Block
from propagate.threads import one_thread_each
from propagate.watching import watch


class Path(NamedTuple):
    """Moments along a network.

    Attributes:
        forward, backward: of the streams and of their cotangents, at blocks 0 ... depth.
        skips: factors along each block's skips, blocks 1 ... depth (`BlockMap.skips`).
        readout: of what the output head reads.
        embedding: of the cotangent at the embedded tokens, before `embed`.
        embed_skips: factors along those that make the streams of the embedded tokens.
        readout_skips: factors along the readout's skips.
        layouts: how streams and plain numbers stand at blocks 0 ... depth.
        calls: the records of every block's calls, of the embedding (0), the blocks and the readout (depth + 1).
    """

    forward: list[Joint]
    backward: list[Joint]
    skips: list[tuple[tuple[Scalar, ...], ...]]
    readout: SecondMoments
    embedding: SecondMoments
    embed_skips: tuple[Scalar, ...]
    readout_skips: tuple[Scalar, ...]
    layouts: list[Layout]
    calls: list[list[Call]]

    @property
    def several(self) -> bool:
        """Whether more than one stream passes from block to block."""
        return len(self.forward[0]) > 1

    def skip_factors(self) -> list[list[Scalar]]:
        """At blocks 0 ... depth, for each stream: by what a cotangent is multiplied on its way along skips alone."""
        factors: list[Scalar] = list(self.readout_skips) if self.several else [1.0]
        found = [factors]
        for skips in reversed(self.skips):
            factors = [sum(f * row[j] for f, row in zip(factors, skips, strict=True)) for j in range(len(factors))]
            found.append(factors)
        return found[::-1]

    def embedding_factors(self) -> list[list[Scalar]]:
        """At blocks 0 ... depth, for each stream: by what the embedded tokens were multiplied on their way there along
        skips alone."""
        found: list[list[Scalar]] = [list(self.embed_skips)]
        for skips in self.skips:
            found.append([sum(factor * f for factor, f in zip(row, found[-1], strict=True)) for row in skips])
        return found

    def kept_shares(self) -> list[list[Scalar]]:
        """Of blocks 1 ... depth, for each stream: the share of the variance of what leaves that its skips kept."""
        shares = []
        for entering, leaving, skips in zip(self.forward[:-1], self.forward[1:], self.skips, strict=True):
            streams = range(len(skips))
            powers = [sum(row[i] * row[j] * entering[i][j].variance for i in streams for j in streams) for row in skips]
            shares.append([power / leaving[i][i].variance for i, power in enumerate(powers)])
        return shares


@one_thread_each()
def propagate_moments(
    model: Model,
    start: SecondMoments,
    cotangent: SecondMoments,
    block_at: Callable[[int], Block[Combination]],
    *,
    through_readout: bool = False,
) -> Path:
    """The network's moments from those at its two ends; floats or arrays, or Gram matrices with blocks to match.

    Where several streams pass from block to block the cotangent enters behind the readout, which joins them.
    `block_at` makes the block of an index: 0 for the embedding, depth + 1 for the readout.
    """
    placement, depth = model.equations, model.depth
    tell = watch()

    def block_map(equations: Callable[[Any, Any], Any], index: int, state: State) -> BlockMap:
        block = block_at(index)
        try:
            return read(lambda streams: equations(streams, block), _algebra(block), state)
        except (ZeroDivisionError, FloatingPointError):
            raise _of_nothing(model, index) from None

    with np.errstate(divide="raise"):  # of arrays, as of numbers
        embed = block_map(placement.embed, 0, alone(start))
        states, maps = [embed.output], []
        tell("forward", 0, embed.output.joint)
        for index in range(1, depth + 1):
            maps.append(block_map(placement.block, index, states[-1]))
            states.append(maps[-1].output)
            tell("forward", index, states[-1].joint)
            check_streams(placement, "block", found=len(states[-1].joint), expected=len(states[0].joint))
        readout = block_map(placement.readout, depth + 1, states[-1])
    check_streams(placement, "readout", found=len(readout.output.joint), expected=1)

    def pulled(done: BlockMap, joint: Joint, carried: Carried) -> tuple[Joint, Carried]:
        return (done.pull(joint), {}) if not model.uneven else done.pull_lacking(joint, carried)

    entering: Joint = ((cotangent,),)
    carried: Carried = {}
    if through_readout or len(states[-1].joint) > 1:
        entering, carried = pulled(readout, entering, carried)
    backward = [entering]
    tell("backward", depth, entering)
    for done in reversed(maps):
        arrived, carried = pulled(done, backward[-1], carried)
        backward.append(arrived)
        tell("backward", depth + 1 - len(backward), arrived)
    embedding = embed.pull(backward[-1])[0][0]
    for done in (embed, *maps, readout):
        done.forget()
    return Path(
        forward=[state.joint for state in states],
        backward=backward[::-1],
        skips=[done.skips for done in maps],
        readout=readout.output.joint[0][0],
        embedding=embedding,
        embed_skips=tuple(row[0] for row in embed.skips),
        readout_skips=readout.skips[0],
        layouts=[state.layout for state in states],
        calls=[done.calls for done in (embed, *maps, readout)],
    )


def _algebra(block: Block[Combination]) -> MomentAlgebra:
    assert isinstance(block.algebra, MomentAlgebra)
    return block.algebra


def _of_nothing(model: Model, index: int) -> ModelError:
    """Where equations divide by the size of a stream that is 0: a norm, or a standard deviation."""
    where = {0: "embed", model.depth + 1: "readout"}.get(index, f"block {index}")
    layer = model.at(index)
    attention, ffn = layer.attention, layer.ffn.expert if isinstance(layer.ffn, Experts) else layer.ffn
    names = (*(f"{name}_gain" for name in ("value", "attention", "ffn")), "query", "key", "ffn_in")
    values = [attention.value_gain, attention.out_gain, ffn.out_gain]
    values += [attention.query_gain, attention.key_gain, ffn.in_gain]
    zero = [name for name, value in zip(names, values, strict=True) if value == 0]
    if zero:
        return ModelError(f"{' and '.join(zero)} must be positive where {where} of {model.placement!r} norms it, got 0")
    return ModelError(
        f"covariance must lie above -variance / (tokens - 1) where {where} of {model.placement!r} norms a mean over"
        " tokens: tokens that add up to 0 leave nothing to norm"
    )
