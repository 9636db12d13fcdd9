"""Theory and simulation agree within stated errors, and the same comparison rejects wrong theories."""

import dataclasses
import itertools
import math
from functools import cache

import numpy as np
import pytest
import xarray as xr
from covering import pairwise

import propagate as pg
from propagate.table import QUANTITIES
from propagate.theory.gaussian import finite_heads
from propagate.theory.gaussian.softmax import SoftmaxAverages, softmax_averages

PLACEMENTS = ("prenorm", "postnorm", "spannorm", "periln", "deepnorm", "layernormscaling")
ACTIVATIONS = ("relu", "gelu", "swiglu")
SCALINGS = {"plain": None, "scaled": pg.ScaleInit(0.5)}
SIZE = {"depth": 6, "width": 96, "tokens": 8, "heads": 2}
DRAWS = 64
GRID = list(itertools.product(PLACEMENTS, ACTIVATIONS, SCALINGS))
FEW = pairwise(PLACEMENTS, ACTIVATIONS, list(SCALINGS))


def network(case: tuple[str, str, str]) -> pg.Model:
    return pg.Model(case[0], activation=case[1], scaling=SCALINGS[case[2]], **SIZE)


def start_of(case: tuple[str, str, str]) -> dict[str, float]:
    """Starts and cotangents take turns, so that each placement meets all four pairs."""
    turn = GRID.index(case) + GRID.index(case) // 4
    return {"covariance": (0.0, 0.3)[turn % 2], "grad_covariance": (0.0, 1.0)[turn // 2 % 2]}


@cache
def measured(case: tuple[str, str, str], backend: str = "numpy") -> xr.Dataset:
    return pg.simulate(network(case), draws=DRAWS, seed=100 + GRID.index(case), backend=backend, **start_of(case))


@pytest.mark.few(8)
@pytest.mark.parametrize("backend", ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c not in FEW), id="-".join(c)) for c in GRID]
)
def test_they_agree(case: tuple[str, str, str], backend: str) -> None:
    judged = pg.compare(pg.predict(network(case), **start_of(case)), measured(case, backend))
    assert judged.attrs["verdict"] != "disagrees", judged.worst_z.to_series().to_dict()
    assert float(judged.worst_z.max()) > 0.1  # something was measured


def test_they_agree_in_the_corners_of_the_grid() -> None:
    """One token, two tokens, one block, LayerNorm, uniform attention, a narrow FFN."""
    corners = [
        pg.Model("postnorm", depth=3, width=64, tokens=1, heads=2),
        pg.Model("spannorm", depth=3, width=64, tokens=2, heads=2, norm="layer"),
        pg.Model("prenorm", depth=1, width=64, tokens=4, heads=1, ffn_ratio=1),
        pg.Model("deepnorm", depth=3, width=64, tokens=6, heads=2, logit_std=0.0, norm="layer"),
        pg.Model("layernormscaling", depth=3, width=64, tokens=6, heads=2, activation="tanh", value_gain=0.6),
        pg.Model("periln", depth=3, width=64, tokens=6, heads=2, activation="silu", norm="layer"),
    ]
    for seed, model in enumerate(corners):
        seen = pg.simulate(model, draws=100, seed=seed, backend="numpy")
        assert pg.compare(pg.predict(model), seen).attrs["verdict"] != "disagrees", model


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["prenorm", "layernormscaling", "periln"])
def test_they_agree_through_the_readout(placement: str) -> None:
    model = pg.Model(placement, **SIZE)
    seen = pg.simulate(model, draws=200, seed=1, through_readout=True, backend="numpy")
    judged = pg.compare(pg.predict(model, through_readout=True), seen)
    assert judged.attrs["verdict"] != "disagrees", judged.worst_z.to_series().to_dict()


WRONG = {
    "an FFN gain 10 % off": {"ffn_gain": 1.1},
    "attention without logits": {"logit_std": 0.0},
    "twice the tokens": {"tokens": 16},
}
POWER = {
    "an FFN gain 10 % off": ("prenorm", "relu", "plain"),
    "attention without logits": ("prenorm", "gelu", "plain"),
    "twice the tokens": ("prenorm", "relu", "plain"),
}


@cache
def precise(case: tuple[str, str, str], draws: int = 400) -> tuple[pg.Model, xr.Dataset]:
    """A wider network and more draws, where small errors show; the right theory passes there as well."""
    model = dataclasses.replace(network(case), width=192, depth=4)
    return model, pg.simulate(model, draws=draws, seed=7, backend="numpy", covariance=0.1)


@pytest.mark.few(1)
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_theories_are_rejected(wrong: str) -> None:
    model, seen = precise(POWER[wrong])
    assert pg.compare(pg.predict(model, covariance=0.1), seen).attrs["verdict"] != "disagrees"
    other = dataclasses.replace(model, **WRONG[wrong])
    assert pg.compare(pg.predict(other, covariance=0.1), seen).attrs["verdict"] == "disagrees"


