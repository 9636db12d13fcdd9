"""First steps on a cross-entropy: theory of every matrix against simulated networks."""

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
    assert {"embedding", "unembedding"} <= set(said.matrix.to_numpy())
    return {str(name): float(z) for name, z in pg.compare(said, seen).worst_z.to_series().items()}


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("case", "optimizer"),
    [
        ("a final norm", pg.SGD(1e-2)),
        ("a final norm", pg.Adam(1e-5, eps=1e-4)),
        ("masked", pg.SGD(1e-2)),
        pytest.param("masked", pg.Muon(1e-2), marks=pytest.mark.slow),
        pytest.param("masked", pg.Sign(1e-5), marks=pytest.mark.slow),
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


def test_one_gaussian_law_for_all_columns_of_the_unembedding_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets' columns are few and large: signs know no sizes, and their mean square is not that of most columns."""
    right = verb.unembedding_uses
    monkeypatch.setattr(verb, "unembedding_uses", lambda *asked, by_entry: right(*asked, by_entry=False))
    found = scores("a final norm", pg.Sign(1e-5))
    assert min(found[f"{name}[unembedding]"] for name in ("own_change", "first_order_fall")) > 4
    assert max(z for name, z in found.items() if "unembedding" not in name) < 4


def test_all_falls_together_are_that_of_the_loss() -> None:
    """No matrix is left out, nor counted twice: of a step so short that only the first order counts."""
    model, loss, _ = CASES["a final norm"]
    said = pg.predict_step(model, pg.SGD(1e-4), loss=loss)
    seen = pg.simulate_steps(model, pg.SGD(1e-4), steps=1, loss=loss, draws=24, backend="numpy")
    fallen = float(seen.loss[0] - seen.loss[1])
    assert fallen == pytest.approx(float(said.total_fall), rel=0.06)
    inside = said.first_order_fall.drop_sel(matrix=["embedding", "unembedding"]).sum()
    assert fallen > 1.2 * float(inside)
    with pytest.raises(pg.ModelError, match="vocabulary larger than tokens=4"):
        pg.predict_step(model, pg.Sign(1e-3), loss=pg.CrossEntropy(4))
    with pytest.raises(pg.ModelError, match="logits up to a standard deviation of 3"):
        pg.predict_step(model, pg.Sign(1e-3), loss=pg.CrossEntropy(5000, gain=4.0))


def test_what_repeats_is_allowed_for_and_the_rest_refused() -> None:
    model, optimizer = CASES["a final norm"][0], pg.Muon(0.1)
    few, many = (pg.predict_step(model, optimizer, loss=pg.CrossEntropy(size)) for size in (10, 10**6))
    more = (few.own_change_allowance - many.own_change_allowance)[1:].drop_sel(matrix=["embedding", "unembedding"])
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
