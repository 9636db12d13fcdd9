"""The style sheet: one for every picture, taken from the package whatever the user's own settings are."""

import matplotlib
import pytest

from propagate import plots

OKABE_ITO = {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"}


def test_pictures_look_the_same_whatever_the_user_has_set() -> None:
    with matplotlib.rc_context({"font.size": 31, "axes.grid": False, "svg.hashsalt": "mine"}):
        with plots.style():
            seen = {key: matplotlib.rcParams[key] for key in ("font.size", "axes.grid", "svg.hashsalt")}
        assert matplotlib.rcParams["font.size"] == 31  # and theirs come back
    assert seen == {"font.size": 8, "axes.grid": True, "svg.hashsalt": "propagate"}


def test_the_sheet_can_be_taken_by_name() -> None:
    with matplotlib.rc_context():
        matplotlib.style.use("propagate.propagate")
        assert set(matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]) == OKABE_ITO


def test_colours_can_be_told_apart_with_any_colour_vision() -> None:
    assert {*plots.COLOURS.values(), plots.OTHER} <= OKABE_ITO
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)


@pytest.mark.parametrize(
    "size", ["font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"]
)
def test_text_is_readable_at_the_width_of_a_column(size: str) -> None:
    with plots.style():
        assert matplotlib.rcParams[size] >= 7
