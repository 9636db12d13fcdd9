"""Dense against weightless, side by side: seconds a draw-block, forward and backward; prints a table, writes JSON.

    python benchmarks/samplers.py --out benchmarks/results/samplers_numpy.json

A draw-block is one draw of one block. The two samplers run one after the other on the same block; the fastest of
`--repeats` runs counts. Dense takes as many draws a batch as its weights leave room for, at most `--draws`. The last
column is where `sampler="auto"` draws the line. (Against torch: against_torch.py.)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import one_block
from timing import provenance, seconds, wait_for, write

from propagate.montecarlo.backend import Backend, choose_backend
from propagate.montecarlo.simulate import CROSSOVER


def per_draw_block(
    placement: str, width: int, tokens: int, backend: Backend, sampler: str, draws: int, repeats: int
) -> float:
    model = one_block.network(placement, width, tokens)
    return seconds(one_block.block_task(model, backend, sampler, draws), repeats, wait_for(backend)) / draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="float64")
    parser.add_argument("--placement", default="postnorm")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 16])
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--memory", type=int, default=2**28, help="bytes that the weights of a dense batch may take")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    backend = choose_backend(options.backend, options.precision)
    rows: list[dict[str, object]] = []
    print(f"{'tokens':>6} {'width':>6} {'dense':>10} {'weightless':>10} {'ratio':>7}  auto")
    for tokens in options.tokens:
        for width in options.widths:
            fitting = max(1, min(options.draws, options.memory // (backend.dtype.itemsize * 12 * width**2)))
            size = (options.placement, width, tokens, backend)
            dense = per_draw_block(*size, "dense", fitting, options.repeats)
            weightless = per_draw_block(*size, "weightless", options.draws, options.repeats)
            auto = "weightless" if CROSSOVER * tokens <= width else "dense"
            row = {
                "tokens": tokens,
                "width": width,
                "dense_draws": fitting,
                "weightless_draws": options.draws,
                "dense_seconds": dense,
                "weightless_seconds": weightless,
                "dense_over_weightless": dense / weightless,
                "auto": auto,
            }
            rows.append(row)
            print(
                f"{tokens:6} {width:6} {dense:10.5f} {weightless:10.5f} {dense / weightless:7.2f}  {auto}", flush=True
            )

    summary = provenance(backend.device) | {"backend": backend.name, "placement": options.placement}
    summary["unit"] = f"seconds a draw-block, forward and backward, {backend.precision}"
    write(options.out, {"summary": summary, "rows": rows})


if __name__ == "__main__":
    main()
