"""What float32 costs in accuracy and saves in time: the same networks in both precisions, side by side.

    python benchmarks/precision.py --out benchmarks/results/precision_numpy.json

Both precisions draw the same normals, so that the tables of one draw differ by rounding alone. Printed, for each
network, are the largest relative differences of the quantities over its blocks, in the worst of the draws; the standard
error of the mean over the draws, which is what rounding must be small against; 1 - correlation where the stream ends;
and the ratio of times.

Where tokens have collapsed, the weightless sampler's differences are larger than rounding: it gives each direction that
the tokens span its own random numbers, and directions that differ by less than rounding are not the same in both
precisions. That makes another network of the same law. So the last column compares laws: float32 against float64 with
other seeds, the smallest p of two-sample tests of all quantities at all blocks, times the number of tests; in brackets
the same for a wrong float32, whose branches are 5 % too large.
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
from scipy import stats
from timing import provenance, seconds, wait_for, write

from propagate.model import Model
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.run import run
from propagate.montecarlo.starts import ends_of
from propagate.scaling import ScaleInit
from propagate.start import Start

QUANTITIES = ("variance", "deviation", "grad_variance", "grad_deviation")
NETWORKS = {
    "spannorm ScaleInit": {"placement": "spannorm", "scaling": ScaleInit()},
    "prenorm gelu": {"placement": "prenorm", "activation": "gelu"},
    "periln swiglu": {"placement": "periln", "activation": "swiglu"},
    "spannorm": {"placement": "spannorm"},
    "postnorm, 12 blocks": {"placement": "postnorm", "depth": 12},
    "postnorm": {"placement": "postnorm"},
    "postnorm gelu": {"placement": "postnorm", "activation": "gelu"},
    "postnorm causal": {"placement": "postnorm", "causal": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--law-draws", type=int, default=300)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    size = {"width": options.width, "tokens": options.tokens, "depth": options.depth}
    rows = []
    print(
        f"{'':20} {'1 - corr.':>9} " + " ".join(f"{name:>15}" for name in QUANTITIES) + f" {'std error':>9} {'time':>6}"
    )
    for name, fields in NETWORKS.items():
        model = Model(**(size | fields))
        row = {"network": name} | compared(model, options.backend, options.draws)
        wrong = dataclasses.replace(model, value_gain=1.05, ffn_gain=1.05)
        row["law"], row["wrong_law"] = (
            smallest_p(model, other, options.backend, options.law_draws) for other in (model, wrong)
        )
        rows.append(row)
        print(
            f"{name:20} {row['collapse']:9.1e} " + " ".join(f"{row[q]:15.1e}" for q in QUANTITIES),
            f"{row['relative_standard_error']:9.1e} {row['time_float64_over_float32']:6.2f}",
            f"{row['law']:5.2f} ({row['wrong_law']:.0e})",
            flush=True,
        )
    write(options.out, {"summary": provenance(choose_backend(options.backend).device), "rows": rows})


def compared(model: Model, backend: str, draws: int) -> dict[str, float]:
    """Largest relative differences over blocks and draws, and the ratio of times."""
    (exact, slow), (rounded, fast) = (measured(model, backend, kind, draws) for kind in ("float64", "float32"))
    spread = max(float((exact[q].std(axis=0, ddof=1) / exact[q].mean(axis=0)).max()) for q in QUANTITIES)
    return {
        "collapse": float((exact["deviation"] / exact["variance"])[:, -1].mean()),
        **{q: float(np.max(np.abs(rounded[q] / exact[q] - 1))) for q in QUANTITIES},
        "relative_standard_error": spread / draws**0.5,
        "time_float64_over_float32": slow / fast,
    }


def smallest_p(model: Model, other: Model, backend: str, draws: int) -> float:
    """Of `model` in float64 against `other` in float32, times the number of tests; at most 1."""
    start, p = ends_of(model, Start(covariance=0.3)), []
    ours, theirs = (
        run(network, choose_backend(backend, kind), "weightless", seed, range(draws), start, through_readout=False)
        for network, kind, seed in ((model, "float64", 1), (other, "float32", 2))
    )
    for name in QUANTITIES:
        for a, b in zip(ours[name].T, theirs[name].T, strict=True):
            if np.ptp(a) > 1e-5 * abs(a).max():  # a norm or a start fixes the others, up to rounding
                p.append(stats.ks_2samp(a, b).pvalue)
    return min(1.0, min(p) * len(p))


def measured(model: Model, name: str, precision: str, draws: int) -> tuple[dict[str, np.ndarray], float]:
    """The moments of every draw, and seconds."""
    backend, start = choose_backend(name, precision), ends_of(model, Start(covariance=0.3))
    task = partial(run, model, backend, "weightless", 0, range(draws), start, through_readout=False)
    return task(), seconds(task, 2, wait_for(backend))


if __name__ == "__main__":
    main()
