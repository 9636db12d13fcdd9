"""The figures of real models: drawn from the stored record, which agrees with the theory and would refute another."""

import math
import re

import numpy as np
import pytest

import propagate as pg
from propagate import figures

NAMES = ("architectures", "trained")


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_files_are_what_the_record_gives(name: str) -> None:
    script, folder = figures.load(name), figures.ROOT / "figures"
    data = script.data()
    assert (folder / f"{name}.nc").read_bytes() == bytes(data.to_netcdf(engine="scipy", format="NETCDF3_64BIT"))
    assert (folder / f"{name}.md").read_text().endswith(script.CAPTION.strip().format(**data.attrs) + "\n")
    assert all(axes.lines for axes in script.draw(data).axes if axes.get_visible())


def test_traces_agree_with_their_theory_and_with_no_other() -> None:
    script = figures.load("architectures")
    data, rejected = script.data(), 0
    names = data.architecture.values.tolist()
    for name, other in zip(names, [*names[3:], *names[:3]], strict=True):
        prediction, trace = script.tables(data, name)
        judged = pg.compare(prediction, trace)
        assert judged.attrs["verdict"] != "disagrees", (name, judged.worst_z.values)
        wrong, _ = script.tables(data, other)
        rejected += pg.compare(wrong, trace).attrs["verdict"] == "disagrees"
    assert len(names) >= 10
    assert rejected >= len(names) - 4  # decoders with the same sizes differ in little


def test_what_the_caption_says_of_olmo2_is_so() -> None:
    """Its eps counts: with it all is within what the README says; without, the first block is far off and is named."""
    script = figures.load("architectures")
    data = script.data()
    _, trace = script.tables(data, "OLMo2")
    without, _ = script.tables(data, script.WITHOUT)
    first = pg.compare(without, trace).attrs["first_divergence"]
    assert first.startswith("block 1, the stream: variance")
    assert data.attrs["left"] < 70
    most = max(100 * script._apart(data.sel(architecture=name)) for name in data.architecture.values.tolist())
    (claimed,) = re.findall(
        r"all (\d+) keep to theory\n?\s*\[within (\d+) %\]", (figures.ROOT / "README.md").read_text()
    )
    assert claimed == (str(data.sizes["architecture"]), str(math.ceil(most)))


def test_the_picture_has_a_point_for_every_quantity_of_every_model_the_largest_departure_on_top() -> None:
    script = figures.load("architectures")
    data = script.data()
    (axis,) = script.draw(data).axes
    points = np.array([bars.lines[0].get_xdata() for bars in axis.containers if hasattr(bars, "has_xerr")])
    largest = abs(points).max(axis=0)
    assert points.shape == (len(script.SHOWN), data.sizes["architecture"])
    assert (np.diff(largest) >= 0).all()
    name = axis.get_yticklabels()[-1].get_text().split(" (")[0]
    one = data.sel(architecture=name)
    ratio = np.exp(one.trace_log_grad_variance) / one.theory_grad_variance
    np.testing.assert_allclose(points[-1][-1], 100 * (ratio[0] - 1), rtol=1e-6)
    assert abs(points[-1][-1] - 100 * (ratio[1] - 1)) > 1e-3


@pytest.mark.slow
def test_stored_theory_is_todays() -> None:
    pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
    pytest.importorskip("transformers", reason="transformers is absent: install the extra [text]")
    from figures.hugging_face import make

    data = figures.load("architectures").data().sel(architecture="BERT")
    start = {"variance": 0, "covariance": 0, "grad_variance": -1, "grad_covariance": -1}
    ends = {name: float(data[f"trace_{name}"][end]) for name, end in start.items()}
    model, _ = pg.describe(make("BERT"), tokens=data.attrs["tokens"])
    now = pg.predict(model, **ends)
    for name in ("variance", "deviation", "grad_variance"):
        np.testing.assert_allclose(data[f"theory_{name}"], now[name], rtol=2e-3, err_msg=name)
    wrong = pg.predict(pg.Model("postnorm", depth=12, width=512, tokens=32), **ends)
    assert not np.allclose(data["theory_deviation"], wrong["deviation"], rtol=2e-3)
