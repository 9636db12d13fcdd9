"""The coordinates of simulated networks in their first steps, under a rule of transfer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from propagate.checks import ModelError
from propagate.coordinates.curves import Coordinates, Matrix, geometric
from propagate.experts import Experts
from propagate.latent import LatentAttention
from propagate.losses import CrossEntropy
from propagate.montecarlo.statistics import Floats
from propagate.montecarlo.steps.run import Course, run_steps
from propagate.montecarlo.steps.simulate import Plan
from propagate.optimizers import Adam
from propagate.recurrent import LinearAttention
from propagate.transfer import kind_of

ALONE = ("embedding", "unembedding")


def coordinates_of(planned: Plan, draws: int) -> Iterator[Coordinates]:
    """Of independent networks; of a matrix that several blocks have, geometric means over them.

    Args:
        planned: see `plan`.
        draws: how many.

    Raises:
        ModelError: for experts, each of whose matrices has tokens of its own.

    Example:
        >>> from propagate.model import Model
        >>> from propagate.montecarlo.steps.simulate import plan
        >>> model = Model("prenorm", depth=2, width=16, heads=2, tokens=3)
        >>> planned = plan(model, Adam(lr=1e-3), None, 1, 0, None, None, None, backend="numpy")
        >>> (seen,) = coordinates_of(planned, draws=1)
        >>> list(seen.response), list(seen.whole)
        (['query', 'key', 'value', 'attention_out', 'ffn_in', 'ffn_out'], ['stream'])
    """
    course, batch = planned.course, planned.batch
    if course.model.uneven:
        raise ModelError('experts must be None for a coordinate check by simulation; by="torch" has them')
    for first in range(0, draws, batch):
        some = range(first, min(first + batch, draws))
        found = run_steps(course, some)
        names = [key.removeprefix("own_change:") for key in found if key.startswith("own_change:")]
        for draw in range(len(some)):
            yield _read(course, {key: values[draw] for key, values in found.items()}, names)


def _read(course: Course, columns: dict[str, Floats], names: list[str]) -> Coordinates:
    found, steps = Coordinates(), course.steps + 1
    for name in names:
        own = columns[f"own_change:{name}"]
        places = np.flatnonzero(~np.isnan(own[0]))

        def roots(quantity: str, name: str = name, places: Any = places) -> Floats:
            """(steps, blocks that have the matrix)."""
            return np.sqrt(columns[f"{quantity}:{name}"][:, places])

        matrix = _described(course, name, int(places[0]))
        heard = np.ones(len(places)) if name == "embedding" else roots("input_variance")[0]
        found.matrices[name] = matrix
        found.own_change[name] = [geometric(row) for row in roots("own_change")]
        found.response[name] = [geometric(row / heard) for row in roots("own_change")]
        found.output_change[name] = [geometric(row) for row in roots("output_change")]
        found.gain[name] = math.nan if name == "embedding" else geometric(roots("output_variance")[0] / heard)
        found.gradient[name] = geometric(roots("param_grad")[0] / math.sqrt(matrix.fan_in * matrix.fan_out))
    change = columns["change"][:, -1]
    found.whole["stream"] = [math.sqrt(np.ravel(change[step])[-1]) for step in range(steps)]
    if "logit_change" in columns:
        found.whole["logits"] = np.sqrt(columns["logit_change"]).tolist()
    return found


def _described(course: Course, name: str, block: int) -> Matrix:
    optimizer, own = course.optimizer_of(name), course.factors_of(name)
    fan_in, fan_out = _sides(course, name, block)
    eps = optimizer.eps if isinstance(optimizer, Adam) else math.nan
    return Matrix(fan_in, fan_out, kind_of(name), optimizer.lr, float(own.multiplier), eps)


def _sides(course: Course, name: str, block: int) -> tuple[int, int]:
    """Fan-in and fan-out of a matrix.

    Raises:
        ModelError: for one of a sublayer of a user's own, whose sides nobody knows.
    """
    width, layer = course.model.width, course.model.at(block)
    if name in ALONE and isinstance(course.loss, CrossEntropy):
        vocabulary = course.loss.vocabulary
        return (vocabulary, width) if name == "embedding" else (width, vocabulary)
    attention, ffn = layer.attention, layer.ffn
    if isinstance(attention, LatentAttention | LinearAttention):
        sides = {own: (fan_in, fan_out) for own, fan_in, fan_out, _ in attention.matrices(width)}
    else:
        keys = attention.size * attention.kv_heads
        sides = {"query": (width, attention.inside), "key": (width, keys), "value": (width, keys)}
        sides |= {"attention_out": (attention.inside, width)}
    if not isinstance(ffn, Experts):
        sides |= {"ffn_in": (width, ffn.units), "ffn_gate": (width, ffn.units), "ffn_out": (ffn.units, width)}
    if name not in sides:
        raise ModelError(f"a coordinate check does not know the sides of {name}")
    return sides[name]
