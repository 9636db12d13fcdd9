"""Few heads, hidden units or coordinates: the stated allowance grows by what networks then differ in, and no more."""

import numpy as np
import pytest
import xarray as xr

import propagate as pg
from propagate.theory.finite import allowances as finite_width
from propagate.theory.finite.units import heads_backward

START = {"covariance": 0.3, "grad_covariance": 0.2}
SCARCE = {
    "one head, wide logits": {"heads": 1, "logit_std": 4.0},
    "dropout of nine in ten": {"dropout": 0.9, "heads": 8, "logit_std": 0.0, "width": 128},
}


def both(fields: dict[str, float], draws: int = 200) -> tuple[pg.Model, xr.Dataset]:
    model = pg.Model("spannorm", **{"depth": 4, "width": 256, "tokens": 4, "ffn_ratio": 1.0} | fields)
    return model, pg.simulate(model, draws=draws, seed=5, backend="numpy", progress=False, **START)


@pytest.mark.few(1)
@pytest.mark.parametrize("case", SCARCE)
def test_what_few_units_do_is_allowed_for(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = both(SCARCE[case])
    monkeypatch.setattr(finite_width, "SAME_MATRICES", 0.0)  # the question here is what units alone explain
    assert float(pg.compare(pg.predict(model, **START), seen).worst_z.max()) < 2.5
    monkeypatch.setattr(finite_width, "_scarce", lambda *given: (0 * given[1], 0 * given[1]))
    assert float(pg.compare(pg.predict(model, **START), seen).worst_z.max()) > 3.5


def test_where_units_are_many_hardly_anything_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pg.Model("postnorm", depth=12, width=512, tokens=16, heads=8)
    stated = pg.predict(model, **START)
    monkeypatch.setattr(finite_width, "_scarce", lambda *given: (0 * given[1], 0 * given[1]))
    without = pg.predict(model, **START)
    for name in ("deviation_allowance", "grad_variance_allowance"):
        assert float((stated[name] / without[name]).max()) < 1.4
    assert float(stated.grad_variance_allowance.max()) < 0.06  # of one standard deviation, at 12 unscaled blocks


@pytest.mark.parametrize("tokens", [4, 8, 16])
@pytest.mark.parametrize("variance", [1.0, 4.0, 16.0])
def test_the_law_of_heads_is_that_of_drawn_ones(tokens: int, variance: float) -> None:
    """Half the relative variance of what a head sends back, of a block that keeps nothing of its input."""
    model = pg.Model("prenorm", depth=1, width=512, tokens=tokens, heads=1, logit_std=float(np.sqrt(variance)))
    none, distinct = np.zeros(1), np.ones(1)
    _, back = finite_width._scarce(model, none, distinct, tokens - 1)
    drawn = float(np.diag(heads_backward(tokens, variance, 1.0, 1.0))[2:].max())
    assert 0.6 < 2 * float(back[0]) / drawn < 2


@pytest.mark.slow
def test_what_logits_and_their_cotangents_share_is_allowed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peri-LN at wide logits: the mean gradient lies above the limit, by more than the other terms allow."""
    model = pg.Model("periln", depth=6, width=128, heads=32, tokens=12, logit_std=5.0)
    seen = pg.simulate(model, draws=150, seed=5, backend="numpy", progress=False, covariance=0.2)

    def share() -> float:
        theory = pg.predict(model, covariance=0.2)
        off = float(seen.grad_variance[0] / theory.grad_variance[0]) - 1
        return off / float(theory.grad_variance_allowance[0])

    assert 0.3 < share() < 1.5
    monkeypatch.setattr(finite_width, "SAME_MATRICES", 0.0)
    assert share() > 2


def _off(model: pg.Model, seen: xr.Dataset, monkeypatch: pytest.MonkeyPatch, name: str, without: object) -> list[float]:
    """Largest |z| of the gradient, and what it is without a term."""
    start = {"through_readout": True, "variance": 0.01}
    z = [float(abs(pg.compare(pg.predict(model, **start), seen).z.sel(quantity="grad_variance")).max())]
    monkeypatch.setattr(finite_width, name, without)
    return [*z, float(abs(pg.compare(pg.predict(model, **start), seen).z.sel(quantity="grad_variance")).max())]


READ_OUT = {
    "one head's choices": {"heads": 1, "logit_std": 1.0, "ffn_gain": 0.1},
    "dropout of nine in ten": {"heads": 8, "logit_std": 0.0, "dropout": 0.9},
}


@pytest.mark.parametrize("case", READ_OUT)
def test_what_single_tokens_differ_by_in_a_readouts_norm_is_allowed_for(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single tokens of PreNorm's stream differ in size, by which its last norm divides."""
    model = pg.Model("prenorm", depth=1, width=128, tokens=8, **READ_OUT[case])
    seen = pg.simulate(model, draws=120, seed=1, backend="numpy", progress=False, variance=0.01, through_readout=True)
    with_it, without = _off(model, seen, monkeypatch, "_normed_readout", lambda model: False)
    assert with_it < 2.5
    assert without > 3.5


def test_only_norms_in_the_readout_count() -> None:
    assert [finite_width._normed_readout(pg.Model(name, depth=1)) for name in ("prenorm", "residual", "admin")] == [
        True,
        True,
        False,
    ]
