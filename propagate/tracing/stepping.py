"""One network's first steps: forward, backward, and torch's optimiser, with what changed since step 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from propagate.optimizers import Optimizer
from propagate.placement import join, split
from propagate.tracing.build import Network
from propagate.tracing.leaves import FactorsOf, Leaf, leaf, leaves_of, together
from propagate.tracing.optimizers import torch_optimizer
from propagate.tracing.starts import Entering
from propagate.tracing.statistics import second_moments

Columns = dict[str, Any]
"""Numbers, lists over blocks, and numbers by block and matrix."""
Place = tuple[int, str]
Share = tuple[float, int]  # of a mean: a sum, and of how many
MEANS = ("own_change", "output_change", "input_variance", "output_variance")


class Passed(nn.Module):
    """A network's forward pass with every stream on its way: the embedding's, each block's, then the output."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[list[list[Tensor]], Tensor]:
        state = self._apart(self.network.embed(x))
        states = [_streams(state, x)]
        for block in self.network.blocks:
            state = self._apart(block(state))
            states.append(_streams(state, x))
        return states, self.network.readout(state)

    def _apart(self, state: Any) -> Any:
        """Streams that may be one tensor, as tensors of their own, with gradients of their own."""
        streams, layout = split(state, Tensor)
        return join([stream.clone() for stream in streams], layout)


def _streams(state: Any, like: Tensor) -> list[Tensor]:
    """Without a measured standard deviation on its way, which is a tensor too."""
    return [one for one in split(state, Tensor)[0] if one.shape == like.shape]


@dataclass(frozen=True, eq=False)
class Seen:
    """One step's forward and backward pass.

    Attributes:
        loss: a number.
        streams, cotangents: by block and stream, (1, tokens, width).
        ends, end_cotangents: of what enters the network and leaves the readout.
        heard, said: what each module that holds matrices was given and gave, by the path of its parameter.
        gradients: by leaf.
        logits: where there are some.
    """

    loss: float
    streams: list[list[Tensor]]
    cotangents: list[list[Tensor]]
    ends: list[Tensor]
    end_cotangents: list[Tensor]
    heard: dict[str, Tensor]
    said: dict[str, Tensor]
    gradients: list[Tensor]
    logits: Tensor | None


def stepped(
    network: Network,
    entering: Entering,
    optimizer: Optimizer,
    factors_of: FactorsOf,
    steps: int,
    *,
    approximate: bool = False,
) -> tuple[list[Columns], list[Leaf]]:
    """The columns of steps 0 ... `steps` of one network, and its matrices behind them.

    Args:
        network: whose weights are the initial ones without a rule of transfer; they stay as they are.
        entering: at both ends.
        optimizer, approximate: see `trace_steps`.
        factors_of: of the rule, by matrix.
        steps: how many.
    """
    leaves = leaves_of(network, factors_of)
    if entering.embedding is not None and entering.unembedding is not None:
        leaves.insert(0, leaf("embedding", 0, "embedding", entering.embedding, factors_of("embedding")))
        last = len(network.blocks)
        leaves.append(leaf("unembedding", last, "unembedding", entering.unembedding, factors_of("unembedding")))
    made = torch_optimizer(
        optimizer, [one.tensor for one in leaves], [one.factors for one in leaves], approximate=approximate
    )
    first, columns = None, []
    for step in range(steps + 1):
        now = _pass(network, leaves, entering)
        first = first or now
        columns.append(_columns(first, now, leaves))
        if step < steps:
            for one, gradient in zip(leaves, now.gradients, strict=True):
                one.tensor.grad = gradient
            made.step()
        if step == 0:
            fallen = [(-float((g * one.moved()).sum()), 1) for g, one in zip(now.gradients, leaves, strict=True)]
            columns[0]["first_order_fall"] = {place: fall for place, (fall, _) in by_matrix(leaves, fallen).items()}
    return columns, leaves


def _pass(network: Network, leaves: Sequence[Leaf], entering: Entering) -> Seen:
    by_name = {one.name: one for one in leaves if one.path == one.name}  # of the ends, which are no part of a network
    inside = [one for one in leaves if one.path != one.name]
    parameters = {f"network.{path}": weight for path, weight in together(inside).items()}
    with _hearing(network, {one.path for one in inside}) as (heard, said):
        if not by_name:
            x = entering.inputs.clone().requires_grad_()
        else:
            x = by_name["embedding"].effective.T[entering.inputs]
        states, output = functional_call(Passed(network), parameters, (x,))
    if by_name:
        logits = output @ by_name["unembedding"].effective.T
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), entering.target.flatten())
        heard["embedding"], said["embedding"] = entering.inputs, x.detach()
        heard["unembedding"], said["unembedding"] = output.detach(), logits.detach()
    else:
        logits = None
        left = output if network.streams > 1 else states[-1][0]
        loss = (entering.target * left).sum()
    places = [stream for state in states for stream in state]
    wanted = [one.tensor for one in leaves]
    found = torch.autograd.grad(loss, [*wanted, *places, x, output], allow_unused=True, materialize_grads=True)
    gradients, rest = list(found[: len(wanted)]), iter(found[len(wanted) :])
    cotangents = [[next(rest).detach() for _ in state] for state in states]
    return Seen(
        float(loss.detach()),
        [[stream.detach() for stream in state] for state in states],
        cotangents,
        [x.detach(), output.detach()],
        list(rest),
        heard,
        said,
        gradients,
        None if logits is None else logits.detach(),
    )


