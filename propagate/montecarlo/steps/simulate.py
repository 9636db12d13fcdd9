"""The second witness, trained for its first steps: random networks, forward, backward, update, and again."""

from __future__ import annotations

import math
import warnings
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from propagate.checks import ModelError, check_flag, check_memory, integer, shown
from propagate.crossing import CrossAttention
from propagate.experts import Experts
from propagate.losses import CrossEntropy, Linear, Loss, check_loss
from propagate.model import Model, check_model, check_norms
from propagate.montecarlo.calls import called, smallest_fan_in
from propagate.montecarlo.cores import batch_of, in_threads, threads_for
from propagate.montecarlo.places import Place, place_of
from propagate.montecarlo.starts import Ends, ends_of
from propagate.montecarlo.statistics import Floats, Summary, check_finite
from propagate.montecarlo.steps.directions import EXACT
from propagate.montecarlo.steps.memory import bytes_of_a_draw
from propagate.montecarlo.steps.run import Course, run_steps
from propagate.montecarlo.steps.table import table_of_steps
from propagate.montecarlo.sublayers import CALLS, MATRICES
from propagate.montecarlo.workers import in_order
from propagate.optimizers import SGD, Muon, Optimizer, check_optimizer
from propagate.progress import progress_bar
from propagate.start import Start
from propagate.transfer import Transfer, as_transfer, factors_by_kind

if TYPE_CHECKING:
    import xarray as xr

MOST_DRAWS, MOST_STEPS = 10**9, 10**4
CROSSOVER = 4  # coordinates a row that is kept, from which on "auto" takes the weightless sampler
ENTRANCE = ("variance",)
"""What a start may say where a loss has cotangents and an embedding of its own."""


