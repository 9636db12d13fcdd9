"""Stacks a torch network on itself, trained or not: a deeper module that begins with copies of its blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn

from propagate.checks import ModelError, check_flag, number, shown
from propagate.growth import grown
from propagate.model import Model
from propagate.outline import norms_of_nothing
from propagate.scaling import product_of_gains
from propagate.tracing.build import Block, LanguageModel, Network
from propagate.tracing.matrices import matrices_of

N = TypeVar("N", LanguageModel, Network)
OUTPUTS = ("attention_out", "ffn_out", "shared_out")
"""Matrices that write what a branch gives."""


def grow(
    module: N,
    times: int = 2,
    *,
    rescaled: bool = False,
    branches: float | Sequence[float] = 1.0,
    adjacent: bool = False,
) -> N:
    """A network of `times` as many blocks, each with its own copy of a block's weights; training unties them.

    Embedding, readout and head are copied once. Gains of norms go along; a first block's further norm, which copies
    of it have no place for, stays with the first.

    Args:
        module: what `build` or `build_language_model` made.
        times: copies.
        rescaled: multiplies weights by the ratio of the gains that the placement and the scaling give at the new depth
            and at the old; see `grown`.
        branches: factor on the matrices that write what branches give; of each copy one, or one for all. Where a norm
            follows them on the branch (Peri-LN, OLMo2) it undoes them, and 0 is refused.
        adjacent: copies of a block one after another, in place of copies of the network.

    Raises:
        ModelError: for another module, values out of range, or blocks that at their new index are made of other parts.

    Example: with nothing written by the second copy PreNorm is the same function.
        >>> from propagate.tracing.build import build
        >>> small = build(Model("prenorm", depth=2, width=16, tokens=4, heads=2), seed=1)
        >>> x = torch.randn(4, 16)
        >>> [torch.allclose(grow(small, branches=two)(x), small(x), atol=1e-5) for two in ((1.0, 0.0), (1.0, 1.0))]
        [True, False]
    """
    if not isinstance(module, LanguageModel | Network):
        raise ModelError(f"module must be what build or build_language_model made, got {type(module).__name__}")
    check_flag("adjacent", adjacent)
    network = module.network if isinstance(module, LanguageModel) else module
    depth = network.model.depth
    stack = grown(network.model, times, rescaled=rescaled)
    factors = _factors(branches, times)
    _check_something_to_norm(stack, lambda index: factors[_own(index, depth, times, adjacent)[1]])
    like = next(network.parameters())
    with torch.device(like.device), torch.random.fork_rng([]):  # tables such as those of positions are made with it
        deeper = Network(stack).to(like.dtype)
    for target, source in ((deeper.embed, network.embed), (deeper.readout, network.readout)):
        target.load_state_dict(source.state_dict())
    for index, block in enumerate(deeper.blocks, start=1):
        own, number_ = _own(index, depth, times, adjacent)
        _copied(network.blocks[own], block, index)  # type: ignore[arg-type]
        _scaled(deeper, block, network.model, own + 1, factors[number_], drawn_for=stack.depth if rescaled else depth)
    deeper.train(network.training)
    if not isinstance(module, LanguageModel):
        return deeper
    whole = copy.deepcopy(module)
    whole.network = deeper
    return whole


def _own(index: int, depth: int, times: int, adjacent: bool) -> tuple[int, int]:
    """Which block, counted from 0, a block of the stack copies, and which copy it is."""
    copies, rest = divmod(index - 1, times if adjacent else depth)
    return (copies, rest) if adjacent else (rest, copies)


def _check_something_to_norm(stack: Model, factor: Callable[[int], float]) -> None:
    """ModelError where a norm without eps follows a branch that writes nothing."""

    def silent(index: int) -> frozenset[str]:
        written = 0 < index <= stack.depth and factor(index) == 0 and stack.at(index).norm.eps == 0
        return frozenset({"attention", "ffn", "experts"}) if written else frozenset()

    index = norms_of_nothing(stack.equations, stack.depth, silent)
    if index is not None:
        raise ModelError(f"branches must not be 0 where block {index} of {stack.placement!r} norms a branch by itself")


def _factors(branches: float | Sequence[float], times: int) -> list[float]:
    several: Sequence[float] = branches if isinstance(branches, tuple | list) else [branches] * times  # type: ignore[list-item]
    if len(several) != times:
        raise ModelError(f"branches must be a number, or {times} of them, one a copy, got {shown(branches)}")
    return [float(number("branches", one, positive=False)) for one in several]


def _copied(source: Block, target: Block, index: int) -> None:
    """Weights by the kind of a call and its place, counted from the last."""
    kinds: dict[str, list[list[str]]] = {}
    for side, block in enumerate((source, target)):
        for name in block.sublayers:
            kinds.setdefault(name.rstrip("0123456789"), [[], []])[side].append(name)
    for kind, (there, here) in kinds.items():
        if len(here) > len(there) or (kind != "norm" and len(here) < len(there)):
            raise ModelError(
                f"block {index} of the stack calls {kind} {len(here)} times, the block it copies {len(there)} times"
            )
        for one, other in zip(reversed(there), reversed(here), strict=False):
            have, want = source.sublayers[one], target.sublayers[other]
            want.load_state_dict(have.state_dict())
            for made, given in zip(want.modules(), have.modules(), strict=True):
                if hasattr(given, "multiplier"):
                    made.multiplier = given.multiplier


@torch.no_grad()
def _scaled(network: Network, block: nn.Module, model: Model, own: int, factor: float, *, drawn_for: int) -> None:
    sources = (model.equations, model.scaling)
    gains = [product_of_gains(sources, own, depth) for depth in (drawn_for, model.depth)]
    for parameter, names, cut in matrices_of(network, [block])[0]:
        for number_, name in enumerate(names):
            of_gains = name.replace("shared", "ffn")
            new, old = (getattr(one, of_gains, 1.0) for one in gains)
            ratio = 1.0 if new == old else new / old
            if name in OUTPUTS:
                ratio *= factor
            if ratio != 1:
                cut(parameter.detach())[number_].mul_(ratio)
