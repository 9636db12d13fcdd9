"""First steps on a cross-entropy: theory of the matrices inside blocks against simulated networks."""

import numpy as np
import pytest

import propagate as pg
from propagate.theory import predict_step as verb
from propagate.theory.losses_met import Ends

SIZES = {"depth": 2, "width": 128, "tokens": 4, "heads": 16, "ffn_ratio": 2.0}
CASES = {
    "a final norm": (pg.Model("prenorm", **SIZES), pg.CrossEntropy(200), "mup"),
    "masked": (pg.Model("spannorm", causal=True, activation="swiglu", **SIZES), pg.CrossEntropy(100, gain=2.0), None),
    "two streams": (pg.Model("siamesenorm", **SIZES), pg.CrossEntropy(200, gain=0.5), None),
}


def scores(case: str, optimizer: object, draws: int = 16) -> dict[str, float]:
    model, loss, transfer = CASES[case]
    asked = {"loss": loss, "transfer": transfer, "base": (64, 2)}
    said = pg.predict_step(model, optimizer, pg.Start(variance=0.7), **asked)
    run = {"steps": 1, "draws": draws, "seed": 3, "backend": "numpy"}
    seen = pg.simulate_steps(model, optimizer, pg.Start(variance=0.7), **run, **asked).sel(step=1)
    assert not set(said.matrix.to_numpy()) & {"embedding", "unembedding"}
    assert "total_fall" not in said
    return {str(name): float(z) for name, z in pg.compare(said, seen).worst_z.to_series().items()}


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("case", "optimizer"),
    [
        ("a final norm", pg.SGD(1e-2)),
        pytest.param("a final norm", pg.Adam(1e-5, eps=1e-6), marks=pytest.mark.slow),
        ("masked", pg.SGD(1e-2)),
        pytest.param("masked", pg.Muon(1e-2), marks=pytest.mark.slow),
        pytest.param("two streams", pg.SGD(1e-2), marks=pytest.mark.slow),
        ("two streams", pg.Muon(1e-2)),
    ],
)
def test_theory_and_networks_agree(case: str, optimizer: object) -> None:
    found = scores(case, optimizer)
    assert len(found) > 20
    assert max(found.values()) < 4, found


@pytest.mark.few(1)
@pytest.mark.parametrize("wrong", ["the readout's norm", "the mean over tokens"])
def test_a_cotangent_that_leaves_something_out_is_rejected(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def left_out(loss: object, start: object, network: pg.Model, factors: object) -> Ends:
        ends = right(loss, start, network, factors)
        if wrong == "the readout's norm":
            return ends._replace(through_readout=False)
        given = dict(ends.start)
        given |= {name: network.tokens * given[name] for name in ("grad_variance", "grad_covariance")}
        return ends._replace(start=pg.Start(**given))

    right = verb.ends_met
    monkeypatch.setattr(verb, "ends_met", left_out)
    found = scores("a final norm", pg.SGD(1e-2))
    assert min(found[f"first_order_fall[{name}]"] for name in ("value", "attention_out", "ffn_in", "ffn_out")) > 4


def test_what_repeats_is_allowed_for_and_the_rest_refused() -> None:
    model, optimizer = CASES["a final norm"][0], pg.Muon(0.1)
    few, many = (pg.predict_step(model, optimizer, loss=pg.CrossEntropy(size)) for size in (10, 10**6))
    more = (few.own_change_allowance - many.own_change_allowance)[1:]
    np.testing.assert_allclose(more, 3 / 10 - 3 / 10**6, atol=0.02)
    with pytest.raises(pg.ModelError, match=r"only variance with loss=CrossEntropy\(\.\.\.\), got covariance"):
        pg.predict_step(model, optimizer, pg.Start(covariance=0.1), loss=pg.CrossEntropy(10))
    for variance in (0.0, "large", True):
        with pytest.raises(pg.ModelError, match="variance must be"):
            pg.predict_step(model, optimizer, pg.Start(variance=variance), loss=pg.CrossEntropy(10))
    with pytest.raises(pg.ModelError, match="covers logits up to a standard deviation of 40, got 50"):
        pg.predict_step(model, optimizer, loss=pg.CrossEntropy(10, gain=50.0))
    uneven = pg.Model("residual", causal=True, **SIZES)
    with pytest.raises(pg.ModelError, match="needs a readout that gives all tokens one size"):
        pg.predict_step(uneven, optimizer, loss=pg.CrossEntropy(10))
