"""Released systems at their published sizes: every number has a source, gains are the published standard deviations."""

import math
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import propagate as pg
from propagate.cli_systems import check_name, of_system

NAMES = tuple(pg.configurations())


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_source_and_makes_a_model(name: str) -> None:
    one = pg.configuration(name)
    numbers = {key for key, value in one.values.items() if isinstance(value, int | float)} - {"causal"}
    assert numbers <= set(one.sources)
    assert all(one.sources.values())
    assert all("not " in why for why in one.taken.values())
    model = pg.Model.from_config(name)
    assert (model.depth, model.width) == (one.values["depth"], one.values["width"])


def test_gains_are_those_of_the_published_standard_deviation() -> None:
    """Of the matrices that torch draws: entries of gpt-2 are 0.02, and those of its output matrices less."""
    layer = pg.Model.from_config("llama-3-8b").at(1)
    assert layer.attention.query_gain == pytest.approx(0.02 * 64)
    pytest.importorskip("torch")
    for name, parameter in pg.build(pg.Model.from_config("gpt-2", depth=1)).blocks[0].named_parameters():
        if parameter.dim() > 1:
            expected = 0.02 / math.sqrt(24) if "write" in name else 0.02
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.01), name
            assert float(parameter.detach().std()) != pytest.approx(1.1 * expected, rel=0.01), name


def test_the_layers_are_those_of_the_system() -> None:
    gemma = pg.Model.from_config("gemma-3")
    assert [gemma.at(index).attention.window for index in (5, 6, 7)] == [1024, None, 1024]
    assert [gemma.at(index).attention.rope for index in (5, 6)] == [1e4, 1e6]
    longcat = pg.Model.from_config("longcat-flash")
    kind, mixture = longcat.at(1).attention, longcat.at(1).mixture
    assert isinstance(kind, pg.LatentAttention)
    assert kind.query_gain * kind.scale_of("query", 6144) == pytest.approx(kind.rotary_gain)
    assert (mixture.candidates, mixture.chosen, mixture.factor, mixture.expert.units) == (768, 12, 6.0, 2048)
    lite = pg.Model.from_config("deepseek-v2-lite", depth=2)
    assert lite.at(1).experts is None
    assert lite.at(2).mixture.shared == 2


@pytest.mark.parametrize("name", ["bert-base", "vit-b"])
def test_a_small_one_is_predicted_at_its_published_size(name: str) -> None:
    one = pg.configuration(name)
    said = pg.predict(pg.Model.from_config(name), one.start())
    assert float(said.variance[0]) == pytest.approx(one.start().variance)
    assert said.sizes["block"] == 13


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("bert-base", "vit-b")])
def test_each_of_the_others_is_predicted_at_its_published_size(name: str) -> None:
    said = pg.predict(pg.Model.from_config(name), pg.configuration(name).start())
    assert all(np.isfinite(column).all() for column in said.data_vars.values())
    if name == "olmo-2-7b":  # whose branches are normed: two more of the variance in each block
        assert float(said.variance[-1]) == pytest.approx(2 * 32, rel=1e-3)


def test_on_the_command_line_the_start_is_the_system_s_unless_it_is_given() -> None:
    from propagate.cli import app

    shown = CliRunner().invoke(app, ["predict", "gpt-2", "--depth", "1", "--tokens", "1", "--json"])
    assert shown.exit_code == 0
    assert "0.0008" in shown.output
    given: dict[str, Any] = {"model": {"placement": "gpt-2", "depth": 24}, "start": {"variance": 0.5}}
    assert of_system(given, frozenset({"variance"}))["start"]["variance"] == 0.5
    assert of_system(given, frozenset())["model"].depth == 12


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: pg.Model.from_config("llama-9"), "configuration must be one of llama-3-8b, .* got 'llama-9'"),
        (lambda: pg.Model.from_config("llama-3-8b", width=64), "width must be left out beside llama-3-8b"),
        (lambda: pg.configuration(3), "configuration must be one of llama-3-8b"),  # type: ignore[arg-type]
        (lambda: check_name("gpt-17"), "released systems: llama-3-8b, gemma-3-4b"),
        (
            lambda: of_system({"model": {"placement": "gpt-2", "heads": 8}}, frozenset({"heads"})),
            "--heads must be left out with gpt-2, which has its own sizes",
        ),
    ],
)
def test_what_is_not_known_is_refused(ask: Any, message: str) -> None:
    with pytest.raises(pg.ModelError, match=message):
        ask()
