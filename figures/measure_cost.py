"""Time and memory of a training step of each placement, by a plain PyTorch loop in bfloat16."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.nn import functional

import propagate as pg

ARCHITECTURES = (
    *(("prenorm", 0.0), ("postnorm", 0.0), ("spannorm", 0.0), ("spannorm", 0.5), ("periln", 0.0), ("deepnorm", 0.0)),
    *(("layernormscaling", 0.0), ("keel", 0.0), ("b2t", 0.0), ("olmo2", 0.0), ("residual", 0.0), ("prenorm", 0.5)),
)
REPEATS, STEPS = 5, 8
SIZE = {"width": 1024, "depth": 24, "heads": 16, "tokens": 512}
BATCH, VOCABULARY = 16, 1024


def cost(placement: str, exponent: float, device: str, full: bool) -> xr.Dataset:
    """Milliseconds a step over `repeat`, and the most memory that tensors took, in MiB; without the first steps."""
    size = SIZE if full else {"width": 32, "depth": 2, "heads": 2, "tokens": 16}
    repeats, steps, batch = (REPEATS, STEPS, BATCH) if full else (2, 2, 2)
    scaling = pg.ScaleInit(exponent) if exponent else None
    model = pg.Model(placement, causal=True, rope=10000.0, activation="swiglu", ffn_ratio=2.0, scaling=scaling, **size)
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    learner = pg.build_language_model(model, VOCABULARY, device=device)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-4, fused=cuda)
    generator = torch.Generator(device).manual_seed(0)
    ids = torch.randint(VOCABULARY, (batch, model.tokens + 1), generator=generator, device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits = learner(ids[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    times = []
    for repeat in range(-1, repeats):  # the first is to warm up
        wait()
        begun = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        if repeat >= 0:
            times.append(1000 * (time.perf_counter() - begun) / steps)
    memory = torch.cuda.max_memory_allocated() / 2**20 if cuda else float("nan")
    found = {"milliseconds": ("repeat", np.array(times)), "memory": ((), memory)}
    said = size | {"batch": batch, "device": device_name(device), "torch": torch.__version__, "steps": steps}
    return xr.Dataset(found, {"repeat": range(repeats)}, said)


def device_name(device: Any) -> str:
    """What is at work, in words."""
    kind = torch.device(device)
    return torch.cuda.get_device_name(kind) if kind.type == "cuda" else "CPU"
