"""The parameters of all members of an ensemble: one array for each kind of matrix, a row a member.

An optimiser then treats all parameters of a kind in a few operations; modules hold views of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from propagate.optimizers import Optimizer
from propagate.tracing.build import LanguageModel
from propagate.tracing.training.pieces import of_vectors, pieces_of
from propagate.tracing.training.updates import Moments, Now, moments_for, update
from propagate.transfer import Factors, Kind, trained_with

ALIGNED = 64
"""Parameters begin at multiples of it, as fast products of matrices ask."""


@dataclass(frozen=True, eq=False)
class Rows:
    """All parameters that are trained alike.

    Attributes:
        optimizer: with the factors of their kind; members have rates of their own.
        lr: factor of the kind on these rates.
        values, gradient: (members, parameters).
        moments: of the optimiser, of that shape.
        places: path of each parameter to where it begins, and its shape in one member.
    """

    optimizer: Optimizer
    lr: float
    values: Tensor
    gradient: Tensor
    moments: Moments
    places: dict[str, tuple[int, torch.Size]]

    def view(self, of: Tensor, path: str) -> Tensor:
        """(members, ...) of one parameter in an array of this layout."""
        begin, shape = self.places[path]
        return of[:, begin : begin + shape.numel()].view(len(of), *shape)

    def fill_gradient(self, gradients: Mapping[str, Tensor]) -> None:
        """Those of parameters that none reached stay 0."""
        for path, gradient in gradients.items():
            self.view(self.gradient, path).copy_(gradient)

    def update(self, by: Update, scale: Tensor, alive: Tensor, now: Now) -> None:
        """Of gradients times `scale`; members that are not alive stay as they are (all arguments (members, 1))."""
        by(self.optimizer, self.values, self.gradient, self.moments, scale, alive, self.lr * now.rate, now.updates)


Update = Callable[..., None]


def plainly(optimizer: Optimizer) -> Update:
    """The update of rows by this kind of optimiser, with clipping."""
    of_kind = update.dispatch(type(optimizer))

    def by(
        optimizer: Optimizer,
        values: Tensor,
        gradient: Tensor,
        moments: Moments,
        scale: Tensor,
        alive: Tensor,
        rate: Tensor,
        updates: Tensor,
    ) -> None:
        clipped = torch.where(alive, gradient * scale.to(gradient.dtype), 0.0)
        of_kind(optimizer, values, clipped, moments, Now(rate, updates))

    return by


def row_norms(rows: Tensor, columns: int) -> Tensor:
    """Norms of rows, summed in float64 over so many columns at a time.

    Squares of what float32 holds may be larger than it holds: unscaled networks of 200 blocks have such gradients, and
    clipping makes them small again.

    Example:
        >>> [f"{norm:.4g}" for norm in row_norms(torch.tensor([[3e30, 0.0, 4e30], [1.0, 0.0, 0.0]]), 2)]
        ['5e+30', '1']
    """
    parts = [torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in torch.split(rows, columns, 1)]
    norms: Tensor = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    return norms


def rows_for(learner: LanguageModel, optimizer: Optimizer, by_kind: Mapping[Kind, Factors], members: int) -> list[Rows]:
    """Room for so many members of a network, zeros all: matrices by kind, and vectors, which do not decay.

    Args:
        learner: one member, for shapes.
        optimizer: at any rate.
        by_kind: factors of a rule of transfer.
        members: how many.

    Example:
        >>> from propagate import SGD, Model
        >>> from propagate.tracing.build import build_language_model
        >>> from propagate.transfer import KINDS
        >>> learner = build_language_model(Model("prenorm", depth=1, width=8, heads=2), vocabulary=5)
        >>> [one.values.shape[1] for one in rows_for(learner, SGD(0.1), {kind: Factors() for kind in KINDS}, 3)]
        [64, 448, 320, 64, 192]
    """
    paths = {id(parameter): path for path, parameter in learner.named_parameters()}
    found: dict[Kind | None, tuple[Optimizer, float, dict[str, nn.Parameter]]] = {}
    for piece in pieces_of(learner):
        factors, path = piece.factors(by_kind), paths[id(piece.parameter)]
        own = trained_with(optimizer, factors) if piece.matrix else of_vectors(optimizer)
        group = found.setdefault(piece.kind, (own, float(factors.lr), {}))[-1]
        group[path] = learner.get_parameter(path)
    return [_rows(own, lr, parameters, members) for own, lr, parameters in found.values()]


def _rows(optimizer: Optimizer, lr: float, parameters: Mapping[str, nn.Parameter], members: int) -> Rows:
    places, end = {}, 0
    for path, one in parameters.items():
        places[path] = (end, one.shape)
        end += math.ceil(one.numel() / ALIGNED) * ALIGNED
    like = next(iter(parameters.values()))
    values, gradient = (torch.zeros(members, end, dtype=like.dtype, device=like.device) for _ in "vg")
    return Rows(optimizer, lr, values, gradient, moments_for(optimizer, values), places)
