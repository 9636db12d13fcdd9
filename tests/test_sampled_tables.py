"""Tables of drawn heads: what they are off by is stated as the theory's own standard error, where they are read."""

import numpy as np
import pytest
import xarray as xr

import propagate as pg
from propagate.theory.finite import sampled_tables
from propagate.theory.gaussian import normed_heads, sampled_heads

NAMES = ("variance", "deviation", "grad_variance", "grad_deviation")
SMALL = {"depth": 4, "width": 64, "heads": 16, "tokens": 8, "logit_std": 4.0}


def forget() -> None:
    for cached in (sampled_heads._fitted, sampled_heads._drawn, normed_heads._series, normed_heads._at_a_place):
        cached.cache_clear()


def predicted(placement: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> xr.Dataset:
    monkeypatch.setattr(normed_heads, "SEED", seed)
    forget()
    return pg.predict(pg.Model(placement, **SMALL), covariance=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["postnorm", pytest.param("olmo2", marks=pytest.mark.slow)])
def test_tables_of_other_draws_differ_by_the_stated_error(placement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [predicted(placement, seed, monkeypatch) for seed in (1, 2, 3)]
    forget()  # no table of other draws is left
    values = {name: np.stack([table[name].values[:-1] for table in found]) for name in NAMES[2:]}
    shares = [v.std(axis=0, ddof=1).max() / found[0][f"{name}_se"].values.max() for name, v in values.items()]
    assert 0.05 < max(shares) < 2  # a tenth of the error stated, or ten times as much, would not do
    assert found[0].grad_variance_se[-1] == 0 == found[0].variance_se[0]


@pytest.mark.slow
def test_there_is_no_error_where_averages_are_integrated() -> None:
    for fields in ({"heads": 1, "logit_std": 2.0}, {"logit_std": 1.0}, {"logit_std": 0.0}):
        assert "variance_se" not in pg.predict(pg.Model("postnorm", **SMALL | fields), covariance=0.2)
    assert "variance_se" in pg.predict(pg.Model("residual", **SMALL), covariance=0.2)


def test_compare_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A theory off by three of its own standard errors is not rejected; without them it is, being exact otherwise."""
    model = pg.Model("postnorm", **SMALL)
    theory = pg.predict(model, covariance=0.2)
    seen = theory[["grad_variance"]] + 3 * theory.grad_variance_se
    seen["grad_variance_se"] = 1e-6 * seen.grad_variance
    seen.attrs = theory.attrs | {"draws": 64}
    none = {name: 0 * theory[name] for name in theory if str(name).endswith("_allowance")}
    exact = theory.assign(none)
    assert float(pg.compare(exact, seen).z.max()) < 3.1
    monkeypatch.setattr("propagate.theory.exchangeable.standard_errors", lambda *given, **options: {})
    without = pg.predict(model, covariance=0.2).assign(none)
    assert float(abs(pg.compare(without, seen).z).max()) > 10


def test_errors_of_a_table_add_up_along_the_network() -> None:
    one = {prefix + name: np.ones(5) for prefix in ("", "grad_") for name in ("variance", "covariance", "deviation")}
    found = sampled_tables.standard_errors(one, np.full(4, 0.5), dict.fromkeys(range(1, 5), 0.002))
    assert found["variance_se"] == pytest.approx([0, 0.001, 0.002, 0.003, 0.004])
    assert found["grad_variance_se"] == pytest.approx([0.004, 0.003, 0.002, 0.001, 0])
