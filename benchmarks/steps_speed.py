"""Training steps without weights: against dense ones in one run, and at a width where dense matrices would fill 3 TB.

    python benchmarks/steps_speed.py --out benchmarks/results/steps_speed.json
    python benchmarks/steps_speed.py --backend cupy --out benchmarks/results/steps_speed_h200.json

First one network of one block, trained by SGD on both samplers, one after the other: the fastest of `--repeats` runs
of the weightless one, and the only run of the dense one, which takes a minute. Then one wide network for each
optimiser. Every run has a process of its own, whose peak memory is the system's count. Ratio and budget (16 GiB, and 10
minutes for the wide ones together) are judged in processor seconds, for others may share the processors; those of the
clock are told beside them. Set OMP_NUM_THREADS=1: threads that wait for one another count as busy.

On a CUDA device only the wide networks are run, of width 2^20, judged by the clock against 10 minutes and the memory
that the device has. Peak memory is all that CuPy has taken of it, and is told beside what was stated before work began.
A narrow network goes first, for which the kernels are compiled.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from timing import provenance, write

import propagate as pg
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.steps.run import run_steps
from propagate.montecarlo.steps.simulate import plan

OPTIMIZERS: dict[str, pg.SGD | pg.Muon] = {"SGD": pg.SGD(lr=1e-7), "Muon": pg.Muon(lr=1e-3)}
HEAD = 128  # coordinates of an attention head
BUDGET = {"bytes": 16 * 2**30, "seconds": 600.0}


def trained(
    model: pg.Model, optimizer: Any, steps: int, sampler: str, precision: str, backend: str = "numpy"
) -> dict[str, Any]:
    """Seconds, stated bytes, peak bytes of this process so far, and what came of one draw."""
    planned = plan(model, optimizer, None, steps, 0, None, None, None, backend, sampler, precision)
    if backend == "cupy":
        print(f"to take {planned.taken / 2**30:.1f} GiB of {planned.where.most / 2**30:.1f}", flush=True)
        narrow = replace(model, width=16 * HEAD, heads=16)
        run_steps(replace(planned.course, model=narrow), range(1))
    began, busy = time.perf_counter(), time.process_time()
    found = run_steps(planned.course, range(1))
    took, worked = time.perf_counter() - began, time.process_time() - busy
    return {
        "sampler": sampler,
        "optimizer": repr(optimizer),
        "model": repr(model),
        "seconds": took,
        "processor_seconds": worked,
        "stated_bytes": planned.taken,
        "peak_bytes": peak_bytes(backend),
        "change": found["change"][0, -1].tolist(),
        "loss": found["loss"][0].tolist(),
    }


def peak_bytes(backend: str) -> int:
    """Of this process, or all that CuPy has taken of the device for it."""
    if backend == "numpy":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    xp = choose_backend(backend).xp
    return int(xp.get_default_memory_pool().total_bytes())


def apart(*task: Any) -> dict[str, Any]:
    """The same in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(trained, task)


def _times(row: dict[str, Any]) -> str:
    return f"{row['processor_seconds']:.2f} processor seconds ({row['seconds']:.1f} by the clock)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--dense-width", type=int, default=8192)
    parser.add_argument("--ffn-ratio", type=float, default=1.0, help="of the network that is trained densely too")
    parser.add_argument("--width", type=int, help="of the wide network; by default 131072, on a device 1048576")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--precision", default="float64")
    parser.add_argument("--wide-precision", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--backend", choices=("numpy", "cupy"), default="numpy")
    options = parser.parse_args()
    return on_device(options) if options.backend == "cupy" else on_host(options)


def on_host(options: argparse.Namespace) -> int:
    """Both samplers on a network that is small enough, and wide ones without weights."""
    small = pg.Model(
        "prenorm",
        depth=1,
        width=options.dense_width,
        tokens=options.tokens,
        heads=max(1, options.dense_width // HEAD),
        ffn_ratio=options.ffn_ratio,
    )
    task = (small, OPTIMIZERS["SGD"], options.steps)
    quick = min(
        (apart(*task, "weightless", options.precision) for _ in range(options.repeats)),
        key=lambda row: row["processor_seconds"],
    )
    slow = apart(*task, "dense", options.precision)
    ratio, clock = (slow[key] / quick[key] for key in ("processor_seconds", "seconds"))
    print(f"width {small.width}: dense {_times(slow)}, weightless {_times(quick)}: {ratio:.0f} times", flush=True)
    wide = wide_rows(options, 131_072)
    took = sum(row["processor_seconds"] for row in wide)
    within = took <= BUDGET["seconds"] and all(row["peak_bytes"] <= BUDGET["bytes"] for row in wide)
    print("within 16 GiB and 10 minutes" if within else "NOT within 16 GiB and 10 minutes")
    summary = provenance("CPU") | {"precision": options.precision, "wide_precision": options.wide_precision}
    summary |= {"dense_over_weightless": ratio, "the_same_by_the_clock": clock, "wide_processor_seconds": took}
    summary |= {"budget": BUDGET, "within_budget": within}
    write(options.out, {"summary": summary, "rows": [quick, slow, *wide]})
    return 0 if within else 1


def on_device(options: argparse.Namespace) -> int:
    """Wide networks without weights."""
    rows = wide_rows(options, 2**20)
    took = sum(row["seconds"] for row in rows)
    within = took <= BUDGET["seconds"]
    print("within 10 minutes" if within else "NOT within 10 minutes")
    summary = provenance(choose_backend("cupy").device, ("numpy", "scipy", "cupy-cuda13x"))
    summary |= {"wide_precision": options.wide_precision, "wide_seconds": took}
    summary |= {"budget": {"seconds": BUDGET["seconds"]}, "within_budget": within}
    write(options.out, {"summary": summary, "rows": rows})
    return 0 if within else 1


def wide_rows(options: argparse.Namespace, width: int) -> list[dict[str, Any]]:
    """One network without weights for each optimiser."""
    width = options.width or width
    wide = pg.Model("prenorm", options.depth, width=width, tokens=options.tokens, heads=max(1, width // HEAD))
    rows = []
    for name, optimizer in OPTIMIZERS.items():
        row = apart(wide, optimizer, options.steps, "weightless", options.wide_precision, options.backend)
        rows.append(row)
        print(f"width {width}, {name}: {_times(row)}, peak {row['peak_bytes'] / 2**30:.1f} GiB", flush=True)
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
