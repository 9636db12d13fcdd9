"""Latent attention: theory at both resolutions and simulation by both samplers say the same, and not without the scale
correction."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr

import propagate as pg
from propagate.testing import assert_adjoint

START = pg.Start(covariance=0.3, grad_covariance=0.2)
GAINS = {"query_gain": 0.8, "key_gain": 0.7, "rotary_gain": 1.6, "value_gain": 0.6, "out_gain": 1.4}
CORRECTED = pg.LatentAttention(heads=8, query_rank=96, key_value_rank=64, scale_correction=True, logit_std=0.6, **GAINS)
POSITIONS = replace(CORRECTED, query_rank=None, causal=True, rope=100.0, value_size=12)
TWO = replace(CORRECTED, key_value_rank=2)
RUN: dict[str, Any] = {"backend": "numpy", "progress": False}


class LatentAlone(pg.Placement):
    """Nothing else, so that what attention makes is not drowned in a skip."""

    def block(self, x: Any, block: Any) -> Any:
        return block.attention(block.norm(x))


def network(attention: pg.LatentAttention, **fields: Any) -> pg.Model:
    return pg.Model("latentalone", **{"depth": 1, "width": 256, "tokens": 6} | fields, attention=attention)


@pytest.fixture(scope="module")
def corrected() -> xr.Dataset:
    include = {"param_grad"}
    return pg.simulate(network(CORRECTED), START, draws=100, sampler="weightless", include=include, **RUN)


@pytest.mark.parametrize("norm", ["rms", pg.Norm("layer", eps=0.1)], ids=str)
@pytest.mark.parametrize(
    "kind",
    [
        CORRECTED.with_(query_rank=7, key_value_rank=5, query_down_gain=0.5),
        POSITIONS.with_(heads=3, rope_size=4, key_value_rank=5, value_size=3),
        pg.LatentAttention(3, key_value_rank=5, logit_std=0.0, scale_correction=True),
        pg.LatentAttention(3, query_rank=6, rope_size=0, causal=True, window=2),
    ],
)
def test_the_reverse_pass_is_the_adjoint(kind: pg.LatentAttention, norm: Any) -> None:
    assert_adjoint(kind.with_(heads=3), pg.Model("prenorm", depth=1, width=12, tokens=5, heads=3, norm=norm))


def test_exchangeable_tokens_agree_and_not_without_the_correction(corrected: xr.Dataset) -> None:
    found = pg.compare(pg.predict(network(CORRECTED), START), corrected)
    assert found.attrs["verdict"] != "disagrees"
    assert float(found.worst_z.max()) < 4
    wrong = pg.predict(network(replace(CORRECTED, scale_correction=False)), START)
    assert pg.compare(wrong, corrected).attrs["verdict"] == "disagrees"


def test_gradients_of_its_matrices_agree_by_name(corrected: xr.Dataset) -> None:
    """Behind the norms, before them and beside them; a gain that is a matrix's own moves its gradient alone."""
    said = pg.predict(network(CORRECTED), START, include={"param_grad"})
    assert set(said.matrix.values) == {name for name, *_ in network(CORRECTED).at(1).attention.matrices(256)}
    assert set(corrected.matrix.values) == set(said.matrix.values)
    found = pg.compare(said, corrected)
    assert float(found.worst_z.max()) < 4
    wrong = said.assign(param_grad=said.param_grad * xr.where(said.matrix == "key_value_down", 1.69, 1.0))
    assert float(pg.compare(wrong, corrected).worst_z.sel(quantity="param_grad[key_value_down]")) > 4


def test_positions_and_a_mask_agree_token_by_token() -> None:
    model = network(POSITIONS)
    seen = pg.simulate(model, START, draws=60, sampler="dense", **RUN)
    found = pg.compare(pg.predict(model, START), seen)
    assert float(found.worst_z.max()) < 4
    alone = replace(POSITIONS, causal=False)
    for wrong in (replace(POSITIONS, scale_correction=False), alone):
        assert pg.compare(pg.predict(network(wrong), START), seen).attrs["verdict"] == "disagrees"


