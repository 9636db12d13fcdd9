"""The figure of the embedding's share: the committed one agrees with the theory of today, and not with another."""

from concurrent.futures import Executor

import numpy as np
import pytest
import xarray as xr
from figure_data import stored

import propagate as pg
from propagate import figures

SCRIPT = figures.load("embedding_share")


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return stored("embedding_share")


def test_lines_are_the_theory_of_today(data: xr.Dataset) -> None:
    for number in (0, 3):
        one = data.isel(network=number)
        model = SCRIPT.model(str(one.placement.item()), scaled=bool(one.scaled), depth=24, width=256)
        said = pg.predict(model, covariance=0.3, include={SCRIPT.SHARE})[SCRIPT.SHARE]
        assert np.allclose(one.theory, said, rtol=1e-6)


def test_points_lie_on_their_lines_and_not_on_others(data: xr.Dataset) -> None:
    error = np.hypot(data.se, 0.1 * data.theory)  # a tenth: more than the allowance anywhere
    for number in range(data.sizes["network"]):
        z = [
            float(abs((data.share[number] - data.theory[other]) / error[number]).isel(block=slice(1, None)).max())
            for other in (number, number ^ 1)  # with and without scaling
        ]
        assert z[0] < 4 < z[1]
    assert data.attrs["disagreeing"] == 0


def test_what_was_counted_and_trained_is_as_predicted(data: xr.Dataset) -> None:
    exact = data.sel(offset=0)
    assert 0.5 < float(exact.collisions / exact.collisions_said) < 2 < float(exact.collisions)
    first = data.ratio.isel(probe=0)
    assert np.allclose(first, data.ratio_said, rtol=0.2)
    assert float(first.max() / first.min()) > 5


@pytest.mark.slow
def test_it_is_made_anew(here: Executor) -> None:
    again = SCRIPT.data(draws=2, depth=2, executor=here)
    assert set(again.data_vars) == set(stored("embedding_share").data_vars)
    assert len(SCRIPT.draw(again).axes) == 6
