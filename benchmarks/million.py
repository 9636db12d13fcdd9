"""A million coordinates: forward and backward through a PostNorm of width 2^20, its peak memory and its time.

    python benchmarks/million.py --out benchmarks/results/million.json

One draw of the weightless sampler with heads of 128 coordinates; blocks are run twice where `--memory` does not hold
them all. The budget is 16 GiB and 3 minutes. A dense matrix of this width would take 4 TiB in float32, and a block has
twelve of them. Moments of the one draw are shown beside the theory's: gradients are within a few percent.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

from timing import provenance, write

import propagate as pg
from propagate.model import Model
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.memory import plan
from propagate.montecarlo.run import run
from propagate.montecarlo.starts import ends_of
from propagate.start import Start

HEAD = 128  # coordinates of an attention head
BUDGET = {"bytes": 16 * 2**30, "seconds": 180.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=2**20)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--placement", default="postnorm")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--memory", type=float, default=8 * 2**30, help="bytes that a draw may remember")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    model = Model(
        options.placement, options.depth, width=options.width, tokens=options.tokens, heads=options.width // HEAD
    )
    backend = choose_backend("numpy", options.precision)
    moments = Start(covariance=0.3)
    start = ends_of(model, moments)
    memory = {"batch": int(options.memory), "one_draw": int(options.memory)}
    segment = plan(model, "numpy", options.precision, "weightless", **memory).segment
    began = time.perf_counter()
    found = run(model, backend, "weightless", 0, range(1), start, through_readout=False, segment=segment)
    took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    predicted = pg.predict(model, **moments)
    rows = [
        {
            "quantity": name,
            "block": block,
            "simulated": float(found[name][0, block]),
            "predicted": float(predicted[name][block]),
        }
        for name, block in (
            ("covariance", model.depth),
            ("deviation", model.depth),
            ("grad_variance", 0),
            ("grad_covariance", 0),
        )
    ]
    print(f"width {model.width}, {model.tokens} tokens, {model.depth} blocks, {options.precision}, CPU")
    print(f"{took:.1f} s, peak {peak / 2**30:.2f} GiB; of a tape of {model.depth} blocks, {segment} were remembered")
    for row in rows:
        print(f"{row['quantity']:15} at block {row['block']}: {row['simulated']:.6f}, theory {row['predicted']:.6f}")
    within = peak <= BUDGET["bytes"] and took <= BUDGET["seconds"]
    print("within 16 GiB and 3 minutes" if within else "NOT within 16 GiB and 3 minutes")
    summary = provenance(backend.device) | {"precision": options.precision, "seconds": took, "peak_bytes": peak}
    summary |= {"remembered_blocks": segment, "budget": BUDGET, "within_budget": within, "model": repr(model)}
    write(options.out, {"summary": summary, "rows": rows})
    return 0 if within else 1


if __name__ == "__main__":
    raise SystemExit(main())