def test_both_resolutions_are_one_map() -> None:
    model = network(CORRECTED)
    pairs = pg.predict(model, START)
    gram = 0.7 * np.eye(6) + 0.3
    resolved = pg.predict(model, replace(START, gram=gram, covariance=0.0), samples=2048)
    for name in ("variance", "deviation", "grad_variance", "grad_deviation"):
        apart = abs(resolved[name] / pairs[name] - 1)
        assert float((apart / (resolved[f"{name}_se"] / pairs[name] + 1e-3)).max()) < 4, name
        assert float(abs(1.1 * resolved[name] / pairs[name] - 1).max()) > float(apart.max())


def test_of_infinite_rank_and_without_turned_coordinates_it_is_attention() -> None:
    """In the wide limit the norm behind the first matrix finds tokens of size 1, and the matrix keeps their cosines."""
    latent = pg.LatentAttention(8, rope_size=0, query_rank=96, key_value_rank=64, value_gain=0.6)
    plain = pg.Model("latentalone", depth=1, width=256, tokens=6, value_gain=0.6)
    one, other = (pg.predict(model, START, head_size=math.inf) for model in (network(latent), plain))
    for name in ("variance", "deviation", "grad_variance", "grad_deviation"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-12)
    small = pg.predict(network(latent), START)
    assert abs(float(small.grad_variance[0] / one.grad_variance[0]) - 1) > 1e-3


@pytest.mark.parametrize("correct", [True, False])
def test_queries_and_the_shared_keys_are_alike_whatever_the_rank(correct: bool) -> None:
    """Entries of one standard deviation, with the correction: the spread of the logits does not depend on ranks."""
    sizes = {"heads": 4, "head_size": 16, "rope_size": 8, "scale_correction": correct}
    powers = [
        pg.LatentAttention.of_std(0.05, 256, **sizes, query_rank=q, key_value_rank=kv).fitted(256, 8).logit_power(256)
        for q, kv in ((32, 16), (128, 64), (256, 256))
    ]
    assert bool(np.ptp(powers) < 1e-12 * powers[0]) is correct
    assert powers[-1] == pytest.approx((0.05**2 * 256) ** 2)


def test_an_array_of_starts_is_a_prediction_each() -> None:
    model, covariances = network(CORRECTED), xr.DataArray([0.1, 0.6], dims="c")
    together = pg.predict(model, covariance=covariances)
    for c in (0, 1):
        alone = pg.predict(model, covariance=float(covariances[c]))
        np.testing.assert_allclose(together.grad_variance.isel(c=c), alone.grad_variance, rtol=1e-9)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (
            lambda: pg.Model("prenorm", 1, normed=("key",), attention=CORRECTED),
            "normed must not name key beside",
        ),
        (lambda: pg.Model("prenorm", 1, heads=4, attention=CORRECTED), "heads must be left out beside attention="),
        (lambda: pg.Model("prenorm", 1, key_value_heads=4, attention=CORRECTED), "key_value_heads must be left out"),
        (lambda: pg.predict(pg.Model("hybridnorm", 1, attention=CORRECTED)), "must not name key, query, value"),
        (lambda: pg.predict(network(POSITIONS), head_size=8), "head_size must be None for LatentAttention"),
        (lambda: pg.predict(network(replace(CORRECTED, query_rank=2))), "query_rank must leave 3 free coordinates"),
        (lambda: pg.simulate(network(TWO, norm="layer"), draws=2), "key_value_rank must be at least 3"),
        (lambda: pg.predict(network(CORRECTED), include={"bias"}), "bias does not cover LatentAttention"),
        (lambda: pg.predict_step(network(CORRECTED), pg.SGD(lr=0.1)), "predict_step does not cover LatentAttention"),
        (
            lambda: pg.simulate_steps(network(CORRECTED), pg.SGD(lr=0.1), steps=1, draws=2, transfer="mup"),
            "transfer does not cover LatentAttention",
        ),
        (lambda: replace(POSITIONS, rope_size=3).fitted(64, 4), "rope must be None for rope_size=3"),
        (lambda: pg.LatentAttention(key_value_down_gain=0.0), "key_value_down_gain must be positive"),
        (lambda: pg.LatentAttention.of_std(0.02, 64, key_gain=2.0), "key_gain must be left out beside std"),
    ],
)
def test_what_is_not_covered_is_refused_in_words(ask: Any, words: str) -> None:
    with pytest.raises(pg.ModelError, match=words):
        ask()
