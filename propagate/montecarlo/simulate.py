"""The second witness: random networks of finite width, run forward and backward."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from propagate.model import Model, ModelError, check_flag, check_model
from propagate.montecarlo.backend import Array, Backend, choose_backend
from propagate.montecarlo.blocks import block_of, read
from propagate.montecarlo.checkpoint import load, save
from propagate.montecarlo.cuda.weightless import Fused
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.operators import GATED, Pull
from propagate.montecarlo.parameter_gradients import RecordedBlock, matrices, stacked
from propagate.montecarlo.samplers import Sampler, dense
from propagate.montecarlo.starts import Start, start_of, with_gram
from propagate.montecarlo.statistics import Floats, moments_on
from propagate.montecarlo.weightless import weightless
from propagate.table import table

if TYPE_CHECKING:
    import xarray as xr

SAMPLERS: dict[str, Callable[[Normals], Sampler]] = {"dense": dense, "weightless": weightless}
CROSSOVER = 8  # coordinates a token, from which on "auto" takes the weightless sampler
INPUT_SITE, COTANGENT_SITE = 0, 1  # below CALLS * MATRICES, where the first block's sites begin
MEMORY = 2**28  # bytes that a batch of draws may take on the host: small enough to stay near the caches


def simulate(
    model: Model,
    *,
    draws: int = 64,
    seed: int = 0,
    variance: float = 1.0,
    covariance: float = 0.0,
    grad_variance: float = 1.0,
    grad_covariance: float = 0.0,
    gram: Any = None,
    inputs: Any = None,
    through_readout: bool = False,
    parameter_gradients: bool = False,
    backend: Literal["auto", "numpy", "cupy"] = "auto",
    sampler: Literal["auto", "dense", "weightless"] = "auto",
    precision: Literal["float32", "float64"] = "float64",
    memory: int | None = None,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """Second moments at every block, averaged over independent random networks.

    Args:
        model: the network.
        draws: independent networks, all weights, inputs and cotangents drawn afresh; at least 2.
        seed: draw number k of a seed is always the same network, on the same backend and with the same sampler, however
            draws are batched.
        variance, covariance: exact second moments of the input tokens, in every draw.
        grad_variance, grad_covariance: exact second moments of the cotangent that enters at the stream that leaves
            the last block.
        gram: (tokens, tokens) second moments of the input tokens, in place of `variance` and `covariance`.
        inputs: (tokens, width) input tokens, the same in every draw, in place of `variance` and `covariance`.
        through_readout: the cotangent enters behind the readout instead.
        parameter_gradients: measure the gradient of every weight matrix too, which costs two small Gram matrices each.
        backend: "auto" takes CuPy if a CUDA device answers.
        sampler: "dense" materialises every weight matrix. "weightless" never does, and has the same law at every
            width; its cost grows with tokens^2 width in place of tokens width^2. "auto" takes "weightless" where the
            smallest fan-in, of width and hidden width, is at least 8 times the tokens, else "dense". (On a CPU, with
            16 and 32 tokens, a block costs the same with both between 2 and 8, and at 8 about half as much or less with
            "weightless": benchmarks/samplers.py.) The two draw different networks from one seed:
            name the sampler to reproduce a run at another size. `attrs["sampler"]` says which one was used.
        precision: type of the token arrays. Both draw the same networks; matrices of tokens by tokens are always
            float64. (benchmarks/precision.py measures what float32 costs in accuracy and saves in time.)
        memory: bytes a batch of draws may take; by default 256 MiB, or half of the free device memory.
        progress: show a progress bar on standard error; by default only on a terminal.
        checkpoint: a file that holds the finished draws. An interrupted run with the same arguments goes on from it.

    Returns:
        A Dataset over `block` with the names of `predict`, the mean over draws, and `<name>_se`, its standard error.
        `log_variance`, `log_deviation`, `log_grad_variance`, `log_grad_deviation` are means of natural logarithms,
        for quantities that are closer to log-normal at depth. With `parameter_gradients` also `param_grad` over block
        and matrix, as in `predict`.

    Raises:
        ModelError: names the argument, the value and what is allowed.

    Example:
        >>> from propagate.model import Model
        >>> small = Model("prenorm", depth=2, width=32, tokens=4, heads=2)
        >>> float(simulate(small, draws=4, backend="numpy").variance[0].round(12))
        1.0
    """
    check_model(model)
    check_flag("through_readout", through_readout)
    check_flag("parameter_gradients", parameter_gradients)
    names = matrices(model) if parameter_gradients else []
    if progress is not None:
        check_flag("progress", progress)
    if not isinstance(checkpoint, str | os.PathLike | None):
        raise ModelError(f"checkpoint must be a file's path, got {checkpoint!r}")
    host = choose_backend(backend, precision)
    draws = _whole("draws", draws, at_least=2)
    seed = _whole("seed", seed, at_least=0)
    sampler_name = _sampler(sampler, model)
    start = start_of(model, variance, covariance, grad_variance, grad_covariance, gram, inputs)
    batch = _batch(model, host, sampler_name, memory)
    identity = _identity(model, seed, start, through_readout, names, host, sampler_name)
    summary = load(checkpoint, identity)
    if summary.draws > draws:
        raise ModelError(f"draws must be at least the {summary.draws} that the checkpoint holds, got {draws}")
    with _progress(progress, draws, summary.draws) as advance:
        while summary.draws < draws:
            some = range(summary.draws, min(summary.draws + batch, draws))
            summary.add(run(model, host, sampler_name, seed, some, start, names, through_readout=through_readout))
            save(checkpoint, identity, summary)
            advance(len(some))
    attributes = {
        "witness": "simulation",
        "model": repr(model),
        "width": model.width,
        "depth": model.depth,
        "tokens": model.tokens,
        "draws": summary.draws,
        "seed": seed,
        "sampler": sampler_name,
        "backend": host.name,
        "precision": host.precision,
        "device": host.device,
    }
    return table(summary.variables(), model.depth, attributes, matrices=names)


def run(
    model: Model,
    backend: Backend,
    sampler_name: str,
    seed: int,
    draws: range,
    start: Start,
    names: Sequence[str] = (),
    *,
    through_readout: bool,
) -> dict[str, Floats]:
    """One batch of draws: for each quantity an array of shape (draws, depth + 1).

    With `names` of matrices, also `param_grad` of shape (draws, depth + 1, matrices).
    """
    normals = Normals(backend, seed, draws)
    if sampler_name != "weightless" or backend.name == "numpy":
        return _pass(model, normals, SAMPLERS[sampler_name](normals), start, names, through_readout)
    sampler = Fused(normals, backend.xp.zeros(len(draws), dtype=bool))
    found = _pass(model, normals, sampler, start, names, through_readout)
    for row in np.flatnonzero(backend.to_host(sampler.unsound)):
        alone = Normals(backend, seed, draws[row : row + 1])
        again = _pass(model, alone, weightless(alone), start, names, through_readout)
        for name, values in again.items():
            found[name][row] = values[0]
    return found


def _pass(
    model: Model, normals: Normals, sampler: Sampler, start: Start, names: Sequence[str], through_readout: bool
) -> dict[str, Floats]:
    """Forward and backward through one batch of networks."""
    backend, placement = normals.backend, model.equations
    moments = moments_on(backend)

    def block(index: int) -> Any:
        return block_of(model, backend, sampler, index)

    if start.inputs is None:
        x = with_gram(start.input_root, normals, INPUT_SITE, model.width)
    else:
        inputs = backend.xp.asarray(start.inputs, dtype=backend.dtype)
        x = backend.xp.repeat(inputs[None], len(normals.draws), axis=0)
    x, _ = read(placement.embed, block(0), x)
    forward = [moments(x)]
    pulls: list[Pull] = []
    norms: list[dict[str, Array]] = []
    for index in range(1, model.depth + 1):
        entered = RecordedBlock(block(index)) if names else block(index)
        x, pull = read(placement.block, entered, x)
        norms.append(entered.norms if names else {})
        forward.append(moments(x))
        pulls.append(pull)
    cotangent = with_gram(start.cotangent_root, normals, COTANGENT_SITE, model.width)
    if through_readout:
        _, pull = read(placement.readout, block(model.depth + 1), x)
        cotangent = pull(cotangent)
    backward = [moments(cotangent)]
    while pulls:
        cotangent = pulls.pop()(cotangent)  # a block's weights are freed as soon as they are used
        backward.append(moments(cotangent))
    columns = _columns("", forward, backend) | _columns("grad_", backward[::-1], backend)
    if names:
        columns["param_grad"] = backend.to_host(stacked(backend.xp, norms, names, len(normals.draws)))
    return columns


def _columns(prefix: str, moments: list[tuple[Array, ...]], backend: Backend) -> dict[str, Floats]:
    stacked = backend.to_host(backend.xp.stack([backend.xp.stack(at_block) for at_block in moments], axis=-1))
    return {prefix + name: stacked[i] for i, name in enumerate(("variance", "covariance", "deviation"))}


def _whole(name: str, value: Any, *, at_least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ModelError(f"{name} must be a whole number, got {value!r}")
    if value < at_least:
        raise ModelError(f"{name} must be at least {at_least}, got {value!r}")
    return int(value)


def _sampler(name: str, model: Model) -> str:
    """The sampler of that name; "auto" takes the one that costs less."""
    if name != "auto" and name not in SAMPLERS:
        raise ModelError(f"sampler must be one of auto, {', '.join(SAMPLERS)}, got {name!r}")
    if name != "auto":
        return name
    return "weightless" if CROSSOVER * model.tokens <= min(model.width, model.hidden) else "dense"


def _batch(model: Model, backend: Backend, sampler_name: str, memory: int | None) -> int:
    """Draws at a time: what a sampler and a tape keep until the pull, within the memory bound; at least one."""
    if memory is None:
        memory = MEMORY if backend.name == "numpy" else backend.xp.cuda.Device().mem_info[0] // 2
    _whole("memory", memory, at_least=1)
    d, n, t = model.width, model.hidden * (2 if model.activation in GATED else 1), model.tokens
    if sampler_name == "dense":
        weights = 4 * d * d + d * n + model.hidden * d
    else:  # rows and seen normals of four maps
        weights = t * ((3 * d + model.hidden) + (5 * d + n))
    activations = t * (14 * d + 5 * n) + 3 * model.heads * t * t
    return max(1, int(memory // (backend.dtype.itemsize * model.depth * (weights + activations))))


def _identity(
    model: Model,
    seed: int,
    start: Start,
    through_readout: bool,
    names: list[str],
    backend: Backend,
    sampler_name: str,
) -> str:
    """What a checkpoint must agree on before it is continued."""
    roots = {name: None if a is None else a.tolist() for name, a in vars(start).items()}
    what = {
        "model": repr(model),
        "seed": seed,
        "readout": through_readout,
        "matrices": names,
        "backend": backend.name,
        "precision": backend.precision,
        "sampler": sampler_name,
        "start": roots,
    }
    return json.dumps(what, sort_keys=True)


@contextmanager
def _progress(show: bool | None, total: int, done: int) -> Iterator[Any]:
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("draws", total=total, completed=done)
        yield lambda count: bar.advance(task, count)
