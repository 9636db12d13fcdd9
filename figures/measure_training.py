"""Trains the cells of `training_cells.py` and keeps what figures show of them, in figures/measured/training_*.nc.

A part after another, a cell after another, each kept as soon as it is done. What is there already is left out, and
nothing is begun that would last beyond `--seconds`: the same command goes on until nothing is left. A cell that fails
is reported, and the next one is begun.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import propagate as pg
from figures import measure_cost, measure_vision, training_text
from figures.training_cells import FAMILY, FULL, OPTIMIZER, SCALED, SMALL, UNSCALED, Cell, Size, cells
from figures.training_record import Record
from propagate.claims.runs import losses as final_loss
from propagate.documents import Corpus

MEASURED = Path(__file__).resolve().parent / "measured"
SEEN = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Shares of the steps after which the held-out loss of every arm is taken."""
TRACED = (0.0, 0.03, 0.1, 0.2, 0.5, 1.0)
"""Those after which the arms at a cell's best rate are traced block by block."""
STREAMS = ("variance", "covariance", "deviation", "grad_variance", "grad_covariance", "grad_deviation", "decorrelation")
ORDER = (
    "main",
    "shuffled",
    "scatter",
    "profiles",
    "shallow",
    "deepest",
    "transfer",
    "cost",
    "experts",
    "sudden",
    "deep",
)
ORDER += ("unscaled", "transfer_experts")
SWEEPS = tuple(part for part in ORDER if part not in ("profiles", "cost"))
WINDOW = 10
"""Steps over which a loss curve is averaged."""


@dataclass(frozen=True)
class Setting:
    """Where and how everything is trained."""

    size: Size
    text: Corpus
    device: str
    precision: str


@dataclass(frozen=True)
class Task:
    """Something that is measured and kept by itself; `seconds` is a guess."""

    part: str
    name: str
    seconds: float
    work: Callable[[], xr.Dataset]
    fields: dict[str, Any]


def sweep(cell: Cell, setting: Setting) -> xr.Dataset:
    """Every rate and seed of a cell, over (lr, seed) and, of the held-out loss, (lr, seed, share)."""
    steps, text = steps_of(cell, setting.size), _text(cell, setting)
    seen = _train(cell, setting, cell.rates, cell.seeds, probes=_steps(SEEN, steps), traces=())
    at = seen.sel(probe=_steps(SEEN, steps))
    found = {
        "held_out_loss": (("lr", "seed", "share"), at.held_out_loss.values),
        "log_z": (("lr", "seed"), at.log_z.values[..., -1]),
        "diverged_at": (("lr", "seed"), seen.diverged_at.values),
        "first_gradient": (("lr", "seed"), seen.grad_norm.values[..., 0]),
        "largest_gradient": (("lr", "seed"), np.nanmax(seen.grad_norm.values, axis=-1)),
    }
    coordinates = {"lr": list(cell.rates), "seed": list(cell.seeds), "share": list(SEEN)}
    return _light(
        xr.Dataset(found, coordinates, _said(seen)).assign(unigram_loss=plateau(text, cell.model(setting.size).tokens))
    )


