"""The coordinates of networks that `build` makes, in their first steps under a rule of transfer."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from propagate.coordinates.curves import Coordinates, Matrix, geometric
from propagate.losses import Loss
from propagate.model import Model
from propagate.optimizers import Adam, Optimizer
from propagate.start import Start
from propagate.tracing.build import build
from propagate.tracing.leaves import Leaf
from propagate.tracing.starts import ends_of
from propagate.tracing.stepping import Columns, stepped
from propagate.tracing.steps import factors_for
from propagate.transfer import Transfer, kind_of, trained_with


def coordinates_of(
    model: Model,
    optimizer: Optimizer,
    loss: Loss,
    start: Start,
    transfer: str | Transfer | None,
    base: tuple[int, int],
    steps: int,
    draws: int,
    seed: int,
) -> Iterator[Coordinates]:
    """Of independent networks of one model; of a matrix that several blocks have, geometric means over them.

    Args:
        model, optimizer, loss, start, transfer, base, steps, draws, seed: see `trace_steps`.

    Example:
        >>> from propagate.losses import Linear
        >>> model = Model("prenorm", depth=2, width=16, heads=2, tokens=3)
        >>> (seen,) = coordinates_of(model, Adam(lr=1e-3), Linear(), Start(), None, (16, 2), 1, 1, 0)
        >>> list(seen.response), list(seen.whole)
        (['query', 'key', 'value', 'attention_out', 'ffn_in', 'ffn_out'], ['stream'])
    """
    factors_of, ends = factors_for(model, transfer, base), ends_of(model, start, loss, torch.float64)
    for draw in range(draws):
        own = 1_000_003 * seed + draw
        network = build(model, seed=own, dtype=torch.float64)
        entering = ends(torch.Generator().manual_seed(own))
        yield _read(*stepped(network, entering, optimizer, factors_of, steps), optimizer)


def _read(columns: list[Columns], leaves: list[Leaf], optimizer: Optimizer) -> Coordinates:
    first, found = columns[0], Coordinates()
    for name in dict.fromkeys(one.name for one in leaves):
        places = [place for place in first["own_change"] if place[1] == name]
        inputs = {place: math.sqrt(first["input_variance"][place]) for place in places}
        if name == "embedding":  # which hears numbers of tokens
            inputs = dict.fromkeys(places, 1.0)
        rows = [{p: math.sqrt(row["own_change"][p]) for p in places} for row in columns]
        found.matrices[name] = _described([one for one in leaves if one.name == name], optimizer)
        found.own_change[name] = [geometric(row.values()) for row in rows]
        found.response[name] = [geometric(row[p] / inputs[p] for p in places) for row in rows]
        found.output_change[name] = [geometric(math.sqrt(row["output_change"][p]) for p in places) for row in columns]
        outputs = [math.sqrt(first["output_variance"][p]) / inputs[p] for p in places]
        found.gain[name] = math.nan if name == "embedding" else geometric(outputs)
        entries = {p: sum(one.first.numel() for one in leaves if (one.block, one.name) == p) for p in places}
        found.gradient[name] = geometric(math.sqrt(first["param_grad"][p] / entries[p]) for p in places)
    found.whole["stream"] = [_rms(row["change"][-1]) for row in columns]
    if "logit_change" in first:
        found.whole["logits"] = [math.sqrt(row["logit_change"]) for row in columns]
    return found


def _rms(change: float | list[float]) -> float:
    """Of the stream that leaves the last block; of several streams, of what joins them."""
    return math.sqrt(change[-1] if isinstance(change, list) else change)


def _described(leaves: list[Leaf], optimizer: Optimizer) -> Matrix:
    one = leaves[0]
    fan_out, fan_in = one.first.shape
    own = trained_with(optimizer, one.factors)
    eps = own.eps if isinstance(own, Adam) else math.nan
    return Matrix(fan_in, fan_out, kind_of(one.name), own.lr, one.multiplier, eps)