def simulate_steps(
    model: Model,
    optimizer: Optimizer,
    start: Start | None = None,
    *,
    steps: int,
    draws: int = 64,
    seed: int = 0,
    loss: Loss | None = None,
    transfer: str | Transfer | None = None,
    base: tuple[int, int] | None = None,
    backend: Literal["auto", "numpy", "cupy"] = "auto",
    sampler: Literal["auto", "dense", "weightless"] = "auto",
    precision: Literal["float32", "float64"] = "float64",
    memory: int | None = None,
    progress: bool | None = None,
    executor: Executor | None = None,
) -> xr.Dataset:
    """Moments of random networks before training and after each of its first steps, averaged over networks.

    Every network is trained by itself on one sequence, the same at every step. At step 0 it is as `simulate` draws it.

    Args:
        model: the network, without dropout.
        optimizer: `SGD`, `Sign`, `Adam` or `Muon`.
        start: the tokens that enter and, for the loss `Linear()`, the cotangent; with `CrossEntropy` only `variance`,
            of an embedding's entries.
        steps: updates, at least 1.
        draws: independent networks, all weights, inputs and cotangents drawn afresh; at least 2.
        seed: draw number k of a seed is always the same network, on the same backend and with the same sampler,
            however draws are batched.
        loss: `Linear()`, by default, or `CrossEntropy(vocabulary)`.
        transfer: a rule of transfer, or its name (see `propagate.transfer`); None leaves all as it is.
        base: width and depth at which the rule changes nothing; by default the model's own.
        backend: "auto" takes CuPy if a CUDA device answers.
        sampler: "dense" keeps every matrix. "weightless" keeps what the matrices did to what they met, which has the
            same law at every width for the optimisers whose steps lie in the span of that (all but `Sign` and `Adam`),
            and costs less where the width is more than a few times tokens * (steps + 1). "auto" takes what costs less.
        precision: type of the token arrays and matrices.
        memory: bytes a batch of draws may take; by default 256 MiB, or half of the free device memory. One draw always
            runs if the machine can hold it.
        progress: show a progress bar on standard error; by default only on a terminal.
        executor: any `concurrent.futures.Executor`; its workers run batches of draws. See `simulate`.

    Returns:
        A Dataset over `step` 0 ... steps and `block`: the names of `simulate`, with `<name>_se` and logarithms, and
        `change`; over `matrix` too `param_grad`, `own_change`, `own_covariance`, `output_change` and `update_ratio`,
        NaN where a block has no such matrix; `loss` over `step`, and `logit_change` where there are logits;
        `first_order_fall` of the first step over (block, matrix), decay's share included. An embedding is at block 0,
        the unembedding at the last. Changes are against step 0. A network that leaves the range of numbers makes NaN or
        infinite means from there on: `attrs["diverged"]` counts those, and a UserWarning says so. "weightless" divides
        `update_ratio` by the expected |W|^2, not each network's own.

    Raises:
        ModelError: names the argument, the value and what is allowed.

    Example: the loss falls by what the gradients say, for a small step.
        >>> from propagate import SGD, Model
        >>> small = Model("prenorm", depth=2, width=32, tokens=4, heads=2)
        >>> seen = simulate_steps(small, SGD(lr=1e-5), steps=1, draws=4, backend="numpy")
        >>> fall = float((seen["loss"].sel(step=0) - seen["loss"].sel(step=1)) / seen.first_order_fall.sum())
        >>> round(fall, 2)
        1.0
    """
    draws = integer("draws", draws, at_least=2, at_most=MOST_DRAWS)
    if progress is not None:
        check_flag("progress", progress)
    if not isinstance(executor, Executor | None):
        raise ModelError(f"executor must be a concurrent.futures.Executor, got {shown(executor)}")
    planned = plan(
        model, optimizer, start, steps, seed, loss, transfer, base, backend, sampler, precision, memory, executor
    )
    course, where, steps = planned.course, planned.where, planned.course.steps
    batch = batch_of(planned.batch, draws, executor)
    threads = threads_for(where.backend, math.ceil(draws / batch), planned.taken * batch, where.most)
    summary, diverged, doubtful = Summary(), np.zeros(steps + 1, dtype=int), 0
    batches = (range(first, min(first + batch, draws)) for first in range(0, draws, batch))
    with progress_bar(progress, draws, 0) as advance, in_threads(executor, threads) as pool:
        for some, found in in_order(pool, partial(run_steps, course), batches):
            check_finite({name: found[name][:, 0] for name in ("variance", "grad_variance")}, some)
            doubtful += int(found.pop("doubtful").sum())
            diverged += _diverged(found)
            with np.errstate(all="ignore"):  # of those that have left the range of numbers
                summary.add(found)
            advance(len(some))
    _warn(diverged, doubtful, draws, precision)
    attributes = {
        "witness": "simulation of steps",
        "model": repr(model),
        "optimizer": repr(optimizer),
        "loss_function": repr(course.loss),
        "transfer": "none" if transfer is None else repr(as_transfer(transfer)),
        "base": repr(base or (model.width, model.depth)),
        "width": model.width,
        "depth": model.depth,
        "tokens": model.tokens,
        "draws": draws,
        "seed": course.seed,
        "sampler": course.sampler,
        "backend": where.backend,
        "precision": precision,
        "device": where.device,
        "bytes_of_a_draw": planned.taken,
        "diverged": int(diverged[-1]),
    }
    return table_of_steps(summary, model.depth, steps, attributes)


class Plan(NamedTuple):
    """What is to be run, checked.

    Attributes:
        course: what all draws have in common.
        where: they run.
        taken: bytes of one draw.
        batch: draws at once.
    """

    course: Course
    where: Place
    taken: int
    batch: int


