"""How much faster an ensemble trains than a plain loop and than one CUDA graph a network, in one run.

    python benchmarks/training_speed.py --out benchmarks/results/training_speed.json

Causal SpanNorm of 24 blocks with SwiGLU, width 256, 128 tokens, 2048 tokens a step, AdamW with clipping. The plain loop
is the one that anybody would write: torch's modules and its AdamW as they come, nothing waited for. Printed are
milliseconds a step and network, how many times faster than the plain loop in the same number type, and how far from the
floor: the larger of the time of all products of matrices at the rate at which this device multiplies large ones, and of
the time in which operands and results of those products, and what the optimiser keeps, once pass its memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import provenance, write

from propagate import Adam, Model
from propagate.documents import Corpus
from propagate.tracing.training.arm import Arm
from propagate.tracing.training.batches import batch_of
from propagate.tracing.training.ensemble import Ensemble
from propagate.tracing.training.plan import Plan
from propagate.tracing.training.precision import products_in
from propagate.tracing.training.probes import loss_of
from propagate.transfer import factors_by_kind

OPTIMIZER = Adam(1e-3, betas=(0.9, 0.95), decay=0.1)
PLAIN = "plain loop"
STEPS = 500
"""At most."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--precisions", nargs="+", default=["tf32", "bfloat16"])
    parser.add_argument("--backends", nargs="+", default=["none", "inductor"], help="of torch.compile")
    parser.add_argument("--seconds", type=float, default=2.0, help="of every measurement")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    heads = max(1, options.width // 64)
    model = Model(
        "spannorm",
        depth=options.depth,
        width=options.width,
        heads=heads,
        tokens=options.tokens,
        causal=True,
        activation="swiglu",
    )
    arm = _arm(model, options)
    floors = {precision: floor(arm, precision) for precision in options.precisions}
    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else options.device
    summary = provenance(name, ("torch", "triton", "numpy")) | {"floors": floors}
    rows: list[dict[str, Any]] = []
    print(f"{'':34} {'ms':>8} {'x plain':>8} {'x graph':>8} {'of floor':>8} {'TFLOP/s':>8} {'built, s':>8}")
    for precision in options.precisions:
        one = dataclasses.replace(arm, precision=precision)
        ways: list[tuple[str, int, Callable[[], Callable[[int], object]]]] = [(PLAIN, 1, lambda a=one: plain(a))]
        for backend in options.backends:
            for members in options.members:
                way = f"ensemble of {members}, {'compiled' if backend != 'none' else 'as it is'}"
                made = lambda a=one, m=members, b=backend: together(a, m, None if b == "none" else b)  # noqa: E731
                ways.append((way, members, made))
        for way, members, make in ways:
            rows.append(_measured(precision, way, members, make, rows, floors[precision], options))
            _print(rows[-1])
            write(options.out, {"summary": summary, "rows": rows})
    plain_ms, ensemble_ms = (min(row["ms"] for row in rows if (row["way"] == PLAIN) == it) for it in (True, False))
    print(f"the fastest ensemble is {plain_ms / ensemble_ms:.1f} times as fast as the fastest plain loop")
    write(options.out, {"summary": summary | {"fastest_over_fastest_plain": plain_ms / ensemble_ms}, "rows": rows})


def _arm(model: Model, options: argparse.Namespace) -> Arm:
    ids = np.random.default_rng(0).integers(0, options.vocabulary, (2, 2**18)).astype(np.uint16)
    corpus = Corpus("random", options.vocabulary, (ids[0],), (ids[1],))
    plan, factors = Plan(STEPS, options.batch), factors_by_kind(model, None, None)
    return Arm(model, corpus, OPTIMIZER, plan, 0, factors, options.device, together=True)


def plain(arm: Arm) -> Callable[[int], object]:
    """The loop that anybody would write: takes so many steps."""
    learner = arm.learner()
    matrices, vectors = ([p for p in learner.parameters() if (p.dim() > 1) == many] for many in (True, False))
    groups = [{"params": matrices, "weight_decay": OPTIMIZER.decay}, {"params": vectors, "weight_decay": 0.0}]
    made = torch.optim.AdamW(groups, lr=OPTIMIZER.lr, betas=OPTIMIZER.betas)

    def take(steps: int) -> None:
        for step in range(steps):
            ids = batch_of(arm.corpus, arm.model.tokens, arm.plan.batch, 0, step).to(arm.device, non_blocking=True)
            made.zero_grad()
            with products_in(arm.precision, arm.device):
                loss_of(learner, ids).backward()
            torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
            made.step()

    return take


def together(arm: Arm, members: int, backend: str | None) -> Callable[[int], object]:
    """As many seeds of the arm as one ensemble."""
    made = Ensemble([dataclasses.replace(arm, seed=seed) for seed in range(members)], backend)
    return lambda steps: made.advance(0, steps)


def _measured(
    precision: str,
    way: str,
    members: int,
    make: Callable[[], Callable[[int], object]],
    rows: list[dict[str, Any]],
    least: dict[str, float],
    options: argparse.Namespace,
) -> dict[str, Any]:
    began = time.perf_counter()
    take = make()
    take(3)
    _wait(options.device)
    built = time.perf_counter() - began
    once = _seconds(take, 3, options.device) / 3
    steps = max(3, min(STEPS, int(options.seconds / once)))
    ms = 1e3 * _seconds(take, steps, options.device) / steps / members
    if options.device.startswith("cuda"):
        memory = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    else:
        memory = 0.0
    del take
    gc.collect()
    if options.device.startswith("cuda"):
        torch.cuda.empty_cache()
    row = {"precision": precision, "way": way, "members": members, "ms": ms, "steps": steps, "built_s": built}
    row |= {"peak_gib": memory, "tflops": least["flops"] / ms / 1e9, "of_floor": ms / least["ms"]}
    same = [one for one in rows if one["precision"] == precision]
    row["times_plain"] = next((one["ms"] for one in same if one["way"] == PLAIN), ms) / ms
    graphs = [one["ms"] for one in [*same, row] if one["members"] == 1 and one["way"] != PLAIN]
    row["times_graph"] = min(graphs) / ms if graphs else float("nan")
    return row


def _print(row: dict[str, Any]) -> None:
    numbers = (row["ms"], row["times_plain"], row["times_graph"], row["of_floor"], row["tflops"], row["built_s"])
    print(f"{row['precision']:9} {row['way']:24} " + " ".join(f"{value:8.2f}" for value in numbers), flush=True)


def floor(arm: Arm, precision: str) -> dict[str, float]:
    """Of a step of one network: products' FLOPs, bytes, and the milliseconds that this device needs for them."""
    model, plan = arm.model, arm.plan
    tokens, width = plan.batch * model.tokens, model.width
    learner = arm.learner()
    shapes = [tuple(p.shape) for path, p in learner.named_parameters() if p.dim() > 1 and "embedding" not in path]
    weights, count = sum(a * b for a, b in shapes), sum(p.numel() for p in learner.parameters())
    attention = 12 * model.depth * tokens * model.tokens * width / 2  # causal; forward 4, backward 8
    flops = 6.0 * weights * tokens + attention
    size = 2 if precision == "bfloat16" else 4
    moved = 3 * size * (sum(tokens * (a + b) for a, b in shapes) + weights) + 7 * 4 * count
    rate, bandwidth = _rate(arm.device, precision), _bandwidth(arm.device)
    found = {"flops": flops, "bytes": float(moved), "parameters": float(count), "rate": rate, "bandwidth": bandwidth}
    return found | {"ms": 1e3 * max(flops / rate, moved / bandwidth)}


def _rate(device: str, precision: str) -> float:
    """FLOP/s of a product of large matrices."""
    side = 8192 if device.startswith("cuda") else 512
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in "ab")
    with products_in(precision, device):  # type: ignore[arg-type]
        best = min(_seconds(lambda n: [a @ b for _ in range(n)], 10, device) / 10 for _ in range(3))
    return 2 * side**3 / best


def _bandwidth(device: str) -> float:
    """Bytes a second of a copy, read and written."""
    a = torch.zeros(2**28 if device.startswith("cuda") else 2**22, device=device)
    b = torch.empty_like(a)
    best = min(_seconds(lambda n: [b.copy_(a) for _ in range(n)], 10, device) / 10 for _ in range(3))
    return 8 * a.numel() / best


def _seconds(take: Callable[[int], object], count: int, device: str) -> float:
    _wait(device)
    began = time.perf_counter()
    take(count)
    _wait(device)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
