"""What `propagate figures` says of data made here beside the committed ones."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from propagate import figures
from propagate.figure_comparison import compared


def stored(path: Path, **changes: object) -> Path:
    columns = {"x": ("block", [1.0, np.nan]), "x_se": ("block", [0.1, np.nan]), "theory": ("block", [2.0, 3.0])}
    xr.Dataset(columns | {"placement": "prenorm"} | changes).to_netcdf(path, engine="scipy")
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "same bytes"),
        ({"x": ("block", [1.01, np.nan])}, r"same within its standard errors \(largest \|z\| 0.07\)"),
        ({"theory": ("block", [2.0 + 1e-9, 3.0])}, r"same within its standard errors \(largest \|z\| 0.00\)"),
        ({"x": ("block", [1.8, np.nan])}, r"differs: x, \|z\| 5.66"),
        ({"theory": ("block", [2.01, 3.0])}, "differs: theory, relative difference 0.005"),
        ({"x_se": ("block", [0.2, np.nan])}, "differs: x_se, relative difference 0.5"),
        ({"x": ("block", [1.0, 2.0])}, "differs: x, NaN elsewhere"),
        ({"placement": "postnorm"}, "differs: placement, other values"),
        ({"more": ("block", [0.0, 0.0])}, "differs: of another size"),
    ],
)
def test_differences_are_named(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    found = compared(stored(tmp_path / "made.nc", **changes), stored(tmp_path / "committed.nc"))
    assert re.fullmatch(said, found), found


def test_a_figure_that_is_not_committed_is_said(tmp_path: Path) -> None:
    assert compared(stored(tmp_path / "made.nc"), tmp_path / "none.nc") == "nothing committed"


def test_every_committed_figure_is_the_same_as_itself_and_as_no_other() -> None:
    paths = sorted((figures.ROOT / "figures").glob("*.nc"))
    assert {compared(path, path) for path in paths} == {"same bytes"}
    assert all(compared(one, other).startswith("differs") for one, other in pairwise(paths))