def plan(
    model: Model,
    optimizer: Optimizer,
    start: Start | None,
    steps: int,
    seed: int,
    loss: Loss | None,
    transfer: str | Transfer | None,
    base: tuple[int, int] | None,
    backend: str = "auto",
    sampler: str = "auto",
    precision: str = "float64",
    memory: int | None = None,
    executor: Executor | None = None,
) -> Plan:
    """The plan of a run; see `simulate_steps` for the arguments and the errors raised."""
    check_model(model)
    check_norms(model)
    check_optimizer(optimizer)
    steps = integer("steps", steps, at_most=MOST_STEPS)
    seed = integer("seed", seed, at_least=0, at_most=2**128 - 1)
    loss = Linear() if loss is None else loss
    check_loss(loss)
    factors = factors_by_kind(model, transfer, base)
    given = Start.of(start)
    _check_covered(model, optimizer, steps)
    where = executor.submit(place_of, backend, precision).result() if executor else place_of(backend, precision)
    chosen = _sampler(sampler, model, optimizer, steps)
    if memory is not None:
        integer("memory", memory, at_least=1)
    taken = bytes_of_a_draw(model, optimizer, loss, steps=steps, sampler=chosen, precision=precision)
    size = f"one draw of depth={model.depth}, width={model.width}, tokens={model.tokens}, steps={steps}, {chosen},"
    check_memory(size, taken, where.most)
    entering = _entering(model, loss, given)
    course = Course(model, optimizer, steps, loss, factors, where.backend, precision, chosen, seed, entering)
    return Plan(course, where, taken, max(1, (memory or where.batch) // taken))


def _entering(model: Model, loss: Loss, given: Start) -> Ends:
    """What enters, checked; ModelError where a start says what a loss has its own of."""
    if isinstance(loss, CrossEntropy):
        said = [name for name in given if name not in ENTRANCE]
        if said:
            raise ModelError(f"start must hold only variance with loss=CrossEntropy(...), got {said[0]}")
    return ends_of(model, given)


def _check_covered(model: Model, optimizer: Optimizer, steps: int) -> None:
    """ModelError for what is not simulated."""
    if model.dropout:
        raise ModelError(f"dropout must be 0 where a model is trained, got {shown(model.dropout)}")
    if isinstance(optimizer, Muon):
        for index in range(1, model.depth + 1):
            if any(isinstance(one, Experts) for one in called(model, index)):
                raise ModelError(
                    f"optimizer Muon does not cover experts, whose matrices are kept as one, got them in block {index}"
                )
    if (steps + 1) * (model.depth + 2) * CALLS * MATRICES >= 2**31:
        raise ModelError(f"steps must be fewer for depth={model.depth}, got {steps}")


def _sampler(name: str, model: Model, optimizer: Optimizer, steps: int) -> str:
    if not isinstance(name, str) or name not in ("auto", "dense", "weightless"):
        raise ModelError(f"sampler must be one of auto, dense, weightless, got {shown(name)}")
    spanned = isinstance(optimizer, SGD | Muon)
    if name == "weightless" and not spanned:
        raise ModelError(
            f"sampler 'weightless' does not cover {type(optimizer).__name__}, whose steps treat every entry by itself"
            " and so leave the span of what the matrices have met; take sampler 'dense' or 'auto'"
        )
    blocks = range(1, model.depth + 1)
    crossed = any(isinstance(one, CrossAttention) for index in blocks for one in called(model, index))
    if name == "weightless" and crossed:
        raise ModelError(
            "sampler 'weightless' does not cover CrossAttention in training, whose matrices meet a memory; take sampler"
            " 'dense' or 'auto'"
        )
    if name == "weightless" and model.weights != "normal":
        raise ModelError(
            f"sampler 'weightless' needs weights='normal', got {model.weights!r}; take sampler 'dense' or 'auto'"
        )
    if name != "auto":
        return name
    rows = model.tokens * (steps + 1)
    narrow = min(smallest_fan_in(model, index) for index in range(1, model.depth + 1)) < CROSSOVER * rows
    return "dense" if narrow or crossed or not spanned or model.weights != "normal" else "weightless"


def _diverged(found: dict[str, Floats]) -> Any:
    """How many draws have left the range of numbers by each step."""
    whole = np.isfinite(found["loss"])
    for name in ("variance", "grad_variance"):
        values = found[name] if found[name].ndim == 3 else found[name][..., :-1]
        whole &= np.isfinite(values).reshape(*values.shape[:2], -1).all(axis=-1)
    return np.logical_or.accumulate(~whole, axis=1).sum(axis=0)


def _warn(diverged: Floats, doubtful: int, draws: int, precision: str) -> None:
    if diverged[-1]:
        first = int(np.flatnonzero(diverged)[0])
        warnings.warn(
            f"{diverged[-1]} of {draws} networks left the range of numbers, the first at step {first}: means from there"
            " on are no numbers",
            UserWarning,
            stacklevel=3,
        )
    if doubtful:
        warnings.warn(
            f"in {doubtful} of {draws} networks Muon met gradients with singular values so small that rounding decides"
            f" whether they count: those below {EXACT * np.finfo(precision).eps:.0e} of the largest do not",
            UserWarning,
            stacklevel=3,
        )
