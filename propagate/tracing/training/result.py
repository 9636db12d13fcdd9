"""What all arms of a run have seen, as one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from propagate.quantities import QUANTITIES
from propagate.table import JOINED, STREAM, provenance
from propagate.tracing.training.arm import Arm
from propagate.tracing.training.batches import held_out_of
from propagate.tracing.training.columns import BY_STEP, Columns, alike
from propagate.tracing.training.probes import NAMES, TRACED

if TYPE_CHECKING:
    import xarray as xr

OTHER = "other_block"
MEANINGS = {
    "loss": "mean cross-entropy of the next token in nats, of a step's sequences, before its update",
    "grad_norm": "norm of the gradient of all parameters together, before clipping",
    "diverged_at": "step in which loss or gradient stopped being finite; NaN if none",
    "diverged_value": "the loss or, where that is finite, the gradient's norm in that step",
    "held_out_loss": "mean cross-entropy of the next token in nats, of held-out sequences",
    "log_z": "mean log of the sum of the exponentials of a token's logits",
    "decorrelation": "1 - correlation between two tokens of a sequence, deviation / variance",
    "layer_similarity": "mean over tokens of the cosine between the streams that leave two blocks",
    "attention_logit": "largest attention logit over sequences, heads and pairs of tokens that see one another",
    "attention_ratio": "root mean square of what a block's first attention gives over that of the stream it enters",
    "step_ratio": "Frobenius norm of the step's change of W over that of W",
}


def table_of(arms: Sequence[Arm], rates: Sequence[float], numbers: Sequence[int], seen: list[Columns]) -> xr.Dataset:
    """Over rates and seeds, the arms in this order."""
    import xarray as xr

    one, seen = arms[0], alike(seen)
    shape, variables = (len(rates), len(numbers)), {}
    for name in seen[0]:
        values = np.array([columns[name] for columns in seen])
        variables[name] = (("lr", "seed", *_dims(name, values.ndim)), values.reshape(*shape, *values.shape[1:]))
    model, corpus, plan = one.model, one.corpus, one.plan
    attributes = {
        "witness": "training",
        "model": repr(model),
        "width": model.width,
        "depth": model.depth,
        "tokens": model.tokens,
        "optimizer": repr(dataclasses.replace(one.optimizer, lr=rates[0])) + " at each lr",
        "steps": plan.steps,
        "batch": plan.batch,
        "warmup": plan.warmup,
        "schedule": plan.schedule,
        "clip": "none" if plan.clip is None else plan.clip,
        "corpus": corpus.name,
        "corpus_digest": corpus.digest,
        "vocabulary": corpus.vocabulary,
        "unigram_loss": corpus.unigram_loss,
        "held_out_sequences": len(held_out_of(corpus, model.tokens)),
        "traced_sequences": min(TRACED, len(held_out_of(corpus, model.tokens))),
        "arms": len(arms),
        "diverged": int(sum(np.isfinite(columns["diverged_at"]) for columns in seen)),
        "device": one.device,
        "precision": one.precision,
        "embedding": "of variance 1" if one.embedding is None else repr(one.embedding),
        "together": "an ensemble" if one.together else "one by one",
        "torch": torch.__version__,
    }
    coordinates = {
        "lr": rates,
        "seed": numbers,
        "step": range(plan.steps),
        "probe": list(plan.probes),
        "block": range(model.depth + 1),
        OTHER: range(model.depth + 1),
        "matrix": list(NAMES),
    }
    found = xr.Dataset(variables, coordinates, attributes | provenance())
    if STREAM in found.dims:
        found = found.assign_coords({STREAM: [*(str(i + 1) for i in range(found.sizes[STREAM] - 1)), JOINED]})
    for variable in found.variables:
        meaning = MEANINGS.get(str(variable)) or (QUANTITIES[str(variable)].meaning if variable in QUANTITIES else "")
        found[variable].attrs |= {"long_name": meaning} if meaning else {}
    return found.dropna("matrix", how="all", subset=["update_ratio"]) if "update_ratio" in found else found


def _dims(name: str, ndim: int) -> tuple[str, ...]:
    """Of a column, besides rate and seed."""
    if name in BY_STEP:
        return ("step",)
    if name in ("update_ratio", "step_ratio"):
        return ("probe", "block", "matrix")
    if name == "layer_similarity":
        return ("probe", "block", OTHER)
    return ("probe", "block", STREAM)[: ndim - 1]
