"""Mixtures of experts: averages over gates, moment map and simulation agree, and wrong maps are rejected."""

import dataclasses
import math

import numpy as np
import pytest
import xarray as xr

import propagate as pg
from propagate import Experts, Gains
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.experts import gates as array_gates
from propagate.theory.pairs import experts as theory
from propagate.theory.pairs.gates import Gates, gate_averages, gate_errors
from propagate.theory.pairs.moments import Moments
from propagate.theory.pairs.products import Products, Seen
from propagate.theory.pairs.sublayers import ffn
from propagate.theory.reading import blocks


class FeedForwardOnly(pg.Placement):
    """One sublayer behind a skip, without a norm: its map is exact in the limit."""

    def block(self, x, block):
        return x + block.ffn(x)


KINDS = {
    "two of eight": Experts(8, 2),
    "softmax before": Experts(6, 3, softmax="before", gain=2.0),
    "identity": Experts(6, 2, identity=2),
    "identity, softmax before": Experts(4, 3, softmax="before", identity=2, gain=1.5),
    "shared": Experts(4, 1, shared=2, router_std=2.0),
    "split": Experts(4, 2, split=4),
    "all chosen": Experts(3, 3, router_std=2.0),
}

SLOW = {name: [pytest.mark.slow] * (name in ("identity", "softmax before")) for name in KINDS}  # or both at once


def logits(kind: Experts, correlation: float, samples: int = 30_000, seed: int = 8) -> np.ndarray:
    """Of two tokens, shape (2, samples, candidates)."""
    z = np.random.default_rng(seed).standard_normal((2, samples, kind.candidates))
    z[1] = correlation * z[0] + math.sqrt(1 - correlation**2) * z[1]
    return z * kind.router_std


def measured_products(kind: Experts, correlation: float) -> dict[str, np.ndarray]:
    """Samples of the products in `Gates`, from the simulation's gates and their pull."""
    host, r = choose_backend("numpy"), logits(kind, correlation)
    routed = kind.routed
    (g, pull_g), (h, pull_h) = (array_gates(host, kind, token) for token in r)

    def derivative(pull, weights: np.ndarray) -> np.ndarray:
        """Of sum_j weights_j gate_j by all logits."""
        return pull(np.broadcast_to(weights, r[0].shape).astype(float))

    unit, last = np.eye(kind.candidates), np.arange(kind.candidates) >= routed
    slope = sum((derivative(pull_g, unit[j]) * derivative(pull_h, unit[j])).sum(-1) for j in range(routed))
    kept_slope = (derivative(pull_g, last) * derivative(pull_h, last)).sum(-1)
    g_kept, h_kept = g[:, last].sum(-1), h[:, last].sum(-1)
    return {
        "kept": g_kept,
        "kept_spread": g_kept * h_kept,
        "routed": (g * h)[:, ~last].sum(-1),
        "routed_slope": slope,
        "kept_slope": kept_slope,
    }


@pytest.mark.few(2)
@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, id=name, marks=SLOW[name]) for name, kind in KINDS.items()],
)
def test_averages_over_gates_are_those_of_the_arrays(kind: Experts, correlation: float) -> None:
    said = gate_averages(kind, kind.router_std**2, 1 - correlation)
    own_errors = dict(zip(Gates._fields, gate_errors(kind, kind.router_std**2), strict=True))
    for name, samples in measured_products(kind, correlation).items():
        value = said.kept if name == "kept" else getattr(said, name).covariance
        if name == "kept_spread":
            value += said.kept**2
        error = math.hypot(samples.std() / math.sqrt(len(samples)), own_errors[name])
        assert abs(samples.mean() - value) < 4 * error + 1e-12, name
        if samples.std() > 0 and name in ("routed", "routed_slope"):
            assert abs(samples.mean() - 1.1 * value) > 4 * error, name


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", [KINDS["two of eight"], KINDS["identity, softmax before"]])
def test_nearly_equal_tokens_seldom_choose_differently(kind: Experts) -> None:
    """There the drop is theta times a rate, which few samples bear on: those that do are many here."""
    theta = 0.02
    r = logits(kind, math.cos(theta), samples=600_000)
    host = choose_backend("numpy")
    g, h = (array_gates(host, kind, token)[0][:, : kind.routed] for token in r)
    samples = ((g - h) ** 2).sum(-1) / 2
    error = math.hypot(samples.std() / math.sqrt(len(samples)) / samples.mean(), 0.01)  # and the rate's own sample
    drop = gate_averages(kind, kind.router_std**2, 1 - math.cos(theta)).routed.deviation
    assert abs(drop / samples.mean() - 1) < 4 * error
    smooth = drop * theta / 0.2  # as if choices never changed: theta^2, right at 0.2
    assert abs(smooth / samples.mean() - 1) > 4 * error


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", [KINDS["two of eight"], KINDS["split"], KINDS["all chosen"]])
def test_bounds_and_monotony(kind: Experts) -> None:
    """Proposition 21: the sum of squares lies in [1/k, 1], the overlap between 1/candidates and it, rising with c."""
    plain = dataclasses.replace(kind, softmax="after", identity=0, gain=1.0)
    found = [gate_averages(plain, plain.router_std**2, loss).routed for loss in np.linspace(1.0, 0.0, 12)]
    error = 4 * gate_errors(plain, plain.router_std**2)[2]
    assert 1 / plain.chosen - 1e-12 <= found[0].variance <= 1
    overlap = np.array([pair.covariance for pair in found])
    assert overlap[0] == pytest.approx(1 / plain.candidates, abs=error)
    assert (np.diff(overlap) > 0).all()
    assert overlap[-1] == found[0].variance


