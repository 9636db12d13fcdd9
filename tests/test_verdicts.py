"""Three verdicts: a theory that is off is never said to agree, however few the draws, nor is what is no number."""

import dataclasses
import math

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import propagate as pg
from propagate.cells import AS_VERIFIED
from propagate.scores import score
from tests.own_placements import OWN

SIZE = {"depth": 2, "width": 192, "tokens": 4, "heads": 16, "ffn_ratio": 1.0}
START = {"covariance": 0.3, "grad_covariance": 0.2}


def measured(model: pg.Model, draws: int) -> xr.Dataset:
    return pg.simulate(model, draws=draws, seed=draws, backend="numpy", progress=False, **START)


@pytest.mark.few(11)
@pytest.mark.parametrize(
    ("placement", "draws"),
    [
        pytest.param(name, draws, marks=[pytest.mark.slow] * (name != "prenorm" and draws != 16))
        for name in OWN
        for draws in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    ],
)
def test_a_theory_a_quarter_off_is_never_said_to_agree(placement: str, draws: int) -> None:
    """One quantity at a time, up or down; covariances where they are a quarter of the variance or more."""
    model = pg.Model(AS_VERIFIED.get(placement, placement), **SIZE)
    said, seen = pg.predict(model, **START), measured(model, draws)
    assert pg.compare(said, seen).attrs["verdict"] != "disagrees"
    for factor, name in ((1.25, "grad_variance"), (0.75, "deviation"), (1.25, "variance"), (0.75, "covariance")):
        verdict = pg.compare(said.assign({name: said[name] * factor}), seen)
        assert verdict.attrs["verdict"] != "agrees", (name, factor)
        assert verdict.attrs["first_divergence"] or verdict.attrs["cannot_tell"]


def test_enough_draws_do_tell(tables: tuple[xr.Dataset, xr.Dataset]) -> None:
    """Where the allowance is small, 64 draws say agrees of the right theory and disagrees of the wrong ones."""
    said, seen = tables
    assert pg.compare(said, seen).attrs["verdict"] == "agrees", pg.compare(said, seen).attrs["cannot_tell"]
    for name in ("variance", "covariance", "deviation", "grad_variance", "grad_deviation"):
        assert pg.compare(said.assign({name: said[name] * 1.25}), seen).attrs["verdict"] == "disagrees", name


@pytest.mark.parametrize(("right", "wrong"), [("prenorm", "sandwichnorm"), ("prenorm", "parallelprenorm")])
def test_a_neighbour_never_agrees(right: str, wrong: str) -> None:
    model = pg.Model(right, **SIZE | {"depth": 4})
    said = pg.predict(dataclasses.replace(model, placement=wrong), **START)
    verdicts = [pg.compare(said, measured(model, draws)).attrs["verdict"] for draws in (2, 4, 12, 64)]
    assert "agrees" not in verdicts
    assert verdicts[-1] == "disagrees"


def test_an_ffn_four_times_too_weak_is_not_said_to_agree() -> None:
    size = {"depth": 3, "width": 128, "tokens": 8, "heads": 4}
    model = pg.Model("prenorm", **size)
    said = pg.predict(pg.Model("prenorm", ffn_gain=0.5, **size), **START)
    verdicts = [pg.compare(said, measured(model, draws)).attrs["verdict"] for draws in (2, 3, 4, 8, 16)]
    assert verdicts[:2] == ["cannot tell", "cannot tell"]
    assert verdicts[-1] == "disagrees"
    assert "agrees" not in verdicts


