"""Training steps without weights: against dense ones in one run, and at a width where dense matrices would fill 3 TB.

    python benchmarks/steps_speed.py --out benchmarks/results/steps_speed.json

First one network of one block, trained by SGD on both samplers, one after the other: the fastest of `--repeats` runs
of the weightless one, and the only run of the dense one, which takes a minute. Then one wide network for each
optimiser. Every run has a process of its own, whose peak memory is the system's count. Ratio and budget (16 GiB, and 10
minutes for the wide ones together) are judged in processor seconds, for others may share the processors; those of the
clock are told beside them. Set OMP_NUM_THREADS=1: threads that wait for one another count as busy.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

from timing import provenance, write

import propagate as pg
from propagate.montecarlo.starts import ends_of
from propagate.montecarlo.steps.run import Course, run_steps
from propagate.transfer import factors_by_kind

OPTIMIZERS: dict[str, pg.SGD | pg.Muon] = {"SGD": pg.SGD(lr=1e-7), "Muon": pg.Muon(lr=1e-3)}
BUDGET = {"bytes": 16 * 2**30, "seconds": 600.0}


def trained(model: pg.Model, optimizer: Any, steps: int, sampler: str, precision: str) -> dict[str, Any]:
    """Seconds, peak bytes of this process so far, and what came of one draw."""
    factors = factors_by_kind(model, None, None)
    course = Course(
        model, optimizer, steps, pg.Linear(), factors, "numpy", precision, sampler, 0, ends_of(model, pg.Start())
    )
    began, busy = time.perf_counter(), time.process_time()
    found = run_steps(course, range(1))
    took, worked = time.perf_counter() - began, time.process_time() - busy
    return {
        "sampler": sampler,
        "optimizer": repr(optimizer),
        "model": repr(model),
        "seconds": took,
        "processor_seconds": worked,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "change": found["change"][0, -1].tolist(),
        "loss": found["loss"][0].tolist(),
    }


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
    parser.add_argument("--width", type=int, default=131_072)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--precision", default="float64")
    parser.add_argument("--wide-precision", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    small = pg.Model(
        "prenorm",
        depth=1,
        width=options.dense_width,
        tokens=options.tokens,
        heads=max(1, options.dense_width // 128),
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

    wide = pg.Model(
        "prenorm",
        depth=options.depth,
        width=options.width,
        tokens=options.tokens,
        heads=max(1, options.width // 128),
    )
    rows = [quick, slow]
    for name, optimizer in OPTIMIZERS.items():
        row = apart(wide, optimizer, options.steps, "weightless", options.wide_precision)
        rows.append(row)
        print(f"width {wide.width}, {name}: {_times(row)}, peak {row['peak_bytes'] / 2**30:.1f} GiB", flush=True)
    took = sum(row["processor_seconds"] for row in rows[2:])
    within = took <= BUDGET["seconds"] and all(row["peak_bytes"] <= BUDGET["bytes"] for row in rows[2:])
    print("within 16 GiB and 10 minutes" if within else "NOT within 16 GiB and 10 minutes")
    summary = provenance("CPU") | {"precision": options.precision, "wide_precision": options.wide_precision}
    summary |= {"dense_over_weightless": ratio, "the_same_by_the_clock": clock, "wide_processor_seconds": took}
    summary |= {"budget": BUDGET, "within_budget": within}
    write(options.out, {"summary": summary, "rows": rows})
    return 0 if within else 1


if __name__ == "__main__":
    raise SystemExit(main())
