"""One batch of random networks, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from propagate.model import Model
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import Backend, choose_backend
from propagate.montecarlo.blocks import Block, State, StatePull, block_of, read_state
from propagate.montecarlo.calls import exchangeable
from propagate.montecarlo.cuda.weightless import Fused
from propagate.montecarlo.laws import LAWS
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.parameter_gradients import Norms, columns
from propagate.montecarlo.samplers import Sampler, dense
from propagate.montecarlo.starts import Ends, tokens_of, with_gram
from propagate.montecarlo.statistics import Floats, moments_on, shared_with, token_moments
from propagate.montecarlo.weightless import weightless
from propagate.placement import check_streams
from propagate.table import EMBEDDING_SHARE

Moments = Callable[[Array], tuple[Array, ...]]
SAMPLERS: dict[str, Callable[[Normals], Sampler]] = {"dense": dense, "weightless": weightless}
INPUT_SITE, COTANGENT_SITE = 0, 1  # below CALLS * MATRICES, where the first block's sites begin


@dataclass(frozen=True)
class Network:
    """What all draws of a run have in common: plain data, which can be sent to a worker."""

    model: Model
    backend: str
    precision: str
    sampler: str
    seed: int
    start: Ends
    through_readout: bool
    segment: int
    parameter_gradients: bool = False
    embedding_share: bool = False
    period: int | None = None


def run_halving(network: Network, draws: range) -> dict[str, Floats]:
    """`run`, in two halves where memory does not hold all draws at once."""
    backend = choose_backend(network.backend, network.precision)
    try:
        return run(
            network.model,
            backend,
            network.sampler,
            network.seed,
            draws,
            network.start,
            through_readout=network.through_readout,
            segment=network.segment,
            parameter_gradients=network.parameter_gradients,
            embedding_share=network.embedding_share,
            period=network.period,
        )
    except MemoryError:  # CuPy's own is one too
        if len(draws) == 1:
            raise
    middle = len(draws) // 2
    halves = [run_halving(network, half) for half in (draws[:middle], draws[middle:])]
    return {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}


def run(
    model: Model,
    backend: Backend,
    sampler_name: str,
    seed: int,
    draws: range,
    start: Ends,
    *,
    through_readout: bool,
    segment: int | None = None,
    parameter_gradients: bool = False,
    embedding_share: bool = False,
    period: int | None = None,
) -> dict[str, Floats]:
    """One batch of draws: for each quantity an array (draws, depth + 1), or (draws, depth + 1, streams + 1).

    Of the way forward, `segment` blocks at a time are remembered, by default all; others are run again on the way back.
    With `parameter_gradients` also `param_grad:NAME` of each matrix, of shape (draws, depth + 1); with
    `embedding_share` that of each block's streams. With a `period` every block has the matrices of the one so many
    blocks before it, which only a dense sampler can give again.
    """
    normals = Normals(backend, seed, draws)
    segment = segment or model.depth
    asked = Asked(parameter_gradients, embedding_share)
    if sampler_name != "weightless" or backend.name == "numpy":
        chosen = _sampler_of(sampler_name, model, normals)
        return _pass(model, normals, chosen, start, asked, through_readout, segment, period)
    sampler = Fused(normals, backend.xp.zeros(len(draws), dtype=bool))
    found = _pass(model, normals, sampler, start, asked, through_readout, segment)
    rows = np.flatnonzero(backend.to_host(sampler.unsound))
    if len(rows):  # in one batch, with the sound draws that lie between: a pass costs launches more than draws
        among = slice(rows[0], rows[-1] + 1)
        once_more = Normals(backend, seed, draws[among])
        again = _pass(model, once_more, weightless(once_more), start, asked, through_readout, segment)
        for name, values in again.items():
            found[name][rows] = values[rows - rows[0]]
    return found


class Asked(NamedTuple):
    """What a pass measures beside the moments."""

    parameter_gradients: bool
    embedding_share: bool


def _pass(
    model: Model,
    normals: Normals,
    sampler: Sampler,
    start: Ends,
    asked: Asked,
    through_readout: bool,
    segment: int,
    period: int | None = None,
) -> dict[str, Floats]:
    """Forward and backward through one batch of networks."""
    backend, placement = normals.backend, model.equations
    averages, resolved = moments_on(backend), not (start.exchangeable and exchangeable(model))
    firsts = range(1, model.depth + 1, segment)
    norms: list[Norms] = [{} for _ in range(model.depth)]  # filled on the way back, once, by pulls

    def moments(x: Array) -> tuple[Array, ...]:
        return (*averages(x), token_moments(x)) if resolved else averages(x)

    def forward_moments(x: Array) -> tuple[Array, ...]:
        return (*moments(x), shared_with(x, embedded)) if asked.embedding_share else moments(x)

    def block(index: int, norms: Norms | None = None) -> Block:
        own = index if period is None or not 0 < index <= model.depth else (index - 1) % period + 1
        return block_of(model, backend, sampler, index, normals, norms, own)

    def blocks(first: int, state: State) -> tuple[State, list[tuple[Array, ...]], list[StatePull]]:
        """The segment that begins with block `first`: the state that leaves, moments and pulls of each block."""
        of_blocks, pulls = [], []
        for index in range(first, min(first + firsts.step, model.depth + 1)):
            entered = len(state.streams)
            within = block(index, norms[index - 1] if asked.parameter_gradients else None)
            state, pull = read_state(placement.block, within, state)
            check_streams(placement, "block", found=len(state.streams), expected=entered)
            of_blocks.append(of_streams(backend, forward_moments, state.streams))
            pulls.append(pull)
        return state, of_blocks, pulls

    embedded = tokens_of(start, normals, INPUT_SITE, model.width)
    state, pull_embed = read_state(placement.embed, block(0), State((embedded,)))
    streams = len(state.streams)
    forward = [of_streams(backend, forward_moments, state.streams, embedded)]
    entering: list[State] = []
    pulls: list[StatePull] = []
    for first in firsts:
        entering.append(state)
        pulls.clear()  # before the next ones are made
        state, of_blocks, pulls = blocks(first, state)
        forward += of_blocks
    cotangent = with_gram(start.cotangent_root, normals, COTANGENT_SITE, model.width)
    cotangents = (cotangent,)
    if through_readout or streams > 1:
        readout, pull = read_state(placement.readout, block(model.depth + 1), state)
        check_streams(placement, "readout", found=len(readout.streams), expected=1)
        forward[-1] = of_streams(backend, forward_moments, state.streams, *readout.streams)
        cotangents = pull(cotangents)
    backward = [of_streams(backend, moments, cotangents, cotangent)]
    for first in reversed(firsts):
        state = entering.pop()
        if not pulls:
            pulls = blocks(first, state)[2]
        while pulls:
            cotangents = pulls.pop()(cotangents)  # a block's weights are freed as soon as they are used
            backward.append(of_streams(backend, moments, cotangents))
    if streams > 1:
        backward[-1] = of_streams(backend, moments, cotangents, *pull_embed(cotangents))
    by_matrix = columns(backend.xp, norms, len(normals.draws))
    of_matrices = {name: backend.to_host(values) for name, values in by_matrix.items()}
    if asked.embedding_share:
        shares = backend.to_host(backend.xp.stack([place[-1] for place in forward], axis=1))
        of_matrices |= {EMBEDDING_SHARE: shares}
        forward = [place[:-1] for place in forward]
    return by_block("", forward, backend) | by_block("grad_", backward[::-1], backend) | of_matrices


def of_streams(
    backend: Backend, moments: Moments, streams: tuple[Array, ...], joined: Array | None = None
) -> tuple[Array, ...]:
    """Second moments of each draw; of several streams, and of what they are joined in, along a second axis."""
    if len(streams) == 1:
        return moments(streams[0])
    places = [moments(stream) for stream in streams]
    places.append(tuple(place * math.nan for place in places[0]) if joined is None else moments(joined))
    return tuple(backend.xp.stack(quantity, axis=1) for quantity in zip(*places, strict=True))


def _sampler_of(name: str, model: Model, normals: Normals) -> Sampler:
    return dense(normals, LAWS[model.weights]) if name == "dense" else SAMPLERS[name](normals)


def by_block(prefix: str, moments: list[tuple[Array, ...]], backend: Backend) -> dict[str, Floats]:
    """For each name an array (draws, blocks), with further axes for streams and, of single tokens, for tokens."""
    names = ("variance", "covariance", "deviation", "token_variance")
    stacked = (backend.to_host(backend.xp.stack(values, axis=1)) for values in zip(*moments, strict=True))
    return {prefix + name: values for name, values in zip(names, stacked, strict=False)}
