"""How far does one step move the stream: `predict_change` against simulated networks, placement by placement.

    python benchmarks/stream_change.py --out benchmarks/results/stream_change.json

Of each placement that comes with the package and of SGD and Muon: simulated over predicted change of the stream that
leaves the last block, its standard error, the largest normal score over blocks, and the same ratio where matrices are
taken to have forgotten what they sent back: a change that travels through fresh ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from unittest import mock

import propagate as pg
from propagate.theory import predict_change as verb

CASES = (
    (pg.SGD(1e-8), {"activation": "relu"}),
    (pg.Muon(1e-6), {"activation": "swiglu", "key_value_heads": 4}),
)
START = pg.Start(covariance=0.3, grad_covariance=0.2)
right = verb.tangents


def forgetful(places: Any, change_of: Any) -> Any:
    """Changes that no later matrix has had to do with."""
    return right(places, lambda sent, met, arriving: change_of(sent, met._replace(beta=0 * met.beta), arriving))


def row(name: str, optimizer: Any, fields: dict[str, Any], depth: int, width: int, draws: int) -> dict[str, Any]:
    """One placement under one optimiser."""
    case = {"placement": name, "optimizer": type(optimizer).__name__} | fields
    try:
        model = pg.Model(name, depth=depth, width=width, tokens=4, heads=8, ffn_ratio=2.0, **fields)
        said = pg.predict_change(model, optimizer, START)
    except pg.ModelError as error:
        return case | {"refused": str(error)}
    with mock.patch.object(verb, "tangents", forgetful):
        fresh = pg.predict_change(model, optimizer, START)
    run: dict[str, Any] = {"draws": draws, "seed": 2, "backend": "numpy", "sampler": "dense", "progress": False}
    seen = pg.simulate_steps(model, optimizer, START, steps=1, **run).sel(step=1)
    if not float(said.change[-1].max()):
        return case | {"moved": 0.0}
    last = {"block": depth} | ({"stream": "joined"} if "stream" in seen.change.dims else {})
    change = float(seen.change.sel(last))
    return case | {
        "ratio": round(change / float(said.change.sel(last)), 3),
        "error": round(float(seen.change_se.sel(last)) / change, 3),
        "drawn": round(float(said.change_se.sel(last) / said.change.sel(last)), 3),
        "allowance": round(float(said.change_allowance.sel(last)), 3),
        "z": round(float(pg.compare(said, seen).worst_z.max()), 2),
        "ratio_of_fresh_matrices": round(change / float(fresh.change.sel(last)), 2),
    }


def main(out: Path | None, names: list[str], depth: int, width: int, draws: int) -> None:
    """Every placement that needs no experts."""
    rows = []
    for name in names or sorted(pg.placements()):
        for optimizer, fields in CASES:
            rows.append(row(name, optimizer, fields, depth, width, draws))
            print(rows[-1], flush=True)
    judged = [one for one in rows if "z" in one]
    summary = {
        "depth": depth,
        "width": width,
        "tokens": 4,
        "draws": draws,
        "judged": len(judged),
        "largest_z": max(one["z"] for one in judged),
        "ratios": [min(one["ratio"] for one in judged), max(one["ratio"] for one in judged)],
        "ratios_of_fresh_matrices": [min(one["ratio_of_fresh_matrices"] for one in judged)],
        "propagate": pg.__version__,
    }
    print(summary)
    if out is not None:
        out.write_text(json.dumps(summary | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--names", nargs="*", default=[])
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--draws", type=int, default=16)
    arguments = parser.parse_args()
    main(arguments.out, arguments.names, arguments.depth, arguments.width, arguments.draws)
