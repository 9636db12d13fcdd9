"""How far each operator's map lies from simulation, over its domain: makes `propagate/data/validity.json`.

    python benchmarks/validity.py --backend cupy --draws 400

One sublayer at a time, on tokens with exact second moments, at width 512 (attention in heads of 64 coordinates;
`wide_attention` is the same networks against the map that takes heads for wide). Errors
are theory / simulation - 1; of covariances, the difference relative to the variance. `<name>_se` is the simulation's
share of them. Cotangents are measured at both ends of their correlation, 0 and 1, by networks of their own: what
returns is linear in the second moments of what arrives, so what lies between is a mean of the two.
`figures/validity.py` draws the map, `propagate.theory.validity` reads it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import propagate as pg
from propagate.cells import ACTIVATIONS
from propagate.files import replace
from propagate.norms import NORMS

OUT = Path(__file__).parent.parent / "propagate" / "data" / "validity.json"
SIZE = {"depth": 1, "width": 512, "heads": 8}
CORRELATIONS = [0.0, 1 / 3, 2 / 3, 0.95]
GRAD_CORRELATIONS = [0.0, 1 / 3, 2 / 3, 1.0]
QUANTITIES = {"variance": 1, "covariance": 1, "grad_variance": 0, "grad_covariance": 0}  # and the block to read them at
AXES: dict[str, dict[str, list[Any]]] = {
    "attention": {
        "tokens": [2, 8, 32, 128, 512],
        "logit_std": [0.0, 0.36, 0.7, 1.0, 1.5, 2.25, 3.0, 4.0],
        "correlation": CORRELATIONS,
        "grad_correlation": GRAD_CORRELATIONS,
    },
    "ffn": {
        "activation": list(ACTIVATIONS),
        "input_variance": [0.01, 1.0, 100.0],
        "correlation": CORRELATIONS,
        "grad_correlation": [0.0, 1.0],
    },
    "norm": {
        "norm": list(NORMS),
        "input_variance": [0.01, 1.0, 100.0],
        "correlation": CORRELATIONS,
        "grad_correlation": [0.0, 1.0],
    },
}


class LoneAttention(pg.Placement):
    """One attention sublayer and nothing else."""

    def block(self, x, block):
        return block.attention(x)


class LoneFFN(pg.Placement):
    """One FFN and nothing else."""

    def block(self, x, block):
        return block.ffn(x)


class LoneNorm(pg.Placement):
    """One norm and nothing else."""

    def block(self, x, block):
        return block.norm(x)


PLACEMENTS = {"attention": LoneAttention(), "ffn": LoneFFN(), "norm": LoneNorm()}
WIDE = {"attention": {"attention": None, "wide_attention": math.inf}}  # maps to hold against one measurement: head_size


def errors(operator: str, place: dict[str, Any], *, draws: int, backend: str) -> dict[str, dict[str, Any]]:
    """Relative errors at one place of an operator's domain, of each of its maps."""
    warnings.simplefilter("ignore", pg.ValidityWarning)
    sizes = {name: value for name, value in place.items() if name not in ("input_variance", "correlation")}
    variance = place.get("input_variance", 1.0)
    starts = [
        {"variance": variance, "covariance": place["correlation"] * variance, "grad_covariance": shared}
        for shared in (0.0, 1.0)
    ]
    model = pg.Model(PLACEMENTS[operator], **SIZE, **sizes)
    runs = []
    for start in starts:
        seed = zlib.crc32(repr((operator, place, start["grad_covariance"])).encode())
        runs.append(pg.simulate(model, draws=draws, seed=seed, backend=backend, progress=False, **start))
    return {
        name: {"place": place, "device": runs[0].attrs["device"]}
        | differences(operator, [pg.predict(model, **start, head_size=head_size) for start in starts], runs)
        for name, head_size in WIDE.get(operator, {operator: None}).items()
    }


def differences(operator: str, theory: list[xr.Dataset], runs: list[xr.Dataset]) -> dict[str, list[float]]:
    """Of two ends of the cotangents' correlation: relative errors and their standard errors, over that correlation."""
    found: dict[str, list[float]] = {}
    for name, block in QUANTITIES.items():
        for correlation in AXES[operator]["grad_correlation"]:
            # forward the two are measurements of the same
            share = correlation if name.startswith("grad") else 0.5
            weights, scale_of = np.array([1 - share, share]), name.replace("covariance", "variance")
            said, seen, scale = (
                float(weights @ [float(table[column][block]) for table in tables])
                for tables, column in ((theory, name), (runs, name), (runs, scale_of))
            )
            own = float(np.hypot(*(weights * [float(run[f"{name}_se"][block]) for run in runs])))
            found.setdefault(name, []).append(round((said - seen) / scale, 5))
            found.setdefault(f"{name}_se", []).append(round(own / scale, 5))
    return found


def error_maps(operator: str, draws: int, backend: str, executor: Executor | None) -> dict[str, Any]:
    """All places of an operator's domain, as nested lists over its axes, for each of its maps."""
    axes = AXES[operator]
    *outer, inner = axes
    assert inner == "grad_correlation"
    places = [dict(zip(outer, values, strict=True)) for values in itertools.product(*(axes[name] for name in outer))]
    task = partial(errors, operator, draws=draws, backend=backend)
    found = list(shown(operator, len(places), (executor.map if executor else map)(task, places)))
    shape = [len(values) for values in axes.values()]
    names = [name for quantity in QUANTITIES for name in (quantity, f"{quantity}_se")]
    head = {"head_size": SIZE["width"] // SIZE["heads"]} if operator == "attention" else {}
    about = {"width": SIZE["width"], **head, "draws": draws, "device": found[0][operator]["device"], "axes": axes}
    return {
        kind: about
        | {"errors": {name: np.array([row[kind][name] for row in found]).reshape(shape).tolist() for name in names}}
        for kind in found[0]
    }


def shown(operator: str, total: int, found: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, each printed: percent errors with their standard errors, of a gradient at both ends."""
    began = time.perf_counter()
    for number, maps in enumerate(found, 1):
        row = maps[operator]
        place = " ".join(
            f"{name}={value if isinstance(value, str) else f'{value:.3g}'}" for name, value in row["place"].items()
        )
        cells = (
            f"{label} {100 * row[name][at]:+.2f} +- {100 * row[f'{name}_se'][at]:.2f}"
            for label, name, at in (
                ("forward", "variance", 0),
                ("back", "grad_variance", 0),
                ("shared", "grad_variance", -1),
            )
        )
        print(
            f"{operator} {number} of {total}, {time.perf_counter() - began:.0f} s: {place}: {', '.join(cells)}",
            flush=True,
        )
        yield maps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--operators", nargs="+", choices=AXES, default=list(AXES), help="the others are kept")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    content = json.loads(options.out.read_bytes()) if options.out.exists() else {}
    with nullcontext() if options.workers == 1 else pg.process_pool(options.workers) as executor:
        for operator in options.operators:
            content |= error_maps(operator, options.draws, options.backend, executor)
            replace(options.out, json.dumps(content).encode())


if __name__ == "__main__":
    main()