def synthetic(
    draws: int, noise: float, allowance: float, seed: int, trials: int = 2000
) -> tuple[xr.Dataset, xr.Dataset]:
    """Independent trials along `block`: truths off the limit by up to one allowance or so, and measured with noise."""
    random = np.random.default_rng(seed)
    truth = np.exp(allowance * random.standard_normal(trials))
    sample = truth * np.exp(noise * random.standard_normal((draws, trials)))
    columns = {"log_deviation": np.log(sample), "deviation": sample}
    seen = {key: values.mean(axis=0) for key, values in columns.items()}
    seen |= {f"{key}_se": values.std(axis=0, ddof=1) / math.sqrt(draws) for key, values in columns.items()}
    said = {
        "variance": np.ones(trials),
        "deviation": np.ones(trials),
        "deviation_allowance": np.full(trials, allowance),
    }
    tables = [xr.Dataset({key: ("block", values) for key, values in table.items()}) for table in (said, seen)]
    return tables[0], tables[1].assign_attrs(draws=draws)


def agreeing(said: xr.Dataset, seen: xr.Dataset) -> float:
    judged = pg.compare(said, seen).sel(quantity="deviation")
    return float(((abs(judged.z) < 4) & (judged.unresolved <= 0.2)).mean())


@pytest.mark.parametrize(
    "draws",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n not in (2, 4, 10, 64)))
        for n in (2, 3, 4, 5, 7, 10, 16, 25, 40, 64)
    ],
)
def test_no_noise_and_no_allowance_makes_a_quarter_agree(draws: int) -> None:
    for noise in (0.003, 0.03, 0.1, 0.3):
        for allowance in (0.0, 0.01, 0.03):
            said, seen = synthetic(draws, noise, allowance, seed=draws)
            for factor in (0.75, 1.25):
                assert agreeing(said.assign(deviation=said.deviation * factor), seen) == 0, (noise, allowance, factor)
    if draws > 30:
        assert agreeing(*synthetic(draws, 0.1, 0.01, seed=draws)) == 1


@pytest.mark.parametrize("draws", [2, pytest.param(3, marks=pytest.mark.slow), 8])
def test_a_right_theory_is_rejected_no_more_often_than_is_said(draws: int) -> None:
    """Welch's effective degrees of freedom, the usual approximation, reject far more often than they say."""
    random = np.random.default_rng(draws)
    trials, limit = 200_000, 3.0
    sample = random.standard_normal((draws, trials))
    error, allowance = sample.std(axis=0, ddof=1) / math.sqrt(draws), np.full(trials, 0.1 / math.sqrt(draws))
    difference = sample.mean(axis=0) + allowance * random.standard_normal(trials)
    chance = 2 * stats.norm.sf(limit)
    noise = 4 * math.sqrt(chance / trials)
    assert (abs(score(difference, error, allowance, draws)) > limit).mean() < chance + noise
    assert (abs(score(difference, error, 0 * allowance, draws)) > limit).mean() > chance / 3  # nor much less often
    if draws < 8:
        total = np.hypot(error, allowance)
        freedom = total**4 * (draws - 1) / error**4
        welch = stats.norm.isf(stats.t.sf(abs(difference) / total, freedom))
        assert (welch > limit).mean() > 2 * chance + noise


@pytest.fixture(scope="module")
def tables() -> tuple[xr.Dataset, xr.Dataset]:
    """Of a theory and its measurement."""
    model = pg.Model("deepnorm", **SIZE | {"tokens": 8})
    return pg.predict(model, **START), measured(model, 64)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["variance", "covariance", "deviation", "grad_variance"])
def test_what_is_no_number_never_agrees(name: str, value: float, tables: tuple[xr.Dataset, xr.Dataset]) -> None:
    said, seen = tables
    nothing = xr.full_like(said[name], value)
    spoilt = seen.assign({key: nothing for key in (name, f"log_{name}") if key in seen})
    unsaid = pg.compare(said.assign({name: nothing}), seen).verdict.sel(quantity=name)
    assert unsaid == ("cannot tell" if math.isnan(value) else "disagrees")
    assert pg.compare(said, spoilt).attrs["verdict"] == "disagrees"
    neither = pg.compare(said.assign({name: nothing}), spoilt)
    assert (neither.verdict.sel(quantity=name), neither.attrs["agrees"]) == ("cannot tell", 0)
    assert neither.attrs["cannot_tell"].endswith("nothing to compare")
    assert math.isnan(neither.worst_z.sel(quantity=name))


