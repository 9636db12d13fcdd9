"""Gates that are logistic functions: averages, simulation, torch and theory agree, and those of a softmax do not."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import binom, norm
from test_experts import FeedForwardOnly, means, measured_products
from test_experts_resolved import NormBehind

import propagate as pg
from propagate import Experts
from propagate.theory.pairs.gates import Gates, gate_averages, gate_errors

KINDS = {
    "over their sum": Experts(8, 3, 2.0, softmax="sigmoid_after", gain=2.5),
    "as they are": Experts(6, 2, softmax="sigmoid"),
    "identity": Experts(4, 3, softmax="sigmoid", identity=2, gain=1.5),
    "identity, over their sum": Experts(4, 2, 2.0, softmax="sigmoid_after", identity=3),
    "all chosen": Experts(3, 3, 2.0, softmax="sigmoid_after"),
    "one": Experts(4, 1, softmax="sigmoid_after"),
}
START = {"covariance": 0.4, "grad_covariance": 0.5}


def as_softmax(kind: Experts) -> Experts:
    return kind.with_(softmax="after" if kind.renormalised else "before")


@pytest.mark.few(1)
@pytest.mark.parametrize("correlation", [0.6, 1.0, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_averages_over_gates_are_those_of_the_arrays(kind: str, correlation: float) -> None:
    own = KINDS[kind]
    variance, wrong = own.router_std**2, 0
    said, other = (gate_averages(experts, variance, 1 - correlation) for experts in (own, as_softmax(own)))
    errors = dict(zip(Gates._fields, gate_errors(own, variance), strict=True))
    for name, samples in measured_products(own, correlation).items():
        value, of_softmax = (
            found.kept if name == "kept" else getattr(found, name).covariance for found in (said, other)
        )
        if name == "kept_spread":
            value, of_softmax = value + said.kept**2, of_softmax + other.kept**2
        error = 4 * math.hypot(samples.std() / math.sqrt(len(samples)), errors[name]) + 1e-12
        assert abs(samples.mean() - value) < error, name
        wrong += abs(samples.mean() - of_softmax) > error
    assert wrong or kind == "one"  # which is constant, whatever it is a function of


def of_largest(kind: Experts, function) -> float:
    """E of the sum of a function of the chosen logits: a logit is chosen where fewer others than k are above it."""

    def density(z: float) -> float:
        chosen = binom.cdf(kind.chosen - 1, kind.candidates - 1, norm.sf(z))
        return float(function(kind.router_std * z) * chosen * norm.pdf(z))

    return kind.candidates * quad(density, -9, 9)[0]


@pytest.mark.parametrize("kind", [Experts(16, 4, softmax="sigmoid"), Experts(6, 1, 3.0, softmax="sigmoid", gain=2.0)])
def test_gates_that_do_not_compete_are_order_statistics(kind: Experts) -> None:
    found, errors = gate_averages(kind, kind.router_std**2, 0.5), gate_errors(kind, kind.router_std**2)
    routed = kind.factor**2 * of_largest(kind, lambda r: expit(r) ** 2)
    slope = kind.factor**2 * of_largest(kind, lambda r: (expit(r) * expit(-r)) ** 2)
    for at, value, exact in ((2, found.routed.variance, routed), (3, found.routed_slope.variance, slope)):
        assert abs(value - exact) < 4 * errors[at]
        assert abs(1.05 * value - exact) > 4 * errors[at]


@pytest.mark.parametrize("softmax", ["sigmoid", "sigmoid_after"])
@pytest.mark.parametrize("bias", [None, (0.5, 0.0, -0.3, 0.0, 0.2)])
def test_torch_and_the_simulation_have_the_same_gates(softmax: str, bias: tuple[float, ...] | None) -> None:
    torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
    from test_torch_autograd import both, mismatch

    kind = Experts(4, 2, softmax=softmax, identity=1, shared=1, router_std=2.0, gain=2.5, bias=bias)
    torch.set_num_threads(1)
    for placement in ("prenorm", "spannorm"):
        model = pg.Model(placement, experts=kind, depth=2, width=18, tokens=5, heads=3, ffn_ratio=1.5)
        (y, back), (output, grad) = both(model)
        assert mismatch(output, y) < 1e-10
        assert mismatch(grad, back) < 1e-10
        plain = dataclasses.replace(model, experts=as_softmax(kind.with_(bias=None)))
        assert mismatch(both(plain)[1][1], back) > 1e-3


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["identity", "over their sum", "as they are", "identity, over their sum"])
def test_the_map_of_means_agrees(kind: str) -> None:
    size = {"depth": 1, "width": 192, "tokens": 6, "heads": 1, "ffn_ratio": 1}
    model = pg.Model(FeedForwardOnly(), experts=KINDS[kind], **size)
    seen = pg.simulate(model, draws=100, seed=2, backend="numpy", progress=False, **START)
    right = pg.compare(means(model), seen)
    assert right.attrs["verdict"] != "disagrees", right.worst_z.to_series().to_dict()
    wrong = means(dataclasses.replace(model, experts=as_softmax(KINDS[kind])))
    assert pg.compare(wrong, seen).attrs["verdict"] == "disagrees"


RESOLVED = {  # placement, mixture, sampler
    "one by one": (NormBehind(), Experts(6, 1, 1.0, softmax="sigmoid", gain=3.0), "weightless"),
    "shares": ("prenorm", Experts(8, 3, 1.0, softmax="sigmoid_after", gain=2.5, shared=1), "dense"),
    "wide shares": ("spannorm", Experts(8, 3, 2.0, softmax="sigmoid_after", gain=2.5), "weightless"),
    "identity": ("postnorm", Experts(3, 2, 2.0, softmax="sigmoid", identity=3, gain=3.0), "weightless"),
    "biased": (
        "prenorm",
        Experts(4, 2, 2.0, softmax="sigmoid_after", gain=2.5, bias=(0.3, 0.3, -0.3, 0.0)),
        "weightless",
    ),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["shares", "one by one", "wide shares", "identity", "biased"])
def test_theory_and_simulation_agree_to_the_router(name: str) -> None:
    """In the gradient of the router's own matrix too, at logits of standard deviation 1 and 2."""
    placement, kind, sampler = RESOLVED[name]
    size = {"depth": 2, "width": 128, "tokens": 4, "heads": 4, "ffn_ratio": 1.0}
    model = pg.Model(placement, experts=kind, **size)
    asked = {"include": {"param_grad"}, **START}
    seen = pg.simulate(model, draws=120, seed=4, backend="numpy", sampler=sampler, progress=False, **asked)
    right = pg.compare(pg.predict(model, **asked), seen)
    assert right.attrs["verdict"] != "disagrees", right.worst_z.to_series().to_dict()
    wrong = dataclasses.replace(model, experts=as_softmax(kind.with_(bias=None)))
    assert pg.compare(pg.predict(wrong, **asked), seen).verdict.sel(quantity="param_grad[router]") == "disagrees"


def test_a_mixture_is_asked_for_by_its_words() -> None:
    with pytest.raises(pg.ModelError, match="after, before, sigmoid, sigmoid_after"):
        Experts(4, 2, softmax="logistic")
    with pytest.raises(pg.ModelError, match="bias must be 4 numbers"):
        Experts(4, 2, softmax="sigmoid_after", bias=(0.0,))


def test_a_bias_chooses_no_more_than_it_may() -> None:
    """Logistic functions that round to 1 are equal."""
    from propagate.montecarlo.backend import choose_backend
    from propagate.montecarlo.experts import gates
    from propagate.theory.gaussian.routers import routing_of

    kind, logits = Experts(4, 2, softmax="sigmoid_after", bias=(0.1, 0.1, 0.1, 0.0)), np.full((1, 1, 4), 50.0)
    for found in (gates(choose_backend("numpy"), kind, logits)[0], routing_of(kind, logits).gates):
        assert (found > 0).sum() == 2
        assert found.sum() == pytest.approx(1)
