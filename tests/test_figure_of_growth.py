"""The figure of growth: told from its stored data, and from a record of training that says what its caption does."""

import pytest
from figure_data import stored

import propagate as pg
from propagate import figures


def test_the_stored_data_can_be_drawn_and_told() -> None:
    data, script = stored("growth"), figures.load("growth")
    assert script.draw(data).axes[0].get_xlabel() == "block"
    caption = (figures.ROOT / "figures" / "growth.md").read_text(encoding="utf-8")
    assert caption.endswith(script.CAPTION.strip().format(**data.attrs) + "\n")
    assert data.attrs["worst"] < 4 < data.attrs["worst_fresh"]


def test_the_stored_theory_is_today_s() -> None:
    data, script = stored("growth"), figures.load("growth")
    one = data.sel(network="SpanNorm, rescaled")
    said = pg.predict_growth(script.small("spannorm"), script.START, rescaled=True)
    assert said.grad_variance.values == pytest.approx(one.theory_grad_variance.values, rel=1e-6)
    assert said.grad_variance_fresh.values != pytest.approx(one.theory_grad_variance.values, rel=0.1)


def test_a_quiet_copy_keeps_the_loss_and_a_loud_one_raises_it() -> None:
    rise = stored("growth").rise.mean("seed")
    skips = rise.sel(trained=["prenorm", "layernormscaling", "spannorm", "postnorm"])
    assert float(abs(skips.sel(factor=0.0)).max()) < 0.02
    assert float(abs(rise.sel(trained="prenorm", factor=0.0))) < 1e-6
    for name in ("spannorm", "postnorm"):
        along = skips.sel(trained=name).values
        assert (along[1:] > along[:-1]).all()
        assert along[-1] > 0.5
