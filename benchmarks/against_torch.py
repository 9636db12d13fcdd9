"""Seconds a draw-block, forward and backward, against torch: the same network, side by side, in one run.

    OPENBLAS_NUM_THREADS=1 python benchmarks/against_torch.py --out benchmarks/results/against_torch_cpu.json
    python benchmarks/against_torch.py --widths 4096 16384 --draws 64 256 --compile --out ...  (on a GPU)

A draw-block is one draw of one block. torch makes fresh float32 weights with its own generator (TF32 products on a
GPU) and gets the gradient of the input by autograd; its best counts, over draws a batch as far as memory allows, with
and without gradients of the weights, compiled or not. Of ours the best over draws a batch counts, in each precision,
and on a CPU in as many processes as torch has threads.
First both are shown to simulate the same network: moments at a small width, as two-sample z-scores, with another
placement as a negative control.

`floor` is the share of our time that moving the fewest possible bytes would take at the measured copy bandwidth.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import one_block
import torch
import torch_block
from timing import provenance, seconds, wait_for, write

from propagate.montecarlo.backend import Backend, choose_backend
from propagate.montecarlo.statistics import second_moments
from propagate.montecarlo.workers import process_pool

LARGEST_Z = 5.0


def check_same_network(placements: list[str], backend: Backend, draws: int) -> dict[str, float]:
    """Largest |z| of each placement against itself in torch; exits if one is large, or that of a control is small."""
    largest = {}
    for ours, theirs in [*((name, name) for name in placements), ("postnorm", "spannorm")]:
        scores = z_scores(ours, theirs, backend, draws)
        largest[f"{ours} against torch's {theirs}"] = worst = max(map(abs, scores.values()))
        print(f"{ours} against torch's {theirs}:", " ".join(f"{kind} z {z:+.2f}" for kind, z in scores.items()))
        if (worst < LARGEST_Z) is not (ours == theirs):
            raise SystemExit("the two do not simulate the same network, or this check cannot tell")
    return largest


def z_scores(ours_named: str, theirs_named: str, backend: Backend, draws: int) -> dict[str, float]:
    """Of the moments that leave a small block and of those that come back, torch against dense."""
    model, other = (one_block.network(name, 64, 8) for name in (ours_named, theirs_named))
    numbers = np.random.default_rng(0).standard_normal
    tokens = math.sqrt(0.5) * (numbers((draws, 8, 64)) + numbers((draws, 1, 64)))
    cotangents = numbers((draws, 8, 64)) + 0.5 * numbers((draws, 1, 64))
    ours = one_block.there_and_back(model, backend, "dense", 1, *map(backend.xp.asarray, (tokens, cotangents)))
    torch.manual_seed(0)
    there = [torch.tensor(array, dtype=torch.float32, device=torch_block.device()) for array in (tokens, cotangents)]
    theirs = torch_block.there_and_back(other, *there)
    scores = {}
    for name, left, right in zip(("", "grad_"), ours, theirs, strict=True):
        both = zip(second_moments(backend.to_host(left)), second_moments(right.double().cpu().numpy()), strict=True)
        for kind, (a, b) in zip(("variance", "covariance", "deviation"), both, strict=True):
            if np.ptp(a) > 1e-6:  # a norm fixes the others
                spread = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / draws)
                scores[name + kind] = float((a.mean() - b.mean()) / spread)
    return scores


def batches(most: int, largest: int) -> list[int]:
    """1, 4, 16, ... and the most that fits."""
    most = max(1, min(most, largest))
    return sorted({4**k for k in range(6) if 4**k <= most} | {most})


def torch_seconds(model: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A draw-block, in every way that was asked for; those that run out of memory or do not compile say so."""
    memory = torch.cuda.mem_get_info()[0] * 0.9 if torch_block.device() == "cuda" else options.memory
    weights = 4 * sum(fan_in * fan_out for fan_in, fan_out in one_block.maps(model))
    found = []
    for weight_gradient in (False, True):
        for compiled in (False, True) if options.compile else (False,):
            for draws in batches(int(memory // (weights * (1.2 + weight_gradient))), options.torch_draws):
                way = {"draws": draws, "weight_gradient": weight_gradient, "compiled": compiled}
                task = torch_block.block_task(model, draws, weight_gradient=weight_gradient, compiled=compiled)
                found.append(way | timed(task, draws, options.repeats, torch_block.wait))
                if torch_block.device() == "cuda":
                    torch.cuda.empty_cache()
    return found


def timed(task: Callable[[], object], draws: int, repeats: int, wait: Callable[[], object]) -> dict[str, Any]:
    try:
        return {"seconds": seconds(task, repeats, wait) / draws}
    except Exception as error:  # out of memory, or a compiler's own
        return {"seconds": None, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"}


def our_seconds(model: Any, backend: Backend, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A draw-block, in batches of each size; on the host in as many processes as torch has threads."""
    found = []
    for draws in options.draws:
        if backend.name == "numpy":
            with process_pool(options.threads) as pool:
                arguments = (model, backend.precision, draws, 4 * options.repeats)
                tasks = [pool.submit(one_block.seconds_in_worker, *arguments) for _ in range(options.threads)]
                took = max(task.result() for task in tasks) / (draws * options.threads)
            found.append({"draws": draws, "workers": options.threads, "seconds": took})
            continue
        task = one_block.block_task(model, backend, "weightless", draws)
        found.append({"draws": draws} | timed(task, draws, options.repeats, wait_for(backend)))
        backend.xp.get_default_memory_pool().free_all_blocks()
    return found


def copy_bandwidth(backend: Backend) -> float:
    """Bytes a second, read and written."""
    source = backend.xp.ones(2**27, dtype=np.float32)
    target = backend.xp.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: backend.xp.copyto(target, source), 5, wait_for(backend))


def best(found: list[dict[str, Any]]) -> dict[str, Any]:
    return min(found, key=lambda way: way["seconds"] or math.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--placements", nargs="+", default=["postnorm", "spannorm"])
    parser.add_argument("--widths", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 16])
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 4], help="ours, a batch: the best counts")
    parser.add_argument("--torch-draws", type=int, default=256, help="at most, a batch")
    parser.add_argument("--memory", type=float, default=4e9, help="bytes that torch's weights may take on the host")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch's and ours, on the host")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--check-draws", type=int, default=2000)
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU
    backends = {precision: choose_backend(options.backend, precision) for precision in ("float32", "float64")}
    checks = check_same_network(options.placements, backends["float64"], options.check_draws)
    bandwidth = copy_bandwidth(backends["float32"])
    print(f"copies move {bandwidth / 1e9:.0f} GB/s")
    print(
        f"{'':9}{'tokens':>6} {'width':>6} {'torch ms':>10} {'ours f32':>10} {'ratio':>6} {'ours f64':>10} ratio floor"
    )
    rows = []
    for tokens in options.tokens:
        for width in options.widths:
            for placement in options.placements:
                model = one_block.network(placement, width, tokens)
                theirs = torch_seconds(model, options)
                ours = {precision: our_seconds(model, backend, options) for precision, backend in backends.items()}
                row: dict[str, Any] = {"placement": placement, "tokens": tokens, "width": width, "torch": best(theirs)}
                for precision, ways in ours.items():
                    row[precision] = best(ways)
                    row[f"torch_over_{precision}"] = best(theirs)["seconds"] / best(ways)["seconds"]
                moved = one_block.fewest_bytes(model, 4)
                row["fewest_bytes"] = moved
                row["floor_float32"] = moved / bandwidth / row["float32"]["seconds"]
                row["all"] = {"torch": theirs, **ours}
                rows.append(row)
                print(
                    f"{placement:9}{tokens:6} {width:6} {1e3 * row['torch']['seconds']:10.3f}",
                    f"{1e3 * row['float32']['seconds']:10.3f} {row['torch_over_float32']:6.1f}",
                    f"{1e3 * row['float64']['seconds']:10.3f} {row['torch_over_float64']:5.1f}",
                    f"{row['floor_float32']:5.2f}",
                    flush=True,
                )
    summary = provenance(torch_block.device_name(), ("numpy", "scipy", "torch", "cupy-cuda13x"))
    summary |= {"backend": backends["float32"].name, "torch_threads": torch.get_num_threads()}
    summary |= {"copy_bytes_a_second": bandwidth, "same_network_largest_z": checks, "unit": "seconds a draw-block"}
    write(options.out, {"summary": summary, "rows": rows})


if __name__ == "__main__":
    main()
