"""The figures in the checkout: remade byte by byte, and the committed ones still agree with the theory."""

from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from figure_data import networks, stored

import propagate as pg
from propagate import figures

NAMES = ("forward_variance", "gradient_variance", "parameter_gradients", "rank_collapse", "skip_path")  # simulated
LONG = (
    "forward_variance",
    "gradient_variance",
    "parameter_gradients",
    "rank_collapse",
    "skip_path",
)  # their bytes are tested with the slow tests
MEASURED = ("attention_gradient", "validity")  # drawn from stored measurements
MODELS = ("architectures", "trained")  # test_model_figures.py
TOUR = ("collapse_layers", "cosine_similarity", "phase_diagram", "twice_as_deep")  # test_figures_of_the_tour.py
LATENT = ("mla_correction",)  # test_figure_of_latent_attention.py
EMBEDDING = ("embedding_share",)  # test_figure_of_embedding_share.py
FIRST = ("coordinate_checks", "first_step", "stable_rate")  # test_coordinate_figure.py, ..._of_first_steps.py
STEPS = (*FIRST, "step_over_depth")
EXPERTS = ("active_experts", "scmoe")  # test_figures_of_experts.py
GROWTH = ("growth",)  # test_figure_of_growth.py
TRAINING = (
    *("collapse_training", "experts_trained", "foretold", "layers_trained", "stability", "training_cost"),
    *("transfer_training", "vision"),
)  # test_figures_of_training.py
ALL = sorted((*NAMES, *MEASURED, *MODELS, *TRAINING, *TOUR, *LATENT, *EMBEDDING, *STEPS, *EXPERTS, *GROWTH))


def predicted(name: str, data: xr.Dataset, network: int) -> xr.Dataset:
    """Theory of a stored network, worked out again."""
    module, one = networks(), data.isel(network=network)
    placement, scaling, start = (str(one[key].item()) for key in ("placement", "scaling", "start"))
    depths = one.depth.values.tolist() if name == "skip_path" else [one.sizes["block"] - 1]
    tables: list[xr.Dataset] = []
    for depth in depths:
        (run,) = (
            run
            for run in module.grid(start, int(one.draws), int(data.attrs["first_seed"]), depth, (placement,))
            if run.scaling == scaling
        )
        assert run.seed == int(one.seed.sel(depth=depth) if name == "skip_path" else one.seed)
        tables.append((figures.load(name) if name == "parameter_gradients" else module).predict(run))
    if name == "skip_path":
        return xr.concat([table.isel(block=0) for table in tables], "block")
    (table,) = tables
    return table


def test_the_figures_that_are_promised_exist() -> None:
    assert figures.names() == ALL


@pytest.mark.parametrize("name", MEASURED)
def test_a_figure_of_stored_measurements_is_the_committed_one(name: str) -> None:
    script = figures.load(name)
    data, committed = script.data(), stored(name)
    assert (
        bytes(data.to_netcdf(engine="scipy", format="NETCDF3_64BIT"))
        == (figures.ROOT / "figures" / f"{name}.nc").read_bytes()
    )
    assert set(data.data_vars) == set(committed.data_vars)
    assert script.CAPTION.strip().format(**data.attrs) in (figures.ROOT / "figures" / f"{name}.md").read_text()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["rank_colapse"], "got 'rank_colapse'; did you mean rank_collapse"),
        (["zzz"], f"figure must be one of {', '.join(ALL)}, got 'zzz'"),
        (["skip_path", "nonesuch"], "got 'nonesuch'"),
    ],
)
def test_an_unknown_name_is_refused_before_any_work(
    asked: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("work began")

    monkeypatch.setattr(figures, "load", never)
    with pytest.raises(pg.ModelError, match=message):
        figures.regenerate(asked)


@pytest.mark.parametrize(("field", "value"), [("draws", 1), ("draws", 2.5), ("seed", -1), ("seed", True)])
def test_bad_settings_are_refused(field: str, value: Any) -> None:
    with pytest.raises(pg.ModelError, match=f"{field} must be (a whole number|at least)"):
        figures.regenerate(["skip_path"], **{field: value})


def test_without_a_checkout_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    with pytest.raises(pg.ModelError, match="must be run from a checkout"):
        figures.names()


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in NAMES])
def test_the_same_seed_gives_the_same_bytes(name: str, here: Executor) -> None:
    """Data and pictures, simulated twice; another seed gives other data."""
    from propagate.plots import render

    script, module, found = figures.load(name), networks(), []
    for seed in (0, 0, 1):
        module._DONE.clear()
        data = script.data(draws=2, seed=seed, executor=here, depth=3)
        pictures = [render(script.draw(data), kind) for kind in ("svg", "png") if seed == 0]
        found.append([bytes(data.to_netcdf(engine="scipy")), script.CAPTION.format(**data.attrs), *pictures])
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]
    assert found[0][1] != found[2][1]


