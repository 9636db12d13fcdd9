"""The inverse problem: crossings are found, conditions are met where it says so, and what cannot be met is told."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from figure_data import stored
from typer.testing import CliRunner

import propagate as pg
from propagate.cli import app
from propagate.inverse.crossings import Band, intervals
from propagate.inverse.unknown import Axis
from propagate.theory.attention_share import _resolved, attention_share

SMALL: dict[str, Any] = {"tokens": 6, "heads": 2, "width": 64, "logit_std": 0.0}
ALIKE = pg.Start(covariance=0.3)
REALS = Axis(0.0, 1.0, whole=False)


def scaled(placement: str = "prenorm", depth: int = 8, **fields: Any) -> pg.Model:
    return pg.Model(placement, depth=depth, scaling=pg.ScaleInit(0.0), **(SMALL | fields))


@pytest.mark.parametrize(
    ("function", "band", "expected"),
    [
        (lambda x: x, Band(0.301, 0.302), [(0.301, 0.302)]),  # both levels between two points of the scan
        (lambda x: (x - 0.5) ** 2, Band(None, 0.04), [(0.3, 0.7)]),
        (lambda x: (x - 0.5) ** 2, Band(0.04, None), [(0.0, 0.3), (0.7, 1.0)]),
        (lambda x: math.cos(4 * math.pi * x), Band(0.0, None), [(0.0, 0.125), (0.375, 0.625), (0.875, 1.0)]),
        (lambda x: 1 - (x - 0.53) ** 2, Band(0.9999, None), [(0.52, 0.54)]),  # a turn between two points
        (lambda x: x if x < 0.4 else math.nan, Band(0.2, None), [(0.2, 0.4)]),
        (lambda x: math.nan, Band(0.0, None), []),
        (lambda x: 1.0, Band(2.0, None), []),
    ],
)
def test_intervals_of_a_function(function: Any, band: Band, expected: list[Any]) -> None:
    found = intervals(function, REALS.points(9), REALS, band)
    assert np.allclose(np.array(found), np.array(expected), atol=3e-5)
    assert len(found) == len(expected)
    assert all(band.holds(function(end)) for pair in found for end in pair)  # an end meets what it is the end of


def test_whole_numbers_and_magnitudes() -> None:
    whole = Axis(1, 1000, whole=True)
    assert intervals(lambda n: 1 / n, whole.points(9), whole, Band(0.01, 0.2)) == [(5, 100)]
    rates = Axis(1e-8, 1.0, whole=False)
    ((low, high),) = intervals(lambda x: x, rates.points(9), rates, Band(3e-6, 3e-3))
    assert (low, high) == (pytest.approx(3e-6, rel=1e-4), pytest.approx(3e-3, rel=1e-4))


def test_a_solution_meets_what_was_asked_and_its_neighbours_do_not() -> None:
    asked = [pg.GradientGain(above=0.5, below=2.0), pg.Distinct(above=0.4)]
    found = pg.solve(scaled(), "scaling.exponent", asked, between=(0, 1), start=ALIKE)
    assert found.met
    assert found.value == found.lowest == found.model.scaling.exponent  # type: ignore[union-attr]
    for exponent, within in ((found.lowest + 1e-3, True), (found.lowest - 1e-3, False)):  # type: ignore[operator]
        table = pg.predict(replace(scaled(), scaling=pg.ScaleInit(exponent)), ALIKE)
        gain, distinct = table.grad_variance[0] / table.grad_variance[-1], table.deviation[-1] / table.variance[-1]
        assert (0.5 <= gain <= 2.0 and distinct >= 0.4) == within
    assert "meets" in found.verdict
    assert str(found).endswith(found.verdict)


def test_what_cannot_be_met_is_a_trade_off_in_words() -> None:
    asked = [pg.GradientGain(below=1.2), pg.AttentionShare(above=0.3)]
    found = pg.solve(scaled(), "scaling.exponent", asked, between=(0, 1), start=ALIKE)
    assert not found.met
    assert found.value is found.lowest is found.highest is None
    assert found.verdict.startswith(
        "No scaling.exponent between 0 and 1 meets gradient_gain <= 1.2 and attention_share"
    )
    table = found.table
    assert bool(table.gradient_gain_met.any())
    assert bool(table.attention_share_met.any())
    assert not bool((table.gradient_gain_met & table.attention_share_met).any())
    assert 0 < found.nearest < 1
    assert found.model.scaling == pg.ScaleInit(found.nearest)
    assert xr.load_dataset(bytes_of(table), engine="scipy").equals(table)


def bytes_of(table: xr.Dataset) -> Any:
    import io

    return io.BytesIO(bytes(table.to_netcdf(engine="scipy")))


def test_how_deep_can_one_go() -> None:
    asked = [pg.Distinct(above=0.01)]
    found = pg.solve(scaled("postnorm", 4), "depth", asked, between=(1, 64), start=ALIKE)
    deepest = int(found.highest or 0)
    apart = pg.predict(replace(scaled("postnorm"), depth=deepest + 1), ALIKE)
    there = [float(apart.deviation[block] / apart.variance[block]) for block in (-2, -1)]
    assert there[0] >= 0.01 > there[1]
    assert found.value == 4  # as it is, all is well


def test_a_rate_is_a_factor_of_the_first_step() -> None:
    model = pg.Model("prenorm", depth=2, **SMALL)
    asked = [pg.FirstStep(above=0.05, below=0.1)]
    found = pg.solve(model, "optimizer.lr", asked, between=(1e-6, 10.0), optimizer=pg.Muon(lr=1.0))
    step, moments = pg.predict_step(model, pg.Muon(lr=float(found.highest or 0))), pg.predict(model)
    moved = float(step.total_fall) / (model.tokens * model.width) / float(moments.variance[-1]) ** 0.5
    assert moved == pytest.approx(0.1, rel=1e-3)
    assert found.highest == pytest.approx(2 * (found.lowest or 0), rel=1e-3)
    assert found.setting.optimizer.lr == found.value


def test_a_condition_of_ones_own_and_one_matrix() -> None:
    @dataclass(frozen=True)
    class Norm:
        above: float | None = None
        below: float | None = None
        name: str = "root_mean_square"

        def value(self, at: Any) -> float:
            return float(at.moments.variance[-1]) ** 0.5

    model = pg.Model("rezero", depth=4, **SMALL)
    found = pg.solve(model, "placement.a", [Norm(below=1.1)], between=(0.0, 1.0))
    assert found.value == 0.0
    assert pg.predict(
        replace(model, placement=found.setting.replaced("placement.a", found.highest or 0).model.placement)
    ).variance[-1] == pytest.approx(1.21, rel=1e-4)
    with pytest.raises(pg.ModelError, match="matrix must be one of"):
        pg.solve(model, "depth", [pg.FirstStep(below=1, matrix="keys")], between=(1, 3), optimizer=pg.SGD(lr=1))


@pytest.mark.parametrize("placement", ["spannorm", "siamesenorm", "b2t"])
@pytest.mark.parametrize("fields", [{"logit_std": 0.0}, {"logit_std": 1.0, "activation": "swiglu"}])
def test_attention_share_is_that_of_single_tokens(placement: str, fields: dict[str, Any]) -> None:
    """In closed form, and token by token; to rounding where no logits are drawn."""
    model = pg.Model(placement, depth=3, **(SMALL | fields))
    apart = _resolved(model, ALIKE) / attention_share(model, ALIKE) - 1
    assert abs(apart) < (1e-12 if not fields["logit_std"] else 0.03)
    other = attention_share(replace(model, value_gain=1.1), ALIKE)
    assert abs(_resolved(model, ALIKE) / other - 1) > 0.03  # another network's is told apart


def test_attention_share_is_that_of_the_figure() -> None:
    seen = stored("phase_diagram").theory_share.sel(depth=16)
    size: dict[str, Any] = {"width": 512, "tokens": 16, "heads": 8, "logit_std": 1.0}
    for name, exponent in (("PreNorm", 0.5), ("SpanNorm", 0.25)):
        model = pg.Model(name, depth=16, scaling=pg.ScaleInit(exponent), **size)
        told = float(seen.sel(placement=name, exponent=exponent))
        assert attention_share(model, ALIKE) == pytest.approx(told, rel=0.03)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unknown": "scaling.power"}, "ScaleInit has the fields exponent, per"),
        ({"unknown": "scaling.per"}, "which is 'block'"),
        ({"unknown": "placement.alpha"}, "PreNorm has no fields"),
        ({"unknown": "optimizer.lr"}, "needs optimizer=, which is None"),
        ({"unknown": "causal"}, "which is False"),
        ({"unknown": ""}, "must be the path of a number"),
        ({"conditions": []}, "must be a list of conditions"),
        ({"conditions": [1.0]}, "a condition must be one of"),
        ({"conditions": [pg.Distinct]}, "a condition must be one of"),
        ({"conditions": [pg.Distinct(0.1), pg.Distinct(None, 0.2)]}, "two on distinct"),
        ({"conditions": [pg.FirstStep(below=1)]}, "optimizer must be given"),
        ({"between": (1, 0)}, "low < high"),
        ({"between": (0, math.inf)}, "finite"),
        ({"between": 3}, "between must be two numbers"),
        ({"points": 2}, "points must be"),
        ({"model": pg.Model("prenorm", depth=2, tokens=1)}, "needs scaling="),
    ],
)
def test_bad_input_is_refused_in_words(change: dict[str, Any], words: str) -> None:
    given = {
        "model": scaled(depth=2),
        "unknown": "scaling.exponent",
        "conditions": [pg.Distinct(0.1)],
        "between": (0, 1),
    }
    given |= change
    model, unknown, conditions = (given.pop(name) for name in ("model", "unknown", "conditions"))
    with pytest.raises(pg.ModelError, match=words):
        pg.solve(model, unknown, conditions, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: pg.Distinct(above="a"), "above of Distinct must be a finite number"),  # type: ignore[arg-type]
        (lambda: pg.GradientGain(below=math.nan), "below of GradientGain must be a finite number"),
        (lambda: pg.Growth(pg.Distinct(), sizes=(8, 4)), "small, large"),
        (lambda: pg.Growth("gain"), "a condition must be one of"),
    ],
)
def test_bad_conditions_are_refused(made: Any, words: str) -> None:
    with pytest.raises(pg.ModelError, match=words):
        made()


def test_where_the_theory_refuses_nothing_is_met() -> None:
    """The gradient leaves the range of numbers at great depth; the last depth before is the end of what is met."""
    model = pg.Model("postnorm", depth=2, **(SMALL | {"activation": "swiglu", "ffn_gain": 1e6}))
    found = pg.solve(model, "ffn_gain", [pg.StreamGain(above=0.9)], between=(1.0, 1e200))
    assert found.met
    assert 1e50 < (found.highest or 0) <= 1.0001e100
    assert bool(np.isnan(found.table.stream_gain[-1]))
    assert "it has no number (ffn_gain must be at most 1e+100" in found.verdict


def test_the_command_line() -> None:
    small = ["--tokens", "6", "--heads", "2", "--width", "64", "--depth", "4", "--logit-std", "0"]
    common = ["solve", "prenorm", *small, "--unknown", "scaling.exponent", "--between", "0:1", "--gradient-gain"]
    met = CliRunner().invoke(app, [*common, ":2"])
    assert met.exit_code == 0
    assert "scaling.exponent = 0." in met.stdout
    assert CliRunner().invoke(app, [*common, ":0.5"]).exit_code == 1
    assert CliRunner().invoke(app, [*common, "2"]).exit_code == 2
    assert CliRunner().invoke(app, [*common, "a:b"]).exit_code == 2
