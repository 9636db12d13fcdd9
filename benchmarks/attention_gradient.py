"""Gradient variance behind one attention sublayer: simulation, our map, its limit, and DeepScaleLM's formula.

    python benchmarks/attention_gradient.py --draws 128 --hard-draws 512 --out FILE

256 tokens with exact second moments at width 512, in heads of 64 coordinates, as in the published comparison; and once
more in one head of 512. `predicted` is what `predict` says for heads of that size, `wide` for heads of infinite size.
Where tokens and gradients are both correlated and logits are widely spread, single heads differ by orders of magnitude
(`hard`): those places get draws of their own. `--rejudge` sets the formulas beside the measurements already in --out.
`figures/attention_gradient.py` draws the result.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import propagate as pg
from propagate.files import replace

WIDTH, TOKENS = 512, 256
LOGIT_STDS = (0.36, 1.0, 2.25)
CORRELATIONS = (0.0, 1 / 3, 2 / 3)
HEAD_SIZES = (64, 512)
PLACE = ("head_size", "logit_std", "correlation", "grad_correlation")


class OneAttention(pg.Placement):
    """A block that is one attention sublayer and nothing else."""

    def block(self, x, block):
        return block.attention(x)


def published(grad_variance: float, grad_covariance: float, tokens: int) -> float:
    """DeepScaleLM's gradient variance at unit gains: the value path alone, under uniform attention.

    arXiv:2403.09635; simulations/SHA.py of akhilkedia/TranformersGetStable, `pred_g_out_var` at dropout 0:
    sigma_g^2 d_out sigma_v^2 (1 + (L - 1) r_g) / L for L tokens whose cotangents have correlation r_g.
    """
    return (grad_variance + (tokens - 1) * grad_covariance) / tokens


def hard(logit_std: float, correlation: float, grad_correlation: float) -> bool:
    """Whether heads differ so much that a mean over them needs many."""
    return logit_std > 2 and correlation > 0 and grad_correlation > 0


def network(head_size: int, logit_std: float) -> pg.Model:
    return pg.Model(OneAttention(), depth=1, width=WIDTH, tokens=TOKENS, heads=WIDTH // head_size, logit_std=logit_std)


def formulas(head_size: int, logit_std: float, correlation: float, grad_correlation: float) -> dict[str, float]:
    """What each says of the gradient variance."""
    start = {"covariance": correlation, "grad_covariance": grad_correlation}
    model = network(head_size, logit_std)
    return {
        "predicted": float(pg.predict(model, **start).grad_variance[0]),
        "wide": float(pg.predict(model, **start, head_size=math.inf).grad_variance[0]),
        "published": published(1.0, grad_correlation, TOKENS),
    }


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """A measured row with the formulas, and their errors in percent of the simulation."""
    said, seen = formulas(*(row[name] for name in PLACE)), row["measured"]
    errors = {f"{name}_error_percent": round(100 * (value / seen - 1), 2) for name, value in said.items()}
    return row | said | errors | {"standard_error_percent": round(100 * row["standard_error"] / seen, 2)}


def measured(place: tuple[Any, ...], draws: int, seed: int, backend: str) -> dict[str, Any]:
    """One network of one sublayer, simulated."""
    head_size, logit_std, correlation, grad_correlation = place
    start = {"covariance": correlation, "grad_covariance": grad_correlation}
    seen = pg.simulate(
        network(head_size, logit_std), draws=draws, seed=seed, backend=backend, progress=False, **start
    ).isel(block=0)
    found = {"draws": draws, "measured": float(seen.grad_variance), "standard_error": float(seen.grad_variance_se)}
    return dict(zip(PLACE, place, strict=True)) | found | {"device": seen.attrs["device"]}


def write(path: Path, rows: list[dict[str, Any]], command: str) -> None:
    content = {"command": command, "width": WIDTH, "tokens": TOKENS, "rows": rows}
    replace(path, (json.dumps(content, indent=1) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--draws", type=int, default=128)
    parser.add_argument("--hard-draws", type=int, default=512)
    parser.add_argument("--head-sizes", type=int, nargs="+", default=HEAD_SIZES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rejudge", action="store_true")
    options = parser.parse_args()
    if options.rejudge:
        content = json.loads(options.out.read_bytes())
        kept = ("draws", "measured", "standard_error", "device")
        old = [{name: row[name] for name in (*PLACE, *kept)} for row in content["rows"]]
        write(options.out, [judged(row) for row in old], content["command"])
        return
    grid = itertools.product(options.head_sizes, LOGIT_STDS, CORRELATIONS, CORRELATIONS)
    rows = []
    for seed, place in enumerate(grid):
        draws = options.hard_draws if hard(*place[1:]) else options.draws
        rows.append(judged(measured(place, draws, seed, options.backend)))
        print(*(f"{value:8.4g}" for value in rows[-1].values() if not isinstance(value, str)), flush=True)
        if options.out:
            write(options.out, rows, " ".join(["python", "benchmarks/attention_gradient.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
