"""Mixtures of experts token by token: exact given the gates, and so behind norms, where the mean over tokens is not."""

import numpy as np
import pytest
import xarray as xr

import propagate as pg
from propagate import Experts
from propagate.theory import blocks, gram_experts, token_resolved
from propagate.theory.experts import Along, uneven
from propagate.theory.gram import Gram

START = {"covariance": 0.4, "grad_covariance": 0.5}
UNEVEN = Experts(8, 1, softmax="before", gain=4.0)
KINDS = {
    "two of eight": Experts(8, 2),
    "identity, softmax before": Experts(4, 3, softmax="before", identity=2, gain=1.5),
    "shared and split": Experts(4, 2, shared=1, split=2),
}


class FeedForwardOnly(pg.Placement):
    """Without a norm the mean over tokens is exact too."""

    def block(self, x, block):
        return x + block.ffn(x)


class NormBehind(pg.Placement):
    def block(self, x, block):
        return block.norm(x + block.ffn(x))


class NormBefore(pg.Placement):
    def block(self, x, block):
        return x + block.ffn(block.norm(x))


def gram(variance: float, covariance: float, tokens: int) -> np.ndarray:
    return np.full((tokens, tokens), covariance) + (variance - covariance) * np.eye(tokens)


def network(placement: pg.Placement, kind: Experts, **fields) -> pg.Model:
    size = {"depth": 1, "width": 256, "tokens": 4, "heads": 1, "ffn_ratio": 0.5}
    return pg.Model(placement, experts=kind, **size | fields)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("activation", ["relu", "swiglu"])
@pytest.mark.filterwarnings("ignore:the sum of a token's squared gates")  # arrays of starts are not resolved
def test_without_norms_both_resolutions_agree(kind: Experts, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_resolved, "ROUTERS", 2048)
    model = network(FeedForwardOnly(), kind, activation=activation)
    pair = pg.predict(model, covariance=xr.DataArray([0.4], dims="start"), grad_covariance=0.5).isel(start=0)
    said = pg.predict(model, gram=gram(1.0, 0.4, 4), grad_covariance=0.5)
    for name, block in (("variance", 1), ("deviation", 1), ("grad_variance", 0), ("grad_deviation", 0)):
        error = np.hypot(float(said[f"{name}_se"][block]), 1e-3 * float(pair[name][block]))  # both are sampled
        assert abs(float(said[name][block] - pair[name][block])) < 4 * error, name
        assert abs(float(said[name][block] - 1.1 * pair[name][block])) > 4 * error, name


def test_the_sums_over_gates_are_those_written_out() -> None:
    """J_t, U and their contraction entry by entry, for gates and coefficients of unlike tokens."""
    draw = np.random.default_rng(0)
    kind, x = (
        Experts(5, 2, softmax="before", identity=1),
        Gram.of((lambda a: a @ a.T)(draw.standard_normal((3, 9)))[None]),
    )
    drawn = gram_experts.routing(kind, x, [1])
    own, p = drawn.gates[0, :, :5], drawn.softmax[0]
    j = own[:, :, None] * (np.eye(6)[:5] - p[:, None, :])  # (tokens, experts, logits)
    products = np.einsum("tje,sie->tsji", j, j)
    k, rho = x.matrix[0], np.array([[1.0, 0.3, 0.2], [0.3, 1.0, -0.1], [0.2, -0.1, 1.0]])
    energy, a = np.array([[2.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 1.5]]), np.array([0.3, 0.5, 0.2])
    v = np.diagonal(k)
    lost = np.zeros((3, 3))
    for t in range(3):
        for s in range(3):
            u = a[t] ** 2 * v[t] * k[t, s] * np.outer(own[t], own[t])
            u = u + a[s] ** 2 * v[s] * k[t, s] * np.outer(own[s], own[s])
            u = u - a[t] * a[s] * v[t] * v[s] * rho[t, s] * np.outer(own[t], own[s])
            lost[t, s] = energy[t, s] * (products[t, s] * u).sum()
    along = Along(a, Gram.of(energy[None]), Gram.of((energy * rho)[None]))
    found = gram_experts._quenched(drawn.gates[..., :5], drawn.softmax, x, along)[0]
    assert found == pytest.approx(lost, rel=1e-12, abs=1e-15)
    assert gram_experts._slopes(drawn.gates[..., :5], drawn.softmax)[0] == pytest.approx(
        np.einsum("tsjj->ts", products), rel=1e-12, abs=1e-15
    )


def test_a_norm_behind_uneven_gates() -> None:
    """Tokens differ in variance, and the norm divides each by its own; the mean over tokens is rejected."""
    model = network(NormBehind(), UNEVEN, depth=4, width=512, ffn_ratio=0.25)
    seen = pg.simulate(model, draws=200, seed=5, backend="numpy", **START)
    said = pg.predict(model, **START)
    found = pg.compare(said, seen)
    assert found.attrs["agrees"] == 1, found.worst_z.to_series().to_dict()
    with pytest.warns(UserWarning, match="squared gates"):
        means = pg.predict(model, covariance=xr.DataArray([0.4], dims="start"), grad_covariance=0.5)
    wrong = pg.compare(means.isel(start=0), seen)
    assert not wrong.agrees.sel(quantity="grad_variance")


def test_a_later_norm_quenches_the_router_s_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """PreNorm: cotangents from later branches are orthogonal to a stream that holds the experts' outputs."""
    monkeypatch.setattr(token_resolved, "ROUTERS", 512)
    model = network(NormBefore(), UNEVEN, depth=4)
    seen = pg.simulate(model, draws=400, seed=6, backend="numpy", **START)
    right = pg.compare(pg.predict(model, **START), seen)
    assert right.attrs["agrees"] == 1, right.worst_z.to_series().to_dict()
    monkeypatch.setattr(blocks, "_carried", lambda cotangent, entered: None)
    wrong = pg.compare(pg.predict(model, **START), seen)
    assert not wrong.agrees.sel(quantity="grad_variance")


@pytest.mark.parametrize("placement", ["postnorm", "prenorm"])
def test_whole_causal_networks_agree(placement: str) -> None:
    size = {"depth": 3, "width": 192, "tokens": 6, "heads": 3, "causal": True, "dropout": 0.1}
    model = network(placement, Experts(6, 2, softmax="before", gain=2.0), **size)
    seen = pg.simulate(model, draws=100, seed=9, backend="numpy", **START)
    found = pg.compare(pg.predict(model, **START), seen)
    assert found.attrs["agrees"] == 1, found.worst_z.to_series().to_dict()
    assert "token_variance" in found.quantity


def test_only_uneven_gates_are_resolved(recwarn: pytest.WarningsRecorder) -> None:
    assert [uneven(kind) for kind in (None, KINDS["two of eight"], UNEVEN)] == [False, False, True]
    assert "token_variance" not in pg.predict(network(NormBehind(), KINDS["two of eight"]), **START)
    found = pg.predict(network(NormBehind(), UNEVEN), **START)
    assert "token_variance" in found
    assert bool((found.grad_variance_se > 0).any())
    assert not recwarn.list