@contextmanager
def _hearing(network: Network, paths: set[str]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """What the modules with these parameters are given, and give."""
    heard: dict[str, Tensor] = {}
    said: dict[str, Tensor] = {}
    handles = []
    for path in paths:

        def note(_: Any, given: Any, output: Tensor, path: str = path) -> None:
            heard[path], said[path] = given[0].detach(), output.detach()

        handles.append(network.get_submodule(path.rpartition(".")[0]).register_forward_hook(note))
    try:
        yield heard, said
    finally:
        for handle in handles:
            handle.remove()


def _columns(first: Seen, now: Seen, leaves: Sequence[Leaf]) -> Columns:
    found: Columns = {"loss": now.loss}
    for prefix, streams, ends in (("", now.streams, now.ends), ("grad_", now.cotangents, now.end_cotangents)):
        found |= {prefix + name: values for name, values in _over_streams(streams, ends, _moments).items()}
    differences = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(now.streams, first.streams, strict=True)]
    ends = [a - b for a, b in zip(now.ends, first.ends, strict=True)]
    found |= _over_streams(differences, ends, lambda x: {"change": _mean_square(x)})
    if now.logits is not None and first.logits is not None:
        found["logit_change"] = _mean_square(now.logits - first.logits)
    names = (*MEANS, "own_covariance", "moved", "weight", "param_grad")
    squares: dict[str, list[Share]] = {name: [] for name in names}
    for one, gradient in zip(leaves, now.gradients, strict=True):
        squares["param_grad"].append((float(gradient.square().sum()), 1))
        squares["moved"].append((float(one.moved().square().sum()), 1))
        squares["weight"].append((float(one.first.square().sum()), 1))
        outputs = _of_outputs(first, now, one)
        for name, value in outputs.items():
            squares[name].append(_share(value))
        squares["own_covariance"].append(_share_of_pairs(outputs["own_change"]))
    of = {name: by_matrix(leaves, shares) for name, shares in squares.items()}
    found |= {name: _means(of[name]) for name in (*MEANS, "own_covariance")}
    found["param_grad"] = {place: total for place, (total, _) in of["param_grad"].items()}
    found["update_ratio"] = {
        place: math.sqrt(moved / of["weight"][place][0]) for place, (moved, _) in of["moved"].items()
    }
    return found


def _of_outputs(first: Seen, now: Seen, one: Leaf) -> dict[str, Tensor | None]:
    """What a matrix heard and said at first, and the changes of what it says; None where there is nothing."""
    if one.path not in first.heard:
        return dict.fromkeys(MEANS)
    heard, said, before = first.heard[one.path], now.said.get(one.path), first.said[one.path][..., one.rows]
    moved = one.multiplier * one.moved()
    if one.name == "embedding":  # which hears the tokens' numbers
        return {
            "own_change": moved.T[heard],
            "output_change": None if said is None else said - before,
            "input_variance": torch.tensor(one.tensor.shape[1] ** -0.5),  # of zeros and a one
            "output_variance": before,
        }
    alike = said is not None and said.shape[:-1] == before.shape[:-1]  # not where experts got other tokens
    return {
        "own_change": heard @ moved.T,
        "output_change": said[..., one.rows] - before if said is not None and alike else None,
        "input_variance": heard,
        "output_variance": before,
    }


def by_matrix(leaves: Sequence[Leaf], shares: Sequence[Share]) -> dict[Place, Share]:
    """Sums over matrices that share a block and a name."""
    found: dict[Place, Share] = {}
    for one, (total, count) in zip(leaves, shares, strict=True):
        before = found.get((one.block, one.name), (0.0, 0))
        found[one.block, one.name] = (before[0] + total, before[1] + count)
    return found


def _share(value: Tensor | None) -> Share:
    return (0.0, 0) if value is None else (float(value.square().sum()), value.numel())


def _share_of_pairs(value: Tensor | None) -> Share:
    """Sum and number of products of two tokens' coordinates."""
    if value is None or value.ndim < 2 or value.shape[-2] < 2:
        return 0.0, 0
    of_all = float(value.sum(dim=-2).square().sum() - value.square().sum())
    return of_all, value.numel() * (value.shape[-2] - 1)


def _means(shares: dict[Place, Share]) -> dict[Place, float]:
    return {place: total / count if count else math.nan for place, (total, count) in shares.items()}


def _mean_square(x: Tensor) -> float:
    return float(x.square().mean())


def _moments(x: Tensor) -> dict[str, float]:
    return second_moments(x, torch.ones(x.shape[:2], dtype=torch.bool))


def _over_streams(
    streams: list[list[Tensor]], ends: list[Tensor], of: Callable[[Tensor], dict[str, float]]
) -> dict[str, list[Any]]:
    """Numbers by block or, of several streams, by block and stream, what joins them last."""
    rows = [[of(x) for x in state] for state in streams]
    if len(rows[0]) == 1:
        return {name: [row[name] for (row,) in rows] for name in rows[0][0]}
    joined = [of(ends[0]), *[dict.fromkeys(rows[0][0], math.nan)] * (len(rows) - 2), of(ends[1])]
    return {
        name: [[one[name] for one in (*row, end)] for row, end in zip(rows, joined, strict=True)] for name in rows[0][0]
    }
