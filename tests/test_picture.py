"""The standard picture: every table is in it, by its kind, and bad input is named."""

import pytest

import propagate as pg
from propagate.plots import render

SMALL = {"depth": 4, "width": 32, "tokens": 4, "heads": 2}


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
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["ResiDual", "SpanNorm", "ReZero"]


def test_one_token_has_no_deviation() -> None:
    alone = pg.predict(pg.Model("prenorm", **SMALL | {"tokens": 1}))
    assert [axes.get_title() for axes in pg.plot(alone).axes] == ["variance", "grad_variance"]


def test_bad_input_is_named() -> None:
    table = pg.predict(pg.Model("prenorm", **SMALL))
    for given, options, said in (
        ((), {}, "plot needs one table or more, got none"),
        ((3,), {}, "plot needs tables of predict, simulate or trace, got int"),
        ((table,), {"quantities": ["varianc"]}, "quantities must be one of .* did you mean variance"),
    ):
        with pytest.raises(pg.ModelError, match=said):
            pg.plot(*given, **options)
