"""Theory against simulation over a grid of networks; prints a table and writes it as JSON.

    python benchmarks/agreement_table.py --backend cupy --draws 64 --out benchmarks/results/agreement_cupy.json

Every network has its own seed, so its rows are independent of the others'. The two cotangents of a network share its
draws. `--control` judges the same measurements by two wrong theories: uniform attention in place of softmax
(logit_std 0), and an FFN whose gain is 10 % off. Not every network can tell: Peri-LN's stream does not depend on gains
at all. Counted are those where the wrong prediction differs from the right one by 10 % or more somewhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import xarray as xr

import propagate as pg
from propagate.files import replace

PLACEMENTS = ("prenorm", "postnorm", "spannorm", "periln", "deepnorm", "layernormscaling")
ACTIVATIONS = ("relu", "gelu", "swiglu")
SCALINGS = {"none": None, "ScaleInit 1/2": pg.ScaleInit(0.5)}
STARTS = (0.0, 0.3)
COTANGENTS = {"independent": 0.0, "shared": 1.0}


def networks(depth: int, width: int, tokens: int, heads: int) -> Iterator[tuple[dict[str, object], pg.Model]]:
    """The grid, as (labels, model)."""
    for name, activation, scaling in itertools.product(PLACEMENTS, ACTIVATIONS, SCALINGS):
        labels = {"placement": name, "activation": activation, "scaling": scaling}
        size = {"depth": depth, "width": width, "tokens": tokens, "heads": heads}
        yield labels, pg.Model(name, activation=activation, scaling=SCALINGS[scaling], **size)


def wrong_theories(model: pg.Model) -> dict[str, pg.Model]:
    """Models whose prediction must not pass for this one's."""
    return {
        "uniform attention": dataclasses.replace(model, logit_std=0.0),
        "ffn gain 1.1": dataclasses.replace(model, ffn_gain=1.1),
    }


def differs(one: xr.Dataset, other: xr.Dataset) -> bool:
    """Whether two predictions are 10 % or more apart somewhere."""
    names = ["variance", "deviation", "grad_variance"]
    return any(bool((abs(one[name] / other[name] - 1) > 0.1).any()) for name in names)


def row(labels: dict[str, object], judged: xr.Dataset) -> dict[str, object]:
    worst = {str(name): round(float(judged.worst_z.sel(quantity=name)), 2) for name in judged.quantity.values}
    return labels | {"worst_z": worst, "agrees": bool(judged.attrs["agrees"])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--sampler", default="dense")
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--control", action="store_true")
    options = parser.parse_args()

    rows, controls, attributes = [], [], {}
    began = time.perf_counter()
    grid = list(networks(options.depth, options.width, options.tokens, options.heads))
    for seed, ((labels, model), covariance) in enumerate(itertools.product(grid, STARTS)):
        for cotangent, grad_covariance in COTANGENTS.items():
            start = {"covariance": covariance, "grad_covariance": grad_covariance}
            measured = pg.simulate(
                model, draws=options.draws, seed=seed, backend=options.backend, sampler=options.sampler, **start
            )
            attributes = measured.attrs
            named = labels | {"correlation": covariance, "cotangent": cotangent}
            right = pg.predict(model, **start)
            rows.append(row(named, pg.compare(right, measured)))
            for wrong, other in wrong_theories(model).items() if options.control else ():
                prediction = pg.predict(other, **start)
                judged = row(named | {"theory": wrong}, pg.compare(prediction, measured))
                controls.append(judged | {"differs": differs(prediction, right)})
            zs = " ".join(f"{z:5.2f}" for z in rows[-1]["worst_z"].values())
            print(f"{'ok ' if rows[-1]['agrees'] else 'NOT'} {' '.join(map(str, named.values())):58s} {zs}", flush=True)

    seconds = time.perf_counter() - began
    failed = [r for r in rows if not r["agrees"]]
    rejected = {}
    for wrong in sorted({c["theory"] for c in controls}):
        verdicts = [c["agrees"] for c in controls if c["theory"] == wrong and c["differs"]]
        rejected[wrong] = f"{verdicts.count(False)} of {len(verdicts)}"
    worst = max(max(r["worst_z"].values()) for r in rows)
    print(f"{len(rows) - len(failed)} of {len(rows)} agree; largest |z| {worst:.2f}; {seconds:.0f} s; {rejected}")
    kept = [key for key in attributes if key not in ("model", "seed", "witness")]
    summary = {key: attributes[key] for key in kept} | {
        "command": "python " + " ".join(Path(word).name if "/" in word else word for word in sys.argv),
        "agree": len(rows) - len(failed),
        "of": len(rows),
        "largest_z": worst,
        "seconds": round(seconds, 1),
        "wrong theories rejected": rejected,
    }
    if options.out:
        replace(options.out, json.dumps({"summary": summary, "rows": rows, "controls": controls}, indent=1).encode())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
