"""The weight matrices of a network that `build` made, each a leaf of its own under the factors of a rule of transfer.

A module may hold several matrices side by side (queries, keys and values). A network runs with weights put together
from leaves, each times its multiplier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from propagate.model import ModelError
from propagate.tracing.build import Network
from propagate.tracing.matrices import matrices_of
from propagate.transfer import Factors


@dataclass(frozen=True, eq=False)
class Leaf:
    """One matrix.

    Attributes:
        name: that theory and simulation give it.
        block: that it stands in; 0 is the embedding.
        path: of the module's parameter that holds it.
        tensor: (fan_out, fan_in), trained in place.
        first: what it was at first.
        factors: of the rule.
        rows: of the parameter that are its own.
    """

    name: str
    block: int
    path: str
    tensor: Tensor
    first: Tensor
    factors: Factors
    rows: slice

    @property
    def multiplier(self) -> float:
        return float(self.factors.multiplier)

    @property
    def effective(self) -> Tensor:
        """What acts on the input, with a graph to the leaf."""
        return self.multiplier * self.tensor

    def moved(self) -> Tensor:
        """Its change so far."""
        return self.tensor.detach() - self.first


FactorsOf = Callable[[str], Factors]
"""From a matrix's name."""


def leaf(name: str, block: int, path: str, weight: Tensor, factors: Factors, start: int | None = None) -> Leaf:
    """One matrix, made of initial weights at the gain that they have without a rule."""
    first = weight.detach().clone() * float(factors.gain)
    rows = slice(None) if start is None else slice(start, start + len(weight))
    return Leaf(name, block, path, first.clone().requires_grad_(), first, factors, rows)


def leaves_of(network: Network, factors_of: FactorsOf) -> list[Leaf]:
    """Every matrix of a network, block by block.

    Raises:
        ModelError: where a module has matrices that are not known by name.

    Example:
        >>> from propagate import Model
        >>> from propagate.tracing.build import build
        >>> network = build(Model("prenorm", depth=1, width=8, heads=2, tokens=3))
        >>> [one.name for one in leaves_of(network, lambda name: Factors())]
        ['query', 'key', 'value', 'attention_out', 'ffn_in', 'ffn_out']
    """
    paths = {id(parameter): path for path, parameter in network.named_parameters()}
    found = []
    for block, weights in enumerate(matrices_of(network, list(network.blocks)), start=1):
        for parameter, names, cut in weights:
            start = 0
            for name, part in zip(names, cut(parameter), strict=True):
                found.append(leaf(name, block, paths[id(parameter)], part, factors_of(name), start))
                start += len(part)
    known = {one.path for one in found}
    for path, parameter in network.named_parameters():
        if parameter.dim() > 1 and path not in known:
            raise ModelError(f"the steps of {path} cannot be taken: its matrices are not known by name")
    return found


def together(leaves: list[Leaf]) -> dict[str, Tensor]:
    """The parameters of the network, put together from leaves."""
    parts: dict[str, list[Tensor]] = {}
    for one in leaves:
        parts.setdefault(one.path, []).append(one.effective)
    return {path: torch.cat(tensors) for path, tensors in parts.items()}
