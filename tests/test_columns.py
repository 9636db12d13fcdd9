"""Figures at the width of a column: every text can be read, none is cut off, and panels keep their labels."""

from pathlib import Path

import numpy as np
import pytest
from figure_data import stored
from typer.testing import CliRunner

from propagate import columns, figures, plots
from propagate.cli import app

DOTS = 2.0  # that a letter may stick out


def cut_off(figure: object) -> list[str]:
    """Texts that reach beyond the picture."""
    figure.canvas.draw()  # type: ignore[attr-defined]
    wide, high = figure.get_size_inches() * figure.dpi  # type: ignore[attr-defined]
    found = []
    for text in texts(figure):
        box = text.get_window_extent()
        if box.x0 < -DOTS or box.y0 < -DOTS or box.x1 > wide + DOTS or box.y1 > high + DOTS:
            found.append(text.get_text())
    return found


def texts(figure: object) -> list[object]:
    """Titles, labels, notes and legends that are seen."""
    found = []
    for axes in figure.axes:  # type: ignore[attr-defined]
        if axes.get_visible():
            found += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
            found += axes.get_legend().get_texts() if axes.get_legend() else []
    for legend in figure.legends:  # type: ignore[attr-defined]
        found += legend.get_texts()
    return [text for text in found if text.get_text() and text.get_visible()]


@pytest.mark.few(2)
@pytest.mark.parametrize("name", figures.names())
def test_a_figure_is_readable_in_a_column(name: str) -> None:
    with columns.column():
        figure = figures.load(name).draw(stored(name))
    plots.render(figure, "svg")
    assert figure.get_figwidth() == pytest.approx(3.3)
    assert min(text.get_fontsize() for text in texts(figure)) >= 7
    assert cut_off(figure) == []


def test_a_text_that_is_cut_off_would_be_found() -> None:
    with columns.column(), plots.style():
        figure, axes = plots.panels(1, 1)
        axes[0, 0].set_title("x" * 200)
    assert cut_off(figure) == ["x" * 200]


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 3), (2, 3), (2, 4), (3, 3), (4, 6)])
def test_every_panel_has_a_place_and_its_labels(shape: tuple[int, int]) -> None:
    places = [one for line in columns.lines(*shape) for one in line if one is not None]
    assert sorted(places) == list(np.ndindex(shape))
    with columns.column(), plots.style():
        figure, axes = plots.panels(*shape)
        for row in axes:
            row[0].set_ylabel("how much")
        for axis in axes[-1]:
            axis.set_xlabel("of what")
    columns.finish(figure)
    assert {(axis.get_xlabel(), axis.get_ylabel()) for axis in axes.flat} == {("of what", "how much")}


def test_shared_axes_are_labelled_once() -> None:
    with columns.column(), plots.style():
        figure, axes = plots.panels(1, 3, sharex=True, sharey=True)
        for axis in axes.flat:
            axis.set_xlabel("block")
    columns.finish(figure)
    assert [axis.get_xlabel() for axis in axes.flat] == ["", "", "block"]  # beneath one another


def test_pictures_for_a_page_are_as_they_were() -> None:
    with plots.style():
        figure, _ = plots.panels(1, 3)
    assert figure.get_figwidth() == plots.PAGE
    assert not hasattr(figure, "panels_of_column")


def test_legends_name_an_allowance_only_where_one_is_seen() -> None:
    named = {}
    for wide in (0.2, 1e-4):
        with plots.style():
            figure, axes = plots.panels(1, 1)
            plots.theory_line(axes[0, 0], [0, 1, 2], [1.0, 2.0, 1.0], placement="prenorm", allowance=[0, wide, 0])
            handles = plots.legend(figure, [plots.entry("theory"), *plots.key(scalings=False)])
        named[wide] = [text.get_text() for text in handles.get_texts()]
    assert named == {0.2: ["theory", plots.BAND], 1e-4: ["theory"]}


def test_the_command_draws_what_is_committed(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["figures", "skip_path", "--column", "--to", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["skip_path_column.png", "skip_path_column.svg"]
    refused = CliRunner().invoke(app, ["figures", "skip_path", "--column", "--full"])
    assert refused.exit_code == 2


@pytest.mark.parametrize(("ticks", "turned"), [([10, 20, 30], 0), ([10, 12, 30], 90)])
def test_labels_of_ticks_that_do_not_fit_side_by_side_are_turned(ticks: list[int], turned: int) -> None:
    with columns.column(), plots.style():
        figure, axes = plots.panels(1, 1)
        axes[0, 0].set_xticks(ticks, [str(tick) for tick in ticks])
        axes[0, 0].set_xlim(0, 40)
        columns.finish(figure)
        figure.canvas.draw()
    assert {label.get_rotation() for label in axes[0, 0].get_xticklabels()} == {turned}
