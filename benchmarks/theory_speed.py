"""How long the theory takes: 6 placements x 1000 blocks in one process, against the budget of 1 second.

    python benchmarks/theory_speed.py --out benchmarks/results/theory_speed.json

Cold is the first pass of a fresh process after its imports, when the softmax averages and the Hermite series are not
yet tabulated; warm is the best of five further passes. `floats` times the moments alone, `predict` the labelled tables.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from propagate.files import replace

PLACEMENTS = ("prenorm", "postnorm", "spannorm", "periln", "deepnorm", "layernormscaling")
ACTIVATIONS = ("relu", "gelu", "swiglu")
BUDGET = 1.0  # seconds
REPEATS = 5


def seconds(activation: str, depth: int, what: str) -> dict[str, float]:
    """Cold and warm seconds of all placements, in this process."""
    import propagate as pg
    from propagate.theory.moments import Moments
    from propagate.theory.predict import propagate_moments

    models = [pg.Model(name, depth=depth, activation=activation) for name in PLACEMENTS]

    def once() -> float:
        began = time.perf_counter()
        for model in models:
            if what == "predict":
                pg.predict(model, covariance=0.3)
            else:
                propagate_moments(model, Moments(1.0, 0.7), Moments(1.0, 1.0))
        return time.perf_counter() - began

    return {"cold": once(), "warm": min(once() for _ in range(REPEATS))}


def in_fresh_process(activation: str, depth: int, what: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--depth", str(depth), "--one", activation, what]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depth", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("ACTIVATION", "WHAT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(seconds(options.one[0], options.depth, options.one[1])))
        return 0

    rows = []
    print(f"{len(PLACEMENTS)} placements x {options.depth} blocks, budget {BUDGET:g} s")
    print("activation  what       cold s   warm s   warm / budget")
    for what in ("floats", "predict"):
        for activation in ACTIVATIONS:
            took = in_fresh_process(activation, options.depth, what)
            rows.append({"activation": activation, "what": what, "ratio": took["warm"] / BUDGET} | took)
            print(f"{activation:11s} {what:9s} {took['cold']:7.3f}  {took['warm']:7.3f}   {took['warm'] / BUDGET:.3f}")
    if options.out:
        where = {"machine": platform.machine(), "python": platform.python_version(), "cores": os.cpu_count()}
        result = where | {"placements": PLACEMENTS, "depth": options.depth, "budget": BUDGET, "rows": rows}
        replace(options.out, json.dumps(result, indent=1).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
