"""How long `predict_step` takes: 24 blocks, 32 tokens, every optimiser, against a budget of 1 second.

    python benchmarks/first_step.py --out benchmarks/results/first_step.json

CPU and wall seconds of one call, the best of six after a first one, on one thread. SGD and Muon are in closed form;
Sign and Adam draw hidden units and heads, and `error` is the largest relative standard error of `own_change` and of
`first_order_fall` that this leaves. `other_load` is how many processes ran or waited beside this one when it began.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import propagate as pg  # noqa: E402  # after the threads are set

OPTIMIZERS = (pg.SGD(1e-3), pg.Muon(0.02), pg.Sign(1e-3), pg.Adam(1e-3))
BUDGET = 1.0  # seconds
REPEATS = 6


def timed(model: pg.Model, optimizer: Any) -> dict[str, Any]:
    """Best seconds of one call."""
    start = pg.Start(covariance=0.2, grad_covariance=0.2)
    pg.predict_step(model, optimizer, start)
    best = {"cpu": float("inf"), "wall": float("inf")}
    for _ in range(REPEATS):
        began = {"cpu": time.process_time(), "wall": time.perf_counter()}
        said = pg.predict_step(model, optimizer, start)
        ended = {"cpu": time.process_time(), "wall": time.perf_counter()}
        best = {name: min(best[name], ended[name] - began[name]) for name in best}
    errors = {
        name: round(float((said[f"{name}_se"] / said[name]).max()), 4) if f"{name}_se" in said else 0.0
        for name in ("own_change", "first_order_fall")
    }
    return {name: round(value, 3) for name, value in best.items()} | {"error": errors}


def main(out: Path | None, depth: int) -> None:
    """Times every optimiser with a dense and a gated FFN, and under a causal mask."""
    rows = []
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    for activation, causal in (("relu", False), ("swiglu", False), ("swiglu", True)):
        model = pg.Model("prenorm", depth=depth, width=512, tokens=32, activation=activation, causal=causal)
        for optimizer in OPTIMIZERS:
            case = {"activation": activation, "causal": causal, "optimizer": type(optimizer).__name__}
            rows.append(case | timed(model, optimizer))
            print(rows[-1], flush=True)
    found = {
        "depth": depth,
        "tokens": 32,
        "budget_seconds": BUDGET,
        "other_load": load,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "within_budget": {
            name: all(row["cpu"] <= BUDGET for row in rows if row["optimizer"] == name and not row["causal"])
            for name in ("SGD", "Muon", "Sign", "Adam")
        },
        "rows": rows,
    }
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--depth", type=int, default=24)
    arguments = parser.parse_args()
    main(arguments.out, arguments.depth)
