"""A quantity is one record: a user's own, from her file, has its columns, its place in a table and its judgement."""

import inspect
import re
from functools import lru_cache

import numpy as np
import pytest
import xarray as xr

import propagate as pg
from propagate import agreement, calibration, comparisons, divergence, quantities, scores, table, verification
from propagate.montecarlo.statistics import Summary
from propagate.quantities import QUANTITIES, Quantity, column_of, quantity_of, register
from propagate.table import table as made

FOURTH = register(Quantity("fourth", "E x_ti^4 of the stream", relative_to="variance"))
DRIFT = register(Quantity("drift", "E x_ti", positive=False, scale="linear", relative_to="variance"))
OFFSET = register(Quantity("offset", "an absolute number", positive=False, scale="linear"))
OF_HEADS = register(Quantity("head_size", "E y^2 of each head", dims=("head",), streams=False, scale="linear"))
LAST = register(Quantity("grad_fourth", "E g_ti^4", backward=True))
DRAWS, DEPTH, WIDTH = 500, 3, 1600
VARIANCE = 2.0 ** np.arange(DEPTH + 1)


@lru_cache(maxsize=1)
def measured() -> xr.Dataset:
    """A witness of one line a quantity: Gaussian streams of doubling variance."""
    x = np.random.default_rng(0).standard_normal((DRAWS, DEPTH + 1, WIDTH)) * np.sqrt(VARIANCE)[:, None]
    of_draws = {
        "variance": (x**2).mean(-1),
        "fourth": (x**4).mean(-1),
        "grad_fourth": (x**4).mean(-1),
        "drift": x.mean(-1),
        "offset": x.mean(-1),
        "head_size": (x.reshape(DRAWS, DEPTH + 1, 2, -1) ** 2).mean(-1),
    }
    summary = Summary()
    summary.add(of_draws)
    return made(summary.variables(), DEPTH, {"draws": DRAWS}).assign_coords(head=["a", "b"])


def predicted(**wrong: float) -> xr.Dataset:
    right = {
        "variance": VARIANCE,
        "fourth": 3 * VARIANCE**2,
        "fourth_spread": np.full(DEPTH + 1, np.sqrt(96.0 / 9 / WIDTH)),  # Var x^4 = 105 - 9, of unit normals
        "grad_fourth": 3 * VARIANCE**2,
        "drift": 0 * VARIANCE,
        "offset": 0 * VARIANCE,
        "head_size": np.repeat(VARIANCE[:, None], 2, axis=1),
    }
    for name, factor in wrong.items():
        right[name] = right[name] * factor if right[name].any() else right[name] + factor
    return made(right, DEPTH, {}).assign_coords(head=["a", "b"])


def test_compare_judges_it_by_its_record() -> None:
    seen = measured()
    assert seen.fourth.attrs["long_name"] == FOURTH.meaning
    assert "log_fourth_se" in seen
    assert "log_drift" not in seen
    judged = pg.compare(predicted(), seen)
    assert set(judged.quantity.values) == {
        *("variance", "fourth", "fourth_spread", "grad_fourth", "drift", "offset"),
        *("head_size[a]", "head_size[b]"),
    }
    assert judged.attrs["verdict"] == "agrees", judged.worst_z.to_series()
    assert np.allclose(judged.scale.sel(quantity="drift"), VARIANCE)  # relative to the variance, not to itself, 0
    assert (judged.scale.sel(quantity="offset") == 1).all()


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("fourth", 1.1),
        ("fourth_spread", 1.6),
        ("drift", 0.1),
        ("offset", 0.5),
        ("head_size", 1.1),
        ("grad_fourth", 1.1),
    ],
)
def test_a_wrong_prediction_of_it_is_found_out(name: str, factor: float) -> None:
    judged = pg.compare(predicted(**{name: factor}), measured())
    wrong = [label for label in judged.quantity.values if judged.verdict.sel(quantity=label) == "disagrees"]
    assert {quantity_of(str(label)).name for label in wrong} == {quantity_of(name).name}
    assert pg.first_divergence(predicted(), measured(), tolerance=0.2) is None
    if name == "grad_fourth":
        assert judged.attrs["first_divergence"].startswith(f"block {DEPTH}, the gradient: grad_fourth is")


def test_a_divergence_of_it_is_found() -> None:
    found = pg.first_divergence(predicted(fourth=2.0), measured())
    assert found is not None
    assert (found.block, found.call, found.quantity) == (0, "sum", "fourth")
    assert pg.first_divergence(predicted(drift=1.0), measured()).quantity == "drift"


def test_what_nobody_registered_is_not_judged() -> None:
    seen = measured()
    with pytest.raises(pg.ModelError, match="share none of"):
        pg.compare(predicted()[["fourth"]].rename(fourth="fifth"), seen.rename(fourth="fifth", fourth_se="fifth_se"))


def test_every_column_is_read_back() -> None:
    """A column's name says whose it is, and no two quantities share one."""
    seen = {}
    for quantity in QUANTITIES.values():
        for one in (quantity, quantity.of_spread(), quantity.of_entry("query"), quantity.of_entry("a_se")):
            for kind in quantities.PATTERNS:
                assert column_of(one.column(kind)) == (one, kind)
                assert seen.setdefault(one.column(kind), quantity.name) == quantity.name


@pytest.mark.parametrize("name", ["variance", "variance_se", "log_fourth", "deviation_spread_allowance"])
def test_a_name_that_means_something_else_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be a new one"):
        register(Quantity(name, "another"))


def test_records_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="scale must be 'linear'"):
        Quantity("negative", positive=False)
    with pytest.raises(ValueError, match="relative_to must be one of"):
        register(Quantity("new", relative_to="nothing"))
    assert register(FOURTH) is FOURTH  # once more is no other


READERS = (agreement, calibration, comparisons, divergence, scores, table, verification)


@pytest.mark.parametrize("module", READERS, ids=lambda module: module.__name__)
def test_judgement_reads_records_and_takes_no_name_apart(module) -> None:
    found = re.findall(
        r"\.(?:ends|starts)with\(|\.remove(?:suf|pre)fix\(|\"\w+\" (?:not )?in name\b", inspect.getsource(module)
    )
    assert found == []
