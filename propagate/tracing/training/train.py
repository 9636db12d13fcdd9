"""Training of arms: every rate with every seed, here or on the workers of an executor, as one table."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Executor, as_completed
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from propagate.checks import check_flag, integer, number, shown
from propagate.documents import Corpus
from propagate.embeddings import TokenEmbedding
from propagate.files import check_folder
from propagate.model import Model, ModelError, check_model
from propagate.optimizers import Optimizer, check_optimizer
from propagate.progress import Advance, progress_bar, silent
from propagate.tracing.training.arm import ENDED, Arm, trained
from propagate.tracing.training.batches import check_long_enough
from propagate.tracing.training.columns import Columns
from propagate.tracing.training.covered import check_covered
from propagate.tracing.training.members import check_batchable
from propagate.tracing.training.pieces import optimizers_of, pieces_of
from propagate.tracing.training.plan import Plan
from propagate.tracing.training.precision import Precision, check_precision
from propagate.tracing.training.result import table_of
from propagate.tracing.training.states import load, save
from propagate.tracing.training.together import trained_together
from propagate.tracing.training.updates import check_elementwise
from propagate.transfer import Transfer, factors_by_kind

if TYPE_CHECKING:
    import xarray as xr

MOST = 2**20
"""Arms of one ensemble, where the device's memory says how many."""

MOST_ARMS = 10**4


