"""A rule of transfer on a language model: initial gains and multipliers, by what a matrix does."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from propagate.model import ModelError
from propagate.tracing.build import LanguageModel
from propagate.tracing.embedding import Embedding
from propagate.tracing.layers import Projection
from propagate.tracing.training.pieces import Piece, pieces_of
from propagate.tracing.training.probes import NAMES
from propagate.transfer import Factors, Kind


@torch.no_grad()
def transfer_to(learner: LanguageModel, by_kind: Mapping[Kind, Factors]) -> None:
    """Initial matrices times their gains, and multipliers on what they give, as in `trace_steps`, in place.

    Norms' gains are what they are without a rule.

    Raises:
        ModelError: for a matrix that the rule would change and that is not known by name.

    Example: half of a head's entries' size, and a multiplier of a tenth.
        >>> from propagate import Model
        >>> from propagate.tracing.build import build_language_model
        >>> learner = build_language_model(Model("prenorm", depth=1, width=8, heads=2), vocabulary=5)
        >>> before = learner.head.weight.detach().clone()
        >>> kinds = ("embedding", "hidden", "branch_out", "unembedding")
        >>> transfer_to(learner, {kind: Factors(gain=0.5, multiplier=0.1) for kind in kinds})
        >>> bool((learner.head.weight == 0.5 * before).all()), learner.head.multiplier
        (True, 0.1)
    """
    owners = {id(part.weight): part for part in learner.modules() if isinstance(part, Projection | Embedding)}
    for piece in pieces_of(learner):
        factors = piece.factors(by_kind)
        if factors == Factors():
            continue
        _check_known(piece)
        piece.tensor.mul_(float(factors.gain))
        owners[id(piece.parameter)].multiplier = float(factors.multiplier)


def _check_known(piece: Piece) -> None:
    if piece.name not in NAMES:
        raise ModelError(f"a rule of transfer cannot be applied to {piece.name}: its matrices are not known by name")