def test_attention_without_query_and_key_paths_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward pass is right; backward, the softmax's own derivative is forgotten."""
    model, seen = precise(("prenorm", "relu", "plain"), draws=100)

    def frozen(tokens: int, spread: float, correlation: float) -> SoftmaxAverages:
        slope = (tokens - 1) / tokens**2
        return softmax_averages(tokens, spread, correlation)._replace(self_slope=-slope, cross_slope=-slope)

    monkeypatch.setattr(finite_heads, "softmax_averages", frozen)
    judged = pg.compare(pg.predict(model, covariance=0.1), seen)
    assert judged.verdict.sel(quantity="deviation") != "disagrees"
    assert judged.verdict.sel(quantity="grad_deviation") == "disagrees"


@pytest.mark.parametrize("placement", ["postnorm", "spannorm", "prenorm"])
def test_the_skip_path_alone_is_rejected(placement: str) -> None:
    model, seen = precise((placement, "relu", "plain"), draws=32)
    said = pg.predict(model, covariance=0.1)
    judged = pg.compare(said.assign(grad_variance=said.skip_gain), seen)
    assert judged.verdict.sel(quantity="grad_variance") == "disagrees"
    assert judged.verdict.sel(quantity="deviation") != "disagrees"


def synthetic(
    draws: int, blocks: int, seed: int, noise: float = 0.2, bias: float = 0.0
) -> tuple[xr.Dataset, xr.Dataset]:
    """A prediction, and a measurement whose truth it is (but for a relative bias): blocks are independent."""
    random = np.random.default_rng(seed)
    truth = random.uniform(0.5, 2, blocks)
    sample = truth * (1 + bias + noise * random.standard_normal((draws, blocks)))
    seen = {"variance": sample.mean(axis=0), "variance_se": sample.std(axis=0, ddof=1) / math.sqrt(draws)}
    tables = ({"variance": truth}, seen)
    said, found = (xr.Dataset({key: ("block", value) for key, value in table.items()}) for table in tables)
    return said, found.assign_attrs(draws=draws)


def share_beyond(z: np.ndarray) -> float:
    return float((np.abs(z) > 1.959964).mean())


@pytest.mark.parametrize("draws", [3, 8, 64])
def test_the_checker_rejects_truths_at_the_rate_it_states(draws: int) -> None:
    blocks = 20_000
    said, found = synthetic(draws, blocks, seed=draws)
    error = math.sqrt(0.05 * 0.95 / blocks)
    assert abs(share_beyond(pg.compare(said, found).z.to_numpy()) - 0.05) < 4 * error
    if draws < 64:  # a normal score of so few draws would reject too often
        naive = ((found.variance - said.variance) / found.variance_se).to_numpy()
        assert share_beyond(naive) - 0.05 > 4 * error


def test_z_is_a_standard_normal_score() -> None:
    from scipy import stats

    z = pg.compare(*synthetic(5, 5000, seed=1)).z.to_numpy().ravel()
    assert stats.kstest(z, "norm").pvalue > 1e-3
    biased = pg.compare(*synthetic(5, 5000, seed=1, bias=0.02)).z.to_numpy().ravel()
    assert stats.kstest(biased, "norm").pvalue < 1e-3


def test_the_allowance_covers_a_bias_of_its_size_and_no_more() -> None:
    said, found = synthetic(64, 2000, seed=3, noise=1e-4, bias=0.01)
    allowed = said.assign(variance_allowance=xr.full_like(said.variance, 0.01))
    assert pg.compare(allowed, found).attrs["agrees"] == 1
    assert pg.compare(said, found).attrs["verdict"] == "disagrees"
    said, found = synthetic(64, 2000, seed=3, noise=1e-4, bias=0.05)
    assert pg.compare(allowed, found).attrs["verdict"] == "disagrees"


def test_logarithms_are_compared_where_they_were_measured() -> None:
    """A log-normal whose median is the prediction: right on the log scale, wrong by its mean."""
    random = np.random.default_rng(2)
    sample = np.exp(0.8 * random.standard_normal((400, 3)))
    columns = {"variance": sample, "log_variance": np.log(sample)}
    seen = xr.Dataset(
        {key: ("block", value.mean(axis=0)) for key, value in columns.items()}
        | {f"{key}_se": ("block", value.std(axis=0, ddof=1) / 20) for key, value in columns.items()}
    ).assign_attrs(draws=400)
    said = xr.Dataset({"variance": ("block", np.ones(3))})
    assert pg.compare(said, seen).attrs["verdict"] != "disagrees"
    assert pg.compare(said, seen.drop_vars(["log_variance", "log_variance_se"])).attrs["verdict"] == "disagrees"


def test_a_table_agrees_with_itself_and_names_its_verdicts() -> None:
    seen = measured(GRID[0])
    judged = pg.compare(seen, seen)
    assert set(judged.quantity.to_numpy()) == {
        name for name, one in QUANTITIES.items() if one.judged and not one.dims and name in seen
    }
    assert judged.sizes == {"quantity": 6, "block": 7}
    assert judged.attrs["draws"] == DRAWS
    arithmetic = judged.z.sel(quantity=["covariance", "grad_covariance"])
    assert float(abs(arithmetic).max()) == 0


def test_a_non_finite_measurement_does_not_pass() -> None:
    said, found = synthetic(8, 4, seed=1)
    found["variance"][2] = np.nan
    assert pg.compare(said, found).attrs["verdict"] == "disagrees"