def train(
    model: Model,
    corpus: Corpus,
    optimizer: Optimizer,
    *,
    embedding: TokenEmbedding | None = None,
    seeds: Iterable[int] = (0,),
    steps: int = 500,
    batch: int = 16,
    lrs: Iterable[float] | None = None,
    warmup: float = 0.1,
    schedule: Literal["constant", "linear", "cosine"] = "cosine",
    probes: Collection[int] = (),
    traces: Collection[int] | None = None,
    clip: float | None = 1.0,
    transfer: str | Transfer | None = None,
    base: tuple[int, int] | None = None,
    together: int | None = None,
    executor: Executor | None = None,
    to: str | os.PathLike[str] | None = None,
    every: int = 100,
    device: str = "cpu",
    precision: Precision = "float32",
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
        embedding: of the corpus's tokens, whose table is "embedding" in the columns; by default one of variance 1.
            Ensembles and rules of transfer do not know another.
        seeds: of initial weights and of the order of the data.
        steps: updates.
        batch: sequences of `model.tokens` tokens a step.
        lrs: peak rates; by default the optimizer's own.
        warmup: share of the steps over which the rate rises.
        schedule: what it does from there to the end: "constant", or "linear" or "cosine" down to 0.
        probes: numbers of updates after which held-out text is read; 0 and `steps` always are among them.
        traces: those of them after which the network is traced too, block by block; by default all, with () none.
        clip: largest norm of the gradient of all parameters together; None does not clip.
        transfer: a rule of transfer, by its name or itself, for matrices (gains keep their rate); None changes nothing.
        base: width and depth of the network on which the rule changes nothing; by default the model's own.
        together: how many arms, at most, train as one ensemble of batched matrices, on CUDA with one graph a step: the
            same to rounding. 1: each by itself, by the plain loop. By default 1 on a CPU or with an executor; on CUDA
            as many as the device has memory for, where an ensemble is covered: not under Muon, nor with sublayers of
            one's own.
        executor: any `concurrent.futures.Executor`, whose workers train whole arms or ensembles; without one they are
            trained here, one after another.
        to: a folder, made if need be, with a file for each arm: killed at any step, the same call goes on from there,
            on the same CPU to the same bytes. (Of CUDA, some of whose sums have no fixed order, that is not known.)
            Workers write there too: it must be a folder that they share, or else only arms that have ended are kept.
        every: steps between two states that are kept there.
        device: "cpu" or "cuda".
        precision: "float32" or "float64"; "bfloat16" or, on CUDA, "tf32": weights and all else in float32, and products
            of matrices in that type. Probes and traces are in float32 then.
        progress: show a progress bar on standard error, with loss and time left; by default only on a terminal.

    Returns:
        A Dataset over `lr`, `seed` and `step`: `loss` and `grad_norm`, before the step's update. Over `lr`, `seed`,
        `probe` (updates made): `held_out_loss` and `log_z`, over up to 32 held-out sequences. Where it was traced, by
        `block` also, over up to 8 of them, what `trace` gives: `variance`, ... `grad_deviation`, of the gradient of
        their mean loss; `layer_cosine`, `branch_skip_ratio`, `effective_rank`, `parameter_grad_norm`,
        `attention_ratio`, `embedding_share`; `decorrelation`, 1 - correlation; and over all 32 `attention_logit`, the
        largest. By (`block`, `other_block`) `layer_similarity`, the cosine of a token's streams there, where there is
        one stream. By (`block`, `matrix`) `update_ratio`, |W - W_0| / |W_0|, and `step_ratio`, of the next update
        alone.

        An arm whose loss or gradient is not finite has diverged: `diverged_at` is that step, `diverged_value` what it
        gave; all later entries are NaN.

        `attrs["unigram_loss"]` is what a model would reach that knew how frequent tokens are, and no more.

    Raises:
        ModelError: names what is not covered: a network that is not causal, has dropout or blocks that no gradient
            reaches, text that is too short, or an ensemble of what cannot be batched.

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
    plan = Plan(steps, batch, warmup, schedule, clip, probes, traces)
    integer("every", every)
    if progress is not None:
        check_flag("progress", progress)
    if not isinstance(executor, Executor | None):
        raise ModelError(f"executor must be a concurrent.futures.Executor, got {shown(executor)}")
    _check_device(device, executor)
    check_precision(precision, device)
    factors = factors_by_kind(model, transfer, base)
    rates = _several("lrs", (optimizer.lr,) if lrs is None else lrs, partial(number, positive=True))
    numbers = _several("seeds", seeds, partial(integer, at_least=0, at_most=2**31 - 1))
    check_covered(model)
    check_long_enough(corpus, model.tokens)
    most = _most_together(together, model, optimizer, device, executor) if embedding is None else 1
    _check_embedding(embedding, corpus, together, transfer)
    arms = [
        Arm(
            model,
            corpus,
            dataclasses.replace(optimizer, lr=lr),
            plan,
            seed,
            factors,
            device,
            precision,
            most > 1,
            embedding,
        )
        for lr in rates
        for seed in numbers
    ]
    with torch.device("cpu"):
        optimizers_of(optimizer, pieces_of(dataclasses.replace(arms[0], device="cpu").learner()), factors)
    groups = [arms[begin : begin + most] for begin in range(0, len(arms), most)]
    folder = _folder(to)
    with progress_bar(progress, plan.steps * len(arms), 0, "steps") as advance:
        if executor is None:
            seen = [trained_group(some, _files(some, folder), every, advance) for some in groups]
        else:
            seen = _on_workers(executor, groups, folder, every, advance)
    found = table_of(arms, rates, numbers, [columns for some in seen for columns in some])
    return found.assign_attrs(transfer=repr(transfer), base=repr(base))


def trained_group(arms: Sequence[Arm], files: Sequence[Path | None], every: int, advance: Advance) -> list[Columns]:
    """Arms of an ensemble, or one by itself."""
    if arms[0].together:
        return trained_together(arms, files, every, advance)
    return [trained(arm, file, every, advance) for arm, file in zip(arms, files, strict=True)]


def _most_together(together: Any, model: Model, optimizer: Optimizer, device: str, executor: Executor | None) -> int:
    """Arms of an ensemble, at most; 1 where there is none.

    Raises:
        ModelError: for an ensemble that was asked for and cannot be.
    """
    if together is not None and integer("together", together) == 1:
        return 1
    if together is None and (executor is not None or torch.device(device).type != "cuda"):
        return 1
    try:
        check_batchable(model)
        check_elementwise(optimizer)
    except ModelError:
        if together is not None:
            raise
        return 1
    return MOST if together is None else int(together)


def _check_embedding(embedding: Any, corpus: Corpus, together: Any, transfer: Any) -> None:
    if not isinstance(embedding, TokenEmbedding | None):
        raise ModelError(f"embedding must be None or a propagate.TokenEmbedding, got {shown(embedding)}")
    if embedding is None:
        return
    if embedding.vocabulary != corpus.vocabulary:
        raise ModelError(f"embedding must be of the corpus's {corpus.vocabulary} tokens, got {embedding.vocabulary}")
    if together not in (None, 1):
        raise ModelError(f"together must be 1 with an embedding, which no ensemble knows, got {shown(together)}")
    if transfer is not None:
        raise ModelError(f"transfer must be None with an embedding, which no rule knows, got {shown(transfer)}")


def _several(name: str, values: Any, checked: Callable[[str, Any], Any]) -> list[Any]:
    """At least one, none twice."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ModelError(f"{name} must be several numbers, such as (1, 2), got {shown(values)}")
    found = [checked(name, value) for value in islice(values, MOST_ARMS + 1)]
    if not 0 < len(set(found)) == len(found) <= MOST_ARMS:
        raise ModelError(
            f"{name} must be at least one number, none of them twice, at most {MOST_ARMS}, got {shown(values)}"
        )
    return found


def _check_device(device: Any, executor: Executor | None) -> None:
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError, ValueError):
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ModelError(f"device must be 'cpu' or 'cuda', got {shown(device)}")
    if kind == "cuda" and executor is None and not torch.cuda.is_available():
        raise ModelError(f"device must be 'cpu' where no CUDA device answers, got {shown(device)}")


def _folder(to: Any) -> Path | None:
    if to is None:
        return None
    if not isinstance(to, str | os.PathLike):
        raise ModelError(f"to must be a folder's path, got {shown(to)}")
    folder = check_folder(to, "to")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _files(arms: Sequence[Arm], folder: Path | None) -> list[Path | None]:
    return [None if folder is None else folder.absolute() / arm.file for arm in arms]


def _on_workers(
    executor: Executor, groups: Sequence[Sequence[Arm]], folder: Path | None, every: int, advance: Advance
) -> list[list[Columns]]:
    """Every group that has not ended is a task; one that ends is kept at once, whatever becomes of the others."""
    found: dict[int, list[Columns]] = {}
    files = [_files(some, folder) for some in groups]
    for place, some in enumerate(groups):
        kept = [load(file, arm.identity()) if file else None for arm, file in zip(some, files[place], strict=True)]
        ended = [one[1] for one in kept if one is not None and one[0] == ENDED]
        if len(ended) == len(some):
            found[place] = ended
            advance(some[0].plan.steps * len(some))
    todo = [place for place in range(len(groups)) if place not in found]
    futures = {executor.submit(trained_group, groups[place], files[place], every, silent): place for place in todo}
    try:
        for future in as_completed(futures):
            place = futures[future]
            found[place] = future.result()
            for arm, file, columns in zip(groups[place], files[place], found[place], strict=True):
                if file is not None and not file.exists():  # of a worker on another machine
                    save(file, arm.identity(), ENDED, columns)
            advance(groups[place][0].plan.steps * len(groups[place]))
    finally:
        for future in futures:
            future.cancel()
    return [found[place] for place in range(len(groups))]
