"""One batch of random networks, trained for a few steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from propagate.losses import Loss
from propagate.model import Model
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.blocks import State, StatePull, block_of, read_state
from propagate.montecarlo.calls import exchangeable
from propagate.montecarlo.laws import LAWS
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.parameter_gradients import ORDER
from propagate.montecarlo.run import by_block, of_streams
from propagate.montecarlo.starts import Ends
from propagate.montecarlo.statistics import Floats, moments_on, token_moments
from propagate.montecarlo.steps.dense import dense_map
from propagate.montecarlo.steps.ends import BLOCK, Bounds, bounds
from propagate.montecarlo.steps.maps import Map, Stored
from propagate.montecarlo.steps.trained import Trained
from propagate.montecarlo.steps.weightless import weightless_map
from propagate.optimizers import Optimizer
from propagate.placement import check_streams
from propagate.transfer import Factors, Kind, kind_of, trained_with

NAMES = ("embedding", *ORDER, "unembedding")
"""Of the matrices in a table, in order; others follow as blocks have them."""


@dataclass(frozen=True)
class Course:
    """What all draws of a run have in common: plain data, which can be sent to a worker."""

    model: Model
    optimizer: Optimizer
    steps: int
    loss: Loss
    factors: dict[Kind, Factors]
    backend: str
    precision: str
    sampler: str
    seed: int
    ends: Ends

    def factors_of(self, name: str) -> Factors:
        """Of transfer, of the matrix of this name."""
        return self.factors[kind_of(name)]

    def optimizer_of(self, name: str) -> Optimizer:
        """The optimiser with the rates of the matrix of this name."""
        return trained_with(self.optimizer, self.factors_of(name))


@dataclass(eq=False)
class Pass:
    """One way forward and backward.

    Attributes:
        moments: of streams and cotangents, for each name an array (draws, depth + 1), or with further axes.
        streams: those of each block, and what they are joined in, at both ends.
        logits: where the loss has any.
        loss: (draws,).
    """

    moments: dict[str, Floats]
    streams: list[tuple[tuple[Array, ...], Array | None]]
    loss: Array
    logits: Array | None


def run_steps(course: Course, draws: range) -> dict[str, Floats]:
    """One batch of draws: for each quantity an array (draws, steps + 1, depth + 1), or with further axes.

    The parts of a quantity, `name:matrix`, are the matrices. `loss` and `logit_change` are (draws, steps + 1),
    `first_order_fall` (draws, depth + 1), `doubtful` (draws,).
    """
    with np.errstate(all="ignore"):  # what leaves the range of numbers is told of at the end
        return _run(course, draws)


def _run(course: Course, draws: range) -> dict[str, Floats]:
    model = course.model
    backend = choose_backend(course.backend, course.precision)
    normals, xp = Normals(backend, course.seed, draws), backend.xp
    trained = Trained(xp, _maker(course, normals), course.factors_of)
    loss = bounds(course.loss, model, normals, course.ends, trained)
    doubtful = xp.zeros(len(draws), dtype=bool)
    steps: list[dict[str, Floats]] = []
    first: Pass | None = None
    for step in range(course.steps + 1):
        found = _pass(course, normals, trained, loss)
        trained.settle()
        first = first or found
        sums = _by_matrix(model.depth, trained.measured(), backend.to_host)
        changed = {"change": _change(first, found, normals), "loss": backend.to_host(found.loss)}
        if found.logits is not None and first.logits is not None:
            changed["logit_change"] = backend.to_host(_mean_square(found.logits - first.logits))
        steps.append(found.moments | changed | _of_matrices(sums))
        if step < course.steps:
            doubtful |= trained.update(course.optimizer_of)
        if step == 0:
            falls = _by_matrix(model.depth, trained.falls(), backend.to_host)
    stacked = {name: np.stack([one[name] for one in steps], axis=1) for name in steps[0]}
    of_first = {f"first_order_fall:{name}": sums["fall"] for name, sums in falls.items()}
    return stacked | of_first | {"doubtful": backend.to_host(doubtful)}


def _maker(course: Course, normals: Normals) -> Callable[[int, int, Sequence[Stored]], Map]:
    model = course.model
    if course.sampler == "dense":
        return partial(dense_map, normals, LAWS[model.weights])
    stride = (model.depth + 2) * BLOCK
    return partial(weightless_map, normals, course.steps, stride, tokens=model.tokens)


def _pass(course: Course, normals: Normals, trained: Trained, loss: Bounds) -> Pass:
    """Forward and backward through one batch of networks, as `run` goes; every block is remembered."""
    model, backend, placement = course.model, normals.backend, course.model.equations
    averages, resolved = moments_on(backend), not (course.ends.exchangeable and exchangeable(model))

    def moments(x: Array) -> tuple[Array, ...]:
        return (*averages(x), token_moments(x)) if resolved else averages(x)

    def read(equations: Callable[..., object], index: int, state: State) -> tuple[State, StatePull]:
        return read_state(equations, block_of(model, backend, trained, index, normals), state)

    x, pull_entrance = loss.enter()
    state, pull_embed = read(placement.embed, 0, State((x,)))
    streams = [(state.streams, x if len(state.streams) > 1 else None)]
    pulls: list[StatePull] = []
    for index in range(1, model.depth + 1):
        entered = len(state.streams)
        state, pull = read(placement.block, index, state)
        check_streams(placement, "block", found=len(state.streams), expected=entered)
        streams.append((state.streams, None))
        pulls.append(pull)
    several = len(state.streams) > 1
    if several or loss.through_readout:
        readout, pull_readout = read(placement.readout, model.depth + 1, state)
        check_streams(placement, "readout", found=len(readout.streams), expected=1)
        (left,) = readout.streams
        streams[-1] = (state.streams, left if several else None)
        end = loss.leave(left)
        joined = end.pull()
        cotangents = pull_readout((joined,))
    else:
        end = loss.leave(*state.streams)
        joined = end.pull()
        cotangents = (joined,)
    forward = [of_streams(backend, moments, *place) for place in streams]
    backward = [of_streams(backend, moments, cotangents, joined)]
    while pulls:
        cotangents = pulls.pop()(cotangents)
        backward.append(of_streams(backend, moments, cotangents))
    (entering,) = pull_embed(cotangents)
    if several:
        backward[-1] = of_streams(backend, moments, cotangents, entering)
    pull_entrance(entering)
    both = by_block("", forward, backend) | by_block("grad_", backward[::-1], backend)
    return Pass(both, streams, end.loss, end.logits)


def _mean_square(x: Array) -> Array:
    return (x * x).mean(axis=(-1, -2), dtype=float)


def _change(first: Pass, now: Pass, normals: Normals) -> Floats:
    """Mean square of what each stream is less what it was at the first step, (draws, depth + 1) or with streams."""
    places = []
    for (before, joined_before), (after, joined) in zip(first.streams, now.streams, strict=True):
        differences = tuple(b - a for a, b in zip(before, after, strict=True))
        of_joined = None if joined is None or joined_before is None else joined - joined_before
        places.append(of_streams(normals.backend, lambda x: (_mean_square(x),), differences, of_joined)[0])
    return normals.backend.to_host(normals.backend.xp.stack(places, axis=1))


def _by_matrix(
    depth: int,
    measured: Iterable[tuple[int, str, dict[str, Array]]],
    to_host: Callable[[Array], Floats],
) -> dict[str, dict[str, Floats]]:
    """Sums over all matrices of a name in a block: for each name and sum an array (draws, depth + 1), else NaN."""
    found: dict[str, dict[str, Floats]] = {}
    met = set()
    for site, name, sums in measured:
        of_name, block = found.setdefault(name, {}), min(site // BLOCK, depth)
        for key, values in sums.items():
            host = np.asarray(to_host(values), dtype=float)
            column = of_name.setdefault(key, np.full((len(host), depth + 1), np.nan))
            column[:, block] = column[:, block] + host if (name, key, block) in met else host
            met.add((name, key, block))
    order = [*(name for name in NAMES if name in found), *(own for own in found if own not in NAMES)]
    return {name: found[name] for name in order}


def _of_matrices(sums: dict[str, dict[str, Floats]]) -> dict[str, Floats]:
    """The quantities of matrices, from sums over their entries."""
    found = {}
    for name, of_name in sums.items():
        gradient = of_name["grad"]
        if name not in ("embedding", "unembedding"):  # as in `simulate`: 0 where a block does not use it
            gradient = gradient.copy()
            gradient[:, 1:] = np.where(np.isnan(of_name["count"][:, 1:]), 0.0, gradient[:, 1:])
        found[f"param_grad:{name}"] = gradient
        found[f"own_change:{name}"] = of_name["own"] / of_name["count"]
        found[f"own_covariance:{name}"] = (of_name["together"] - of_name["own"]) / of_name["pairs"]
        found[f"output_change:{name}"] = of_name["output"] / of_name["count"]
        found[f"input_variance:{name}"] = of_name["heard"] / of_name["count"]
        found[f"output_variance:{name}"] = of_name["said"] / of_name["count"]
        found[f"update_ratio:{name}"] = np.sqrt(of_name["far"] / of_name["size"])
    return found
