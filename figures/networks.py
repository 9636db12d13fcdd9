"""The networks that the figures show, each simulated once however many figures show it, and their theory beside them.

A `Run` is one network with its start, draws and seed. `records` gathers runs into one table over (network, block):
`theory_<name>`, `<name>_allowance`, and the simulation's `<name>`, `<name>_se`, `log_<name>`, `log_<name>_se`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import xarray as xr

import propagate as pg
from propagate.figures import workers
from propagate.theory.finite.bias import sampled
from propagate.theory.tokens.gram import Gram

TEXT = Path(__file__).parent / "measured" / "text_embedding.json"
DEPTH, WIDTH, TOKENS, HEADS, LOGIT_STD = 128, 512, 16, 8, 1.0
SAMPLER: Literal["weightless"] = "weightless"  # exact in law; named, so that what is drawn never depends on the size
START = "0.3"  # covariance of the synthetic start that forward_variance, gradient_variance and skip_path share
LARGER = {"draws": 64, "width": 2048}  # what `propagate figures --full` passes to `data` where a script's FULL is this
DRAWS, SEED = 20, 0  # draws of the unscaled PostNorm and SpanNorm, which vary most; see `share`
PLACEMENTS = ("PreNorm", "PostNorm", "SpanNorm")
STARTS = ("0.3", "0", "text")
SCALINGS: dict[str, pg.ScaleInit | None] = {"none": None, "ScaleInit": pg.ScaleInit(0.5)}
# ends the captions of the figures whose networks these are
SETTING = """\
Width {width}, {heads} heads, ReLU FFN of ratio {ffn_ratio:g}, RMSNorm, logit standard deviation {logit_std:g}, 16
tokens; start: variance 1, covariance 0.3. Sampler {sampler}, exact in law at every width. Device: {device}. Seed
{first_seed}; each network has its own (`seed` in the data)."""
LOGGED = ("variance", "deviation", "grad_variance", "grad_deviation")


class PostNormSum(pg.Placement):
    """PostNorm, cut before its last norm: the same network, its stream at a block the sum that norm then divides."""

    def block(self, x: Any, block: Any) -> Any:
        x = x if block.first else block.norm(x)
        y = block.norm(x + block.attention(x))
        return y + block.ffn(y)


class SpanNormSum(pg.Placement):
    """SpanNorm, cut before its last norm: the same network, its stream at a block the sum that norm then divides."""

    def block(self, x: Any, block: Any) -> Any:
        x = x if block.first else block.norm(x)
        y = block.norm(x + block.attention(block.norm(x) if block.first else x))
        return x + block.ffn(y)


@dataclass(frozen=True)
class Run:
    """One network, its start and how it is simulated.

    Attributes:
        placement, scaling: labels; `model` is what is run.
        start: "0" or "0.3", the covariance of tokens of variance 1, or "text", the measured Gram matrix.
    """

    placement: str
    scaling: str
    start: str
    model: pg.Model
    draws: int
    seed: int
    backend: str = "numpy"

    @property
    def name(self) -> str:
        return f"{self.placement}, {self.scaling}, start {self.start}, depth {self.model.depth}"

    def moments(self) -> dict[str, Any]:
        """Variance and covariance of the start."""
        if self.start != "text":
            return {"variance": 1.0, "covariance": float(self.start)}
        gram = text_gram()
        return {
            "variance": float(gram.diagonal().mean()),
            "covariance": float(gram[~np.eye(len(gram), dtype=bool)].mean()),
        }


def text() -> dict[str, Any]:
    """The stored measurement of English text in a trained embedding; `measure_text.py` made it."""
    return dict(json.loads(TEXT.read_text(encoding="utf-8")))


def text_gram() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Token second moments of the median window, rescaled to mean variance 1."""
    gram = np.array(text()["median_window"]["gram"])
    return np.asarray(gram / gram.diagonal().mean())


