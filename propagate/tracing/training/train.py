"""Training of arms: every rate with every seed, here or on the workers of an executor, as one table."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterable
from concurrent.futures import Executor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from propagate.checks import check_flag, choice, integer, number, shown
from propagate.documents import Corpus
from propagate.model import Model, ModelError, check_model
from propagate.optimizers import Optimizer, check_optimizer
from propagate.progress import Advance, progress_bar
from propagate.quantities import QUANTITIES
from propagate.table import JOINED, STREAM, provenance
from propagate.tracing.training.arm import ENDED, Arm, trained
from propagate.tracing.training.batches import check_long_enough, held_out_of
from propagate.tracing.training.covered import check_covered
from propagate.tracing.training.pieces import optimizers_of, pieces_of
from propagate.tracing.training.plan import Plan
from propagate.tracing.training.probes import NAMES, TRACED, Columns
from propagate.tracing.training.states import load, save

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
    "step_ratio": "Frobenius norm of the step's change of W over that of W",
}


def train(
    model: Model,
    corpus: Corpus,
    optimizer: Optimizer,
    *,
    seeds: Iterable[int] = (0,),
    steps: int = 500,
    batch: int = 16,
    lrs: Iterable[float] | None = None,
    warmup: float = 0.1,
    schedule: Literal["constant", "linear", "cosine"] = "cosine",
    probes: Collection[int] = (),
    clip: float | None = 1.0,
    executor: Executor | None = None,
    to: str | os.PathLike[str] | None = None,
    every: int = 100,
    device: str = "cpu",
    precision: Literal["float32", "float64"] = "float32",
    progress: bool | None = None,
) -> xr.Dataset:
    """Train language models on text, an arm for every rate and seed, and watch what initialisation theory speaks of.

    Every arm of a seed begins with the same weights and sees the same sequences in the same order, so that differences
    between rates are paired. Matrices are trained each by itself under the names of `simulate`; norms' gains (and
    biases) without decay, under `Muon` by the sign of their momentum. Positions are those of `Model(rope=)`, if any.
    Numbers in a placement's text stay as they are, also where its paper trains them (LayerScale, nGPT, ReZero).

    Args:
        model: a causal network.
        corpus: of `propagate.corpus`.
        optimizer: `SGD`, `Sign`, `Adam` or `Muon`.
        seeds: of initial weights and of the order of the data.
        steps: updates.
        batch: sequences of `model.tokens` tokens a step.
        lrs: peak rates; by default the optimizer's own.
        warmup: share of the steps over which the rate rises.
        schedule: what it does from there to the end: "constant", or "linear" or "cosine" down to 0.
        probes: numbers of updates after which the network is probed; 0 and `steps` always are.
        clip: largest norm of the gradient of all parameters together; None does not clip.
        executor: any `concurrent.futures.Executor`, whose workers train whole arms; here, one after another, without.
        to: a folder, made if need be, with a file for each arm: killed at any step, the same call goes on from there,
            on the same CPU to the same bytes. (Of CUDA, some of whose sums have no fixed order, that is not known.)
            Workers write there too: it must be a folder that they share, or else only arms that have ended are kept.
        every: steps between two states that are kept there.
        device: "cpu" or "cuda".
        precision: of weights and arithmetic.
        progress: show a progress bar on standard error, with loss and time left; by default only on a terminal.

    Returns:
        A Dataset over `lr`, `seed` and `step`: `loss` and `grad_norm`, before the step's update. Over `lr`, `seed`,
        `probe` (updates made): `held_out_loss` and `log_z`, over up to 32 held-out sequences. By `block` also, over up
        to 8 of them, what `trace` gives: `variance`, ... `grad_deviation`, of the gradient of their mean loss;
        `layer_cosine`, `branch_skip_ratio`, `effective_rank`, `parameter_grad_norm`; and `decorrelation`, which is
        1 - correlation, and `attention_logit`, the largest. By (`block`, `other_block`) `layer_similarity`, the cosine
        of a token's streams there, where there is one stream. By (`block`, `matrix`) `update_ratio`, |W - W_0| / |W_0|,
        and `step_ratio`, of the next update alone.

        An arm whose loss or gradient is not finite has diverged: `diverged_at` is that step, `diverged_value` what it
        gave; all later entries are NaN.

        `attrs["unigram_loss"]` is what a model would reach that knew how frequent tokens are, and no more.

    Raises:
        ModelError: names what is not covered: a network that is not causal, has dropout or blocks that no gradient
            reaches, or text that is too short.

    Example: two rates and two steps.
        >>> from propagate import SGD, corpus
        >>> model = Model("prenorm", depth=1, width=16, heads=2, tokens=8, causal=True)
        >>> seen = train(model, corpus(), SGD(lr=0.1), lrs=(0.1, 1.0), steps=2, batch=2)
        >>> dict(seen.loss.sizes), bool(seen.loss[0, 0, 0] == seen.loss[1, 0, 0])
        ({'lr': 2, 'seed': 1, 'step': 2}, True)
    """
    check_model(model)
    check_optimizer(optimizer)
    if not isinstance(corpus, Corpus):
        raise ModelError(f"corpus must be a Corpus, as propagate.corpus makes, got {shown(corpus)[:80]}")
    plan = Plan(steps, batch, warmup, schedule, clip, probes)
    choice("precision", precision, ("float32", "float64"))
    integer("every", every)
    if progress is not None:
        check_flag("progress", progress)
    if not isinstance(executor, Executor | None):
        raise ModelError(f"executor must be a concurrent.futures.Executor, got {shown(executor)}")
    _check_device(device, executor)
    rates = [number("lrs", lr, positive=True) for lr in _several("lrs", (optimizer.lr,) if lrs is None else lrs)]
    numbers = [integer("seeds", seed, at_least=0, at_most=2**31 - 1) for seed in _several("seeds", seeds)]
    check_covered(model)
    check_long_enough(corpus, model.tokens)
    arms = [
        Arm(model, corpus, dataclasses.replace(optimizer, lr=lr), plan, seed, device, precision)
        for lr in rates
        for seed in numbers
    ]
    with torch.device("cpu"):
        optimizers_of(arms[0].optimizer, pieces_of(dataclasses.replace(arms[0], device="cpu").learner()))
    folder = _folder(to)
    with progress_bar(progress, plan.steps * len(arms), 0, "steps") as advance:
        if executor is None:
            seen = [trained(arm, folder and folder / arm.file, every, advance) for arm in arms]
        else:
            seen = _on_workers(executor, arms, folder, every, advance)
    return _table(arms, rates, numbers, seen)


def _several(name: str, values: Any) -> list[Any]:
    """At least one, none twice."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ModelError(f"{name} must be several numbers, such as (1, 2), got {shown(values)}")
    found = list(values)
    if not found or any(one in found[:i] for i, one in enumerate(found)):
        raise ModelError(f"{name} must be at least one number, none of them twice, got {shown(found)}")
    return found


