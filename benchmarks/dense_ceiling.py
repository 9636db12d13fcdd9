"""How near dense comes to its ceiling: random numbers and matrix products alone, each measured in the same run.

    python benchmarks/dense_ceiling.py --widths 1024 4096 --draws 16 --out benchmarks/results/dense_ceiling_h100.json

The ceiling of a block, forward and backward, is the time to fill its four weight matrices with normals plus the time
of its eight products, from arrays that are there already. The normals are those of the library's fastest generator
(`library`: CuPy's Generator, or NumPy's) or of ours (`own`), whichever is faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import one_block
from timing import provenance, seconds, wait_for, write

from propagate.model import Model
from propagate.montecarlo.backend import Backend, choose_backend
from propagate.montecarlo.normals import Normals


def own_normals(model: Model, backend: Backend, draws: int) -> Callable[[], object]:
    normals = Normals(backend, 0, range(draws))
    return lambda: [normals(site, shape) for site, shape in enumerate(one_block.maps(model))]


def library_normals(model: Model, backend: Backend, draws: int) -> Callable[[], object]:
    generator = backend.xp.random.default_rng(0)

    def task() -> None:
        for shape in one_block.maps(model):
            generator.standard_normal((draws, *shape), dtype=backend.dtype)

    return task


def products(model: Model, backend: Backend, draws: int) -> Callable[[], object]:
    normals = Normals(backend, 0, range(draws))
    arrays = []
    for fan_in, fan_out in one_block.maps(model):
        x, g = normals(0, (model.tokens, fan_in)), normals(1, (model.tokens, fan_out))
        arrays.append((x, normals(2, (fan_in, fan_out)), g))

    def task() -> None:
        for x, weight, g in arrays:
            x @ weight
            g @ weight.swapaxes(-1, -2)

    return task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--placement", default="postnorm")
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32])
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    rows = []
    print(f"{'':8} tokens {'width':>6} {'dense':>10} {'own':>10} {'library':>10} {'products':>10} ceiling/dense (ms)")
    for precision in ("float32", "float64"):
        backend = choose_backend(options.backend, precision)
        for tokens in options.tokens:
            for width in options.widths:
                model = one_block.network(options.placement, width, tokens)
                tasks = {
                    "dense": one_block.block_task(model, backend, "dense", options.draws),
                    "own": own_normals(model, backend, options.draws),
                    "library": library_normals(model, backend, options.draws),
                    "products": products(model, backend, options.draws),
                }
                took = {
                    name: seconds(task, options.repeats, wait_for(backend)) / options.draws
                    for name, task in tasks.items()
                }
                share = (min(took["own"], took["library"]) + took["products"]) / took["dense"]
                row: dict[str, Any] = {"precision": precision, "tokens": tokens, "width": width}
                rows.append(row | {f"{name}_seconds": value for name, value in took.items()} | {"share": share})
                print(
                    f"{precision:8} {tokens:6} {width:6}",
                    " ".join(f"{1e3 * took[name]:10.3f}" for name in tasks),
                    f"{share:8.2f}",
                    flush=True,
                )
    summary = provenance(backend.device, ("numpy", "scipy", "cupy-cuda13x"))
    summary |= {"backend": backend.name, "draws": options.draws, "placement": options.placement}
    write(options.out, {"summary": summary | {"unit": "seconds a draw-block"}, "rows": rows})


if __name__ == "__main__":
    main()