def network(placement: str, scaling: str, depth: int, tokens: int = TOKENS, width: int = WIDTH) -> pg.Model:
    """A network of the size that every figure uses."""
    equations = {"PostNormSum": PostNormSum(), "SpanNormSum": SpanNormSum()}.get(placement, placement)
    size: dict[str, Any] = {"depth": depth, "width": width, "tokens": tokens, "heads": HEADS}
    return pg.Model(equations, scaling=SCALINGS[scaling], activation="relu", logit_std=LOGIT_STD, **size)


def grid(
    start: str,
    draws: int,
    seed: int,
    depth: int = DEPTH,
    placements: Sequence[str] = PLACEMENTS,
    *,
    width: int = WIDTH,
    backend: str = "numpy",
) -> list[Run]:
    """Every placement with and without ScaleInit. Each network has its own seed, the same in every figure."""
    tokens = len(text_gram()) if start == "text" else TOKENS
    runs = []
    for placement in placements:
        for offset, scaling in enumerate(SCALINGS):
            row = 2 * PLACEMENTS.index(placement.removesuffix("Sum")) + offset
            own = 1_000_000 * seed + 1000 * depth + 10 * row + STARTS.index(start)
            model = network(placement, scaling, depth, tokens, width)
            runs.append(Run(placement, scaling, start, model, share(draws, placement, scaling, start), own, backend))
    return runs


def share(draws: int, placement: str, scaling: str, start: str) -> int:
    """How many draws a network gets: from the start that many figures share, all of them only unscaled PostNorm and
    SpanNorm, whose gradients vary most."""
    light = start == START and not (placement in ("PostNorm", "SpanNorm") and scaling == "none")
    return counts(draws)["light"] if light else draws


