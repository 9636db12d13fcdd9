"""What is seen of a network at one moment of its training, on held-out sequences that are the same for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from propagate.tracing.build import LanguageModel
from propagate.tracing.latent import LatentHeads
from propagate.tracing.layers import Attention
from propagate.tracing.matrices import MATRICES
from propagate.tracing.statistics import precise
from propagate.tracing.stepping import Passed
from propagate.tracing.trace import trace
from propagate.tracing.training.columns import Columns
from propagate.tracing.training.pieces import Piece

TRACED = 8
"""Held-out sequences, at most, whose streams and gradients are traced."""
KEPT = (
    *("variance", "covariance", "deviation", "grad_variance", "grad_covariance", "grad_deviation"),
    *("branch_skip_ratio", "layer_cosine", "effective_rank", "parameter_grad_norm"),
    "embedding_share",
)
"""Of what `trace` gives."""
NAMES = ("embedding", *MATRICES, "unembedding")


def loss_of(learner: nn.Module, ids: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the next token over sequences, of token ids (..., sequences, tokens + 1): (...)."""
    return cross_entropy(learner(ids[..., :-1]), ids)


def cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """Of logits (..., sequences, tokens, vocabulary), without the axes of sequences and tokens."""
    each = functional.cross_entropy(logits.flatten(0, -2), ids[..., 1:].flatten(), reduction="none")
    return each.reshape(*ids.shape[:-2], -1).mean(-1)


@torch.no_grad()
def evaluated(learner: nn.Module, ids: Tensor, batch: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Loss and mean log Z over sequences (..., sequences, tokens + 1), so many at a time and at least 8: (...) both."""
    found = torch.zeros(2, *ids.shape[:-2], dtype=torch.float64, device=ids.device)
    for some in torch.split(ids, max(batch, TRACED), dim=-2):
        logits = learner(some[..., :-1])
        both = torch.stack([cross_entropy(logits, some), logits.logsumexp(-1).mean((-2, -1))])
        found += both * (some.shape[-2] / ids.shape[-2])
    loss, log_z = found.cpu().numpy()
    return loss, log_z


def traced(
    learner: LanguageModel, ids: Tensor, batch: int, pieces: Sequence[Piece], first: Sequence[Tensor]
) -> Columns:
    """What a trace sees: arrays over blocks (and streams).

    Args:
        learner: its weights, gradients and mode stay as they are.
        ids: held-out sequences, of which the first 8 are traced; attention's logits are looked for in all.
        batch: sequences at a time, and at least 8.
        pieces: of the learner.
        first: what they were at first.
    """
    some = ids[:TRACED]
    seen = trace(learner, some[:, :-1], loss=lambda logits: cross_entropy(logits, some), blocks=learner.network.blocks)
    found: Columns = {name: np.asarray(seen[name].values, float) for name in KEPT if name in seen}
    if "deviation" in found:
        with np.errstate(divide="ignore", invalid="ignore"):
            found["decorrelation"] = found["deviation"] / found["variance"]
    if learner.network.streams == 1 and "attention1" in seen.get("call", ()):
        given = seen.call_variance.sel(call="attention1").values
        found["attention_ratio"] = np.sqrt(given / np.concatenate([[np.nan], found["variance"][:-1]]))
    with _largest_logits(learner) as largest:
        evaluated(learner, ids, batch)
    found |= _similarity(learner, some) | {"attention_logit": np.array(largest)}
    found["update_ratio"] = ratio(pieces, first, first, learner.network.model.depth)
    found["step_ratio"] = np.full_like(found["update_ratio"], np.nan)  # until the step is taken
    return found


@torch.no_grad()
def _similarity(learner: LanguageModel, ids: Tensor) -> Columns:
    """Mean over tokens of the cosine between the streams that leave two blocks, where there is one stream."""
    if learner.network.streams > 1:
        return {}
    states, _ = Passed(learner.network)(learner.embedding(ids[:, :-1]))
    tokens = torch.stack([functional.normalize(precise(stream).flatten(0, -2), dim=-1) for (stream,) in states])
    return {"layer_similarity": (torch.einsum("atd,btd->ab", tokens, tokens) / tokens.shape[1]).cpu().numpy()}


@contextmanager
def _largest_logits(learner: LanguageModel) -> Iterator[list[float]]:
    """Over calls, heads and pairs of tokens that see one another; NaN in a block without softmax attention."""
    found = [math.nan] * (len(learner.network.blocks) + 1)
    handles = []
    for index, block in enumerate(learner.network.blocks, start=1):
        for part in block.modules():
            if isinstance(part, Attention | LatentHeads):

                def note(module: Attention | LatentHeads, given: Any, index: int = index) -> None:
                    found[index] = _larger(found[index], float(module.largest_logit(given[0])))

                handles.append(part.register_forward_pre_hook(note))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _larger(one: float, other: float) -> float:
    return other if math.isnan(one) else max(one, other)


def by_matrix(pieces: Sequence[Piece], depth: int, share: Callable[[int], tuple[float, float]]) -> NDArray[np.float64]:
    """The root of a ratio of sums of squares by block and name, (blocks, names); NaN where there is no such matrix.

    Args:
        pieces: of which those count whose names are known.
        depth: of the network.
        share: numerator and denominator of the piece of a number.
    """
    sums = np.full((2, depth + 1, len(NAMES)), np.nan)
    for number, piece in enumerate(pieces):
        if piece.name in NAMES:
            place = sums[:, piece.block, NAMES.index(piece.name)]
            place[:] = np.where(np.isnan(place), 0.0, place) + share(number)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.sqrt(sums[0] / sums[1]))


def ratio(
    pieces: Sequence[Piece], before: Sequence[Tensor], first: Sequence[Tensor], depth: int
) -> NDArray[np.float64]:
    """Frobenius norms of the matrices' change since `before`, over those of `first`."""

    def squares(number: int) -> tuple[float, float]:
        moved = pieces[number].tensor - before[number]
        return _square(moved), _square(first[number])

    return by_matrix(pieces, depth, squares)


def _square(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2
