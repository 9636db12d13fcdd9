"""Norms with eps, on streams and inside sublayers, and gates with a gain of their own: theory against simulation.

Taken for 0, or for 1, as both once were, each is rejected by the same scores.
"""

from dataclasses import replace
from typing import Any

import pytest

import propagate as pg

SIZES: dict[str, Any] = {"depth": 2, "width": 256, "tokens": 6, "heads": 4}
START = pg.Start(covariance=0.3, grad_covariance=0.2)
EPS = pg.Norm(eps=0.5)
GATED = pg.FFN("swiglu", ratio=2, in_gain=0.9, gate_gain=1.7, out_gain=1.1)
CASES = {
    "streams": pg.Model("prenorm", **SIZES, norm=EPS),
    "hidden units": pg.Model("prenorm", **SIZES, norm=EPS, normed=("hidden",)),
    "heads, causal": pg.Model("prenorm", **SIZES, norm=EPS, normed=("heads",), causal=True),
    "queries and keys": pg.Model("prenorm", **SIZES, norm=EPS, normed=("query", "key"), logit_std=2.0),
    "queries and keys, causal": pg.Model(
        "prenorm", **SIZES, norm=EPS, normed=("query", "key"), logit_std=2.0, causal=True
    ),
    "embedded tokens": pg.Model("periln", **SIZES, norm=pg.Norm("layer", eps=0.5)),
    "values, causal": pg.Model("prenorm", **SIZES, norm=EPS, normed=("value",), causal=True),
    "a gate's own gain": pg.Model("prenorm", **SIZES, ffn=GATED),
    "an expert's gate": pg.Model("prenorm", **SIZES, ffn=GATED, experts=pg.Experts(4, 2)),
}


def without(model: pg.Model) -> pg.Model:
    """The model as it would be without eps or the gate's gain."""
    plain = None if model.ffn is None else replace(model.ffn, gate_gain=1.0)
    return replace(model, norm="rms", ffn=plain)


@pytest.mark.few(3)
@pytest.mark.parametrize("name", CASES)
def test_theory_and_simulation_agree(name: str) -> None:
    model = CASES[name]
    seen = pg.simulate(model, START, draws=60, seed=6, backend="numpy")
    right, wrong = (pg.predict(each, START) for each in (model, without(model)))
    assert float(pg.compare(right, seen).worst_z.max()) < 4
    assert pg.compare(wrong, seen).attrs["verdict"] == "disagrees"


def test_a_large_eps_inside_heads_is_warned_of() -> None:
    with pytest.warns(pg.ValidityWarning, match="eps is up to .* of what a norm inside attention divides by"):
        pg.predict(CASES["queries and keys"])


def test_norms_of_ones_own_are_not_taken_for_the_packages() -> None:
    class Power(pg.Norm):
        """Of which theory knows nothing."""

    with pytest.raises(pg.ModelError, match="theory does not cover Power"):
        pg.predict(pg.Model("prenorm", **SIZES, norm=Power()))
