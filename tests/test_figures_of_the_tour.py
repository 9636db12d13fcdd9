"""The figures that answer the SpanNorm paper's own: remade byte by byte, and theory and simulation in them agree."""

from concurrent.futures import Executor
from typing import Any

import numpy as np
import pytest
import xarray as xr
from figure_data import networks, stored

import propagate as pg
from propagate import figures

SMALL: dict[str, dict[str, Any]] = {  # arguments of `data` that make it quick
    "collapse_layers": {"depth": 2, "width": 64},
    "cosine_similarity": {"depth": 2, "width": 32},
    "phase_diagram": {"depth": 16, "width": 32, "placements": ("spannorm",)},
    "twice_as_deep": {"depth": 2, "width": 64},
}
NAMES = tuple(SMALL)
LONG = (
    "collapse_layers",
    "cosine_similarity",
    "phase_diagram",
    "twice_as_deep",
)  # their bytes are tested with the slow tests


def needs_torch(name: str) -> None:
    if name == "cosine_similarity":
        pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in NAMES])
def test_the_same_seed_gives_the_same_bytes(name: str, here: Executor) -> None:
    """Data, caption and pictures, simulated twice; another seed gives other data."""
    needs_torch(name)
    from propagate.plots import render

    script, found = figures.load(name), []
    for seed in (0, 0, 1):
        networks()._DONE.clear()
        data = script.data(draws=2, seed=seed, executor=here, **SMALL[name])
        pictures = [render(script.draw(data), kind) for kind in ("svg", "png") if seed == 0]
        found.append([bytes(data.to_netcdf(engine="scipy")), script.CAPTION.format(**data.attrs), *pictures])
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_data_can_be_drawn_and_told(name: str) -> None:
    data, script = stored(name), figures.load(name)
    figure = script.draw(data)
    assert figure.axes[0].get_ylabel() or figure.axes[0].get_yticklabels()
    assert all(axes.get_xlabel() or axes.get_ylabel() or axes.get_title() for axes in figure.axes)
    caption = (figures.ROOT / "figures" / f"{name}.md").read_text(encoding="utf-8")
    assert caption.endswith(script.CAPTION.strip().format(**data.attrs) + "\n")
    assert data.attrs["draws"] >= 6


def collapse_tables(data: xr.Dataset) -> dict[tuple[str, float], tuple[xr.Dataset, xr.Dataset]]:
    """Prediction and measurement of the networks of collapse_layers that are simulated."""
    found = {}
    for index in np.flatnonzero(np.isfinite(data.log_deviation.isel(block=0))):
        one = data.isel(network=index)
        found[str(one.placement.item()), float(one.gain)] = networks().tables(data, index)
    return found


def test_collapse_layers_agrees_and_no_other_gain_would() -> None:
    tables, rejected = collapse_tables(stored("collapse_layers")), 0
    assert len(tables) == 15
    for (placement, gain), (said, seen) in tables.items():
        judged = pg.compare(said, seen)
        assert judged.attrs["verdict"] != "disagrees", (placement, gain, judged.worst_z.values)
        near = min(
            (other for name, other in tables if name == placement and other != gain), key=lambda g: abs(g - gain)
        )
        rejected += pg.compare(tables[placement, near][0], seen).attrs["verdict"] == "disagrees"
    assert rejected == 15


def test_collapse_layers_has_todays_theory() -> None:
    data = stored("collapse_layers")
    for index in (3, 40, 80):
        one = data.isel(network=index)
        gain = float(one.gain)
        size = {"depth": data.attrs["depth"], "width": data.attrs["width"], "tokens": 16, "heads": data.attrs["heads"]}
        model = pg.Model(str(one.placement.item()), attention_gain=gain, ffn_gain=gain, **size)
        now = pg.predict(model, covariance=0.3).sel(block=data.block)
        for name in ("variance", "deviation", "grad_variance"):
            np.testing.assert_allclose(one[f"theory_{name}"], now[name], rtol=1e-6)


def test_twice_as_deep_agrees_and_the_skip_path_would_not() -> None:
    data, scores = stored("twice_as_deep"), networks().scores
    draws = data.attrs["light"]
    for index in range(2):
        one = data.isel(network=index)
        seen = one.isel(norms=np.flatnonzero(np.isfinite(one.log_grad_variance)))
        for name in ("grad_variance", "last_token", "collapse"):
            measured = seen[f"log_{name}"], seen[f"log_{name}_se"], draws
            z = scores(seen[f"theory_{name}"], seen[f"{name}_allowance"], *measured)
            assert len(z) >= 4
            assert (abs(z) < 4).all(), (one.placement.item(), name, z)
            wrong = scores(seen.theory_skip_gain, seen[f"{name}_allowance"], *measured)
            assert abs(wrong).max() > 4, (one.placement.item(), name)


