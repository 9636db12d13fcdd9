"""What `block.tanh` takes for granted is checked: Gaussian streams, and cotangents that know the experts."""

import numpy as np
import pytest

import propagate as pg
from propagate import Experts, ModelError
from propagate.placements import DyT
from propagate.theory.gaussian import quadrature
from propagate.theory.gaussian.activations import tanh_slope
from propagate.theory.pairs.products import Products
from propagate.theory.reading import blocks
from propagate.theory.tokens import tanh_pairs
from propagate.theory.tokens.elementwise import curvature
from propagate.theory.tokens.gram import Gram

SIZE = {"depth": 2, "width": 256, "tokens": 6, "heads": 1, "ffn_ratio": 0.5, "logit_std": 0.0}
START = {"covariance": 0.3, "grad_covariance": 0.2}


class TanhOfTanh(pg.Placement):
    def block(self, x, block):
        return block.tanh(2.0 * block.tanh(x))


class OneBlockLater(pg.Placement):
    """The second tanh is in the next block."""

    def block(self, x, block):
        return block.norm(0.5 * x + block.tanh(x)) + block.ffn(x)


class ThroughMatrices(pg.Placement):
    def block(self, x, block):
        return block.tanh(block.ffn(block.tanh(x)))


@pytest.mark.parametrize(
    ("placement", "further"),
    [(TanhOfTanh(), {}), (OneBlockLater(), {}), (DyT(), {"experts": Experts(4, 1, identity=1)})],
)
@pytest.mark.parametrize("causal", [False, True])
def test_a_tanh_of_what_is_not_gaussian_is_refused(placement, further: dict, causal: bool) -> None:
    with pytest.raises(ModelError, match="Gaussian coordinates"):
        pg.predict(pg.Model(placement, causal=causal, **SIZE | further), **START)


def test_a_tanh_behind_a_sublayer_is_not(recwarn: pytest.WarningsRecorder) -> None:
    model = pg.Model(ThroughMatrices(), **SIZE | {"depth": 1})
    seen = pg.simulate(model, draws=60, seed=2, backend="numpy", progress=False, **START)
    assert float(pg.compare(pg.predict(model, **START), seen).worst_z.max()) < 4
    assert not recwarn.list


@pytest.mark.parametrize("causal", [False, True])
def test_dropout_before_a_tanh_is_warned_of(causal: bool, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.warns(pg.ValidityWarning, match="mixtures of Gaussians"):
        pg.predict(pg.Model("dyt", dropout=0.5, causal=causal, **SIZE), **START)
    pg.predict(pg.Model("prenorm", dropout=0.5, causal=causal, **SIZE), **START)
    pg.predict(pg.Model("dyt", causal=causal, **SIZE), **START)
    assert not recwarn.list


@pytest.mark.slow
def test_routers_behind_a_tanh(monkeypatch: pytest.MonkeyPatch) -> None:
    """tanh'(z) knows the experts' outputs in z: without that the gradient is a fifth too large."""
    kind = Experts(4, 1, softmax="before", gain=4.0, router_std=2.0)
    model = pg.Model(DyT(alpha=2.0), experts=kind, **SIZE)
    seen = pg.simulate(model, draws=200, seed=4, backend="numpy", progress=False, **START)
    right = pg.compare(pg.predict(model, **START), seen)
    assert float(right.worst_z.max()) < 4, right.worst_z.to_series().to_dict()
    monkeypatch.setattr(blocks, "behind_elementwise", lambda *arguments: Products())
    assert float(pg.compare(pg.predict(model, **START), seen).worst_z.sel(quantity="grad_variance")) > 4


@pytest.mark.parametrize("deviation", [1e-9, 3.0, 60.0])
def test_closed_forms_of_tanh_are_those_of_quadrature(deviation: float) -> None:
    q, d = np.array(40.0), np.array(deviation)
    for f, closed in ((np.tanh, tanh_pairs.of_one_variance), (tanh_slope, tanh_pairs.slope_of_one_variance)):
        value, drop = closed(q, d)
        assert float(value) == pytest.approx(quadrature.square_on_line(f, 40.0), rel=1e-6)
        exact = quadrature.drop_on_plane(f, 40.0, 40.0, deviation)
        assert float(drop) == pytest.approx(exact, rel=3e-6, abs=0.0)
        assert float(drop) != pytest.approx(exact * 1.001, rel=1e-4, abs=0.0)
    unlike = quadrature.drop_on_plane(np.tanh, 40.0, 20.0, 25.0)
    mean = (quadrature.square_on_line(np.tanh, 40.0) + quadrature.square_on_line(np.tanh, 20.0)) / 2
    pair = float(tanh_pairs.tanh_pair(np.array(40.0), np.array(20.0), np.array(5.0)))
    assert pair == pytest.approx(mean - unlike, rel=1e-6)


def test_curvature_is_the_derivative_of_the_slopes() -> None:
    """By a token's own variance (half the third derivative) and by the covariance (the second ones)."""
    at, step = np.array([[5.0, 2.0], [2.0, 3.0]]), 1e-4
    third, second = curvature(Gram.of(at))

    def slope(own: float, both: float) -> float:
        return float(tanh_pairs.tanh_slope_pair(np.array(5.0 + own), np.array(3.0), np.array(2.0 + both)))

    by_own = (slope(step, 0) - slope(-step, 0)) / (2 * step)
    by_both = (slope(0, step) - slope(0, -step)) / (2 * step)
    assert third.matrix[0, 1] == pytest.approx(2 * by_own, rel=1e-6)
    assert second.matrix[0, 1] == pytest.approx(by_both, rel=1e-6)
    assert third.matrix[1, 0] != pytest.approx(2 * by_own, rel=1e-2)
