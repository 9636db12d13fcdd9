"""How long the theory takes: 6 placements x 1000 blocks in one process, against a budget of 1 second; first calls.

    python benchmarks/theory_speed.py --out benchmarks/results/theory_speed.json

Cold is the first pass of a fresh process after its imports, when the softmax averages and the Hermite series are not
yet tabulated; warm is the best of five further passes, in wall and CPU seconds. `floats` times the moments alone,
`predict` the labelled tables.

Each of the first calls (`FIRST`, and those of `RELEASED` systems) is the only one of a fresh process, with linear
algebra on one thread (two, on a busy machine, wait for one another and spend CPU seconds on it); the causal one walks
in two, so that its wall seconds are about half of its CPU seconds where two cores are idle. What it imports is timed
apart: NumPy, xarray, `import propagate` and the names `Model`, `ScaleInit` and `predict`, and what xarray imports for
its first array, which is dask where it is installed. What is imported later, such as `scipy.linalg`, counts to the
call.
`other_load` is how many processes ran or waited when the benchmark began (the mean over the last minute): above .5 the
machine was shared, and wall seconds are too long.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PLACEMENTS = ("prenorm", "postnorm", "spannorm", "periln", "deepnorm", "layernormscaling")
ACTIVATIONS = ("relu", "gelu", "swiglu")
BUDGET = 1.0  # seconds
REPEATS = 5
FIRST = {
    "README's example": ({"placement": "spannorm", "depth": 24, "scale_init": 0.5}, 0.5),
    **{
        f"heads of {512 // heads}, logit_std 4": ({"width": 512, "heads": heads, "logit_std": 4.0, "depth": 4}, 2.0)
        for heads in (128, 64, 32, 8)
    },
    "causal, 128 tokens, 24 blocks, SwiGLU": (
        {"depth": 24, "tokens": 128, "causal": True, "activation": "swiglu"},
        3.0,
    ),
    "20 000 exchangeable tokens": ({"depth": 24, "tokens": 20_000}, 2.0),
}
"""Fields of the model, and the seconds that the call may take."""
_NAMES = (
    "deepseek-v2-lite deepseek-v3 longcat-flash longcat-flash-lite llama-3-8b"
    " gemma-3-4b olmo-2-7b gpt-2 bert-base vit-b"
)
RELEASED = dict.fromkeys(_NAMES.split(), 8.0)
"""Released systems at their published sizes, from their published starts, and the seconds that the call may take."""
SHARED = 0.5  # processes beside this one
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def seconds(activation: str, depth: int, what: str) -> dict[str, float]:
    """Cold and warm seconds of all placements, in this process."""
    import propagate as pg
    from propagate.theory.pairs.moments import Moments
    from propagate.theory.walks import walk

    models = [pg.Model(name, depth=depth, activation=activation) for name in PLACEMENTS]

    def once() -> tuple[float, float]:
        began = time.perf_counter(), time.process_time()
        for model in models:
            if what == "predict":
                pg.predict(model, covariance=0.3)
            else:
                walk(model, Moments(1.0, 0.7), Moments(1.0, 1.0))
        return time.perf_counter() - began[0], time.process_time() - began[1]

    cold, warm = once(), [once() for _ in range(REPEATS)]
    names = ("", "_cpu")
    best = {f"warm{name}": min(each[i] for each in warm) for i, name in enumerate(names)}
    return {f"cold{name}": cold[i] for i, name in enumerate(names)} | best


def first_call(name: str) -> dict[str, Any]:
    """CPU and wall seconds of imports and of the first `predict` of this process, and its peak memory; with what it was
    refused, if it was.
    """
    began = (time.process_time(), time.perf_counter())
    import xarray  # part of what is timed

    import propagate as pg

    xarray.DataArray(0.0)  # looks for dask, and imports it where it is installed

    build, scale_init, predict = pg.Model, pg.ScaleInit, pg.predict
    imported = (time.process_time(), time.perf_counter())
    refused = {}
    if name in RELEASED:
        from propagate.systems import configuration

        try:
            predict(build.from_config(name), configuration(name).start())
        except pg.ModelError as error:
            refused = {"refused": str(error)}
    else:
        fields = {"placement": "prenorm"} | FIRST[name][0]
        exponent = fields.pop("scale_init", None)
        predict(build(**fields, scaling=exponent and scale_init(exponent)), covariance=0.3)
    done = (time.process_time(), time.perf_counter())
    return refused | {
        "cpu": done[0] - imported[0],
        "wall": done[1] - imported[1],
        "imports_cpu": imported[0] - began[0],
        "imports_wall": imported[1] - began[1],
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_fresh_process(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *arguments]
    environment = os.environ | dict.fromkeys(THREADS, "1")
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depth", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("ACTIVATION", "WHAT"), help=argparse.SUPPRESS)
    parser.add_argument("--first", choices=FIRST | RELEASED, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first:
        print(json.dumps(first_call(options.first)))
        return 0
    if options.one:
        print(json.dumps(seconds(options.one[0], options.depth, options.one[1])))
        return 0

    load = os.getloadavg()[0]
    first = []
    print("first call of a process                 CPU s   wall s   goal  imports, CPU s")
    for name, goal in ({name: goal for name, (_, goal) in FIRST.items()} | RELEASED).items():
        called = in_fresh_process("--first", name)
        first.append({"what": name, "goal": goal} | called)
        print(
            f"{name:38s} {called['cpu']:6.2f}   {called['wall']:6.2f}   {goal:4g}  {called['imports_cpu']:14.2f}"
            + (f"  refused: {called['refused']}" if "refused" in called else "")
        )

    rows = []
    print(f"{len(PLACEMENTS)} placements x {options.depth} blocks, budget {BUDGET:g} s")
    print("activation  what       cold s   warm s   warm / budget")
    for what in ("floats", "predict"):
        for activation in ACTIVATIONS:
            took = in_fresh_process("--depth", str(options.depth), "--one", activation, what)
            rows.append({"activation": activation, "what": what, "ratio": took["warm"] / BUDGET} | took)
            print(f"{activation:11s} {what:9s} {took['cold']:7.3f}  {took['warm']:7.3f}   {took['warm'] / BUDGET:.3f}")
    if options.out:
        from timing import processor, version, write  # not above: it would be imported before imports are timed

        where = {"machine": platform.machine(), "processor": processor(), "cores": os.cpu_count()}
        where |= {"python": platform.python_version(), "numpy": version("numpy"), "scipy": version("scipy")}
        where |= {"other_load": load, "shared": load > SHARED, "threads": 1}
        result = where | {"placements": PLACEMENTS, "depth": options.depth, "budget": BUDGET, "rows": rows}
        result |= {"first_calls": first}
        write(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
