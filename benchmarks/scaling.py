"""Seconds of a whole network, forward and backward, against width, tokens, depth and draws: dense, weightless, torch.

    python benchmarks/scaling.py --out benchmarks/results/scaling_cpu     (writes .json and .png)
    python benchmarks/scaling.py --scale 8 --out ...                      (wider, more draws: on a GPU)

Each curve varies one size and holds the others. The slope is that of log seconds against log size over the larger half
of the sizes; an exponent of 2 means that twice the size takes four times as long. All three in float32, in one batch
of draws, nothing run twice. A point is left out where its weights would take more than `--memory`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import one_block
import torch_block
from timing import provenance, seconds, wait_for, write

from propagate import plots
from propagate.model import Model
from propagate.montecarlo.backend import Backend, choose_backend
from propagate.montecarlo.blocks import block_of, read
from propagate.montecarlo.normals import Normals

COLOURS = {"dense": "#D55E00", "weightless": "#0072B2", "torch": "#000000"}


@dataclass(frozen=True)
class Size:
    width: int = 512
    tokens: int = 16
    depth: int = 4
    draws: int = 4

    @property
    def model(self) -> Model:
        return Model("postnorm", self.depth, width=self.width, tokens=self.tokens, heads=8)

    def weight_bytes(self, sampler: str) -> int:
        """That are held at once: a network remembers all, torch too."""
        every = 4 * self.draws * self.depth * sum(i * o for i, o in one_block.maps(self.model))
        return 0 if sampler == "weightless" else every


def sweeps(base: Size, scale: int) -> dict[str, list[Size]]:
    return {
        "width": [replace(base, width=scale * 2**k) for k in range(6, 14)],
        "tokens": [replace(base, tokens=2**k) for k in range(1, 8)],
        "depth": [replace(base, depth=2**k) for k in range(8)],
        "draws": [replace(base, draws=scale * 2**k) for k in range(7)],
    }


def network_task(size: Size, backend: Backend, sampler: str) -> Callable[[], object]:
    """Every block forward, then every block backward."""
    model = size.model
    there = Normals(backend, 0, range(size.draws))
    start, cotangent = (there(site, (size.tokens, size.width)) for site in (0, 1))

    def task() -> None:
        x, g, pulls = start, cotangent, []
        draw = one_block.sampler_on(backend, sampler, Normals(backend, 1, range(size.draws)))
        for index in range(1, size.depth + 1):
            x, pull = read(model.equations.block, block_of(model, backend, draw, index), x)
            pulls.append(pull)
        while pulls:
            g = pulls.pop()(g)

    return task


def measured(size: Size, backend: Backend, name: str, options: argparse.Namespace) -> float | None:
    if size.weight_bytes(name) > options.memory:
        return None
    if name == "torch":
        task = torch_block.block_task(size.model, size.draws, blocks=size.depth)
        return seconds(task, options.repeats, torch_block.wait)
    return seconds(network_task(size, backend, name), options.repeats, wait_for(backend))


def slope(sizes: list[int], took: list[float]) -> float | None:
    """Of the logarithms, over the larger half; None for fewer than three points there."""
    half = len(sizes) // 2
    if len(sizes) - half < 3:
        return None
    return float(np.polyfit(np.log(sizes[half:]), np.log(took[half:]), 1)[0])


def draw_curves(curves: list[dict[str, Any]], base: Size, device: str, path: Path) -> None:
    """A panel a size, in the style of the figures; beneath a sampler's name the exponent of its time."""
    names = list(dict.fromkeys(curve["against"] for curve in curves))
    with plots.style():
        figure, axes = plots.panels(1, len(names), sharey=True)
        for axis, name in zip(axes[0], names, strict=True):
            shown = [curve for curve in curves if curve["against"] == name and curve["sizes"]]
            for curve in shown:
                label = None if curve["slope"] is None else f"exponent {curve['slope']:.2f}"
                look = {"color": COLOURS[curve["sampler"]], "marker": "o", "markersize": 3, "label": label}
                axis.loglog(curve["sizes"], curve["seconds"], **look)
            axis.set_xscale("log", base=2)
            others = [f"{key} {value}" for key, value in asdict(base).items() if key != name]
            axis.set(xlabel=name, title=f"{', '.join(others[:2])},\n{others[2]}")
            if any(curve["slope"] is not None for curve in shown):
                axis.legend()
        axes[0, 0].set_ylabel("seconds, forward and backward")
        drawn = {curve["sampler"] for curve in curves if curve["sizes"]}
        plots.legend(figure, [plots.entry(name, color=shade) for name, shade in COLOURS.items() if name in drawn])
        figure.suptitle(f"PostNorm, float32, {device}", fontsize="medium")
    path.write_bytes(plots.render(figure, "png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--sweeps", nargs="+", default=["width", "tokens", "depth", "draws"])
    parser.add_argument("--scale", type=int, default=1, help="factor of the widths and draws that are swept")
    parser.add_argument("--base", type=int, nargs=4, metavar=("WIDTH", "TOKENS", "DEPTH", "DRAWS"))
    parser.add_argument("--largest", type=float, default=math.inf, help="leave out larger sizes")
    parser.add_argument("--memory", type=float, default=4e9, help="bytes that weights may take")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="without its suffix")
    options = parser.parse_args()

    backend = choose_backend(options.backend, "float32")
    base = Size(*options.base) if options.base else Size()
    curves: list[dict[str, Any]] = []
    for against in options.sweeps:
        for name in COLOURS:
            sizes, took = [], []
            for size in sweeps(base, options.scale)[against]:
                value = getattr(size, against)
                spent = measured(size, backend, name, options) if value <= options.largest else None
                if spent is not None:
                    sizes.append(value)
                    took.append(spent)
            exponent = slope(sizes, took)
            curves.append({"against": against, "sampler": name, "sizes": sizes, "seconds": took, "slope": exponent})
            shown = "too few" if exponent is None else f"{exponent:.2f}"
            print(f"{against:7} {name:10} exponent {shown}:", *(f"{spent:.3g}" for spent in took), flush=True)
    if options.out:
        summary = provenance(backend.device, ("numpy", "scipy", "torch", "cupy-cuda13x")) | {"base": asdict(base)}
        write(options.out.with_suffix(".json"), {"summary": summary, "curves": curves})
        draw_curves(curves, base, backend.device, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
