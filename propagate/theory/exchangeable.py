"""The table of what a walk with exchangeable tokens gives."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagate.latent import LatentAttention
from propagate.model import Model
from propagate.sublayers import Attention
from propagate.table import EMBEDDING_SHARE
from propagate.theory.call_columns import MOMENTS, call_moments
from propagate.theory.embedding_share import share_columns, shares
from propagate.theory.finite.allowances import allowances, allowances_of_streams
from propagate.theory.finite.fluctuations import spreads
from propagate.theory.finite.sampled_tables import standard_errors
from propagate.theory.found import Found
from propagate.theory.gaussian.finite_heads import relative_error
from propagate.theory.gaussian.functions import Scalar
from propagate.theory.gaussian.normed_heads import RELATIVE_ERROR
from propagate.theory.pairs.moments import Joint, Moments, SecondMoments
from propagate.theory.parameter_gradients import Measure, matrix_columns
from propagate.theory.reading.blocks import Call
from propagate.theory.reading.network import Path
from propagate.theory.validity import Uses
from propagate.theory.walks import walk
from propagate.threads import one_thread_each

Array = NDArray[np.float64]


@one_thread_each()
def found(
    model: Model,
    start: Moments,
    cotangent: Moments,
    uses: Uses,
    include: Collection[str],
    measure: Measure | None,
    *,
    through_readout: bool,
    head_size: float | None,
) -> Found:
    """The table's columns, from one walk; `uses` is told where the maps are used, `measure` asks of matrices."""
    exact = measure is not None
    path = walk(model, start, cotangent, through_readout=through_readout, head_size=head_size, exact=exact)
    for index, calls in enumerate(path.calls):
        uses.add(model.at(index), calls)
    shape = np.broadcast(*start, *cotangent).shape
    columns = _columns(path, start, cotangent, model, shape, through_readout)
    read_off = {
        index: _error_of_tables(calls, model.tokens, model.width, head_size) for index, calls in enumerate(path.calls)
    }
    if any(read_off.values()):
        columns |= standard_errors(columns, _kept(path, shape), read_off, streams=path.several)
    matrices, of_calls = list[str](), dict[str, Array]()
    if measure is not None:
        blocks = measure(path)
        wide = head_size == math.inf
        more, matrices = matrix_columns(model, blocks, columns, shape, several=path.several, wide=wide)
        columns |= more if shape else _over_replicas(more)
    if "calls" in include:
        of_calls = call_moments(path.calls[1:-1], lambda x: {name: getattr(x, name) for name in MOMENTS})
    if EMBEDDING_SHARE in include:
        limit = shares(path, start, shape)
        columns |= share_columns(limit if path.several else limit[:, 0], columns["variance_allowance"], model.width)
    if "fluctuations" in include:
        columns |= spreads(model, path, cotangent if through_readout else None)
    return Found(columns, path.several, matrices, of_calls)


def _over_replicas(columns: dict[str, Array]) -> dict[str, Array]:
    """Columns (block, replica, matrix), where something was drawn, as means and standard errors."""
    drawn = {name: values for name, values in columns.items() if values.ndim > 2}
    errors = {f"{name}_se": values.std(axis=1, ddof=1) / values.shape[1] ** 0.5 for name, values in drawn.items()}
    return columns | {name: values.mean(axis=1) for name, values in drawn.items()} | errors


def _columns(
    path: Path, start: Moments, cotangent: Moments, model: Model, shape: tuple[int, ...], through_readout: bool
) -> dict[str, Any]:
    """The table's columns, of starts of this shape, and their allowances."""
    columns: dict[str, Any] = {}
    for prefix, ends, joints in (
        ("", (start, path.readout), path.forward),
        ("grad_", (path.embedding, cotangent), path.backward),
    ):
        for name in ("variance", "covariance", "deviation"):
            columns[prefix + name] = _column(name, joints, ends if path.several else None, shape)
    columns["skip_gain"] = _skip_gain(path, shape)
    if path.several:
        return columns | allowances_of_streams(columns, _kept(path, shape), model)
    return columns | allowances(columns, model, through_readout=through_readout)


def _error_of_tables(calls: Sequence[Call], tokens: int, width: int, head_size: float | None) -> float:
    """Relative standard error of the averages that the calls of a block read off tables of drawn heads."""
    largest = 0.0
    if tokens == 1 or head_size == math.inf:
        return largest
    for call in calls:
        kind, x = call.description, call.entered
        if isinstance(kind, Attention):
            if "query" in kind.normed or "key" in kind.normed:
                largest = max(largest, RELATIVE_ERROR)
                continue
            of_logits = (kind.logit_std * (kind.query_gain * kind.key_gain)) ** 2 * x.variance * x.deviation
            largest = max(largest, relative_error(head_size or kind.size, of_logits, 1 - x.deviation / x.variance))
        elif isinstance(kind, LatentAttention):
            loss = x.deviation / x.variance
            largest = max(largest, relative_error(kind.size, kind.logit_power(width) * loss, 1 - loss))
    return largest


def _stacked(values: Sequence[Scalar], shape: tuple[int, ...]) -> Array:
    if not shape:
        return np.array(values, dtype=float)
    return np.stack([np.broadcast_to(np.asarray(value, dtype=float), shape) for value in values])


def _column(
    name: str, joints: list[Joint], ends: tuple[SecondMoments, SecondMoments] | None, shape: tuple[int, ...]
) -> Array:
    """One quantity along the network: (block, ...), or (block, stream, ...) with the two ends under "joined"."""
    streams = [_stacked([getattr(joint[i][i], name) for joint in joints], shape) for i in range(len(joints[0]))]
    if ends is None:
        return streams[0]
    joined = np.full_like(streams[0], np.nan)
    joined[0], joined[-1] = (getattr(end, name) for end in ends)
    return np.stack([*streams, joined], axis=1)


def _skip_gain(path: Path, shape: tuple[int, ...]) -> Array:
    """Square of the factor that a cotangent returns with along the skips alone."""
    squares = [[factor * factor for factor in factors] for factors in path.skip_factors()]
    if not path.several:
        return _stacked([block[0] for block in squares], shape)
    ends = (np.nan,) * len(squares)
    return np.stack([_stacked(stream, shape) for stream in (*zip(*squares, strict=True), ends)], axis=1)


def _kept(path: Path, shape: tuple[int, ...]) -> Array:
    """Share of the variance of what leaves a block that its skips kept, (block, ...): the least of all streams."""
    columns = [_stacked(stream, shape) for stream in zip(*path.kept_shares(), strict=True)]
    return np.asarray(np.min(columns, axis=0))
