"""The parameters of a language model, every matrix by itself, and the optimisers that train them in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from propagate.model import ModelError
from propagate.optimizers import Muon, Optimizer, Sign
from propagate.tracing.build import LanguageModel
from propagate.tracing.matrices import matrices_of
from propagate.tracing.optimizers import torch_optimizer
from propagate.transfer import Factors, Kind, kind_of


@dataclass(frozen=True, eq=False)
class Piece:
    """One matrix (fan_out, fan_in), or a vector such as a norm's gains.

    Attributes:
        name: that theory and simulation give it; of what they do not know, its path.
        block: that it stands in; 0 is the embedding, the unembedding stands in the last.
        parameter: that holds it.
        part: what of the parameter, or of its gradient, is its own: a view.
        tensor: that view, which an optimiser changes in place.
    """

    name: str
    block: int
    parameter: Tensor
    part: Callable[[Tensor], Tensor]
    tensor: Tensor

    @property
    def matrix(self) -> bool:
        return self.tensor.dim() > 1

    @property
    def kind(self) -> Kind | None:
        """What it does, of a matrix."""
        return kind_of(self.name) if self.matrix else None

    def factors(self, by_kind: Mapping[Kind, Factors]) -> Factors:
        """Of a rule of transfer; vectors have none."""
        return Factors() if self.kind is None else by_kind[self.kind]

    def gradient(self) -> Tensor:
        """Its share of the parameter's; 0 where nothing reached it, as of an expert that no token chose."""
        found = self.parameter.grad
        return torch.zeros_like(self.tensor) if found is None else self.part(found)


def pieces_of(learner: LanguageModel) -> list[Piece]:
    """Every parameter, once: a table to which the head is tied is the embedding.

    Example:
        >>> from propagate import Model
        >>> from propagate.tracing.build import build_language_model
        >>> learner = build_language_model(Model("prenorm", depth=1, width=8, heads=2), vocabulary=5)
        >>> [piece.name for piece in pieces_of(learner)][:5]
        ['embedding', 'query', 'key', 'value', 'attention_out']
    """
    found = [_piece("embedding", 0, learner.embedding.weight, lambda whole: whole.mT)]
    blocks = list(learner.network.blocks)
    for block, weights in enumerate(matrices_of(learner.network, blocks), start=1):
        for parameter, names, cut in weights:
            for number, name in enumerate(names):
                found.append(_piece(name, block, parameter, lambda whole, cut=cut, n=number: cut(whole)[n]))  # type: ignore[misc]
    if learner.head.weight is not learner.embedding.weight:
        found.append(_piece("unembedding", len(blocks), learner.head.weight, _whole))
    known = {id(piece.parameter) for piece in found}
    rest = ((path, one) for path, one in learner.named_parameters() if id(one) not in known)
    return found + [_piece(path, _block_of(path), one, _whole) for path, one in rest]


def _piece(name: str, block: int, parameter: Tensor, part: Callable[[Tensor], Tensor]) -> Piece:
    return Piece(name, block, parameter, part, part(parameter.detach()))


def _whole(whole: Tensor) -> Tensor:
    return whole


def _block_of(path: str) -> int:
    """Of "network.blocks.3.sublayers.norm1.weight", counted from 1; 0 of what stands in no block."""
    names = path.split(".")
    return int(names[2]) + 1 if names[:2] == ["network", "blocks"] else 0


def optimizers_of(
    optimizer: Optimizer, pieces: Sequence[Piece], by_kind: Mapping[Kind, Factors]
) -> list[torch.optim.Optimizer]:
    """One over matrices, with the factors of a rule of transfer, and one over vectors, which do not decay.

    Under Muon gains take the sign of their momentum: the orthogonal factor of a diagonal matrix.

    Raises:
        ModelError: under Muon, for parameters that are neither matrices nor vectors.
    """
    if isinstance(optimizer, Muon):
        for piece in pieces:
            if piece.tensor.dim() > 2:
                raise ModelError(
                    f"optimizer Muon needs matrices, got {piece.name} of shape {tuple(piece.tensor.shape)}"
                )
    found = []
    for own, some in (
        (optimizer, [piece for piece in pieces if piece.matrix]),
        (of_vectors(optimizer), [piece for piece in pieces if not piece.matrix]),
    ):
        if some:
            tensors, factors = [piece.tensor for piece in some], [piece.factors(by_kind) for piece in some]
            found.append(torch_optimizer(own, tensors, factors))
    return found


def of_vectors(optimizer: Optimizer) -> Optimizer:
    """What trains norms' gains where this trains matrices."""
    return Sign(optimizer.lr, optimizer.momentum) if isinstance(optimizer, Muon) else replace(optimizer, decay=0.0)


def take_step(optimizers: Sequence[torch.optim.Optimizer], pieces: Sequence[Piece], share: float, scale: float) -> None:
    """An update at a share of the peak rate, of gradients times `scale`."""
    for piece in pieces:
        piece.tensor.grad = piece.gradient() * scale
    for made in optimizers:
        for group in made.param_groups:
            peak, shrink = group.setdefault("peak", (group["lr"], group["shrink"]))
            group["lr"], group["shrink"] = peak * share, shrink * share
        made.step()


def zero(learner: nn.Module) -> None:
    """Forget the gradients."""
    for parameter in learner.parameters():
        parameter.grad = None
