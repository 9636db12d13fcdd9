"""Gradient variance behind one attention sublayer: simulation, our maps, and DeepScaleLM's published formula.

    python benchmarks/attention_gradient.py --draws 128 --out benchmarks/results/attention_gradient.json

256 tokens with exact second moments at width 512, in heads of 64 coordinates, as in the published comparison; and once
more in one head of 512. `predicted` is what `predict` says, the limit of wide heads; `of_head_size` is the map for
heads of that size (`propagate/theory/finite_heads.py`). `figures/attention_gradient.py` draws the result.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import propagate as pg
from propagate.files import replace
from propagate.theory.finite_heads import attention_of_head_size
from propagate.theory.moments import Moments

WIDTH, TOKENS = 512, 256
LOGIT_STDS = (0.36, 1.0, 2.25)
CORRELATIONS = (0.0, 1 / 3, 2 / 3)
HEAD_SIZES = (64, 512)


class LoneAttention(pg.Placement):
    """A block that is one attention sublayer and nothing else."""

    def block(self, x, block):
        return block.attention(x)


def published(grad_variance: float, grad_covariance: float, tokens: int) -> float:
    """DeepScaleLM's gradient variance at unit gains: the value path alone, under uniform attention.

    arXiv:2403.09635; simulations/SHA.py of akhilkedia/TranformersGetStable, `pred_g_out_var` at dropout 0:
    sigma_g^2 d_out sigma_v^2 (1 + (L - 1) r_g) / L for L tokens whose cotangents have correlation r_g.
    """
    return (grad_variance + (tokens - 1) * grad_covariance) / tokens


def of_head_size(
    head_size: int, logit_std: float, correlation: float, grad_correlation: float, samples: int = 128
) -> tuple[float, float]:
    """Gradient variance by the map for heads of this size, with the standard error of its own eight evaluations."""
    x, g = Moments(1.0, 1 - correlation), Moments(1.0, 1 - grad_correlation)
    found = [
        attention_of_head_size(x, g, TOKENS, head_size, logit_std**2, samples=samples, seed=seed)[1].variance
        for seed in range(8)
    ]
    return float(np.mean(found)), float(np.std(found, ddof=1) / np.sqrt(len(found)))


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """A measured row with what each formula says of it, and the errors in percent of the simulation."""
    place = [row[name] for name in ("head_size", "logit_std", "correlation", "grad_correlation")]
    ours, own_error = of_head_size(*place)
    seen, theirs = row["measured"], published(1.0, place[-1], TOKENS)
    return row | {
        "of_head_size": ours,
        "published": theirs,
        "error_percent": round(100 * (row["predicted"] / seen - 1), 2),
        "of_head_size_error_percent": round(100 * (ours / seen - 1), 2),
        "published_error_percent": round(100 * (theirs / seen - 1), 2),
        "standard_error_percent": round(100 * row["standard_error"] / seen, 2),
        "of_head_size_standard_error_percent": round(100 * own_error / seen, 2),
    }


def point(
    head_size: int, logit_std: float, correlation: float, grad_correlation: float, draws: int, seed: int, backend: str
) -> dict[str, Any]:
    """One network of one sublayer, simulated and judged."""
    model = pg.Model(
        LoneAttention(), depth=1, width=WIDTH, tokens=TOKENS, heads=WIDTH // head_size, logit_std=logit_std
    )
    start = {"covariance": correlation, "grad_covariance": grad_correlation}
    measured = pg.simulate(model, draws=draws, seed=seed, backend=backend, progress=False, **start).isel(block=0)
    return judged(
        {
            "head_size": head_size,
            "logit_std": logit_std,
            "correlation": correlation,
            "grad_correlation": grad_correlation,
            "measured": float(measured.grad_variance),
            "standard_error": float(measured.grad_variance_se),
            "predicted": float(pg.predict(model, **start).grad_variance[0]),
            "device": measured.attrs["device"],
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--draws", type=int, default=128)
    parser.add_argument("--head-sizes", type=int, nargs="+", default=HEAD_SIZES)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    grid = itertools.product(options.head_sizes, LOGIT_STDS, CORRELATIONS, CORRELATIONS)
    rows = []
    for seed, place in enumerate(grid):
        rows.append(point(*place, options.draws, seed, options.backend))
        print(*(f"{value:8.4g}" for value in rows[-1].values() if not isinstance(value, str)), flush=True)
        if options.out:
            command = " ".join(["python", "benchmarks/attention_gradient.py", *sys.argv[1:]])
            content = {"command": command, "width": WIDTH, "tokens": TOKENS, "draws": options.draws, "rows": rows}
            replace(options.out, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
