"""What gates, squared activations, grouped heads and dropout do to second moments, in theory and simulation."""

import dataclasses
import math

import numpy as np
import pytest

import propagate as pg

SIZE = {"depth": 4, "width": 128, "tokens": 8, "heads": 4, "ffn_ratio": 1}
START = {"covariance": 0.3, "grad_covariance": 0.4}
OPERATORS = {
    "geglu": pg.Model("spannorm", activation="geglu", **SIZE),
    "squared relu": pg.Model("prenorm", activation="squared_relu", **SIZE),
    "dropout": pg.Model("prenorm", dropout=0.3, **SIZE),
    "dropout behind a norm": pg.Model("postnorm", dropout=0.3, **SIZE),
    "grouped": pg.Model("prenorm", key_value_heads=2, **SIZE),
}
WRONG = {
    "geglu": {"activation": "gelu"},
    "squared relu": {"activation": "relu"},
    "dropout": {"dropout": 0.1},
    "dropout behind a norm": {"dropout": 0.1},
    "grouped": {"attention_gain": math.sqrt(2)},  # if shared values added up coherently
}


@pytest.mark.few(2)
@pytest.mark.parametrize("operator", OPERATORS)
def test_theory_and_simulation_agree(operator: str) -> None:
    model = OPERATORS[operator]
    seen = pg.simulate(model, draws=100, seed=list(OPERATORS).index(operator), backend="numpy", **START)
    found = pg.compare(pg.predict(model, **START), seen)
    assert found.attrs["verdict"] != "disagrees", found.worst_z.to_series().to_dict()
    wrong = dataclasses.replace(model, **WRONG[operator])
    assert pg.compare(pg.predict(wrong, **START), seen).attrs["verdict"] == "disagrees"


def test_dropout_raises_variances_and_no_covariance() -> None:
    """A sublayer behind a skip: its variance over 1 - dropout, forward and backward, its covariance as before."""
    one = {"depth": 1, "tokens": 8, "logit_std": 0.0}

    class BranchOnly(pg.Placement):
        def block(self, x, block):
            return block.ffn(x)

    plain = pg.predict(pg.Model(BranchOnly(), **one), **START)
    dropped = pg.predict(pg.Model(BranchOnly(), dropout=0.2, **one), **START)
    for prefix, at in (("", 1), ("grad_", 0)):
        ratio = (dropped / plain).isel(block=at)
        assert float(ratio[prefix + "variance"]) == pytest.approx(1 / 0.8, rel=1e-12)
        assert float(ratio[prefix + "covariance"]) == pytest.approx(1.0, rel=1e-12)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    from propagate.montecarlo.backend import choose_backend
    from propagate.montecarlo.operators import dropout

    noise = np.random.default_rng(0).standard_normal((1, 1, 100_000))
    y, pull = dropout(choose_backend("numpy"), np.ones_like(noise), noise, 0.3)
    error = math.sqrt(0.3 * 0.7 / noise.size)
    assert abs((y == 0).mean() - 0.3) < 4 * error
    assert abs((y == 0).mean() - 0.31) > 4 * error
    assert sorted(set(y.ravel())) == [0.0, 1 / 0.7]
    assert (pull(np.ones_like(noise)) == y).all()


class AttentionOnly(pg.Placement):
    """One sublayer, whose moments at one width are all there is."""

    def block(self, x, block):
        return block.attention(x)


@pytest.mark.few(2)
@pytest.mark.parametrize("logit_std", [0.0, 1.0])
@pytest.mark.parametrize("key_value_heads", [1, 2])
def test_grouped_heads_change_no_second_moment(key_value_heads: int, logit_std: float) -> None:
    """Every head has an output matrix of its own, of mean zero: what heads share shows in no second moment."""
    size = {"depth": 1, "width": 64, "tokens": 6, "heads": 8, "logit_std": logit_std}
    model = pg.Model(AttentionOnly(), key_value_heads=key_value_heads, **size)
    everyone = pg.Model(AttentionOnly(), **size)
    assert pg.predict(model, **START).drop_attrs().equals(pg.predict(everyone, **START).drop_attrs())
    draws = 600
    grouped, own = (pg.simulate(m, draws=draws, seed=1, backend="numpy", **START) for m in (model, everyone))
    for name, at in (("variance", 1), ("covariance", 1), ("grad_variance", 0), ("grad_covariance", 0)):
        left, right = grouped[name][at], own[name][at]
        error = float(np.hypot(grouped[f"{name}_se"][at], own[f"{name}_se"][at]))
        assert abs(float(left - right)) < 4 * error, name
        if name == "variance":
            assert abs(float(left - 1.4 * right)) > 4 * error


@pytest.mark.few(1)
@pytest.mark.parametrize("key_value_heads", [1, 2, 8])
def test_grouped_heads_fluctuate_more(key_value_heads: int) -> None:
    """Uniform attention: relative variance over networks (1 + 2/d) (1 + 2 H / (G d)) - 1, both ways.

    The G value heads are G d / H numbers in place of d, whose squares do not average out as well; the output matrix
    has as many as ever.
    """
    width, heads, draws = 64, 8, 3000
    model = pg.Model(AttentionOnly(), 1, width, tokens=4, heads=heads, key_value_heads=key_value_heads, logit_std=0.0)
    seen = pg.simulate(model, draws=draws, seed=2, covariance=1.0, grad_covariance=1.0, backend="numpy")

    def expected(groups: int) -> float:
        return (1 + 2 / width) * (1 + 2 * heads / (groups * width)) - 1

    for name, at in (("variance", 1), ("grad_variance", 0)):
        found = float(draws * (seen[f"{name}_se"][at] / seen[name][at]) ** 2)
        # a sample variance has relative variance (2 + excess kurtosis) / draws; a chi square of n has 12 / n
        error = found * math.sqrt((2 + 12 * (heads / key_value_heads + 1) / width) / draws)
        assert abs(found - expected(key_value_heads)) < 4 * error, (name, found)
        other = 1 if key_value_heads > 1 else 8
        assert abs(found - expected(other)) > 4 * error
