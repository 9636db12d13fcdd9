"""The figures of the first step: told from their stored data, which agree with the theory and with no other."""

from concurrent.futures import Executor
from typing import Any

import numpy as np
import pytest
import xarray as xr
from figure_data import stored

from propagate import figures

SMALL: dict[str, dict[str, Any]] = {  # arguments of `data` that make it quick
    "first_step": {"placements": ("dyt", "prenorm"), "width": 32},
    "stable_rate": {"placements": ("PostNorm",), "width": 16, "depths": (2,)},
    "step_over_depth": {"placements": ("prenorm",), "width": 32, "depths": (2, 4)},
}


@pytest.mark.parametrize("name", SMALL)
def test_the_stored_data_can_be_drawn_and_told(name: str) -> None:
    data, script = stored(name), figures.load(name)
    assert script.draw(data).axes[0].get_ylabel()
    caption = (figures.ROOT / "figures" / f"{name}.md").read_text(encoding="utf-8")
    assert caption.endswith(script.CAPTION.strip().format(**data.attrs) + "\n")
    assert data.attrs["draws"] >= 8


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_same_seed_gives_the_same_bytes(name: str, here: Executor) -> None:
    script = figures.load(name)
    found = [
        bytes(script.data(draws=2, seed=seed, executor=here, **SMALL[name]).to_netcdf(engine="scipy"))
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_the_first_step_agrees_and_another_optimisers_does_not() -> None:
    data, script = stored("first_step"), figures.load("first_step")
    draws = int(data.attrs["draws"])
    for name in script.QUANTITIES:
        right = script.z(data, name, draws)
        assert np.nanmax(np.abs(right)) < 4.5  # the largest of 2160
        assert np.nanmean(np.abs(right) > 3) < 0.005
        exchanged = data.assign({f"theory_{name}": data[f"theory_{name}"].roll(optimizer=1)})
        assert np.nanmedian(np.abs(script.z(exchanged, name, draws))) > 4


def test_exponents_over_depth_are_those_proved_and_no_others() -> None:
    data, script = stored("step_over_depth"), figures.load("step_over_depth")
    assert np.abs(script.z(data, int(data.attrs["draws"]))).max() < 4
    alpha = data.alpha.to_numpy()
    proved = dict.fromkeys(("PreNorm", "PostNorm"), 1 - alpha) | {"SpanNorm": 1 - 2 * alpha}
    for name, exponents in proved.items():
        assert np.allclose(data.exponent.sel(any=name, matrix="attention_out"), exponents, atol=0.06)
        assert np.allclose(data.exponent.sel(any=name, matrix="ffn_out"), 1 - alpha, atol=0.08)
    assert not np.allclose(data.exponent.sel(any="SpanNorm", matrix="attention_out"), 1 - alpha, atol=0.4)
    measured = _slopes(data)
    for name, exponents in proved.items():  # of networks of 4 and 16 blocks
        assert np.abs(measured.sel(placement=name, matrix="attention_out") - exponents).max() < 0.25


def test_rates_are_foretold_by_the_first_step_and_told_as_they_were_found() -> None:
    data, script = stored("stable_rate"), figures.load("stable_rate")
    for placement, scaling, depth in (("PreNorm", "none", 8), ("SpanNorm", "ScaleInit", 2)):
        model = script.network(placement.lower(), script.SCALINGS[scaling], depth, int(data.attrs["width"]))
        said = script.foretold(model, script.OPTIMIZERS["SGD"])
        there = data.foretold.sel(optimizer="SGD", placement=placement, scaling=scaling, depth=depth)
        assert said == pytest.approx(float(there), rel=1e-3)
    assert {key: data.attrs[key] for key in script.told(data)} == script.told(data)
    exchanged = data.assign(foretold=data.foretold.copy(data=data.foretold.to_numpy()[::-1]))
    assert script.told(exchanged)["low_sgd"] > data.attrs["high_sgd"]  # the other optimiser's rates are far off


def _slopes(data: xr.Dataset) -> xr.DataArray:
    fall = np.log(data.fall)
    return (fall.isel(simulated_depth=1) - fall.isel(simulated_depth=0)) / np.log(4)