def _check_device(device: Any, executor: Executor | None) -> None:
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ModelError(f"device must be 'cpu' or 'cuda', got {shown(device)}")
    if kind == "cuda" and executor is None and not torch.cuda.is_available():
        raise ModelError(f"device must be 'cpu' where no CUDA device answers, got {shown(device)}")


def _folder(to: Any) -> Path | None:
    if to is None:
        return None
    if not isinstance(to, str | os.PathLike) or not os.fspath(to) or "\0" in str(to):
        raise ModelError(f"to must be a folder's path, got {shown(to)}")
    try:
        Path(to).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"to must be a folder that can be made, got {os.fspath(to)!r}: {error.strerror}") from None
    return Path(to)


def _on_workers(
    executor: Executor, arms: list[Arm], folder: Path | None, every: int, advance: Advance
) -> list[Columns]:
    """Every arm that has not ended is a task; one that ends is kept at once, whatever becomes of the others."""
    found: dict[int, Columns] = {}
    for place, arm in enumerate(arms):
        kept = load(folder / arm.file, arm.identity()) if folder else None
        if kept is not None and kept[0] == ENDED:
            found[place] = kept[1]
            advance(arm.plan.steps)
    files = [None if folder is None else folder.absolute() / arm.file for arm in arms]
    todo = [place for place in range(len(arms)) if place not in found]
    futures = {executor.submit(trained, arms[place], files[place], every): place for place in todo}
    try:
        for future in as_completed(futures):
            place = futures[future]
            found[place] = future.result()
            path = files[place]
            if path is not None and not path.exists():  # of a worker on another machine
                save(path, arms[place].identity(), ENDED, found[place])
            advance(arms[place].plan.steps)
    finally:
        for future in futures:
            future.cancel()
    return [found[place] for place in range(len(arms))]


def _table(arms: list[Arm], rates: list[float], numbers: list[int], seen: list[Columns]) -> xr.Dataset:
    import xarray as xr

    one = arms[0]
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
    return found.dropna("matrix", how="all", subset=["update_ratio"])


def _dims(name: str, ndim: int) -> tuple[str, ...]:
    """Of a column, besides rate and seed."""
    if name in ("loss", "grad_norm"):
        return ("step",)
    if name in ("update_ratio", "step_ratio"):
        return ("probe", "block", "matrix")
    if name == "layer_similarity":
        return ("probe", "block", OTHER)
    return ("probe", "block", STREAM)[: ndim - 1]
