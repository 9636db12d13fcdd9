"""Gradient variance behind attention, 256 tokens at width 512, heads of 64: our map within 3 % or 3 standard errors.

Not so at logits of standard deviation 2.25 where tokens and gradients are both correlated: there the map falls short by
2 to 6 %, of which the finite width, twice the tokens, is the likely cause. The published formula, which follows the
values alone, and the limit of wide heads are rejected by the same check.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.theory.finite_heads import attention_of_head_size, head_averages
from propagate.theory.moments import Moments
from propagate.theory.softmax import softmax_averages

ROWS = json.loads((Path(__file__).parent.parent / "benchmarks/results/attention_gradient.json").read_bytes())["rows"]
NARROW = [row for row in ROWS if row["head_size"] == 64]


def accepted(said: float, own_error: float, row: dict[str, Any]) -> bool:
    """Within 3 % of the measurement, or within 3 standard errors of it and of the map's own sampling."""
    error = float(np.hypot(row["standard_error"], own_error))
    return bool(abs(said - row["measured"]) <= max(0.03 * row["measured"], 3 * error))


def ours(row: dict[str, Any], samples: int) -> tuple[float, float]:
    x, g = Moments(1.0, 1 - row["correlation"]), Moments(1.0, 1 - row["grad_correlation"])
    found = [
        attention_of_head_size(x, g, 256, row["head_size"], row["logit_std"] ** 2, samples=samples, seed=seed)[
            1
        ].variance
        for seed in range(8)
    ]
    return float(np.mean(found)), float(np.std(found, ddof=1) / 8**0.5)


def test_the_stored_measurements_are_the_whole_grid() -> None:
    assert {row["logit_std"] for row in NARROW} == {0.36, 1.0, 2.25}
    assert len(NARROW) == 27
    assert max(row["standard_error_percent"] for row in NARROW) < 2


HARD = [row for row in NARROW if row["logit_std"] > 2 and row["correlation"] > 0 and row["grad_correlation"] > 0]
REST = [row for row in NARROW if row not in HARD]


def test_our_map_is_accepted_and_the_others_are_not() -> None:
    for row in REST:
        own_error = row["of_head_size"] * row["of_head_size_standard_error_percent"] / 100
        assert accepted(row["of_head_size"], own_error, row), row
    for row in HARD:  # a known shortfall, smaller than that of the limit of wide heads and of the published formula
        assert -7 < row["of_head_size_error_percent"] < 0
        assert row["error_percent"] < row["of_head_size_error_percent"]
        assert row["published_error_percent"] < -80
    assert sum(accepted(row["published"], 0.0, row) for row in NARROW) < 6
    assert not all(accepted(row["predicted"], 0.0, row) for row in NARROW)


def test_what_is_stored_is_what_the_map_says() -> None:
    row = next(r for r in NARROW if r["logit_std"] == 2.25 and r["correlation"] == 0 and r["grad_correlation"] > 0.5)
    said, error = ours(row, samples=1)
    assert abs(said - row["of_head_size"]) < 4 * error
    assert error < 0.05 * said


@pytest.mark.slow
def test_the_map_again_and_fresh_simulations() -> None:
    """The map anew for every stored measurement, and new networks at the corners of the grid."""

    class AttentionAlone(pg.Placement):
        def block(self, x, block):
            return block.attention(x)

    for row in REST:
        assert accepted(*ours(row, samples=16), row), row
    for row in (NARROW[0], NARROW[4], NARROW[18], NARROW[26]):
        model = pg.Model(AttentionAlone(), depth=1, width=512, tokens=256, heads=8, logit_std=row["logit_std"])
        start = {"covariance": row["correlation"], "grad_covariance": row["grad_correlation"]}
        seen = pg.simulate(model, draws=48, seed=77, backend="numpy", **start).isel(block=0)
        error = float(np.hypot(seen.grad_variance_se, row["standard_error"]))
        assert abs(float(seen.grad_variance) - row["measured"]) < 4 * error


def test_wide_heads_are_the_limit_with_an_error_of_one_over_the_head_size() -> None:
    limit = softmax_averages(16, 4.0, 0.0)
    exact = 15 / 256 + limit.cross_slope
    drawn = {n: head_averages(16, n, 4.0, 0.0, samples=2000) for n in (8, 32, 512)}
    assert abs(drawn[512].query_cross / exact - 1) < 0.03
    # chance correlations between queries: of order 1 / n where the limit has none
    ratio = drawn[8].key_cross / drawn[32].key_cross
    assert 2 < ratio < 6
    assert drawn[32].key_cross > 0.001


def test_deviations_agree_with_a_simulated_layer() -> None:
    class SmallHeads(pg.Placement):
        def block(self, x, block):
            return block.attention(x)

    model = pg.Model(SmallHeads(), depth=1, width=512, tokens=16, heads=64, logit_std=1.5)
    seen = pg.simulate(model, draws=64, seed=3, backend="numpy", covariance=0.3, grad_covariance=0.4)
    output, back = attention_of_head_size(Moments(1.0, 0.7), Moments(1.0, 0.6), 16, 8, 1.5**2, samples=3000)
    for said, name, block in (
        (output.variance, "variance", 1),
        (output.deviation, "deviation", 1),
        (back.variance, "grad_variance", 0),
        (back.deviation, "grad_deviation", 0),
    ):
        error = float(np.hypot(seen[f"{name}_se"][block], 0.01 * said))
        assert abs(said - float(seen[name][block])) < 4 * error, name
    limit = pg.predict(model, covariance=0.3, grad_covariance=0.4)
    assert float(seen.grad_deviation[0] / limit.grad_deviation[0]) > 1.05
