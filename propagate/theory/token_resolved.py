"""The network's moments token by token: the table of what a walk with Gram matrices gives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np

from propagate.model import Model
from propagate.quantities import quantity_of
from propagate.table import EMBEDDING_SHARE
from propagate.theory.call_columns import call_moments
from propagate.theory.embedding_share import share_columns, shares
from propagate.theory.finite.allowances import allowances, allowances_of_streams
from propagate.theory.found import Found
from propagate.theory.in_turn import in_turn
from propagate.theory.parameter_gradients import Measure, Numbers, matrix_columns
from propagate.theory.reading.network import Path
from propagate.theory.tokens.gram import Array, Gram
from propagate.theory.validity import Uses
from propagate.theory.walks import Group, at_once, groups_of, repeated, walk_grams
from propagate.threads import one_thread_each
from propagate.watching import is_watched

TOKEN_COLUMNS = {"variance": "token_variance", "grad_variance": "grad_token_variance"}


@one_thread_each()
def found(
    model: Model,
    start: Gram,
    cotangent: Gram,
    uses: Uses,
    include: Collection[str],
    measure: Measure | None,
    *,
    through_readout: bool,
    head_size: float | None,
    samples: int | None,
) -> Found:
    """The table's columns; `uses` is told where the maps are used.

    Means over tokens and over pairs of tokens, and each token's own variance; each the mean over replicas, and
    `<name>_se` its standard error where there are several: the theory's own, of the attention logits it drew. Routers
    do not average out in a network: where they are drawn, the means of logarithms differ from the logarithms of means
    at any width, and stand beside them.
    """
    of_groups = list[dict[str, Array]]()
    blocks, calls = list[list[Numbers]](), list[dict[str, Array]]()

    def walked(group: Group) -> tuple[int, Path]:
        path = walk_grams(
            model,
            start,
            cotangent,
            through_readout=through_readout,
            head_size=head_size,
            exact=measure is not None,
            samples=samples,
            group=group,
        )
        return group.replicas, path

    def add(replicas: int, path: Path) -> None:  # of which nothing else stays in memory
        ends = [repeated(gram, replicas) for gram in (start, cotangent)]
        of_groups.append(_of_replicas(path, *ends))
        if EMBEDDING_SHARE in include:
            limit = shares(path, ends[0], ends[0].variance.shape).mean(axis=-1)
            of_groups[-1][EMBEDDING_SHARE] = limit.swapaxes(1, 2)
        for index, of_block in enumerate(path.calls):
            uses.add(model.at(index), of_block)
        if measure is not None:
            blocks.append(measure(path))
        if "calls" in include:
            calls.append(call_moments(path.calls[1:-1], partial(_numbers, ends[0])))

    _keep_freed_memory()
    groups = groups_of(model, samples)
    threads = 1 if is_watched() else at_once(model, samples)
    with closing(in_turn(walked, groups, threads)) as paths:
        for replicas, path in paths:
            add(replicas, path)
            del path
    several = "kept" in of_groups[0]
    of_replicas = _joined(of_groups)
    skip, kept = of_replicas.pop("skip_gain").mean(axis=1), of_replicas.pop("kept", np.ones((1, 1))).mean(axis=1)
    columns = _means(of_replicas, logarithms=model.uneven)
    columns["skip_gain"] = skip.mean(axis=-1)
    of_tokens = {name: columns[token] for name, token in TOKEN_COLUMNS.items()}
    of_tokens |= {"skip_gain": skip, "grad_deviation": columns["grad_token_variance"]}
    of_tokens["deviation"] = of_tokens["variance"] * (columns["deviation"] / columns["variance"])[..., None]
    if several:
        columns |= allowances_of_streams(columns, kept.mean(axis=-1), model)
        stated = allowances_of_streams(of_tokens, kept, model, single_tokens=True)
    else:
        columns |= allowances(columns, model, through_readout=through_readout)
        stated = allowances(of_tokens, model, through_readout=through_readout, single_tokens=True)
    if EMBEDDING_SHARE in columns:
        columns |= share_columns(columns[EMBEDDING_SHARE], columns["variance_allowance"], model.width)
    columns |= {f"{token}_allowance": stated[f"{name}_allowance"] for name, token in TOKEN_COLUMNS.items()}
    columns = {name: values if several else values[:, 0] for name, values in columns.items()}
    matrices: list[str] = []
    if measure is not None:
        sizes = [group.replicas for group in groups]
        of_blocks = [_concatenated(parts, sizes) for parts in zip(*blocks, strict=True)]
        wide = head_size == math.inf
        more, matrices = matrix_columns(model, of_blocks, columns, (sum(sizes),), several=several, wide=wide)
        columns |= more | _means({name: more[name] for name in dict.fromkeys(itertools.chain(*of_blocks))})
    return Found(columns, several, matrices, _joined(calls) if calls else {})


def _keep_freed_memory() -> None:
    """Where the C library is glibc, which gives back to the system what is freed at once in pieces above 128 kilobytes,
    until a larger one was freed: a tenth of the time goes into fetching the same pages anew.
    """
    np.empty(2**20)


def _numbers(like: Gram, x: Any) -> dict[str, Array]:
    return statistics([x], like)


def _joined(groups: list[dict[str, Array]]) -> dict[str, Array]:
    """Arrays of all replicas, along the second axis."""
    return {name: np.concatenate([group[name] for group in groups], axis=1) for name in groups[0]}


def _concatenated(groups: tuple[Numbers, ...], sizes: list[int]) -> Numbers:
    """Numbers of all replicas, of groups of these sizes; one that is the same for a whole group counts for each."""
    if len(groups) == 1:
        return groups[0]

    def of_all(column: str, name: str) -> Array:
        values = (group[column][name] for group in groups)
        return np.concatenate([np.broadcast_to(value, (size,)) for value, size in zip(values, sizes, strict=True)])

    return {column: {name: of_all(column, name) for name in of_first} for column, of_first in groups[0].items()}


def _means(of_replicas: dict[str, Array], *, logarithms: bool = False) -> dict[str, Array]:
    """Means over the second axis, standard errors and, if asked for, how far mean logarithms lie from them."""
    found: dict[str, Array] = {}
    for name, values in of_replicas.items():
        found[name], replicas = values.mean(axis=1), values.shape[1]
        if replicas > 1:
            found[f"{name}_se"] = values.std(axis=1, ddof=1) / np.sqrt(replicas)
        if logarithms and quantity_of(name).scale == "log":
            bias = _log(values).mean(axis=1) - _log(found[name])
            nothing = (values <= 0).any(axis=1)  # tokens that are the same differ by rounding, of either sign
            found[f"log_{name}_bias"] = np.where(nothing, 0.0, bias)  # of what is 0, no router is off
    return found


def _of_replicas(path: Path, start: Gram, cotangent: Gram) -> dict[str, Array]:
    """Arrays of shape (blocks, replicas, streams), with a last axis of tokens for the tokens' own; and, of shape
    (blocks, replicas, tokens), the share `kept` where there are several streams.
    """
    found: dict[str, Array] = {}
    for prefix, ends, joints in (
        ("", (start, path.readout), path.forward),
        ("grad_", (path.embedding, cotangent), path.backward),
    ):
        streams = [statistics([joint[i][i] for joint in joints], start) for i in range(len(joints[0]))]
        for name in streams[0]:
            found[prefix + name] = np.stack([stream[name] for stream in streams], axis=2)
            if path.several:
                joined = np.full_like(streams[0][name], np.nan)
                joined[0], joined[-1] = (statistics([end], start)[name][0] for end in ends)
                found[prefix + name] = np.insert(found[prefix + name], len(streams), joined, axis=2)
    found["skip_gain"] = _skip_powers(path, start.variance.shape)
    return found | {"kept": _kept(path)} if path.several else found


def statistics(grams: list[Any], like: Gram) -> dict[str, Array]:
    """Arrays of shape (blocks, replicas), and with a last axis of tokens for the tokens' own."""
    known = [gram if isinstance(gram, Gram) else like.weighted(0.0) for gram in grams]
    of_tokens = np.stack([gram.variance for gram in known])
    tokens = of_tokens.shape[-1]
    pairs = max(tokens * (tokens - 1), 1)
    none = np.nan if tokens == 1 else 0.0
    apart = np.stack([gram.deviation.sum(axis=(-1, -2)) for gram in known]) / pairs + none
    mean_mode = np.stack([gram.matrix.sum(axis=(-1, -2)) for gram in known]) / tokens**2
    return {
        "variance": of_tokens.mean(axis=-1),
        # from the mean mode, so that it is not the difference of large numbers
        "covariance": mean_mode - apart / tokens,
        "deviation": apart,
        "token_variance": of_tokens,
    }


def _log(values: Array) -> Array:
    """Natural logarithm; NaN where a quantity is 0."""
    return np.log(values, out=np.full_like(values, np.nan), where=values > 0)


def _skip_powers(path: Path, shape: tuple[int, ...]) -> Array:
    """(blocks, replicas, streams, tokens): square of the factor that a cotangent returns with along the skips alone."""
    factors = path.skip_factors()
    powers = np.array([[np.broadcast_to(np.square(f), shape) for f in block] for block in factors]).swapaxes(1, 2)
    return np.insert(powers, powers.shape[2], np.nan, axis=2) if path.several else powers


def _kept(path: Path) -> Array:
    """(blocks, replicas, tokens): of what leaves a block, the share that its skips kept, the least of all streams."""
    return np.array([np.min(shares, axis=0) for shares in path.kept_shares()])