def test_twice_as_deep_compares_equal_numbers_of_norms_with_todays_theory() -> None:
    data = stored("twice_as_deep")
    size = {"width": data.attrs["width"], "tokens": 16, "heads": data.attrs["heads"]}
    for index, (placement, norms_a_block) in enumerate({"postnorm": 2, "spannorm": 1}.items()):
        one = data.isel(network=index).sel(norms=16)
        for causal in (False, True):
            model = pg.Model(placement, depth=16 // norms_a_block, causal=causal, **size)
            now = pg.predict(model, covariance=0.3)
            if causal:
                said = now.grad_token_variance[0, -1]
                np.testing.assert_allclose(one.theory_last_token, said, rtol=1e-4)
                continue
            np.testing.assert_allclose(one.theory_skip_gain, now.skip_gain[0], rtol=1e-7)
            np.testing.assert_allclose(one.theory_grad_variance, now.grad_variance[0], rtol=1e-7)
            np.testing.assert_allclose(one.theory_collapse, now.deviation[-1] / now.variance[-1], rtol=1e-7)


def test_cosines_agree_and_those_of_other_networks_would_not() -> None:
    script, data = figures.load("cosine_similarity"), stored("cosine_similarity")
    chance = 5.0  # 1200 normal scores pass it once in 1500 times
    assert np.nanmax(abs(script.z(data, data.attrs["draws"]))) < chance
    for shift in (1, 2, 3):
        wrong = data.assign(theory_cosine=data.theory_cosine.roll(network=shift))
        worst = np.nanmax(abs(script.z(wrong, data.attrs["draws"])), axis=(1, 2))
        assert (worst > chance).all()


def test_cosines_are_todays_theory() -> None:
    script, data = figures.load("cosine_similarity"), stored("cosine_similarity")
    for index in range(data.sizes["network"]):
        one = data.isel(network=index)
        said = script.model(
            str(one.placement.item()), str(one.scaling.item()), data.attrs["depth"], data.attrs["width"]
        )
        np.testing.assert_allclose(one.theory_cosine, script.predict(said), rtol=1e-7)
    span = data.theory_cosine.isel(network=4).to_numpy()  # without scaling: a factor of root 2 a block
    np.testing.assert_allclose(span, 2.0 ** (-abs(np.subtract.outer(np.arange(25), np.arange(25))) / 2), rtol=1e-7)


def test_the_phase_diagram_agrees_and_another_placements_would_not() -> None:
    script, data = figures.load("phase_diagram"), stored("phase_diagram")
    own = [name for name, kind in pg.placements().items() if kind.__module__ == "propagate.placements"]
    assert data.sizes["placement"] == len(own)
    for name in script.JUDGED:
        z = script.z(data, name)
        assert np.isfinite(z).sum() >= 40
        assert np.nanmax(abs(z)) < 4, (name, z)
        wrong = script.z(data.assign({f"checked_{name}": data[f"checked_{name}"].roll(placement=1)}), name)
        assert (abs(wrong) > 4).mean() > 0.5, name


@pytest.mark.parametrize("placement", ["SpanNorm", "PreNorm", "ResiDual"])
def test_the_phase_diagram_has_todays_theory(placement: str) -> None:
    script, one = figures.load("phase_diagram"), stored("phase_diagram").sel(placement=placement)
    now = script.predict(script.network(placement, 0.25, 4, 512))
    for name in ("gain", "distinct", "share"):
        np.testing.assert_allclose(one[f"theory_{name}"].sel(exponent=0.25, depth=4), now[f"theory_{name}"], rtol=1e-4)


def sides_missed(data: xr.Dataset, lines: xr.Dataset) -> int:
    """Cells of the squares that lie on the wrong side of a line; where there is no line no side is wrong."""
    script, missed = figures.load("phase_diagram"), 0
    for name, (level, _, _) in script.LINES.items():
        for placement in script.PLACEMENTS:
            for depth in (4, 16, 64):
                line = float(lines[f"line_{name}"].sel(line_placement=placement, line_depth=depth))
                cells = data[f"theory_{name}"].sel(placement=placement, depth=depth)
                met = cells.exponent < line if name == "share" else cells.exponent > line
                if np.isnan(line):  # nothing crosses it: all cells lie above, or all below
                    met = cells > level if (cells > level).all() else cells < level
                missed += int(((cells > level) != met).sum())
    return missed


def test_critical_lines_part_the_squares_and_those_of_another_placement_would_not() -> None:
    data = stored("phase_diagram")
    assert sides_missed(data, data) == 0
    lines = [str(name) for name in data if str(name).startswith("line_")]
    assert sides_missed(data, data[lines].roll(line_placement=1)) >= 5


def test_critical_lines_are_todays_theory() -> None:
    script, one = figures.load("phase_diagram"), stored("phase_diagram").sel(line_placement="SpanNorm", line_depth=8)
    exponents = {name: float(one[f"line_{name}"]) for name in script.LINES}
    for name in ("gain", "distinct"):
        found = script.quantities_of_pairs(script.network("spannorm", exponents[name], 8, 512))
        assert found[name] == pytest.approx(script.LINES[name][0], rel=2e-3)
    assert [float(one.line_low), float(one.line_high)] == [
        max(exponents["gain"], exponents["distinct"]),
        exponents["share"],
    ]


@pytest.mark.slow
def test_full_backend_and_folder_reach_the_script(
    tmp_path: Any, here: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, given = figures.load("twice_as_deep"), []
    data = stored("twice_as_deep")
    monkeypatch.setattr(script, "data", lambda **settings: given.append(settings) or data)
    written = figures.regenerate(["twice_as_deep"], full=True, to=tmp_path, executor=here, progress=False)
    figures.regenerate(["twice_as_deep"], full=True, draws=3, to=tmp_path, executor=here, progress=False)
    assert {path.parent for path in written} == {tmp_path}
    assert (tmp_path / "twice_as_deep.png").read_bytes()[1:4] == b"PNG"
    settings = [{key: one[key] for key in ("draws", "width", "backend")} for one in given]
    assert settings[0] == script.FULL | {"backend": "numpy"}
    assert settings[1] == script.FULL | {"backend": "numpy", "draws": 3}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"backend": "torch"}, "backend must be one of"), ({"to": "no/such/folder"}, "to must be a folder")],
)
def test_a_wrong_backend_or_folder_is_refused_before_any_work(
    settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "load", lambda _: pytest.fail("work began"))
    with pytest.raises(pg.ModelError, match=message):
        figures.regenerate(["skip_path"], **settings)
