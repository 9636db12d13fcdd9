"""Seconds of one simulation on one worker and on several, and whether the tables are the same to the bit.

    python benchmarks/workers.py --workers 1 2 --out benchmarks/results/workers_h200.json

A worker is a process with a CUDA device of its own where there are enough devices, and a processor's core where there
are none. Each pool first runs the simulation once, so that starting processes and compiling kernels is not counted.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import xarray as xr
from timing import provenance, write

import propagate as pg
from propagate.montecarlo.backend import choose_backend


def on(workers: int, model: pg.Model, options: argparse.Namespace) -> tuple[float, xr.Dataset]:
    """Seconds, and the table."""
    arguments = {"draws": options.draws, "backend": options.backend, "precision": "float32", "sampler": "weightless"}
    with pg.process_pool(workers) as pool:
        pg.simulate(model, seed=1, executor=pool, **arguments)
        began = time.perf_counter()
        table = pg.simulate(model, seed=0, executor=pool, **arguments)
        return time.perf_counter() - began, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--placement", default="spannorm")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--draws", type=int, default=4096)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = pg.Model(options.placement, depth=options.depth, width=options.width, tokens=options.tokens, heads=8)
    rows: list[dict[str, object]] = []
    first: tuple[float, xr.Dataset] | None = None
    print(f"{'workers':>7} {'seconds':>8} {'times as fast':>13}  same table")
    for workers in options.workers:
        took, table = on(workers, model, options)
        first = first or (took, table)
        same = table.drop_attrs().identical(first[1].drop_attrs())
        rows.append({"workers": workers, "seconds": took, "speedup": first[0] / took, "same_table": same})
        print(f"{workers:7} {took:8.2f} {first[0] / took:13.2f}  {'yes' if same else 'NO'}", flush=True)
    device = choose_backend(options.backend).device
    write(options.out, {"summary": provenance(device, ("numpy", "cupy-cuda13x")), "rows": rows})
    if not all(row["same_table"] for row in rows):
        raise SystemExit("the tables differ")


if __name__ == "__main__":
    main()
