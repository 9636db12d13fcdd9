"""The figure of latent attention's scale correction: the committed one agrees with the theory of today."""

from concurrent.futures import Executor

import numpy as np
import pytest
import xarray as xr
from figure_data import stored

from propagate import figures

SCRIPT = figures.load("mla_correction")


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return stored("mla_correction")


def scores(data: xr.Dataset, name: str, corrected: bool, theory_of: bool) -> float:
    """Largest |z| of the points of one kind against the theory of one kind."""
    one, other = (data.isel(network=np.flatnonzero(data.corrected == kind)) for kind in (corrected, theory_of))
    said, allowed = np.log(other[f"theory_{name}"]), other[f"{name}_allowance"] if f"{name}_allowance" in data else 0.0
    if f"log_{name}" in data:
        seen, error = one[f"log_{name}"], one[f"log_{name}_se"]
    else:
        seen, error = np.log(one[name]), one[f"{name}_se"] / one[name]
    z = abs(seen.values - said.values) / np.hypot(error.values, np.asarray(allowed))
    return float(np.nanmax(z))


@pytest.mark.parametrize("name", SCRIPT.PANELS)
def test_points_lie_on_their_lines_and_not_on_the_others(data: xr.Dataset, name: str) -> None:
    for corrected in (True, False):
        assert scores(data, name, corrected, corrected) < 4
        assert scores(data, name, corrected, not corrected) > 4


def test_lines_are_the_theory_of_today(data: xr.Dataset) -> None:
    for network in (0, data.sizes["network"] - 1):
        one = data.isel(network=network)
        kind = SCRIPT.attention(int(one["rank"]), 256, corrected=bool(one.corrected)).fitted(256, 16)
        assert float(one.theory_logit) == pytest.approx(kind.logit_power(256) ** 0.5, rel=1e-6)
        assert float(one.theory_value) == pytest.approx((kind.value_gain * kind.scale_of("value", 256)) ** 2, rel=1e-6)


@pytest.mark.slow
def test_it_is_made_anew(here: Executor) -> None:
    again = SCRIPT.data(draws=2, depth=2, executor=here)
    assert set(again.data_vars) == set(stored("mla_correction").data_vars)
    assert len(SCRIPT.draw(again).axes) == 4
