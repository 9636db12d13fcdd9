"""The figure of coordinate checks: remade byte by byte, and the committed one says what its caption does."""

from concurrent.futures import Executor

import numpy as np
import pytest
from figure_data import stored

from propagate import figures

NAME = "coordinate_checks"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_data(here: Executor) -> None:
    script, found = figures.load(NAME), []
    for seed in (0, 0, 1):
        data = script.data(draws=2, seed=seed, executor=here, widths=(16, 32), wide=(32, 64))
        found.append((bytes(data.to_netcdf(engine="scipy")), script.CAPTION.format(**data.attrs)))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]


def test_the_stored_data_can_be_drawn_and_told() -> None:
    data, script = stored(NAME), figures.load(NAME)
    figure = script.draw(data)
    assert all(axes.lines and axes.containers and axes.get_title() for axes in figure.axes)
    assert figure.axes[0].get_ylabel()
    assert figure.axes[-1].get_xlabel()
    caption = (figures.ROOT / "figures" / f"{NAME}.md").read_text(encoding="utf-8")
    assert caption.endswith(script.CAPTION.strip().format(**data.attrs) + "\n")
    assert data.attrs["draws"] >= 6


def test_stored_exponents_are_those_of_the_rules_factors() -> None:
    data = stored(NAME)
    matrices = data.sel(name=[name for name in data.name.values if name not in ("logits", "stream")])
    apart = np.abs(matrices.slope - matrices.rule)
    assert int(np.isfinite(apart).sum()) >= 6 * 5 + 3 * 5
    standard = data.label.values == "standard"
    assert float(apart[~standard].max()) < 0.1
    assert float(apart[standard].max()) < 0.25
    hidden = matrices.isel(case=standard).drop_sel(name=["embedding"], errors="ignore").slope
    assert float(hidden.min()) > 0.5  # negative control: a level curve is not what the standard rule gives
