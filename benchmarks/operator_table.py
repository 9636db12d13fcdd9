"""DeepScaleLM's operator table again: percent errors [p50, p90, p99] of its formulas and of ours, side by side.

    python benchmarks/operator_table.py --backend numpy --tokens 316 --out benchmarks/results/operator_table.json
    python benchmarks/operator_table.py --backend cupy --precision float32 --out FILE

Grids, laws of tokens and cotangents, and the measure of error are those of the published scripts (`deepscalelm.py`).
Their percentiles hold the noise of their own simulation, of 64 or 100 inputs (10 000 and 100 000 for activations), in
attention through a single set of matrices. So both formulas are held against one new measurement (`lone_operators.py`)
with less noise, and what that noise alone would give, were a formula exact, stands beside. For linear layers and
activations the two are the same formula; `difference` is the largest one between them, relative to the variance.

Of the grid for attention the places with dropout on attention weights are left out: `Model` has none.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from deepscalelm import GRIDS, PUBLISHED, QUANTITIES, Place, error, formulas, percentiles
from lone_operators import Sums, attention, elementwise, linear, norm
from timing import provenance, write

from propagate.montecarlo.backend import Backend, choose_backend
from propagate.theory.gaussian.activations import maps_of
from propagate.theory.pairs.drawn_tokens import attention_of_drawn_tokens, norm_of_drawn_tokens
from propagate.theory.pairs.moments import Moments

Found = tuple[Sums, Sums]
NETWORK = {  # axes of a grid that need a network of their own; all others are coefficients of its parts
    "linear": ("tokens", "fan_in", "fan_out"),
    "relu": ("tokens", "std", "correlation"),
    "gelu": ("tokens", "std", "correlation"),
    "layer norm": ("tokens", "fan_in", "correlation"),
    "attention": ("tokens", "fan_in", "fan_out", "correlation", "logit_std"),
}


def ours(operator: str, at: Place) -> dict[str, float]:
    """What the maps of `propagate.theory` say of the same second moments about the mean."""
    g = Moments(1.0, 1 - at["grad_correlation"]).times(at["grad_std"])
    size, r = at["std"] if operator != "attention" else 1.0, at["correlation"]
    x = Moments(1.0, 1 - r).times(size)
    if operator == "linear":
        square = at["mean"] ** 2  # the mean is a part that all tokens share
        out = Moments(x.variance + square, x.deviation).times(at["weight_std"])
        back = g.times(at["weight_std"] * math.sqrt(at["fan_out"] / at["fan_in"]))
    elif operator == "layer norm":
        out, norm_pull = norm_of_drawn_tokens(at["fan_in"], x, centred=True)
        back = norm_pull(g)
    elif operator == "attention":
        out, pull = attention_of_drawn_tokens(at["tokens"], at["fan_in"], at["logit_std"] ** 2, x)
        out, back = out.times(at["value_std"]), pull(g.times(at["value_std"] * math.sqrt(at["fan_out"] / at["fan_in"])))
    else:
        activation = maps_of(operator)
        about_mean = activation.value(x.variance, x.variance)[1]  # the square of the mean is the value at correlation 0
        out = Moments(about_mean, activation.value(x.variance, x.deviation)[1])
        back = Moments(*activation.slope(x.variance, x.deviation)).product(g)
    return dict(zip(QUANTITIES, (out.variance, out.covariance, back.variance, back.covariance), strict=True))


def measured(operator: str, backend: Backend, at: Place, seed: int, effort: float) -> Found:
    """One network's sums, forward and backward. Small ones fluctuate more and cost less: they get more draws."""
    tokens = at["tokens"]
    if operator in ("relu", "gelu"):
        return elementwise(backend, operator, seed, math.ceil(48 * effort), tokens, at["std"], at["correlation"])
    if operator == "linear":
        draws = math.ceil(effort * 100_000 / min(at["fan_in"], at["fan_out"]))
        return linear(backend, seed, draws, tokens, at["fan_in"], at["fan_out"])
    if operator == "layer norm":
        return norm(backend, seed, math.ceil(effort * 50_000 / at["fan_in"]), tokens, at["fan_in"], at["correlation"])
    draws = max(math.ceil(effort * 1_000 / at["fan_in"]), 8)
    sizes = at["fan_in"], at["fan_out"]
    return attention(backend, seed, draws, tokens, *sizes, at["correlation"], at["logit_std"])


