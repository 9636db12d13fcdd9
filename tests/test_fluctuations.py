"""Networks of finite width differ from one another as much as predicted, to first order in 1 / width."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import xarray as xr

import propagate as pg
from propagate.scaling import Gains
from propagate.theory.finite import fluctuations

SMALL = {"depth": 3, "width": 96, "tokens": 4, "heads": 4}
START = {"covariance": 0.3, "grad_covariance": 0.2}
DRAWS = 300


class Uneven:
    """A scaling whose gains of queries and keys make the logits larger."""

    def gains(self, index: int, depth: int) -> Gains:
        return Gains(query=1.5, key=1.4, value=1.2, ffn_in=1.1)


CASES: dict[str, pg.Model] = {
    "prenorm": pg.Model("prenorm", **SMALL),
    "postnorm": pg.Model("postnorm", activation="swiglu", **SMALL),
    "spannorm": pg.Model("spannorm", activation="gelu", **SMALL),
    "spannorm scaled": pg.Model("spannorm", scaling=pg.ScaleInit(0.5), **SMALL),
    "periln": pg.Model("periln", activation="tanh", **SMALL),
    "deepnorm": pg.Model("deepnorm", activation="silu", **SMALL),
    "layernormscaling": pg.Model("layernormscaling", logit_std=0.0, **SMALL),
    "uneven gains": pg.Model("prenorm", scaling=Uneven(), **SMALL),
    "few heads": pg.Model("prenorm", depth=2, width=96, tokens=4, heads=1, logit_std=2.0, ffn_gain=0.3),
    "narrow FFN": pg.Model("prenorm", depth=2, width=384, tokens=2, heads=4, ffn_ratio=0.25, attention_gain=0.1),
}


def spreads(judged: xr.Dataset) -> xr.Dataset:
    return judged.sel(quantity=[q for q in judged.quantity.to_numpy() if q.endswith("_spread")])


@cache
def both(name: str, **options: Any) -> tuple[xr.Dataset, xr.Dataset]:
    model = CASES[name]
    said = pg.predict(model, **START, **options, include={"fluctuations"})
    return said, pg.simulate(model, draws=DRAWS, seed=17, backend="numpy", **START, **options)


@pytest.mark.few(3)
@pytest.mark.parametrize("name", CASES)
def test_the_spread_between_networks_is_the_predicted_one(name: str) -> None:
    judged = spreads(pg.compare(*both(name)))
    assert bool((judged.verdict != "disagrees").all()), judged.worst_z.to_series().to_dict()
    assert int(np.isfinite(judged.z).sum()) >= 6
    ratio = np.exp(judged.relative_error.where(np.isfinite(judged.z)))
    assert float(abs(ratio - 1).max()) < 0.25  # the allowance hides nothing large


@pytest.mark.slow
def test_through_the_readout_and_for_one_token() -> None:
    judged = spreads(pg.compare(*both("prenorm", through_readout=True)))
    assert bool((judged.verdict != "disagrees").all())
    lone = pg.Model("postnorm", depth=4, width=128, tokens=1, heads=1)
    said = pg.predict(lone, include={"fluctuations"})
    judged = spreads(pg.compare(said, pg.simulate(lone, draws=DRAWS, seed=2, backend="numpy")))
    assert bool((judged.verdict != "disagrees").all())
    assert "deviation_spread" not in said
    # one token, unit gains: 7.5 depth / width, as worked out by hand from the same moments of Gaussian matrices
    assert float(said.grad_variance_spread[0]) ** 2 == pytest.approx(7.5 * 4 / 128, rel=0.02)


def variance_of(found: xr.Dataset, name: str) -> float:
    return float(found[f"log_{name}_se"][0]) ** 2 * found.attrs["draws"]


@pytest.mark.slow
def test_it_falls_as_one_over_the_width() -> None:
    """Slope of the measured variance of log gradient against width; and the prediction is met better and better."""
    widths, ratios, measured = (32, 128), [], []
    for width in widths:
        model = pg.Model("postnorm", depth=2, width=width, tokens=2, heads=1, logit_std=0.0)
        said = pg.predict(model, include={"fluctuations"})
        seen = pg.simulate(model, draws=1500, seed=width, backend="numpy")
        measured.append(variance_of(seen, "grad_variance"))
        ratios.append(measured[-1] / float(said.grad_variance_spread[0]) ** 2)
    slope = math.log(measured[1] / measured[0]) / math.log(widths[1] / widths[0])
    error = math.sqrt(2 * 2 / 1500) / math.log(widths[1] / widths[0])
    assert abs(slope + 1) < 4 * error
    assert abs(slope + 0.5) > 4 * error
    assert abs(ratios[1] - 1) < 4 * math.sqrt(2 / 1500)


WRONG = {
    "streams whose inner product is exactly zero": ("prenorm", "deviation_spread"),
    "Gaussian hidden units": ("narrow FFN", "variance_spread"),
    "heads that are all alike": ("few heads", "grad_deviation_spread"),
    "the state forgotten": ("prenorm", "variance_spread"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_forgotten_source_of_noise_is_found_out(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, quantity = WRONG[wrong]
    right, seen = both(name)
    if wrong.startswith("streams"):
        alone = lambda self, terms: fluctuations.Energies(  # noqa: E731
            *(sum((c * c * a.energies[m] for a, c in terms.items()), fluctuations.Response(0.0)) for m in (0, 1))
        )
        monkeypatch.setattr(fluctuations.Noise, "energies", alone)
    elif wrong.startswith("Gaussian"):
        tokens = CASES[name].tokens
        gaussian = np.diag([2.0, 2 / (tokens - 1)] * 2)
        monkeypatch.setattr(fluctuations, "hidden_forward", lambda *_: gaussian[:2, :2])
        monkeypatch.setattr(fluctuations, "hidden_backward", lambda *_: gaussian)
    elif wrong.startswith("heads"):
        monkeypatch.setattr(fluctuations, "heads_forward", lambda *_: np.zeros((2, 2)))
        monkeypatch.setattr(fluctuations, "heads_backward", lambda *_: np.zeros((4, 4)))
    else:
        read = fluctuations._read
        monkeypatch.setattr(
            fluctuations,
            "_read",
            lambda *args: (r := read(*args))._replace(state=0 * r.state, pulled_state=0 * r.state),
        )
    said = pg.predict(CASES[name], **START, include={"fluctuations"})
    assert pg.compare(right, seen).verdict.sel(quantity=quantity) != "disagrees"
    assert pg.compare(said, seen).verdict.sel(quantity=quantity) == "disagrees"


def test_a_spread_twice_too_small_or_too_large_is_rejected() -> None:
    said, seen = both("deepnorm")
    for factor in (0.5, 2.0):
        wrong = said.assign({n: said[n] * factor for n in said if str(n).endswith("_spread")})
        judged = spreads(pg.compare(wrong, seen)).verdict == "disagrees"
        assert judged.drop_sel(quantity="variance_spread").all()  # which is 0: each block ends in a norm


def test_an_array_of_starts_is_refused() -> None:
    with pytest.raises(pg.ModelError, match="fluctuations needs a start of plain numbers"):
        pg.predict(CASES["prenorm"], covariance=xr.DataArray([0.1, 0.2], dims="start"), include={"fluctuations"})


def test_what_is_not_covered_is_refused() -> None:
    """Before any work: the equations are read without numbers first."""
    centred = pg.Model("prenorm", depth=2, normed=("hidden",), norm="layer")
    for model, what in (
        (centred, "does not cover LayerNorm of hidden units"),
        (pg.Model("dyt", depth=2, dropout=0.1), "does not cover tanh of a stream with dropout"),
        (pg.Model("prenorm", depth=2, experts=pg.Experts(4)), "needs experts=None"),
    ):
        with pytest.raises(pg.ModelError, match=f"fluctuations {what}, got"):
            pg.predict(model, include={"fluctuations"})
