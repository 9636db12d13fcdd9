"""Our maps on the grid of DeepScaleLM's operator table: percent errors [p50, p90, p99], beside the published ones.

    python benchmarks/operator_table.py --draws 256 --places 60 --out benchmarks/results/operator_table.json

Grid and measure are those of arXiv:2403.09635's committed scripts (simulations/ of akhilkedia/TranformersGetStable):
|theory / simulation - 1|, of a covariance the smaller of that and the difference relative to the variance; the
published numbers are in its expected_output.txt. Differences: tokens here have exact second moments (theirs are drawn,
which is noise that no map can predict); inputs have mean zero; heads are joined by an output matrix; and where the full
grid is too large for the machine a random sample of it is taken. What is left is in part the noise of the simulation:
its own [p50, p90, p99], were the map exact, is printed beside.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import propagate as pg
from propagate.files import replace

PERCENTILES = (50, 90, 99)
STDS = np.logspace(-0.5, 0.5, 3).tolist()  # of inputs and cotangents
THIRDS, FIFTHS = np.linspace(0, 1, 3, endpoint=False).tolist(), np.linspace(0, 1, 5, endpoint=False).tolist()
WIDTHS = {100: 4, 316: 4, 1000: 8}  # theirs, and heads that divide them
PUBLISHED = {
    "linear variance": (0.4, 1.4, 2.8),
    "relu variance": (0.5, 1.9, 3.4),
    "gelu variance": (0.2, 0.6, 1.3),
    "layer norm grad_variance": (0.4, 1.5, 3.2),
    "attention variance": (1.4, 4.1, 7.8),
    "attention covariance": (1.3, 3.9, 7.4),
    "attention grad_variance": (2.2, 13.3, 44.5),
    "attention grad_covariance": (1.6, 4.5, 8.2),
}


class OneLayer(pg.Placement):
    """One FFN: with linear activation and a wide hidden layer, a linear layer after another."""

    def block(self, x, block):
        return block.ffn(x)


class OneNorm(pg.Placement):
    """One norm."""

    def block(self, x, block):
        return block.norm(x)


class OneAttention(pg.Placement):
    """One attention sublayer."""

    def block(self, x, block):
        return block.attention(x)


def places(rows: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(rows, values, strict=True)) for values in itertools.product(*rows.values())]


COMMON = {"std": STDS, "correlation": FIFTHS, "grad_std": STDS, "grad_correlation": FIFTHS, "tokens": [100, 1000]}
GRIDS = {
    "linear": places(COMMON | {"correlation": THIRDS, "grad_correlation": THIRDS, "width": list(WIDTHS)}),
    "relu": places(COMMON | {"width": [1000]}),
    "gelu": places(COMMON | {"width": [1000]}),
    "layer norm": places(COMMON | {"width": list(WIDTHS)}),
    "attention": places(
        {
            "std": [1.0],
            "correlation": THIRDS,
            "grad_std": STDS,
            "grad_correlation": THIRDS,
            "tokens": [300, 547, 1000],
            "logit_std": [0.01, 0.06, 0.36],  # squares of 0.1, 0.245, 0.6: their query and key gains
            "value_gain": STDS,
            "width": list(WIDTHS),
        }
    ),
}
READ_AT = {"variance": 1, "covariance": 1, "grad_variance": 0, "grad_covariance": 0}  # block


def network(operator: str, place: dict[str, Any]) -> pg.Model:
    """The network of one place: depth 1, one sublayer."""
    size = {"depth": 1, "width": place["width"], "tokens": place["tokens"], "heads": WIDTHS[place["width"]]}
    if operator == "attention":
        gains = {"value_gain": place["value_gain"], "logit_std": place["logit_std"]}
        return pg.Model(OneAttention(), **size, **gains)
    if operator == "layer norm":
        return pg.Model(OneNorm(), norm="layer", **size)
    return pg.Model(OneLayer(), activation=operator, **size)


def errors(operator: str, place: dict[str, Any], quantities: list[str], seed: int, **run: Any) -> Any:
    """For each quantity |theory / simulation - 1|, and the simulation's relative standard error."""
    model, power, grad_power = network(operator, place), place["std"] ** 2, place["grad_std"] ** 2
    start = {
        "variance": power,
        "covariance": place["correlation"] * power,
        "grad_variance": grad_power,
        "grad_covariance": place["grad_correlation"] * grad_power,
    }
    measured = pg.simulate(model, seed=seed, progress=False, **run, **start)
    predicted = pg.predict(model, **start)
    found = {"device": measured.attrs["device"]}
    for name in quantities:
        block = READ_AT[name]
        said, seen, error = (float(t[block]) for t in (predicted[name], measured[name], measured[f"{name}_se"]))
        scale = (
            max(abs(seen), float(predicted[name.replace("covariance", "variance")][block])) if "cov" in name else seen
        )
        found[name] = abs(said - seen) / scale
        found[f"{name}_se"] = error / scale
    return found


def table(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a quantity: percentiles of our errors, of the simulation's noise alone, and the published ones."""
    draw = np.random.default_rng(options.seed)
    run = {name: getattr(options, name) for name in ("draws", "backend", "precision")}
    for operator, grid in GRIDS.items():
        quantities = [name.removeprefix(f"{operator} ") for name in PUBLISHED if name.startswith(f"{operator} ")]
        chosen = np.sort(draw.permutation(len(grid))[: options.places])
        began = time.perf_counter()
        found = [errors(operator, grid[i], quantities, options.seed + 1 + int(i), **run) for i in chosen]
        seconds = round(time.perf_counter() - began, 1)
        for name in quantities:
            ours = np.array([row[name] for row in found])
            noise = np.abs(draw.standard_normal(len(found))) * [row[f"{name}_se"] for row in found]
            yield {
                "quantity": f"{operator} {name}",
                "ours": percentiles(ours),
                "noise": percentiles(noise),
                "published": PUBLISHED[f"{operator} {name}"],
                "places": len(found),
                "grid": len(grid),
                "draws": options.draws,
                "seconds": seconds,
                "device": found[0]["device"],
            }


def percentiles(errors: Any) -> list[float]:
    """In percent, as the published scripts take them: the entry at total * p / 100 of the sorted errors."""
    ordered = np.sort(errors) * 100
    return [round(float(ordered[int(len(ordered) * p / 100)]), 3) for p in PERCENTILES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--precision", default="float64")
    parser.add_argument("--places", type=int, default=60, help="of each grid, a random sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    print(f"{'percent errors, [p50, p90, p99]':34s} {'ours':>22s} {'noise alone':>22s} {'published':>18s}  places")
    for row in table(options):
        rows.append(row)
        cells = " ".join(f"{row[name]!s:>22s}" for name in ("ours", "noise", "published"))
        print(f"{row['quantity']:34s} {cells}  {row['places']} of {row['grid']}", flush=True)
        if options.out:
            content = {"command": "python benchmarks/operator_table.py " + " ".join(sys.argv[1:]), "rows": rows}
            replace(options.out, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
