"""What is seen of a network at one moment of its training, on held-out sequences that are the same for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from propagate.tracing.build import LanguageModel
from propagate.tracing.latent import LatentHeads
from propagate.tracing.layers import Attention
from propagate.tracing.matrices import MATRICES
from propagate.tracing.statistics import precise
from propagate.tracing.stepping import Passed
from propagate.tracing.trace import trace
from propagate.tracing.training.pieces import Piece

TRACED = 8
"""Held-out sequences, at most, whose streams and gradients are traced."""
KEPT = (
    *("variance", "covariance", "deviation", "grad_variance", "grad_covariance", "grad_deviation"),
    *("branch_skip_ratio", "layer_cosine", "effective_rank", "parameter_grad_norm"),
)
"""Of what `trace` gives."""
NAMES = ("embedding", *MATRICES, "unembedding")
Columns = dict[str, NDArray[np.float64]]


def loss_of(learner: LanguageModel, ids: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the next token, over sequences (sequences, tokens + 1)."""
    return _cross_entropy(learner(ids[:, :-1]), ids)


def _cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, -2), ids[:, 1:].flatten())


def probe(learner: LanguageModel, ids: Tensor, batch: int) -> Columns:
    """Numbers, or arrays over blocks (and streams).

    Args:
        learner: its weights, gradients and mode stay as they are.
        ids: held-out sequences.
        batch: sequences at a time, at least 8.
    """
    traced = ids[:TRACED]
    seen = trace(
        learner,
        traced[:, :-1],
        loss=lambda logits: _cross_entropy(logits, traced),
        blocks=learner.network.blocks,
    )
    found: Columns = {name: np.asarray(seen[name].values, float) for name in KEPT if name in seen}
    if "deviation" in found:
        with np.errstate(divide="ignore", invalid="ignore"):
            found["decorrelation"] = found["deviation"] / found["variance"]
    return found | _similarity(learner, traced) | _evaluated(learner, ids, batch)


@torch.no_grad()
def _similarity(learner: LanguageModel, ids: Tensor) -> Columns:
    """Mean over tokens of the cosine between the streams that leave two blocks, where there is one stream."""
    if learner.network.streams > 1:
        return {}
    states, _ = Passed(learner.network)(learner.embedding(ids[:, :-1]))
    tokens = torch.stack([functional.normalize(precise(stream).flatten(0, -2), dim=-1) for (stream,) in states])
    return {"layer_similarity": (torch.einsum("atd,btd->ab", tokens, tokens) / tokens.shape[1]).cpu().numpy()}


@torch.no_grad()
def _evaluated(learner: LanguageModel, ids: Tensor, batch: int) -> Columns:
    """Loss, mean log Z and, by block, the largest attention logit, over all held-out sequences."""
    losses, partitions = [], []
    with _largest_logits(learner) as largest:
        for some in torch.split(ids, max(batch, TRACED)):
            logits = learner(some[:, :-1])
            losses.append(float(_cross_entropy(logits, some)) * len(some))
            partitions.append(float(logits.logsumexp(-1).mean()) * len(some))
    return {
        "held_out_loss": np.array(sum(losses) / len(ids)),
        "log_z": np.array(sum(partitions) / len(ids)),
        "attention_logit": np.array(largest),
    }


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
