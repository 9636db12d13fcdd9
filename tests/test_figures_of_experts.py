"""The figures of LongCat-Flash's layer and of its experts: told from their stored data, which agree with the theory."""

from concurrent.futures import Executor
from typing import Any

import numpy as np
import pytest
from figure_data import stored

from propagate import figures

SMALL: dict[str, dict[str, Any]] = {"scmoe": {"depth": 2, "width": 64}, "active_experts": {"steps": 40}}


@pytest.mark.parametrize("name", SMALL)
def test_the_stored_data_can_be_drawn_and_told(name: str) -> None:
    data, script = stored(name), figures.load(name)
    assert script.draw(data).axes[0].get_xlabel()
    caption = (figures.ROOT / "figures" / f"{name}.md").read_text(encoding="utf-8")
    assert caption.endswith(script.CAPTION.strip().format(**data.attrs) + "\n")
    assert data.attrs["draws"] >= 24


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


def test_paths_are_as_correlated_as_theory_says() -> None:
    data = stored("scmoe")
    some = data.sel(identity=data.identity > 0)
    z = (some.path - some.theory_path) / np.hypot(some.path_se, 0.01 * some.theory_path)
    assert float(abs(z).max()) < 5  # of batches, whose errors are Student's
    exchanged = some.theory_path.isel(way=[1, 0]).to_numpy()
    assert float(np.median(abs(some.path - exchanged) / some.path_se)) > 5
    assert float(abs(data.theory_path.sel(identity=0)).max()) < 1e-9
    assert float(abs(data.path.sel(identity=0)).max()) < 0.02


def test_networks_agree_and_a_scaling_does_not_reach_identity_experts() -> None:
    data = stored("scmoe")
    assert float(abs(data.z).max()) < 4
    ends = np.exp(data.variance[..., -1])
    scaled = ends.sel(scaling="ScaleInit(0.5)")
    assert float(scaled.sel(network="ScMoE")) > 10 * float(scaled.sel(network="ScMoE without identity experts"))


def test_numbers_of_active_experts_and_what_a_batch_s_mean_varies_by() -> None:
    data = stored("active_experts")
    for name in ("plain", "fewer"):
        likely = data[f"theory_{name}"] > 1e-3
        z = ((data[name] - data[f"theory_{name}"]) / data[f"{name}_se"]).where(likely)
        assert float(abs(z).max()) < 4
    exchanged = (data.plain - data.theory_fewer) / data.plain_se
    assert float(abs(exchanged.where(data.theory_plain > 1e-3)).max()) > 10
    z = (data["std"] - data.theory_std) / data.std_se
    assert float(abs(z).max()) < 4
    alone = data.theory_std.sel(batch=1) / np.sqrt(data.batch)
    assert float(abs((data["std"] - alone) / data.std_se).sel(correlation=0.9, batch=256)) > 10


def test_control_and_splitting_are_as_predicted() -> None:
    data, script = stored("active_experts"), figures.load("active_experts")
    windows = data.theory_control[:, : data.sizes["window"] * script.EVERY].to_numpy()
    means = windows.reshape(2, data.sizes["window"], -1).mean(axis=-1)
    error = np.hypot(data.control_se[0], 0.02)
    assert np.abs((data.control[0] - means) / error).max() < 6  # of four routers, whose errors are Student's
    for at in range(len(script.KINDS)):
        z = (data[f"split_{at}"] - data[f"theory_split_{at}"]) / data[f"split_{at}_se"]
        assert float(abs(z).max()) < 4
    assert float(data.theory_split_4.max()) < 1.02  # of nearly even gates
    assert float(data.theory_split_0.sel(split=32)) > 4
