"""Starts and gains at the ends of what is allowed: every number is finite, or a refusal says what to change."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import sympy

import propagate as pg
from propagate.expressions import symbol
from propagate.placements import DyT
from propagate.theory.finite.units import _tokens, hidden_forward
from propagate.theory.pairs.moments import Moments
from tests.own_placements import OWN
from tests.random_configurations import not_finite

WIDE = {"head_size": math.inf}  # no tables of finite heads, which take a second each
NORMING_ATTENTION = ("deepscalelm", "ngpt", "olmo2", "periln", "sandwichnorm", "subln")  # its output
ENDS = {"apart": {"covariance": -1.0}, "alike": {"covariance": 1.0, "grad_covariance": 1.0}}


def answer(placement: Any, asked: dict[str, Any], **fields: Any) -> str:
    """The refusal, or what is not finite, or "" for a table of numbers; other warnings and errors are failures."""
    model = pg.Model(placement, **{"depth": 2, "width": 64, "heads": 4, "tokens": 2, "activation": "gelu"} | fields)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            return not_finite(pg.predict(model, **WIDE, **asked), model) or ""
    except pg.ModelError as error:
        return f"refused: {error}"


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("placement", OWN)
def test_tokens_that_coincide_or_add_up_to_nothing(placement: str, end: str) -> None:
    for logit_std in (0.0, 1.0):
        found = answer(placement, ENDS[end], logit_std=logit_std)
        if placement in NORMING_ATTENTION and end == "apart" and logit_std == 0:
            assert "covariance must lie above -variance / (tokens - 1) where block 1 of" in found
        else:
            assert found == ""


def test_no_router_is_off_where_tokens_are_the_same() -> None:
    """Their distance is rounding, of either sign: its logarithm has no mean."""
    kind = pg.Experts(4, 1, softmax="before", identity=2)
    fields = {"tokens": 3, "depth": 1, "activation": "geglu", "norm": "layer", "logit_std": 2.0, "experts": kind}
    model = pg.Model("keel", width=64, heads=2, ffn_ratio=0.5, scaling=pg.ScaleInit(0.5, per="block"), **fields)
    alike, apart = (pg.predict(model, covariance=covariance).log_deviation_bias for covariance in (1.0, 0.9))
    assert (alike == 0).all()
    assert float(apart[1]) < -1e-3


@pytest.mark.few(2)
@pytest.mark.parametrize("placement", ["mixln", "prenorm", "postnorm", "residual"])
def test_their_fluctuations(placement: str) -> None:
    for start in (*ENDS.values(), {}):
        tokens = 1 if not start else 2
        found = answer(placement, start | {"fluctuations": True}, tokens=tokens, activation="relu")
        sampled = placement == "residual" and start == ENDS["apart"]
        assert found.startswith("refused: covariance must lie above") is sampled
        assert sampled or found == ""


@pytest.mark.parametrize("gain", ["value_gain", "attention_gain", "ffn_gain"])
def test_gains_of_zero(gain: str) -> None:
    for placement in ("periln", "deepscalelm", "ngpt", "olmo2", "sandwichnorm"):
        assert answer(placement, {}, **{gain: 0.0}).startswith(f"refused: {gain} must be positive where block 1 of")
    for placement in ("prenorm", "postnorm", "rezero", "dyt", "residual"):
        assert answer(placement, {}, **{gain: 0.0}) == ""
    assert gain in answer("residual", {"fluctuations": True}, **{gain: 0.0})
    assert "value_gain" in answer("hybridnorm", {}, value_gain=0.0)  # a normed projection that is 0


@pytest.mark.parametrize("causal", [False, True])
def test_one_token_has_no_quantities_of_two(causal: bool) -> None:
    model = pg.Model("prenorm", depth=2, width=32, heads=2, tokens=1, causal=causal)
    tables = [pg.predict(model), pg.predict_calls(model), pg.simulate(model, draws=3, progress=False)]
    for table in tables:
        assert not [name for name in table if "covariance" in str(name) or "deviation" in str(name)]
        assert "grad_variance" in table
    assert set(pg.start_of(tables[2])) == {"variance", "grad_variance"}
    verdict = pg.compare(tables[0], tables[2])
    assert verdict["quantity"].values.tolist() == ["variance", "grad_variance"]


def test_the_cause_is_named() -> None:
    """A variance beyond quadrature is refused by the name of what reads it; closed forms have no such end."""
    rippled = pg.Activation("rippled", symbol() + sympy.sin(symbol()) / 2)
    wide = {"variance": 1e6}
    assert answer("rezero", wide, activation=rippled, logit_std=0.0).startswith(
        "refused: rippled reads a variance of 1e+06"
    )
    with pytest.warns(pg.ValidityWarning, match="verified from"):
        assert answer("rezero", wide, activation="swiglu", logit_std=0.0) == ""
    assert answer(DyT(alpha=2.0), wide, activation=rippled) == ""  # which reads what tanh gives


@pytest.mark.parametrize(("tokens", "distinct"), [(2, 2.0), (2, 1.5), (3, 1.5), (8, 1.1), (4, 0.5)])
def test_units_read_tokens_that_point_apart(tokens: int, distinct: float) -> None:
    """Their sample has the correlation that is asked for; clipped to uncorrelated tokens, once, it does not."""
    (sample,) = _tokens(tokens, (distinct,))
    gram = sample.T @ sample / len(sample)
    found = (np.trace(gram) - gram.sum() / tokens) / (tokens - 1)
    assert found == pytest.approx(distinct, rel=0.02)
    clipped = _tokens(tokens, (min(distinct, 1.0),))[0]
    other = clipped.T @ clipped / len(clipped)
    if distinct > 1.2:
        assert (np.trace(other) - other.sum() / tokens) / (tokens - 1) != pytest.approx(distinct, rel=0.02)


def test_units_of_tokens_that_add_up_to_nothing() -> None:
    """A linear unit keeps that: the mean's energy is 0, and so is what is relative to it."""
    assert hidden_forward("linear", 2, 1.0, 2.0)[0].tolist() == [0.0, 0.0]
    assert hidden_forward("relu", 2, 1.0, 2.0)[0, 0] > 0.1


def test_the_mean_over_tokens_is_rounding_or_a_number() -> None:
    assert Moments(0.1, 0.1 * 8 / 7).mean_mode(8) == 0.0
    assert Moments(1.0, (1 - 1e-9) * 8 / 7).mean_mode(8) == pytest.approx(1e-9, rel=1e-5)
