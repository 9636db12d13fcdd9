"""The second witness: random networks of finite width, run forward and backward."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Collection
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from propagate.checks import integer, shown
from propagate.identity import described, simulation_digest
from propagate.model import Model, ModelError, check_flag, check_model, check_norms
from propagate.montecarlo.calls import called, smallest_fan_in
from propagate.montecarlo.checkpoint import load, save
from propagate.montecarlo.cores import batch_of, in_threads, threads_for
from propagate.montecarlo.norms import norm
from propagate.montecarlo.places import place_of, planned_at
from propagate.montecarlo.run import SAMPLERS, Network, run_halving
from propagate.montecarlo.starts import ends_of
from propagate.montecarlo.statistics import Summary, check_finite
from propagate.montecarlo.sublayers import apply
from propagate.montecarlo.workers import in_order
from propagate.progress import progress_bar
from propagate.start import Start, included
from propagate.table import BY_MATRIX, EMBEDDING_SHARE, STREAM, provenance, table

if TYPE_CHECKING:
    import xarray as xr

CROSSOVER = 8  # coordinates a token, from which on "auto" takes the weightless sampler
MOST_DRAWS = 10**9


def simulate(
    model: Model,
    start: Start | None = None,
    *,
    include: Collection[str] = (),
    draws: int = 64,
    seed: int = 0,
    variance: float = 1.0,
    covariance: float = 0.0,
    grad_variance: float = 1.0,
    grad_covariance: float = 0.0,
    gram: Any = None,
    grad_gram: Any = None,
    inputs: Any = None,
    through_readout: bool = False,
    parameter_gradients: bool | None = None,
    backend: Literal["auto", "numpy", "cupy"] = "auto",
    sampler: Literal["auto", "dense", "weightless"] = "auto",
    precision: Literal["float32", "float64"] = "float64",
    memory: int | None = None,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
) -> xr.Dataset:
    """Second moments at every block, averaged over independent random networks.

    Args:
        model: the network.
        start: a `Start`, in place of the seven arguments of its names.
        include: what else is measured: "param_grad", the gradient of every weight matrix, of experts all together,
            which costs two small Gram matrices each; "embedding_share", how much of a token is still its embedding.
        draws: independent networks, all weights, inputs and cotangents drawn afresh; at least 2.
        seed: draw number k of a seed is always the same network, on the same backend and with the same sampler, however
            draws are batched.
        variance, covariance: exact second moments of the input tokens, in every draw.
        grad_variance, grad_covariance: exact second moments of the cotangent that enters at the stream that leaves
            the last block.
        gram: (tokens, tokens) second moments of the input tokens, in place of `variance` and `covariance`.
        grad_gram: (tokens, tokens) second moments of the cotangent, in place of `grad_variance` and `grad_covariance`.
        inputs: (tokens, width) input tokens, the same in every draw, in place of `variance` and `covariance`; or those
            of every draw, (draws, tokens, width).
        through_readout: the cotangent enters behind the readout instead.
        parameter_gradients: deprecated name of it.
        backend: "auto" takes CuPy if a CUDA device answers.
        sampler: "dense" materialises every weight matrix. "weightless" never does, and has the same law at every
            width; its cost grows with tokens^2 width in place of tokens width^2. "auto" takes "weightless" where the
            smallest fan-in, of width and hidden width, is at least 8 times the tokens and the weights are normal,
            else "dense". (On a CPU, with 16 and 32 tokens, a block costs the same with both between 2 and 8, and at 8
            about half as much or less with "weightless": benchmarks/samplers.py.) The two draw different networks from
            one seed: name the sampler to reproduce a run at another size. `attrs["sampler"]` says which one was used.
        precision: type of the token arrays. Both draw the same networks; matrices of tokens by tokens are always
            float64. (benchmarks/precision.py measures what float32 costs in accuracy and saves in time.)
        memory: bytes a batch of draws may take; by default 256 MiB (2 GiB for a single draw), or half of the free
            device memory. Where not even one draw fits, its blocks are run twice: the first time only the streams
            that enter every so many blocks are kept, and on the way back each such segment is run again, which makes
            the same numbers from the same seed. Memory then grows with the square root of depth, and time by a
            third to a half (dense: to almost twice); results are the same to the bit.
        progress: show a progress bar on standard error; by default only on a terminal.
        checkpoint: a file that holds the finished draws. An interrupted run with the same arguments goes on from it; of
            another seed, model or start, an edited placement or scaling, or another version, it is refused.
        executor: any `concurrent.futures.Executor` (threads, processes, MPI, Dask's
            `dask.distributed.Client(...).get_executor()`): its workers run batches of draws, each within `memory`.
            Without one, draws run here, on NumPy in a thread for each core, as many as there is memory for, with linear
            algebra in one thread each whatever the environment says. On NumPy the table is the same to the bit,
            whatever the workers; on CuPy a batch's size may show in the last bits. Workers choose the backend: this
            process needs no GPU. See `process_pool` for one process a GPU.

    Returns:
        A Dataset over `block` with the names of `predict`, the mean over draws, and `<name>_se`, its standard error.
        `log_variance`, `log_deviation`, `log_grad_variance`, `log_grad_deviation` are means of natural logarithms,
        for quantities that are closer to log-normal at depth. Where tokens are not exchangeable (a Gram matrix or
        inputs were given, or the model has a mask or rotary positions) also `token_variance` and `grad_token_variance`
        over (block, token), their logarithms and errors. With "param_grad" also `param_grad` over (block,
        matrix), as in `predict`, its logarithm and errors; with "embedding_share" also `embedding_share`, as there.

    Raises:
        ModelError: names the argument, the value and what is allowed.

    Example:
        >>> from propagate.model import Model
        >>> small = Model("prenorm", depth=2, width=32, tokens=4, heads=2)
        >>> float(simulate(small, draws=4, backend="numpy").variance[0].round(12))
        1.0
    """
    check_model(model)
    check_norms(model)
    check_flag("through_readout", through_readout)
    asked = included(include, (BY_MATRIX, EMBEDDING_SHARE), parameter_gradients=parameter_gradients)
    if progress is not None:
        check_flag("progress", progress)
    if not isinstance(executor, Executor | None):
        raise ModelError(f"executor must be a concurrent.futures.Executor, got {shown(executor)}")
    if not isinstance(checkpoint, str | os.PathLike | None):
        raise ModelError(f"checkpoint must be a file's path, got {shown(checkpoint)}")
    where = executor.submit(place_of, backend, precision).result() if executor else place_of(backend, precision)
    draws = integer("draws", draws, at_least=2, at_most=MOST_DRAWS)
    seed = integer("seed", seed, at_least=0, at_most=2**128 - 1)
    sampler_name = _sampler(sampler, model)
    given = Start.of(
        start,
        variance=variance,
        covariance=covariance,
        grad_variance=grad_variance,
        grad_covariance=grad_covariance,
        gram=gram,
        grad_gram=grad_gram,
        inputs=inputs,
    )
    planned = planned_at(where, model, precision, sampler_name, memory)
    entering = ends_of(model, given, draws)
    batch = batch_of(planned.batch, draws, executor)
    threads = threads_for(where.backend, math.ceil(draws / batch), planned.taken * batch, where.most)
    network = Network(
        model,
        where.backend,
        precision,
        sampler_name,
        seed,
        entering,
        through_readout,
        planned.segment,
        BY_MATRIX in asked,
        EMBEDDING_SHARE in asked,
    )
    identity = _identity(network) if checkpoint is not None else {}
    summary = Summary() if checkpoint is None else load(checkpoint, identity, model.depth + 1)
    if summary.draws > draws:
        raise ModelError(f"draws must be at least the {summary.draws} that the checkpoint holds, got {draws}")
    batches = (range(first, min(first + batch, draws)) for first in range(summary.draws, draws, batch))
    with progress_bar(progress, draws, summary.draws) as advance, in_threads(executor, threads) as pool:
        for some, moments in in_order(pool, partial(run_halving, network), batches):
            check_finite(moments, some)
            summary.add(moments)
            if checkpoint is not None:
                save(checkpoint, identity, summary)
            advance(len(some))
    return tabled(network, summary, where.device)


def tabled(network: Network, summary: Summary, device: str, **more: Any) -> xr.Dataset:
    """The table of all draws, with what they were drawn from, and more attributes."""
    model = network.model
    attributes = {
        "witness": "simulation",
        "model": repr(model),
        "width": model.width,
        "depth": model.depth,
        "tokens": model.tokens,
        "draws": summary.draws,
        "seed": network.seed,
        "sampler": network.sampler,
        "backend": network.backend,
        "precision": network.precision,
        "device": device,
    }
    variables = summary.variables()
    dims = (STREAM,) if variables["variance"].ndim > 1 else ()
    return table(variables, model.depth, attributes | more, dims, summary.parts(BY_MATRIX))


def _sampler(name: str, model: Model) -> str:
    """The sampler of that name; "auto" takes the one that costs less."""
    if not isinstance(name, str) or name not in ("auto", *SAMPLERS):
        raise ModelError(f"sampler must be one of auto, {', '.join(SAMPLERS)}, got {shown(name)}")
    if name == "weightless" and model.weights != "normal":
        raise ModelError(
            f"sampler 'weightless' needs weights='normal', got {model.weights!r}; take sampler 'dense' or 'auto'"
        )
    if name != "auto":
        return name
    narrow = min(map(partial(smallest_fan_in, model), range(1, model.depth + 1))) < CROSSOVER * model.tokens
    return "dense" if narrow or model.weights != "normal" else "weightless"


def _identity(network: Network) -> dict[str, Any]:
    """What a checkpoint must agree on before it is continued: all that decides a draw. Memory and workers do not."""
    fields = {field.name: getattr(network, field.name) for field in dataclasses.fields(network)}
    del fields["segment"]  # as many blocks as memory holds: the numbers are the same
    versions = {name: provenance()[name] for name in ("propagate", "numpy")} | {"simulation": simulation_digest()}
    functions = {"functions": described(_registered(network.model))}
    return versions | {name: described(value) for name, value in fields.items()} | functions


def _registered(model: Model) -> dict[str, Any]:
    """By the name of a description's kind, the function that computes it."""
    blocks = range(1, model.depth + 1)
    kinds = {type(one) for index in blocks for one in called(model, index)}
    norms = {type(model.at(index).norm) for index in blocks}
    functions = [(kind, apply.registry.get(kind)) for kind in kinds] + [
        (kind, norm.registry.get(kind)) for kind in norms
    ]
    return {f"{kind.__module__}.{kind.__qualname__}": function for kind, function in functions}