def test_the_published_numbers() -> None:
    """Of an independent evaluation, E = 8, k = 2, ReLU, cotangent of variance 1 and covariance 1/2."""
    for router_std, correlation, expected in (
        (1.0, 0.0, {"q": 0.55397, "gamma": 0.7579, "kappa": 0.03576}),
        (1.0, 0.95, {"p": 0.4619, "kappa": 0.2879}),
        (2.0, 0.6, {"kappa": 0.1803}),
    ):
        layer = theory.mixture("relu", 1.0, 1.0, Experts(8, 2, router_std))
        x, _, pull = layer(Moments(1.0, 1.0 - correlation))
        g = pull(Moments(1.0, 0.5), Seen())
        found = {"q": x.variance, "p": x.covariance, "gamma": g.variance, "kappa": g.covariance}
        for name, value in expected.items():  # sampled there and here
            assert found[name] == pytest.approx(value, rel=4e-3), name


def test_one_expert_that_is_always_chosen_is_a_dense_ffn() -> None:
    x, g = Moments(1.3, 0.4), Moments(0.7, 0.6)
    dense_out, dense_pull = ffn("gelu", Gains(ffn_in=0.8, ffn_out=1.2))(x)
    out, kept, pull = theory.mixture("gelu", 0.8, 1.2, Experts(1, 1))(x)
    assert kept == 0
    assert tuple(out) == pytest.approx(tuple(dense_out), rel=1e-12)
    assert tuple(pull(g, Seen())) == pytest.approx(tuple(dense_pull(g)), rel=1e-12)


@pytest.mark.slow
def test_compensated_splitting_keeps_the_variance_of_even_gates() -> None:
    """With nearly equal logits: s / k whatever the splitting; without the compensation it falls by its square."""
    for split in (1, 4):
        even = Experts(8, 2, router_std=1e-4, split=split)
        out = theory.mixture("relu", 1.0, 1.0, even)(Moments(1.0, 1.0))[0]
        assert out.variance == pytest.approx(1 / 2, rel=1e-3)
        bare = theory.mixture("relu", 1.0, 1.0, dataclasses.replace(even, gain=1.0))
        assert bare(Moments(1.0, 1.0))[0].variance == pytest.approx(1 / 2 / split**2, rel=1e-3)


START = {"covariance": 0.4, "grad_covariance": 0.5}


def network(kind: Experts | None, activation: str = "relu", **fields) -> pg.Model:
    size = {"depth": 1, "width": 256, "tokens": 8, "heads": 1, "ffn_ratio": 1}
    return pg.Model(FeedForwardOnly(), experts=kind, activation=activation, **size | fields)


def means(model: pg.Model) -> xr.Dataset:
    """What the map of means says: an array of starts is not resolved."""
    with pytest.warns(UserWarning, match="routers do not average out"):
        found = pg.predict(model, **START | {"covariance": xr.DataArray([START["covariance"]], dims="start")})
    return found.isel(start=0)


def judged(model: pg.Model, seed: int, draws: int = 150, sampler: str = "weightless") -> xr.Dataset:
    seen = pg.simulate(model, draws=draws, seed=seed, backend="numpy", sampler=sampler, **START)
    return pg.compare(means(model), seen)


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", [pytest.param(name, marks=SLOW[name]) for name in KINDS])
def test_theory_and_simulation_agree(kind: str) -> None:
    seed = list(KINDS).index(kind)
    found = judged(network(KINDS[kind], ("relu", "gelu", "swiglu")[seed % 3]), seed)
    assert found.attrs["verdict"] != "disagrees", found.worst_z.to_series().to_dict()