def test_files_are_replaced_whole_and_nothing_else_is_left(
    here: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = figures.load("forward_variance")
    short = script.data(draws=2, executor=here, depth=3)
    monkeypatch.setattr(script, "data", lambda **_: short)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "forward_variance.py").write_text("\ndef draw(data):\n")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    written = figures.regenerate(["forward_variance"], executor=here, progress=False)
    assert sorted(path.name for path in written) == [
        "README.md",
        *(f"forward_variance{s}" for s in (".md", ".nc", ".png", ".svg")),
    ]
    assert sorted((tmp_path / "build" / "figures").iterdir()) == sorted(written)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["forward_variance.py"]


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_data_can_be_drawn(name: str) -> None:
    data, script = stored(name), figures.load(name)
    figure = script.draw(data)
    assert all(axes.lines and axes.containers for axes in figure.axes)
    assert figure.axes[0].get_ylabel()
    assert figure.axes[-1].get_xlabel()
    caption = (figures.ROOT / "figures" / f"{name}.md").read_text(encoding="utf-8")
    assert caption.endswith(script.CAPTION.strip().format(**data.attrs) + "\n")


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_data_say_how_they_were_simulated(name: str) -> None:
    data, module = stored(name), networks()
    assert int(data.draws.min()) >= 8  # with fewer, a t statistic says little and error bars are luck
    said = {key: data.attrs[key] for key in ("width", "heads", "sampler", "draws", "light")}
    assert said == {"width": module.WIDTH, "heads": module.HEADS, "sampler": module.SAMPLER} | module.counts(
        module.DRAWS
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "rank_collapse")) for name in NAMES]
)
def test_stored_theory_is_todays_and_agrees_with_the_stored_simulation(name: str) -> None:
    data, module = stored(name), networks()
    for network in range(data.sizes["network"]):
        prediction, measurement = module.tables(data, network)
        now = predicted(name, data, network)
        for key in prediction:
            if str(key).endswith("_allowance") and name in ("forward_variance", "rank_collapse"):
                continue  # those two state an allowance of their own
            # an angle between tokens is known to 1e-16 of a radian, a deviation to its square, on any machine
            close = {"rtol": 1e-7, "atol": 1e-32, "err_msg": f"{name} {network} {key}"}
            np.testing.assert_allclose(prediction[key], now[key], **close)
        if name == "skip_path":  # a line of many depths, simulated at some
            simulated = np.isfinite(measurement.log_grad_variance.to_numpy())
            prediction, measurement = prediction.isel(block=simulated), measurement.isel(block=simulated)
        if name == "rank_collapse":  # stored as far down as it is drawn
            drawn = np.isfinite(measurement.log_deviation.to_numpy())
            prediction, measurement = prediction.isel(block=drawn), measurement.isel(block=drawn)
        judged = pg.compare(prediction, measurement)
        one = data.isel(network=network)
        label = f"{name}: {one.placement.item()}, {one.scaling.item()}, start {one.start.item()}"
        assert judged.attrs["verdict"] != "disagrees", f"{label}: largest |z| {judged.worst_z.values}"
        assert int(np.isfinite(judged.z).sum()) >= 5, label


def test_a_wrong_theory_would_be_found_out() -> None:
    """Negative control: each stored simulation, judged by the theory of the next placement."""
    data, module = stored("gradient_variance"), networks()
    count, rejected = data.sizes["network"], 0
    for network in range(count):
        _, measurement = module.tables(data, network)
        wrong, _ = module.tables(data, (network + 2) % count)
        rejected += pg.compare(wrong, measurement).attrs["verdict"] == "disagrees"
    assert rejected >= count - 1  # unscaled PostNorm and SpanNorm share their floor, and allow for much


def test_the_predicted_geometric_mean_is_met_and_none_and_the_neighbours_are_not() -> None:
    """The bias of the mean logarithm of the gradient, of tokens that become one too: at every 16th block."""
    data = stored("gradient_variance").isel(block=slice(0, -1, 16))
    off = data.log_grad_variance - np.log(data.theory_grad_variance)
    error = np.hypot(data.log_grad_variance_se, data.log_bias_se)
    assert float(abs((off - data.log_bias) / error).max()) < 4  # eight draws or more: Student's, of 7 or more
    varying = data.isel(network=[i for i, draws in enumerate(data.draws.values) if draws == data.draws.max()])
    assert float(varying.log_bias[:, 0].max()) < -0.1
    neighbours = np.log(data.theory_grad_variance).roll(network=2) + data.log_bias.roll(network=2)
    assert float(abs((data.log_grad_variance - neighbours) / error).max()) > 10


@pytest.mark.slow
def test_the_stored_geometric_mean_is_todays() -> None:
    """Of the network whose tokens become one soonest, by fewer samples; and not that of another."""
    data, module = stored("gradient_variance"), networks()
    runs = module.grid(module.START, module.DRAWS, module.SEED, module.DEPTH)
    network = next(i for i, run in enumerate(runs) if (run.placement, run.scaling) == ("PostNorm", "none"))
    now, then = module.log_biases(runs[network], pairs=24), data.isel(network=network)
    error = np.hypot(now["log_bias_se"], then.log_bias_se)[:-1]
    assert float((abs(now["log_bias"] - then.log_bias)[:-1] / error).max()) < 4
    assert float((abs(now["log_bias"])[:-1] / error).max()) > 3
