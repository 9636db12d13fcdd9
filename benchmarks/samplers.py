"""Dense against weightless, side by side: seconds a draw-block, forward and backward; prints a table, writes JSON.

    python benchmarks/samplers.py --out benchmarks/results/samplers_numpy.json

A draw-block is one draw of one block. The two samplers run one after the other on the same block; the fastest of
`--repeats` runs counts. Dense takes as many draws a batch as its weights leave room for, at most `--draws`. The last
column is where `sampler="auto"` draws the line. With `--torch`, a third column: the same PostNorm block in torch, with
fresh weights and autograd, in float32.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

from propagate.files import replace
from propagate.model import Model
from propagate.montecarlo.backend import Backend, choose_backend
from propagate.montecarlo.blocks import block_of, read
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.simulate import CROSSOVER, SAMPLERS


def seconds(task: Callable[[], object], repeats: int) -> float:
    """Of the fastest of several runs; the first is not counted."""
    task()
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        task()
        took.append(time.perf_counter() - began)
    return min(took)


def per_draw_block(model: Model, backend: Backend, sampler: str, draws: int, repeats: int) -> float:
    """Of one block alone, forward and backward, from tokens and cotangents that are there already."""
    there = Normals(backend, 0, range(draws))
    x, g = (there(site, (model.tokens, model.width)) for site in (0, 1))

    def task() -> None:
        block = block_of(model, backend, SAMPLERS[sampler](Normals(backend, 1, range(draws))), 1)
        pull = read(model.equations.block, block, x)[1]
        backend.to_host(pull(g)[0, 0, :1])  # waits for a device

    return seconds(task, repeats) / draws


def torch_per_draw_block(model: Model, draws: int, repeats: int) -> float | None:
    """The PostNorm block in torch, batched over draws, float32; None where torch is not installed."""
    try:
        import torch
        from torch.nn import functional
    except ImportError:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    d, h, t, size = model.width, model.hidden, model.tokens, model.width // model.heads

    def linear(x: torch.Tensor, fan_out: int) -> torch.Tensor:
        weight = torch.randn(draws, x.shape[-1], fan_out, device=device, requires_grad=True)
        return x @ (weight * x.shape[-1] ** -0.5)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x * x.square().mean(-1, keepdim=True).rsqrt()

    def task() -> None:
        x = start = torch.randn(draws, t, d, device=device, requires_grad=True)
        for _ in range(model.depth):
            heads = linear(x, 3 * d).reshape(draws, t, 3, model.heads, size).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(*heads).swapaxes(1, 2).reshape(draws, t, d)
            x = norm(x + linear(mixed, d))
            x = norm(x + linear(functional.relu(linear(x, h)), d) * 2**0.5)
        x.backward(torch.ones_like(x))
        assert start.grad is not None
        if device == "cuda":
            torch.cuda.synchronize()

    return seconds(task, repeats) / (draws * model.depth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--placement", default="postnorm")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 16])
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--memory", type=int, default=2**28, help="bytes that the weights of a dense batch may take")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    backend = choose_backend(options.backend)
    rows: list[dict[str, object]] = []
    print(f"{'tokens':>6} {'width':>6} {'dense':>10} {'weightless':>10} {'ratio':>7} {'torch':>10}  auto")
    for tokens in options.tokens:
        for width in options.widths:
            model = Model(options.placement, depth=1, width=width, tokens=tokens, heads=8)
            fitting = max(1, min(options.draws, options.memory // (8 * 12 * width**2)))
            dense = per_draw_block(model, backend, "dense", fitting, options.repeats)
            weightless = per_draw_block(model, backend, "weightless", options.draws, options.repeats)
            torch = torch_per_draw_block(model, fitting, options.repeats) if options.torch else None
            auto = "weightless" if CROSSOVER * tokens <= width else "dense"
            row = {
                "tokens": tokens,
                "width": width,
                "dense_draws": fitting,
                "weightless_draws": options.draws,
                "dense_seconds": dense,
                "weightless_seconds": weightless,
                "dense_over_weightless": dense / weightless,
                "torch_seconds": torch,
                "auto": auto,
            }
            rows.append(row)
            shown = f"{torch:10.5f}" if torch else f"{'-':>10}"
            print(
                f"{tokens:6} {width:6} {dense:10.5f} {weightless:10.5f} {dense / weightless:7.2f} {shown}  {auto}",
                flush=True,
            )

    if options.out:
        summary = {
            "command": "python " + " ".join(sys.argv),
            "device": backend.device,
            "backend": backend.name,
            "processor": processor(),
            "threads": os.environ.get("OMP_NUM_THREADS", "default"),
            "placement": options.placement,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("numpy", "scipy")},
            "unit": "seconds a draw-block, forward and backward, float64",
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        replace(options.out, json.dumps({"summary": summary, "rows": rows}, indent=1).encode())


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
