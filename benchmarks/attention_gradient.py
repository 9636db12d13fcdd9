"""Gradient variance behind one attention sublayer: simulation, our map, and DeepScaleLM's published formula.

    python benchmarks/attention_gradient.py --draws 128 --out benchmarks/results/attention_gradient.json

256 tokens with exact second moments at width 512, in heads of 64 coordinates, as in the published comparison; and once
more in one head of 512, since our map is the limit of wide heads. `figures/attention_gradient.py` draws the result.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import propagate as pg
from propagate.files import replace

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


def point(
    head_size: int, logit_std: float, correlation: float, grad_correlation: float, draws: int, seed: int, backend: str
) -> dict[str, object]:
    """One network of one sublayer: errors of both formulas in percent of the simulation."""
    model = pg.Model(
        LoneAttention(), depth=1, width=WIDTH, tokens=TOKENS, heads=WIDTH // head_size, logit_std=logit_std
    )
    start = {"covariance": correlation, "grad_covariance": grad_correlation}
    measured = pg.simulate(model, draws=draws, seed=seed, backend=backend, progress=False, **start).isel(block=0)
    seen, error = float(measured.grad_variance), float(measured.grad_variance_se)
    ours = float(pg.predict(model, **start).grad_variance[0])
    theirs = published(1.0, grad_correlation, TOKENS)
    return {
        "head_size": head_size,
        "logit_std": logit_std,
        "correlation": correlation,
        "grad_correlation": grad_correlation,
        "measured": seen,
        "standard_error": error,
        "predicted": ours,
        "published": theirs,
        "error_percent": round(100 * (ours / seen - 1), 2),
        "published_error_percent": round(100 * (theirs / seen - 1), 2),
        "standard_error_percent": round(100 * error / seen, 2),
        "device": measured.attrs["device"],
    }


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
        print(*(f"{value:8.4g}" for value in list(rows[-1].values())[:-1]), flush=True)
        if options.out:
            command = " ".join(["python", "benchmarks/attention_gradient.py", *sys.argv[1:]])
            content = {"command": command, "width": WIDTH, "tokens": TOKENS, "draws": options.draws, "rows": rows}
            replace(options.out, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
