"""The change of the stream by one step: theory against simulated networks, and against the fall of the loss."""

from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.theory import predict_change as verb
from propagate.theory.tangents import Map, Places

SIZES: dict[str, Any] = {"depth": 2, "width": 192, "tokens": 4, "heads": 12, "ffn_ratio": 2.0}
START = pg.Start(covariance=0.3, grad_covariance=0.2)
CASES: dict[str, tuple[pg.Model, Any]] = {
    "gates": (pg.Model("prenorm", activation="swiglu", **SIZES), pg.SGD(1e-8)),
    "masked": (pg.Model("spannorm", causal=True, rope=100.0, key_value_heads=4, **SIZES), pg.Muon(1e-6)),
    "normed": (
        pg.Model("postnorm", normed=("query", "value", "heads", "hidden"), norm="layer", **SIZES),
        pg.Muon(1e-6),
    ),
    "two streams": (pg.Model("siamesenorm", activation="gelu", **SIZES), pg.SGD(1e-8)),
    "even": (pg.Model("postnorm", logit_std=0.0, window=2, causal=True, **SIZES), pg.SGD(1e-8)),
}


def score(case: str, draws: int = 16) -> float:
    model, optimizer = CASES[case]
    said = pg.predict_change(model, optimizer, START)
    seen = pg.simulate_steps(model, optimizer, START, steps=1, draws=draws, seed=1, backend="numpy", sampler="dense")
    return float(pg.compare(said, seen.sel(step=1)).worst_z.max())


@pytest.mark.few(3)
@pytest.mark.parametrize("case", list(CASES))
def test_theory_and_networks_agree(case: str) -> None:
    assert score(case) < 4


@pytest.mark.few(1)
@pytest.mark.parametrize("case", ["gates", "masked"])
def test_matrices_that_forget_what_they_sent_back_are_rejected(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(places: Places, change_of: Map) -> Any:
        return right(places, lambda sent, met, arriving: change_of(sent, met._replace(beta=0 * met.beta), arriving))

    right = verb.tangents
    monkeypatch.setattr(verb, "tangents", forgetful)
    assert score(case) > 4


@pytest.mark.parametrize("case", ["gates", "masked"])
def test_the_change_lets_the_loss_fall_as_all_matrices_do(case: str) -> None:
    """Its product with the cotangent is told in closed form by the gradients alone."""
    model, optimizer = CASES[case]
    said, closed = pg.predict_change(model, optimizer, START), pg.predict_step(model, optimizer, START)
    error = np.hypot(said.total_fall_se, closed.get("total_fall_se", 0.0))
    assert abs(said.total_fall - closed.total_fall) < 5 * error < 0.3 * closed.total_fall


def test_of_one_linear_map_all_is_known() -> None:
    """x + x V O of one token, V and O trained at one rate: SGD's change in closed form."""
    model = pg.Model(ResidualOfOne(), depth=1, width=64, tokens=1, heads=4)
    said, n = pg.predict_change(model, pg.SGD(1.0), samples=2**14), 64
    # v = x V has cotangent h = g O^T, of size 1: d = -n |h><x, x> O - n v <v, .> g, and g O^T O has twice the square
    change = n * n * (2 + 1 + 2 * 1)
    assert float(said.change[1]) == pytest.approx(change, rel=5 * float(said.change_se[1]) / change + 1e-9)


def test_what_is_not_derived_is_refused() -> None:
    model, _ = CASES["gates"]
    for words, call in (
        ("not in the span", lambda: pg.predict_change(model, pg.Adam(1e-3))),
        ("decay=0", lambda: pg.predict_change(model, pg.SGD(1e-3, decay=1.0))),
        ("tanh of a stream", lambda: pg.predict_change(pg.Model("dyt", **SIZES), pg.SGD(1e-3))),
        (
            "attention and FFNs",
            lambda: pg.predict_change(pg.Model("prenorm", experts=pg.Experts(4), **SIZES), pg.SGD(1.0)),
        ),
    ):
        with pytest.raises(pg.ModelError, match=words):
            call()


class ResidualOfOne(pg.Placement):
    """One attention beside its skip."""

    def block(self, x: Any, block: Any) -> Any:
        return x + block.attention(x)
