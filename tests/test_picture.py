"""The standard picture: every table is in it, by its kind, and bad input is named."""

from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.plots import render

SMALL = {"depth": 4, "width": 32, "tokens": 4, "heads": 2}


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_theory_is_a_line_and_a_measurement_points() -> None:
    model = pg.Model("spannorm", **SMALL)
    said, seen = pg.predict(model), pg.simulate(model, draws=4, backend="numpy")
    figure = pg.plot(said, seen)
    assert [axes.get_title() for axes in figure.axes] == ["variance", "deviation", "grad_variance", "grad_deviation"]
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 5]
    assert [line.get_linestyle() for line in lines] == ["-", "None"]
    assert lines[0].get_ydata().tolist() == said.variance.to_numpy().tolist()
    assert render(figure, "png") == render(pg.plot(said, seen), "png")


def test_streams_and_colours() -> None:
    tables = [pg.predict(pg.Model(name, **SMALL)) for name in ("residual", "spannorm", "rezero")]
    figure = pg.plot(*tables, quantities=["variance"])
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert len(colours) == 4
    assert colours[0] == colours[1]
    assert len(set(colours)) == 3
    assert legend(figure) == ["ResiDual", "SpanNorm", "ReZero", "theory"]


def test_one_token_has_no_deviation() -> None:
    alone = pg.predict(pg.Model("prenorm", **SMALL | {"tokens": 1}))
    assert [axes.get_title() for axes in pg.plot(alone).axes] == ["variance", "grad_variance"]


def test_labels_tell_networks_of_one_placement_apart() -> None:
    said, other = (pg.predict(pg.Model("prenorm", **SMALL, ffn_gain=gain)) for gain in (1.0, 0.5))
    seen = pg.simulate(pg.Model("prenorm", **SMALL), draws=4, backend="numpy")
    figure = pg.plot({"whole": (said, seen), "half": other}, quantities=["variance"])
    assert legend(figure) == ["whole", "half", "theory", "measured"]
    first, points, second = figure.axes[0].lines[:3]
    assert first.get_color() == points.get_markeredgecolor() != second.get_color()
    assert legend(pg.plot(said, other)) == ["PreNorm", "theory"]


def test_a_scaling_shows_where_it_sets_networks_apart() -> None:
    plain, scaled = (pg.predict(pg.Model("postnorm", **SMALL, scaling=one)) for one in (None, pg.ScaleInit(0.5)))
    figure = pg.plot(plain, scaled, quantities=["variance"])
    assert legend(figure) == ["PostNorm", "PostNorm, ScaleInit", "theory"]
    one, other = figure.axes[0].lines
    assert one.get_color() == other.get_color()
    assert one.get_linestyle() != other.get_linestyle()
    assert legend(pg.plot(scaled)) == ["PostNorm", "theory"]
    assert legend(pg.plot({"mine": (plain, scaled)})) == ["mine", "theory"]


def test_one_minus_correlation_is_made_of_what_a_table_has() -> None:
    model = pg.Model("prenorm", **SMALL)
    said, seen = pg.predict(model, covariance=0.3), pg.simulate(model, covariance=0.3, draws=4, backend="numpy")
    [axes] = pg.plot(said, seen, quantities=["decorrelation"]).axes
    line, points = axes.lines[:2]
    np.testing.assert_allclose(line.get_ydata(), 1 - said.covariance / said.variance)
    np.testing.assert_allclose(points.get_ydata(), np.exp(seen.log_deviation - seen.log_variance))
    alone = pg.predict(pg.Model("prenorm", **SMALL | {"tokens": 1}))
    assert pg.plot(alone, quantities=["variance", "decorrelation"]).axes[0].get_title() == "variance"


def test_of_one_block_it_is_drawn_against_tokens() -> None:
    model = pg.Model("postnorm", **SMALL, causal=True)
    said, seen = pg.predict(model), pg.simulate(model, draws=4, backend="numpy")
    figure = pg.plot(said.isel(block=0), seen.isel(block=0), quantities=["grad_token_variance"])
    line, points = figure.axes[0].lines[:2]
    assert figure.axes[0].get_xlabel() == "token"
    assert line.get_xdata().tolist() == points.get_xdata().tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(line.get_ydata(), said.grad_token_variance[0])


def test_bad_input_is_named() -> None:
    table = pg.predict(pg.Model("prenorm", **SMALL))
    tokens = pg.predict(pg.Model("prenorm", **SMALL, causal=True)).isel(block=0)
    for given, options, said in (
        ((), {}, "plot needs one table or more, got none"),
        ((3,), {}, "plot needs tables of predict, simulate or trace, got int"),
        (({"mine": 3},), {}, "plot needs tables of predict, simulate or trace, got int"),
        (({"mine": {"nested": table}},), {}, "plot needs tables of predict, simulate or trace, got str"),
        (({},), {}, "plot needs one table or more, got none"),
        (
            (table.isel(block=0),),
            {},
            "plot needs tables over blocks, or of one block over tokens, got one over neither",
        ),
        ((table, tokens), {}, "got some of either"),
        ((tokens,), {"quantities": ["variance"]}, "quantities must be one of token_variance, grad_token_variance"),
        ((table,), {"quantities": ["varianc"]}, "quantities must be one of .* did you mean variance"),
    ):
        with pytest.raises(pg.ModelError, match=said):
            pg.plot(*given, **options)