class NoNumber(pg.Placement):
    """A user's mistake."""

    def block(self, x, block):
        return math.nan * x


def test_a_placement_that_gives_no_number_does_not_agree() -> None:
    model = pg.Model("prenorm", depth=1, width=32, tokens=4, heads=2)
    with pytest.raises(pg.ModelError, match="variance must stay a finite number, got nan at block 1 of draw 0"):
        pg.simulate(dataclasses.replace(model, placement=NoNumber()), draws=4, backend="numpy", progress=False)
    seen = pg.simulate(model, draws=4, backend="numpy", progress=False)
    seen = seen.where(seen.block != 1, math.nan).assign_attrs(seen.attrs)
    said = xr.full_like(pg.predict(pg.Model("prenorm", depth=1, width=32, tokens=4, heads=2)), math.nan)
    assert pg.compare(said, seen).attrs["agrees"] == 0
    with pytest.raises(pg.ModelError, match="nothing to compare"):
        pg.first_divergence(said, xr.full_like(seen, math.nan))
    assert pg.first_divergence(pg.predict(pg.Model("prenorm", depth=1, width=32, tokens=4, heads=2)), seen).block == 1


def test_tokens_that_are_one_vector_have_no_deviation_on_either_side() -> None:
    model, start = pg.Model("deepnorm", **SIZE), {"covariance": 1.0}
    said, seen = pg.predict(model, **start), pg.simulate(model, draws=8, backend="numpy", progress=False, **start)
    judged = pg.compare(said, seen)
    assert judged.verdict.sel(quantity="deviation") == "agrees"
    some = said.assign(deviation=said.deviation + 1e-6)
    assert pg.compare(some, seen).verdict.sel(quantity="deviation") == "disagrees"


def test_one_draw_tells_nothing() -> None:
    said, seen = synthetic(2, 0.1, 0.0, seed=1, trials=5)
    lone = seen.assign({key: seen[key] * math.nan for key in seen if str(key).endswith("_se")}).assign_attrs(draws=1)
    assert pg.compare(said, lone).attrs["verdict"] == "cannot tell"
    assert pg.compare(said, lone.assign(log_deviation=0 * lone.log_deviation)).attrs["verdict"] == "agrees"  # the same


def test_resolution_is_what_is_asked_for() -> None:
    said, seen = synthetic(16, 0.1, 0.0, seed=1, trials=50)
    assert pg.compare(said, seen).attrs["verdict"] == "cannot tell"
    assert pg.compare(said, seen, resolution=0.5).attrs["verdict"] == "agrees"
    assert pg.compare(said.assign(deviation=1.8 * said.deviation), seen, resolution=0.5).attrs["verdict"] == "disagrees"
    with pytest.raises(pg.ModelError, match="resolution must be positive"):
        pg.compare(said, seen, resolution=0.0)


def test_a_deviation_that_is_predicted_to_be_nothing_may_be_a_share_of_one_over_the_width() -> None:
    """One cotangent for all tokens has none in the limit; each token's norm takes its own direction out of it."""
    model = pg.Model("prenorm", **SIZE)
    start = {"covariance": 0.3, "grad_covariance": 1.0, "through_readout": True}
    said, seen = pg.predict(model, **start), pg.simulate(model, draws=16, backend="numpy", progress=False, **start)
    name, last = "grad_deviation", model.depth
    assert float(said[name][last]) == 0 < float(seen[name][last])
    judged = pg.compare(said, seen)
    assert judged.verdict.sel(quantity=name) != "disagrees"
    assert 0 < float(judged.z.sel(quantity=name)[last]) < 4
    more = seen.assign({f"log_{name}": seen[f"log_{name}"] + math.log(200.0) * (seen.block == last)})
    assert pg.compare(said, more).verdict.sel(quantity=name) == "disagrees"