def profile(cell: Cell, lr: float, setting: Setting) -> xr.Dataset:
    """The arms of a cell at one rate: over (seed, share, block) and, of the loss without a block, (seed, block)."""
    from propagate.tracing.training.batches import held_out_of
    from propagate.tracing.training.removal import losses_without, trained_learner

    steps, model = setting.size.steps, cell.model(setting.size)
    probes = _steps(TRACED, steps)
    ids = held_out_of(setting.text, model.tokens).to(setting.device)
    with tempfile.TemporaryDirectory() as folder:
        seen = _train(cell, setting, (lr,), cell.seeds, probes=probes, traces=probes, to=folder, every=steps)
        files = [Path(folder) / f"lr={lr!r} seed={seed}.pt" for seed in cell.seeds]
        learners = (trained_learner(file, model, setting.text.vocabulary, setting.device) for file in files)
        without = np.stack([losses_without(learner, ids) for learner in learners])
    at = seen.isel(lr=0).sel(probe=probes)
    whole = steps // WINDOW * WINDOW
    curve = seen.loss.isel(lr=0).values[:, :whole].reshape(len(cell.seeds), -1, WINDOW).mean(-1)
    found = {name: (("seed", "share", "block"), at[name].values) for name in STREAMS}
    found |= {
        "attention_logit": (("seed", "share", "block"), at.attention_logit.values),
        "held_out_loss": (("seed", "share"), at.held_out_loss.values),
        "layer_similarity": (("seed", "end", "block", "other_block"), at.layer_similarity.values[:, [0, -1]]),
        "loss_without": (("seed", "block"), without),
        "loss": (("seed", "step"), curve),
        "lr": ((), lr),
        "unigram_loss": ((), plateau(setting.text, model.tokens)),
    }
    coordinates = {
        "seed": list(cell.seeds),
        "share": list(TRACED),
        "block": range(cell.depth + 1),
        "other_block": range(cell.depth + 1),
        "end": [0, 1],
        "step": np.arange(WINDOW // 2, whole, WINDOW),
    }
    return _light(xr.Dataset(found, coordinates, _said(seen)))


def steps_of(cell: Cell, size: Size) -> int:
    """How many it is trained for."""
    return size.transfer_steps if cell.rule else size.steps


def _steps(shares: Sequence[float], steps: int) -> list[int]:
    """Different steps at these shares of all."""
    return [round(share * steps) for share in shares]


def _train(cell: Cell, setting: Setting, lrs: Any, seeds: Any, **options: Any) -> xr.Dataset:
    size = setting.size
    rule = {"transfer": cell.rule, "base": (size.widths[0], cell.depth)} if cell.rule else {}
    return pg.train(
        cell.model(size),
        _text(cell, setting),
        OPTIMIZER,
        lrs=lrs,
        seeds=seeds,
        steps=steps_of(cell, size),
        batch=size.batch,
        warmup=cell.warmup,
        device=setting.device,
        precision=setting.precision,
        progress=False,
        **rule,
        **options,
    )


def _text(cell: Cell, setting: Setting) -> Corpus:
    return training_text.shuffled(setting.text) if cell.text == "shuffled" else setting.text


def plateau(text: Corpus, tokens: int) -> float:
    """Cross-entropy under the frequencies of training of the very tokens that held-out losses are taken of.

    A few sequences are easier or harder than the whole of what is held out, so its unigram loss would be no plateau.
    """
    from propagate.tracing.training.batches import held_out_of

    counts = np.bincount(text.stream("training"), minlength=text.vocabulary) + 1
    return float(-np.log(counts / counts.sum())[held_out_of(text, tokens)[:, 1:].numpy()].mean())


def _said(seen: xr.Dataset) -> dict[str, Any]:
    names = ("corpus", "corpus_digest", "vocabulary", "optimizer", "batch", "tokens", "schedule", "clip", "precision")
    kept = {name: seen.attrs[name] for name in (*names, "torch", "propagate") if name in seen.attrs}
    return kept | {"device": measure_cost.device_name(seen.attrs["device"])}


def _light(found: xr.Dataset) -> xr.Dataset:
    """In single precision, which is more than any of it is known to."""
    return found.astype(dict.fromkeys(found.data_vars, "float32"))


def best_rate(table: xr.Dataset) -> float:
    """The rate with the lowest mean over seeds of the last held-out loss, diverged arms counting at their first."""
    return float(final_loss(table).mean("seed").idxmin("lr"))


def tasks(parts: Sequence[str], setting: Setting, to: Path | None) -> Iterator[Task]:
    """What is to be done, in order; a generator, since profiles need the rates that sweeps find best."""
    size = setting.size
    for part in parts:
        if part in SWEEPS:
            for cell in cells(part, size):
                fields = _fields(cell, size)
                yield Task(part, cell.name, guess(cell, size), lambda cell=cell: sweep(cell, setting), fields)
        elif part == "profiles":
            for cell in _profiled(size):
                fields = _fields(cell, size)
                work = lambda cell=cell: profile(cell, _best(to, cell), setting)  # noqa: E731
                yield Task(part, cell.name, 15.0 + guess(cell, size) / 4, work, fields)
        elif part == "cost":
            for placement, exponent in measure_cost.ARCHITECTURES:
                name = f"{placement}+{exponent:g}"
                work = lambda p=placement, k=exponent: measure_cost.cost(p, k, setting.device, size is FULL)  # noqa: E731
                yield Task(part, name, 8.0, work, {"placement": placement, "exponent": exponent})
        else:
            raise SystemExit(f"no part {part!r}")


def _profiled(size: Size) -> list[Cell]:
    order = {cell.architecture: cell for cell in cells("main", size)}
    wanted = [
        f"{placement}+{exponent:g}" if exponent else placement for placement, exponent in (*UNSCALED, *SCALED, *FAMILY)
    ]
    return [order[name] for name in wanted]


def _best(to: Path | None, cell: Cell) -> float:
    table = Record(_file(to, "main")).table
    if table is None or cell.name not in table.cell:
        raise ValueError(f"{cell.name} must be swept first")
    return best_rate(table.sel(cell=cell.name))


def _fields(cell: Cell, size: Size) -> dict[str, Any]:
    kept = dataclasses.asdict(cell)
    rates, seeds = kept.pop("rates"), kept.pop("seeds")
    more = {"architecture": cell.architecture, "steps": steps_of(cell, size), "runs": len(rates) * len(seeds)}
    return {name: int(value) if isinstance(value, bool) else value for name, value in (kept | more).items()}


def guess(cell: Cell, size: Size) -> float:
    """Seconds on one H200: 2 ms for a step of 24 blocks of width 128, and some to begin with."""
    share = cell.depth * cell.width * (2 if cell.experts else 1) / (24 * 128)
    return 6.0 + 0.002 * max(share, 0.1) * len(cell.rates) * len(cell.seeds) * steps_of(cell, size)


def _file(to: Path | None, part: str) -> Path | None:
    kinds = {"profiles": "profiles", "cost": "cost", "scatter": "scatter", "transfer_experts": "transfer"}
    kind = kinds.get(part, "transfer" if part == "transfer" else "sweeps")
    return None if to is None else to / f"training_{kind}.nc"


def run(parts: Sequence[str], setting: Setting, to: Path, seconds: float) -> int:
    """Do what is not done yet; how many tasks failed."""
    begun, failed, asked, took = time.perf_counter(), 0, 0.0, 0.0
    for task in tasks(parts, setting, to):
        record = Record(_file(to, task.part))
        if task.name in record.names:
            continue
        wanted = task.seconds * (took / asked if asked else 1.0)
        gone = time.perf_counter() - begun
        if gone + wanted > seconds:
            print(f"{gone:6.0f} s  later: {task.part} {task.name}, about {wanted:.0f} s", flush=True)
            return failed
        try:
            start = time.perf_counter()
            table = task.work()
            lasted = time.perf_counter() - start
            record.add(task.name, table, **task.fields, part=task.part, seconds=lasted)
            _forget(setting.device)
        except Exception:  # one cell's mistake must not cost the others
            traceback.print_exc()
            print(f"FAILED {task.part} {task.name}", flush=True)
            failed += 1
            continue
        asked, took = asked + task.seconds, took + lasted
        print(f"{time.perf_counter() - begun:6.0f} s  {task.part} {task.name}: {lasted:.1f} s", flush=True)
    print(f"nothing is left of {', '.join(parts)}; {failed} failed", flush=True)
    return failed


def _forget(device: str) -> None:
    """What the last cell's graphs held of the accelerator's memory is there for the next."""
    if device != "cpu":
        import gc

        import torch

        gc.collect()
        torch.cuda.empty_cache()


def plan(parts: Sequence[str], setting: Setting) -> None:
    """Print what there is to do, and a guess of how long it takes."""
    total = 0.0
    for task in tasks(parts, setting, None):
        total += task.seconds
        runs = task.fields.get("runs", 1)
        print(f"{total:6.0f} s  {task.part:16s} {task.name}, {runs} arms, {task.seconds:.0f} s")


def main(given: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="+", default=list(ORDER), choices=ORDER, dest="parts")
    parser.add_argument("--to", type=Path, default=MEASURED)
    parser.add_argument("--text", type=Path, default=training_text.STORED, help="what training_text.py wrote")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=("float32", "tf32", "bfloat16"))
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--small", action="store_true", help="a small plan, on the documentation of Python")
    parser.add_argument("--plan", action="store_true", help="only say what there is to do")
    parser.add_argument("--vision", type=int, default=0, metavar="WORKERS", help="the digits beside it, on CPU cores")
    asked = parser.parse_args(given)
    size = SMALL if asked.small else FULL
    text = pg.corpus() if asked.small or asked.plan else training_text.load(asked.text)
    setting = Setting(size, text, asked.device, asked.precision)
    if asked.plan:
        plan(asked.parts, setting)
        return 0
    with measure_vision.beside(asked.vision, asked.to, asked.small, asked.seconds):
        return min(1, run(asked.parts, setting, asked.to, asked.seconds))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
