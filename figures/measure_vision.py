"""Vision Transformers on the digits that scikit-learn ships, trained by a plain loop on CPU cores, an arm a task.

    python figures/measure_vision.py --workers 2

Images of 8 x 8 pixels are cut into 16 patches of 2 x 2, which are the tokens. The loop is written out here: patches and
learned positions enter with variance 1, the mean token leaves to a linear head.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

import propagate as pg
from figures.training_cells import OPTIMIZER, RATES, SEEDS
from figures.training_record import Record
from propagate.figures import one_thread
from propagate.tracing.training.plan import Plan

MEASURED = Path(__file__).resolve().parent / "measured"
ARCHITECTURES = tuple((name, k) for name in ("spannorm", "postnorm", "prenorm") for k in (0.5, 0.0))
FULL: dict[str, Any] = {"depth": 24, "width": 32, "heads": 2, "steps": 200, "batch": 32}
SMALL: dict[str, Any] = {"depth": 2, "width": 16, "heads": 2, "steps": 30, "batch": 16}
HELD_OUT, PATCH, CLASSES, WARMUP = 500, 2, 10, 0.1


class Digits(nn.Module):
    """From patches (images, 16, 4) to logits (images, 10)."""

    def __init__(self, model: pg.Model, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        width, pixels = model.width, PATCH**2

        def drawn(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(std * torch.randn(*shape, generator=generator))

        self.patch = drawn(width, pixels, std=pixels**-0.5)
        self.positions = drawn(model.tokens, width, std=1.0)
        self.head = drawn(CLASSES, width, std=width**-0.5)
        self.network = pg.build(model, seed=seed)

    def forward(self, patches: Tensor) -> Tensor:
        tokens = (patches @ self.patch.mT + self.positions) / math.sqrt(2)
        return self.network(tokens).mean(-2) @ self.head.mT


def images() -> tuple[Tensor, Tensor]:
    """All 1797 as standardised patches (images, 16, 4), and their classes, in one random order."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    grid = ((pixels - pixels.mean()) / pixels.std())[order].reshape(-1, 4, PATCH, 4, PATCH)
    patches = grid.transpose(0, 1, 3, 2, 4).reshape(len(pixels), 16, PATCH**2)
    return torch.from_numpy(patches).float(), torch.from_numpy(classes[order])


def trained(placement: str, exponent: float, lr: float, seed: int, size: dict[str, Any]) -> list[float]:
    """Held-out loss at first and at last, and the share of held-out images told right; NaN if it diverged."""
    torch.set_num_threads(1)
    model = _model(placement, exponent, size)
    learner, (patches, classes) = Digits(model, seed), images()
    test = slice(HELD_OUT)
    plan = Plan(size["steps"], size["batch"], WARMUP)
    whole = list(learner.parameters())
    kinds = [p for p in whole if p.dim() > 1], [p for p in whole if p.dim() < 2]
    groups = [{"params": kind, "weight_decay": w} for kind, w in zip(kinds, (OPTIMIZER.decay, 0.0), strict=True)]
    optimizer = torch.optim.AdamW(groups, lr, OPTIMIZER.betas, OPTIMIZER.eps)

    @torch.no_grad()
    def held_out() -> tuple[float, float]:
        logits = learner(patches[test])
        return float(nn.functional.cross_entropy(logits, classes[test])), float(
            (logits.argmax(-1) == classes[test]).float().mean()
        )

    first, _ = held_out()
    generator = np.random.default_rng([seed, 1])
    for step in range(plan.steps):
        chosen = torch.from_numpy(generator.integers(HELD_OUT, len(classes), plan.batch))
        loss = nn.functional.cross_entropy(learner(patches[chosen]), classes[chosen])
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(whole, 1.0)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            return [first, math.nan, math.nan]
        for group in optimizer.param_groups:
            group["lr"] = lr * plan.share(step)
        optimizer.step()
    return [first, *held_out()]


def _model(placement: str, exponent: float, size: dict[str, Any]) -> pg.Model:
    shape = {name: size[name] for name in ("depth", "width", "heads")}
    scaling = pg.ScaleInit(exponent) if exponent else None
    return pg.Model(placement, tokens=16, activation="swiglu", ffn_ratio=2.0, scaling=scaling, **shape)


def architecture(
    placement: str, exponent: float, size: dict[str, Any], rates: Sequence[float], seeds: Sequence[int], pool: Executor
) -> xr.Dataset:
    """Every rate and seed of an architecture, over (lr, seed)."""
    arms = [pool.submit(trained, placement, exponent, lr, seed, size) for lr in rates for seed in seeds]
    seen = np.array([arm.result() for arm in arms]).reshape(len(rates), len(seeds), 3)
    names = ("first_loss", "held_out_loss", "accuracy")
    found = {name: (("lr", "seed"), seen[..., i].astype("float32")) for i, name in enumerate(names)}
    return xr.Dataset(found, {"lr": list(rates), "seed": list(seeds)}, size | {"device": "CPU", "held_out": HELD_OUT})


def measure(workers: int, to: Path, small: bool, seconds: float) -> None:
    """What is not measured yet; nothing is begun that would last beyond so many seconds."""
    size, rates, seeds = (SMALL, RATES[2::3], SEEDS[:2]) if small else (FULL, RATES, SEEDS)
    begun, record, longest = time.perf_counter(), Record(to / "training_vision.nc"), 0.0
    context = multiprocessing.get_context("spawn")
    with one_thread(), ProcessPoolExecutor(workers, mp_context=context) as pool:
        for placement, exponent in ARCHITECTURES:
            name, start = f"{placement}+{exponent:g}", time.perf_counter()
            if name in record.names or start - begun + longest > seconds:
                continue
            record.add(
                name,
                architecture(placement, exponent, size, rates, seeds, pool),
                placement=placement,
                exponent=exponent,
            )
            longest = max(longest, time.perf_counter() - start)
            print(f"vision {name}: {time.perf_counter() - start:.0f} s", flush=True)


@contextmanager
def beside(workers: int, to: Path, small: bool, seconds: float) -> Iterator[None]:
    """The same in a process of its own, while something else uses the accelerator; waits for it in the end."""
    if not workers:
        yield
        return
    given = [sys.executable, __file__, "--workers", str(workers), "--to", str(to), "--seconds", str(seconds)]
    other = subprocess.Popen([*given, *["--small"] * small], env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    try:
        yield
    finally:
        other.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--to", type=Path, default=MEASURED)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    measure(asked.workers, asked.to, asked.small, asked.seconds)