def counts(draws: int) -> dict[str, int]:
    """The two numbers of draws, for a caption."""
    return {"draws": draws, "light": max(2, 2 * draws // 5)}


def simulate(run: Run) -> xr.Dataset:
    """The simulation of a run, in the process that calls it."""
    start: dict[str, Any] = {"gram": text_gram()} if run.start == "text" else run.moments()
    return pg.simulate(
        run.model, draws=run.draws, seed=run.seed, **start, backend=run.backend, sampler=SAMPLER, progress=False
    )


_DONE: dict[Run, Future[xr.Dataset]] = {}
_LOCK = Lock()


def measure(runs: Sequence[Run], executor: Executor | None = None) -> list[xr.Dataset]:
    """Simulations of runs, in parallel; a run that this process has seen before is not simulated again."""
    with workers(executor) as pool:
        futures = []
        with _LOCK:
            for run in runs:
                known = _DONE.get(run)
                if known is None or known.cancelled() or (known.done() and known.exception() is not None):
                    _DONE[run] = pool.submit(simulate, run)
                futures.append(_DONE[run])
        return [future.result() for future in futures]


@cache
def predict(run: Run) -> xr.Dataset:
    """The theory of a run; for text, of every pair of its tokens."""
    if run.start == "text":
        return pg.predict(run.model, gram=text_gram(), samples=32)
    return pg.predict(run.model, **run.moments())


def log_biases(run: Run, pairs: int) -> dict[str, Any]:
    """Of the gradient variance at this width, over blocks: mean logarithm less that of the limit, and its error."""
    start, cotangent = (Gram.exchangeable(1.0, 1.0 - shared, TOKENS) for shared in (float(run.start), 0.0))
    found = [at[0] for at in sampled(run.model, start, cotangent, pairs=pairs)["grad_variance"]]
    values = {"log_bias": [one.log for one in found], "log_bias_se": [one.log_error for one in found]}
    return {name: digits(np.array(of) / run.model.width, 4) for name, of in values.items()}


def records(runs: Sequence[Run], names: Sequence[str], executor: Executor | None = None) -> xr.Dataset:
    """Theory and simulation of the named quantities, over (network, block)."""
    measured = measure(runs, executor)
    tables = [columns(predict(run), seen, names) for run, seen in zip(runs, measured, strict=True)]
    return labelled(xr.concat(tables, "network"), runs, measured[0])


def columns(theory: xr.Dataset, measured: xr.Dataset, names: Sequence[str], simulated: bool = True) -> xr.Dataset:
    """One network's columns, rounded to what two machines agree on; NaN for a simulation that there is not."""
    found: dict[str, Any] = {}
    for name in names:
        own = theory[f"{name}_se"] / theory[name] if f"{name}_se" in theory else 0.0  # of logits the theory drew
        found |= {f"theory_{name}": theory[name], f"{name}_allowance": np.hypot(theory[f"{name}_allowance"], own)}
        for key in (name, f"{name}_se", *((f"log_{name}", f"log_{name}_se") if name in LOGGED else ())):
            found[key] = measured[key] if simulated else theory[name] * np.nan
    blocks = {"block": np.arange(theory.sizes["block"])}
    return xr.Dataset({key: ("block", digits(value.to_numpy())) for key, value in found.items()}, blocks)


def labelled(data: xr.Dataset, runs: Sequence[Run], measured: xr.Dataset) -> xr.Dataset:
    """With what each network is, and what all of them share in `attrs` (a caption's fields)."""
    for key in ("placement", "scaling", "start"):
        data[key] = "network", [getattr(run, key) for run in runs]
    data["draws"], data["seed"] = ("network", [run.draws for run in runs]), ("network", [run.seed for run in runs])
    data["tokens"] = "network", [run.model.tokens for run in runs]
    shared = {"width": runs[0].model.width, "heads": HEADS, "logit_std": LOGIT_STD, "activation": "relu", "norm": "rms"}
    shared |= {"sampler": SAMPLER, "device": measured.attrs["device"]}
    return data.assign_attrs(shared, ffn_ratio=runs[0].model.ffn_ratio, propagate=pg.__version__)


def unscaled(data: xr.Dataset, placement: str, start: str = START) -> xr.Dataset:
    """The network of that placement and start without scaling."""
    wanted = (data.placement == placement) & (data.start == start) & (data.scaling == "none")
    return data.isel(network=int(np.flatnonzero(wanted)[0]))


def tables(data: xr.Dataset, network: int) -> tuple[xr.Dataset, xr.Dataset]:
    """Prediction and measurement of one network, as `propagate.compare` wants them."""
    row = data.isel(network=network)
    if "depth" in row.dims:
        row = row.drop_vars("block", errors="ignore").rename(depth="block")
    names = [str(key).removeprefix("theory_") for key in row if str(key).startswith("theory_")]
    names = [name for name in names if name in row]
    prediction = {n: row[f"theory_{n}"] for n in names} | {f"{n}_allowance": row[f"{n}_allowance"] for n in names}
    wanted = [key for n in names for key in (n, f"{n}_se", f"log_{n}", f"log_{n}_se") if key in row]
    return xr.Dataset(prediction), row[wanted].assign_attrs(draws=int(row.draws))


def scores(predicted: Any, allowance: Any, logarithm: Any, error: Any, draws: int) -> Any:
    """z of mean logarithms and their errors against a prediction, one for each entry, as `propagate.compare` has it."""
    said = {"grad_variance": predicted, "grad_variance_allowance": allowance}
    seen = {"grad_variance": np.exp(logarithm), "log_grad_variance": logarithm, "log_grad_variance_se": error}
    tables = (xr.Dataset({key: ("block", np.ravel(values)) for key, values in t.items()}) for t in (said, seen))
    prediction, measurement = tables
    return pg.compare(prediction, measurement.assign_attrs(draws=draws)).z.to_numpy().ravel()


def shipped() -> tuple[str, ...]:
    """Names of the placements that come with the package; a user may have registered others."""
    return tuple(name for name, kind in pg.placements().items() if kind.__module__ == "propagate.placements")


def digits(values: Any, keep: int = 9) -> Any:
    """`keep` significant digits: far outside the rounding of one machine or another."""
    return np.array([float(f"{value:.{keep - 1}e}") for value in np.asarray(values, dtype=float).ravel()]).reshape(
        np.shape(values)
    )
