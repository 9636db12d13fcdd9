"""At widths that only the weightless sampler reaches, simulation and wide-limit theory agree."""

import dataclasses

import pytest

from propagate.agreement import compare
from propagate.model import Model
from propagate.montecarlo.simulate import simulate
from propagate.scaling import ScaleInit
from propagate.theory.predict import predict

BACKENDS = ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)]

NETWORKS = {
    "prenorm": (Model("prenorm", depth=6, width=4096, tokens=8, heads=4, ffn_ratio=1), 16),
    "spannorm": (Model("spannorm", depth=6, width=4096, tokens=8, heads=4, ffn_ratio=1, scaling=ScaleInit(0.5)), 16),
    "spannorm swiglu": (Model("spannorm", 4, width=4096, tokens=8, heads=4, activation="swiglu", ffn_ratio=1), 16),
    "wide": (Model("prenorm", depth=2, width=65536, tokens=4, heads=4, ffn_ratio=1), 8),
    "collapsed": (Model("postnorm", depth=64, width=4096, tokens=4, heads=4, ffn_ratio=1), 8),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "prenorm")) for n in NETWORKS])
def test_simulation_agrees_with_theory(name: str, backend: str) -> None:
    model, draws = NETWORKS[name]
    start = {"covariance": 0.3, "grad_covariance": 0.5}
    measured = simulate(model, draws=draws, seed=5, backend=backend, sampler="weightless", **start)
    judged = compare(predict(model, **start), measured)
    assert judged.attrs["verdict"] != "disagrees", judged.worst_z.to_series()
    wrong = dataclasses.replace(model, ffn_gain=1.1, value_gain=1.1)
    assert compare(predict(wrong, **start), measured).attrs["verdict"] == "disagrees"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_collapsed_network_has_collapsed(backend: str) -> None:
    """To 1 - correlation below 1e-12, and every measured number is finite there."""
    model, draws = NETWORKS["collapsed"]
    small = dataclasses.replace(model, width=256)
    measured = simulate(small, draws=draws, seed=5, backend=backend, sampler="weightless", covariance=0.3)
    assert measured.deviation.values[-1] < 1e-12 * measured.variance.values[-1]
    assert all(bool(measured[name].notnull().all()) for name in measured)
