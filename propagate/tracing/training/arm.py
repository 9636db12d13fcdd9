"""One arm: one network, one rate and one seed, trained from its initialisation to the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from propagate.documents import Corpus
from propagate.embeddings import TokenEmbedding
from propagate.identity import described, text_digest
from propagate.model import Model, ModelError
from propagate.optimizers import Optimizer
from propagate.progress import Advance, silent
from propagate.table import provenance
from propagate.tracing.build import LanguageModel, build_language_model
from propagate.tracing.training.batches import batch_of, held_out_of
from propagate.tracing.training.columns import Columns, add, nothing_yet
from propagate.tracing.training.pieces import optimizers_of, pieces_of, take_step, zero
from propagate.tracing.training.plan import Plan
from propagate.tracing.training.precision import Precision, kept_in, products_in
from propagate.tracing.training.probes import evaluated, loss_of, ratio, traced
from propagate.tracing.training.states import load, save
from propagate.tracing.training.transferred import transfer_to
from propagate.transfer import Factors, Kind

ENDED = -1


@dataclass(frozen=True)
class Arm:
    """All that decides what one network becomes.

    Attributes:
        model, corpus, plan: of every arm of a run.
        optimizer: at this arm's peak rate.
        seed: of the initial weights and the order of the data.
        factors: of a rule of transfer.
        device, precision: where, and in which number types.
        together: whether it trains in an ensemble, whose sums are rounded otherwise.
        embedding: of tokens; None is of variance 1.
    """

    model: Model
    corpus: Corpus = field(repr=False)
    optimizer: Optimizer
    plan: Plan
    seed: int
    factors: Mapping[Kind, Factors]
    device: str = "cpu"
    precision: Precision = "float32"
    together: bool = False
    embedding: TokenEmbedding | None = None

    @property
    def file(self) -> str:
        """Name of its checkpoint in a run's folder."""
        return f"lr={self.optimizer.lr!r} seed={self.seed}.pt"

    def learner(self) -> LanguageModel:
        """At its initialisation."""
        words, kind = self.embedding or self.corpus.vocabulary, kept_in(self.precision)
        learner = build_language_model(self.model, words, seed=self.seed, device=self.device, dtype=kind)
        transfer_to(learner, self.factors)
        return learner

    def identity(self) -> dict[str, Any]:
        """As plain data, with versions, and the text of modules that are not of this package or of torch."""
        found = {one.name: described(getattr(self, one.name)) for one in fields(self) if one.name != "corpus"}
        versions = {name: provenance()[name] for name in ("propagate", "numpy")} | {"torch": torch.__version__}
        device = torch.device(self.device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        own = {type(part) for part in nn.Module.modules(_on_meta(self.model)) if _own(type(part))}
        modules = {f"{kind.__module__}.{kind.__qualname__}": described(kind) for kind in own}
        text = {"training": _digest(), "corpus": self.corpus.digest, "device": name, "modules": modules}
        return versions | found | text


def _on_meta(model: Model) -> nn.Module:
    from propagate.tracing.build import Network

    with torch.device("meta"):
        return Network(model)


def _own(kind: type) -> bool:
    return not kind.__module__.startswith(("torch.", "propagate."))


@cache
def _digest() -> str:
    return text_digest("tracing")


def trained(arm: Arm, to: Path | None = None, every: int = 100, advance: Advance = silent) -> Columns:
    """What is seen of an arm from its first step to its last, or to the one in which it diverged.

    Args:
        arm: what to train.
        to: a file that keeps how far it has come, every so many steps; it goes on from there.
        every: steps.
        advance: called with steps that are done.

    Returns:
        `loss` and `grad_norm` by step, `diverged_at` and `diverged_value`, and what is seen at probes and traces.

    Raises:
        ModelError: for a file of another arm.
    """
    if to is not None:
        to.parent.mkdir(parents=True, exist_ok=True)  # it may be a worker's on another machine
    plan, tokens, learner = arm.plan, arm.model.tokens, arm.learner()
    pieces = pieces_of(learner)
    first = [piece.tensor.clone() for piece in pieces]
    optimizers = optimizers_of(arm.optimizer, pieces, arm.factors)
    held_out = held_out_of(arm.corpus, tokens).to(arm.device)
    identity = arm.identity() if to is not None else {}
    begin, columns = 0, nothing_yet(plan)
    if to is not None and (kept := load(to, identity)) is not None:
        begin, columns, states = kept
        if begin == ENDED:
            advance(plan.steps)
            return columns
        _restore(to, learner, optimizers, states)
        advance(begin)

    def look(step: int) -> None:
        loss, log_z = evaluated(learner, held_out, plan.batch)
        add(columns, plan, step, {"held_out_loss": loss, "log_z": log_z})
        if step in plan.traces:
            add(columns, plan, step, traced(learner, held_out, plan.batch, pieces, first))

    for step in range(begin, plan.steps):
        traced_now = step in plan.traces
        if step in plan.probes:
            look(step)
        ids = batch_of(arm.corpus, tokens, plan.batch, arm.seed, step).to(arm.device)
        loss, norm = _gradients(arm, learner, ids)
        columns["loss"][step], columns["grad_norm"][step] = loss, norm
        advance(1, f"loss {loss:.3f}")
        if not (math.isfinite(loss) and math.isfinite(norm)):
            columns["diverged_at"][...] = step
            columns["diverged_value"][...] = norm if math.isfinite(loss) else loss
            advance(plan.steps - step - 1)
            break
        before = [piece.tensor.clone() for piece in pieces] if traced_now else []
        scale = 1.0 if plan.clip is None or norm <= plan.clip else plan.clip / norm
        take_step(optimizers, pieces, plan.share(step), scale)
        if traced_now:
            add(columns, plan, step, {"step_ratio": ratio(pieces, before, before, arm.model.depth)})
        if to is not None and (step + 1) % every == 0 and step + 1 < plan.steps:
            moments = [made.state_dict() for made in optimizers]
            save(to, identity, step + 1, columns, learner=learner.state_dict(), optimizers=moments)
    else:
        look(plan.steps)
    if to is not None:
        save(to, identity, ENDED, columns, learner=learner.state_dict())
    return columns


def _gradients(arm: Arm, learner: LanguageModel, ids: Tensor) -> tuple[float, float]:
    """The loss, and the norm of its gradient, which the parameters then hold."""
    zero(learner)
    with products_in(arm.precision, arm.device):
        loss = loss_of(learner, ids)
        loss.backward()  # type: ignore[no-untyped-call]
    norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float64) for p in learner.parameters() if p.grad is not None]
    return float(loss.detach()), float(torch.linalg.vector_norm(torch.stack(norms)))


def _restore(
    to: Path, learner: LanguageModel, optimizers: Sequence[torch.optim.Optimizer], states: dict[str, Any]
) -> None:
    try:
        learner.load_state_dict(states["learner"])
        for made, state in zip(optimizers, states["optimizers"], strict=True):
            made.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(f"checkpoint {str(to)!r} is damaged or no checkpoint: remove it ({error})") from None