def moments(operator: str, at: Place, found: Found) -> dict[str, Any]:
    """The four second moments at a place, (draws,) each, from the network's sums."""
    r, k = at["correlation"], at["grad_correlation"]
    scale, coefficients = 1.0, [1.0]
    back = at["grad_std"]
    if operator == "linear":
        scale = at["weight_std"]
        coefficients = [at["mean"], at["std"] * math.sqrt(r), at["std"] * math.sqrt(1 - r)]
    elif operator == "attention":
        scale, back = at["value_std"], back * math.sqrt(at["fan_out"] / at["fan_in"])
    elif operator == "layer norm":
        back /= at["std"]
    forward = found[0].moments([scale * c for c in coefficients])
    backward = found[1].moments([scale * back * math.sqrt(share) for share in (k, 1 - k)])
    return dict(zip(QUANTITIES, (*forward, *backward), strict=True))


def rows(operator: str, backend: Backend, seed: int, effort: float, most_tokens: int) -> Iterator[dict[str, Any]]:
    """One row a quantity that has published percentiles."""
    grid = GRIDS[operator]
    total, began = math.prod(map(len, grid.values())), time.perf_counter()
    axes = grid | {"tokens": [tokens for tokens in grid["tokens"] if tokens <= most_tokens]}
    axes |= {"dropout": [0.0]} if "dropout" in axes else {}
    columns: dict[str, list[tuple[float, ...]]] = {name: [] for name in PUBLISHED[operator]}
    own = {name: axes.pop(name) for name in NETWORK[operator]}
    noise = np.random.default_rng(seed)
    for number, values in enumerate(itertools.product(*own.values())):
        network = dict(zip(own, values, strict=True))
        found = measured(operator, backend, network, seed + 1 + number, effort)
        for others in itertools.product(*axes.values()):
            at = network | dict(zip(axes, others, strict=True))
            samples, theirs, said = moments(operator, at, found), formulas(operator, at), ours(operator, at)
            for name, errors in columns.items():
                seen, spread = samples[name].mean(), samples[name].std(ddof=1) / math.sqrt(len(samples[name]))
                chance = said[name] + spread * noise.standard_normal()
                errors.append(
                    (
                        error(operator, name, seen, said),
                        error(operator, name, seen, theirs),
                        error(operator, name, chance, said),
                        abs(said[name] - theirs[name]) / theirs[name.replace("covariance", "variance")],
                    )
                )
    seconds = round(time.perf_counter() - began, 1)
    for name, found_errors in columns.items():
        mine, theirs_now, alone, difference = np.array(found_errors).T
        yield {
            "operator": operator,
            "quantity": name,
            "ours": percentiles(mine),
            "theirs": percentiles(theirs_now),
            "noise": percentiles(alone),
            "published": PUBLISHED[operator][name],
            "difference": float(f"{difference.max():.2g}"),
            "places": len(found_errors),
            "of": total,
            "seconds": seconds,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="float64")
    parser.add_argument("--operators", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--tokens", type=int, default=1000, help="leave out places of more tokens")
    parser.add_argument("--effort", type=float, default=1.0, help="multiplies the numbers of draws")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    backend = choose_backend(options.backend, options.precision)
    packages = ("numpy", "scipy", "cupy-cuda13x") if backend.name == "cupy" else ("numpy", "scipy")
    settings = {name: getattr(options, name) for name in ("precision", "tokens", "effort", "seed")}
    summary, table = provenance(backend.device, packages) | settings, list[dict[str, Any]]()
    print(f"{'percent errors, [p50, p90, p99]':28s}{'ours':>22s}{'theirs':>24s}{'noise':>22s}{'published':>18s}")
    for operator in options.operators:
        for row in rows(operator, backend, options.seed, options.effort, options.tokens):
            table.append(row)
            cells = f"{row['ours']!s:>22s}{row['theirs']!s:>24s}{row['noise']!s:>22s}{list(row['published'])!s:>18s}"
            print(f"{operator + ' ' + row['quantity']:28s}{cells}  {row['places']} of {row['of']}", flush=True)
        print(f"  {operator}: {table[-1]['seconds']} s", flush=True)
        write(options.out, {"summary": summary, "rows": table})


if __name__ == "__main__":
    main()