def test_they_agree_with_matrices_too() -> None:
    model = network(Experts(4, 2, identity=1, shared=1, split=2), width=96)
    found = judged(model, seed=20, sampler="dense", draws=100)
    assert found.attrs["verdict"] != "disagrees", found.worst_z.to_series().to_dict()


@pytest.mark.parametrize("backend", [pytest.param("cupy", marks=pytest.mark.gpu)])
def test_they_agree_on_a_device(backend: str) -> None:
    for seed, kind in enumerate(KINDS.values()):
        model = network(kind, dropout=0.1)
        seen = pg.simulate(model, draws=200, seed=seed, backend=backend, **START)
        assert pg.compare(means(model), seen).attrs["verdict"] != "disagrees", kind


def _even_gates(found: Gates) -> Gates:
    return found._replace(routed=Moments(1 / 2, found.routed.deviation))


def _same_gates_for_all_tokens(found: Gates) -> Gates:
    return found._replace(routed=Moments(found.routed.variance, 0.0))


def _no_router_path(found: Gates) -> Gates:
    return found._replace(routed_slope=Moments(0.0, 0.0), kept_slope=Moments(0.0, 0.0))


def _identity_uncorrelated_with_the_skip(found: Gates) -> Gates:
    square = found.kept**2
    return found._replace(
        kept=0.0, kept_spread=Moments(found.kept_spread.variance + square, found.kept_spread.deviation)
    )


def _identity_without_fluctuation(found: Gates) -> Gates:
    return found._replace(kept_spread=Moments(0.0, 0.0))


WRONG = {
    _even_gates: (Experts(8, 2, router_std=2.0), "variance"),
    _same_gates_for_all_tokens: (Experts(8, 2), "deviation"),
    _no_router_path: (Experts(8, 2, router_std=2.0), "grad_variance"),
    _identity_uncorrelated_with_the_skip: (Experts(2, 1, identity=2), "variance"),
    _identity_without_fluctuation: (Experts(2, 1, identity=2), "grad_deviation"),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_wrong_maps_are_rejected(wrong, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, quantity = WRONG[wrong]
    model = network(kind, width=384)
    seen = pg.simulate(model, draws=150, seed=3, backend="numpy", **START)
    right = pg.compare(means(model), seen)
    assert right.attrs["verdict"] != "disagrees", right.worst_z.to_series().to_dict()
    monkeypatch.setattr(theory, "gate_averages", lambda *arguments: wrong(gate_averages(*arguments)))
    theory.mixture.cache_clear()
    assert pg.compare(means(model), seen).verdict.sel(quantity=quantity) == "disagrees"


class FeedForwardNormed(pg.Placement):
    """The norm behind the sum makes the cotangent orthogonal to it."""

    def block(self, x, block):
        return block.norm(x + block.ffn(x))


@pytest.mark.slow
def test_a_norm_behind_the_sum_quenches_the_router_s_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates that are not renormalised scale the output, which the norm undoes: their cotangent sees that."""
    kind = Experts(8, 2, softmax="before", gain=4.0)
    size = {"depth": 1, "width": 384, "tokens": 4, "heads": 8, "ffn_ratio": 0.5}
    model = pg.Model(FeedForwardNormed(), experts=kind, **size)
    seen = pg.simulate(model, draws=1000, seed=1, backend="numpy", **START)
    right = pg.compare(means(model), seen)
    assert right.attrs["verdict"] != "disagrees", right.worst_z.to_series().to_dict()
    monkeypatch.setattr(blocks, "products", lambda *cotangents: Products())
    wrong = pg.compare(means(model), seen)
    assert wrong.verdict.sel(quantity="grad_variance") == "disagrees"


@pytest.mark.parametrize("kind", [KINDS["two of eight"], KINDS["identity"], KINDS["split"], None])
def test_even_gates_give_no_warning(kind: Experts | None, recwarn: pytest.WarningsRecorder) -> None:
    pg.predict(network(kind), **START)
    assert not recwarn.list


@pytest.mark.few(1)
@pytest.mark.parametrize("placement", ["prenorm", "postnorm", pytest.param("spannorm", marks=pytest.mark.slow)])
def test_whole_networks_with_fine_gates_agree(placement: str) -> None:
    """Four chosen of sixteen: gates average out well enough for one variance to stand for all tokens."""
    size = {"depth": 4, "width": 128, "tokens": 8, "heads": 4, "ffn_ratio": 0.5}
    model = pg.Model(placement, experts=Experts(16, 4), dropout=0.1, **size)
    found = judged(model, seed=30, draws=60)
    assert found.attrs["verdict"] != "disagrees", found.worst_z.to_series().to_dict()
