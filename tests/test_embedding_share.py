"""The embedding's share of the stream: theory, simulation and torch say the same, and wrong theories are found out."""

import math
from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.table import JOINED
from tests.own_placements import OWN

SHARE = "embedding_share"
START = {"covariance": 0.3}


def model_of(placement: Any, depth: int = 3, **fields: Any) -> pg.Model:
    return pg.Model(placement, depth=depth, width=96, tokens=4, heads=2, **fields)


def said(model: pg.Model, **start: Any) -> Any:
    return pg.predict(model, include={SHARE}, **(start or START))


def seen(model: pg.Model, draws: int = 60, **start: Any) -> Any:
    return pg.simulate(model, include={SHARE}, draws=draws, backend="numpy", progress=False, **(start or START))


def verdict(predicted: Any, measured: Any) -> str:
    return str(pg.compare(predicted, measured).verdict.sel(quantity=SHARE).item())


def judge(predicted: Any, measured: Any, *wrong: Any) -> None:
    assert verdict(predicted, measured) != "disagrees"
    for other in wrong:
        found = predicted.assign({SHARE: predicted[SHARE].copy(data=np.broadcast_to(other, predicted[SHARE].shape))})
        assert verdict(found, measured) == "disagrees"


FIRST = ("hybridnorm", "residual", "spannorm")
MARKED = [pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in OWN]


@pytest.mark.parametrize("placement", MARKED)
def test_every_placement(placement: str) -> None:
    """Against what is left of a norm's output, forgetting that skips are normed or that branches are added."""
    model = pg.Model(placement, depth=3, width=256, tokens=4, heads=2)
    predicted = said(model)
    limit = np.clip((predicted[SHARE] - 1 / 256) / (1 - 1 / 256), 0, 1)
    judge(predicted, seen(model), *([np.sqrt(limit)] if float(limit.min()) < 0.9 else []))


def test_a_share_never_falls_below_chance() -> None:
    """PostNorm of 6 blocks keeps a share of 4^-6; the rest lies along the embedding by chance, 1 / width of it."""
    model = model_of("postnorm", depth=6)
    predicted = said(model)
    limit = (predicted[SHARE] * 96 - 1) / 95
    assert float(limit[-1]) < 1e-3
    judge(predicted, seen(model), limit, said(model_of("spannorm", depth=6))[SHARE])


def test_in_pre_norm_it_is_what_the_embedding_is_of_the_variance() -> None:
    wide = pg.Model("prenorm", depth=8, width=2**40, tokens=4)
    predicted = pg.predict(wide, include={SHARE}, variance=2.0, covariance=0.5)
    assert np.allclose(predicted[SHARE], 2.0 / predicted.variance, rtol=1e-9)
    post = pg.predict(pg.Model("postnorm", depth=3, width=2**40, tokens=4), include={SHARE})
    assert np.allclose(post[SHARE], post.skip_gain[0] / post.skip_gain, rtol=1e-9)


def test_tokens_that_differ() -> None:
    """Under a causal mask, token by token: the mean of shares is not the share of means."""
    model = model_of("spannorm", causal=True)
    gram = np.diag([1.0, 9.0, 1.0, 4.0]) + 0.3
    predicted = said(model, gram=gram)
    first = said(model_of("spannorm"))[SHARE]  # all tokens see all, and are alike
    judge(predicted, seen(model, draws=160, gram=gram), first)
    assert predicted[f"{SHARE}_se"].shape == (4,)


def test_identity_experts_hand_the_embedding_on() -> None:
    experts = pg.Experts(8, top_k=3, identity=4, softmax="before", gain=3.0, ffn=pg.FFN("relu", hidden=64))
    model = model_of("scmoe", depth=2, experts=experts)
    predicted = said(model)
    judge(predicted, seen(model), float(predicted.variance[0]) / predicted.variance)


def test_arrays_of_starts() -> None:
    import xarray as xr

    many = pg.predict(model_of("spannorm"), include={SHARE}, covariance=xr.DataArray([0.0, 0.3], dims="start"))
    assert np.allclose(many[SHARE].isel(start=1), said(model_of("spannorm"))[SHARE])


@pytest.mark.parametrize("placement", ["siamesenorm", pytest.param("prenorm", marks=pytest.mark.slow)])
def test_a_trace(placement: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
    torch.set_num_threads(1)
    model = model_of(placement, depth=2)
    x = torch.randn(4, 4, 96, generator=torch.Generator().manual_seed(0))
    measured = pg.trace((pg.build(model, seed=seed) for seed in range(12)), x)
    predicted = pg.predict(model, pg.start_of(measured), include={SHARE})
    judge(predicted, measured, predicted[SHARE] ** 2)
    if placement == "siamesenorm":
        assert float(measured[SHARE].sel(stream=JOINED)[0]) == 1.0
        assert math.isnan(float(measured[SHARE].sel(stream=JOINED)[1]))


def test_it_is_asked_for() -> None:
    assert SHARE not in pg.predict(model_of("prenorm"))
    assert SHARE not in pg.simulate(model_of("prenorm"), draws=2, backend="numpy", progress=False)
