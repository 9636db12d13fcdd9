"""Are dense and weightless the same in law? Two-sample tests of every recorded quantity at every block.

    python benchmarks/same_law.py --out benchmarks/results/same_law_numpy.json

Of each network, `--draws` draws with either sampler. Each quantity at each block has a Kolmogorov-Smirnov test; Holm's
correction is over all tests of all networks, so `--level` is the chance that anything is found although nothing is
there. The negative control, judged by the same tests, must be found out in every network: weightless without the
projection I - Q Q^T, where fresh noise acts on the directions that were seen too. A second wrong sampler shows how
fine the tests are: its matrices come back independent of those that went forward, which in the wide limit makes no
difference at all. Exit code 1 if the samplers differ or the control passes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from timing import provenance, write

from propagate.model import Model
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import Backend, choose_backend
from propagate.montecarlo.factor import factor, root_of
from propagate.montecarlo.normals import BACKWARD, Normals
from propagate.montecarlo.pulls import Pull
from propagate.montecarlo.run import SAMPLERS, run
from propagate.montecarlo.samplers import Sampler, dense
from propagate.montecarlo.starts import Ends, exchangeable_root

SMALL: dict[str, Any] = {"depth": 3, "width": 16, "tokens": 8, "heads": 2, "ffn_ratio": 1}
NETWORKS = {
    "prenorm relu": Model("prenorm", **SMALL),
    "prenorm gelu layer norm": Model("prenorm", **SMALL | {"activation": "gelu", "norm": "layer"}),
    "postnorm relu": Model("postnorm", **SMALL),
    "postnorm swiglu causal": Model("postnorm", **SMALL | {"activation": "swiglu", "causal": True}),
    "spannorm relu": Model("spannorm", **SMALL),
    "spannorm silu uniform": Model("spannorm", **SMALL | {"activation": "silu", "logit_std": 0.0}),
    "periln tanh": Model("periln", **SMALL | {"activation": "tanh"}),
    "deepnorm relu wide": Model("deepnorm", **SMALL | {"width": 64, "tokens": 4}),
    "prenorm more tokens than width": Model("prenorm", **SMALL | {"width": 8, "tokens": 12}),
}


def unprojected(normals: Normals) -> Sampler:
    """Wrong: the fresh noise acts on the seen directions too."""
    xp = normals.backend.xp

    def sampler(x: Array, site: int, fan_out: int, gain: float = 1.0) -> tuple[Array, Pull]:
        scale = gain * x.shape[-1] ** -0.5
        root, change, basis = factor(xp, x)
        seen = normals(site, (root.shape[-1], fan_out)) * scale

        def pull(g: Array) -> Array:
            cotangent_root = root_of(xp, g)
            noise = cotangent_root @ normals(site + BACKWARD, (cotangent_root.shape[-1], x.shape[-1])) * scale
            return g @ seen.swapaxes(-1, -2) @ change @ basis + noise

        return root @ seen, pull

    return sampler


def untied(normals: Normals) -> Sampler:
    """Wrong: the weights that come back are independent of those that went forward."""
    there, back = dense(normals), dense(normals)

    def sampler(x: Array, site: int, fan_out: int, gain: float = 1.0) -> tuple[Array, Pull]:
        return there(x, site, fan_out, gain)[0], back(x, site + BACKWARD, fan_out, gain)[1]

    return sampler


WRONG = {"unprojected": unprojected, "untied": untied}


def holm(p: list[float]) -> list[float]:
    """Adjusted p-values: the level at which Holm's step-down procedure would still reject each."""
    order = np.argsort(p)
    steps = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]


def sample(model: Model, backend: Backend, sampler: str, seed: int, draws: int) -> dict[str, np.ndarray]:
    """Each quantity, (draws, blocks)."""
    start = Ends(exchangeable_root(1.0, 0.3, model.tokens), exchangeable_root(1.0, 0.5, model.tokens))
    parts = [
        run(model, backend, sampler, seed, range(first, min(first + 500, draws)), start, through_readout=True)
        for first in range(0, draws, 500)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def p_values(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[tuple[str, int], float]:
    """By quantity and block; those that an input or a norm fixes are left out."""
    return {
        (name, block): float(stats.ks_2samp(a, b).pvalue)
        for name in one
        for block, (a, b) in enumerate(zip(one[name].T, other[name].T, strict=True))
        if np.ptp(a) > 1e-5
    }


def judged(samples: dict[str, tuple[Any, Any]]) -> dict[str, dict[str, Any]]:
    """Of each network: how many tests, the smallest adjusted p-value, and where. Holm's correction is over them all."""
    found = {network: p_values(*pair) for network, pair in samples.items()}
    adjusted = iter(holm([p for tests in found.values() for p in tests.values()]))
    rows = {}
    for network, tests in found.items():
        by_place = {place: next(adjusted) for place in tests}
        worst = min(by_place, key=by_place.__getitem__)
        rows[network] = {
            "tests": len(tests),
            "smallest_p": by_place[worst],
            "smallest_p_uncorrected": min(tests.values()),
            "where": f"{worst[0]} at block {worst[1]}",
        }
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="float64")
    parser.add_argument("--draws", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--level", type=float, default=1e-3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    backend = choose_backend(options.backend, options.precision)
    SAMPLERS.update(WRONG)
    kinds = ("dense", "weightless", *WRONG)
    samples = {
        name: {
            kind: sample(NETWORKS[name], backend, kind, options.seed + shift, options.draws)
            for shift, kind in enumerate(kinds)
        }
        for name in options.networks
    }
    rows = {
        kind: judged({name: (of["dense"], of[kind]) for name, of in samples.items()})
        for kind in kinds
        if kind != "dense"
    }
    print(
        f"smallest adjusted p against dense, {options.draws} draws each\n{'':31} tests  weightless  " + "  ".join(WRONG)
    )
    for name in options.networks:
        print(
            f"{name:31} {rows['weightless'][name]['tests']:5} ", *(f"{rows[k][name]['smallest_p']:11.1e}" for k in rows)
        )
    same = all(row["smallest_p"] > options.level for row in rows["weightless"].values())
    found_out = all(row["smallest_p"] < options.level for row in rows["unprojected"].values())
    print(f"weightless {'has' if same else 'DOES NOT HAVE'} the law of dense;", end=" ")
    print(f"the control is {'found out' if found_out else 'NOT FOUND OUT'}")
    summary = provenance(backend.device) | {"backend": backend.name, "precision": backend.precision}
    summary |= {"draws": options.draws, "seed": options.seed, "level": options.level}
    summary |= {"same_law": same, "control_found_out": found_out}
    write(options.out, {"summary": summary, "against_dense": rows})
    return 0 if same and found_out else 1


if __name__ == "__main__":
    raise SystemExit(main())
