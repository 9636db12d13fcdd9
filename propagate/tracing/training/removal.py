"""What a trained network loses with each of its blocks."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from propagate.files import read_whole, unsealed
from propagate.model import Model, ModelError
from propagate.tracing.build import LanguageModel, build_language_model
from propagate.tracing.training.probes import loss_of
from propagate.tracing.training.states import LARGEST


def trained_learner(path: Path, model: Model, vocabulary: int, device: str = "cpu") -> LanguageModel:
    """The network that an arm of `train` kept in its folder, with the weights that it has come to.

    Args:
        path: of the arm's file, such as "runs/lr=0.001 seed=0.pt".
        model, vocabulary: that it was trained with.
        device: of the weights.

    Raises:
        ModelError: for a file that is damaged, or of another model.
    """
    content = unsealed(read_whole(path, "checkpoint", most=LARGEST))
    if content is None:
        raise ModelError(f"checkpoint {str(path)!r} is damaged or no checkpoint: remove it")
    learner = build_language_model(model, vocabulary, device=device)
    try:
        found = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        learner.load_state_dict(found["states"]["learner"])
    except Exception as error:  # whatever a file made by hand raises
        raise ModelError(f"checkpoint {str(path)!r} does not hold this model: {error}") from None
    return learner


@torch.no_grad()
def losses_without(learner: LanguageModel, ids: Tensor) -> NDArray[np.float64]:
    """Mean cross-entropy in nats: at place 0 of the whole network, at place l without its block l.

    In place of a block what enters it goes on as it is.

    Args:
        learner: stays as it is.
        ids: sequences (sequences, tokens + 1).

    Example: a block whose branches are closed is not missed.
        >>> still = Model("prenorm", depth=2, width=8, heads=2, causal=True, attention_gain=0.0, ffn_gain=0.0)
        >>> losses = losses_without(build_language_model(still, 5), torch.arange(10).reshape(2, 5) % 5)
        >>> bool((losses == losses[0]).all()), losses.shape
        (True, (3,))
    """
    losses = [float(loss_of(learner, ids))]
    for block in learner.network.blocks:
        handle = block.register_forward_hook(_passing)
        try:
            losses.append(float(loss_of(learner, ids)))
        finally:
            handle.remove()
    return np.array(losses)


def _passing(block: nn.Module, given: Any, output: Any) -> Any:
    return given[0]
