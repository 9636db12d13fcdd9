"""The weightless sampler has the law of the dense one: every statistic of every block, forward and backward."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from same_law import unprojected, untied
from scipy import stats

from propagate.model import Model
from propagate.montecarlo.backend import Backend, choose_backend
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.run import SAMPLERS, run
from propagate.montecarlo.samplers import Sampler, dense
from propagate.montecarlo.starts import Ends, exchangeable_root
from propagate.montecarlo.weightless import weightless

BACKENDS = ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)]
DRAWS = 2000
LEVEL = 1e-3  # chance that a test of one network fails although the laws agree

Make = Callable[[Normals], Sampler]

NETWORKS = {
    "prenorm relu": Model("prenorm", depth=2, width=16, tokens=8, heads=2, ffn_ratio=1),
    "prenorm gelu layer": Model("prenorm", 2, width=16, tokens=8, activation="gelu", ffn_ratio=1, norm="layer"),
    "postnorm relu": Model("postnorm", depth=2, width=16, tokens=8, heads=2, ffn_ratio=1),
    "postnorm swiglu causal": Model("postnorm", 2, width=16, tokens=8, ffn_ratio=1, activation="swiglu", causal=True),
    "spannorm swiglu": Model("spannorm", depth=2, width=16, tokens=8, heads=4, ffn_ratio=2, activation="swiglu"),
    "spannorm uniform causal": Model("spannorm", 2, width=16, tokens=8, ffn_ratio=1, logit_std=0.0, causal=True),
    "prenorm more tokens": Model("prenorm", depth=1, width=8, tokens=12, heads=2, ffn_ratio=2),
}


@pytest.fixture(params=BACKENDS, scope="module")
def backend(request: pytest.FixtureRequest) -> Backend:
    return choose_backend(request.param)


@cache
def of_dense(name: str, backend: Backend) -> dict[str, np.ndarray]:
    return sampled(NETWORKS[name], backend, "dense", seed=1)


def smallest_p(name: str, backend: Backend, sampler: str) -> tuple[float, int]:
    """The smallest p-value of the two-sample tests of every quantity at every block, and how many there are."""
    samples = of_dense(name, backend), sampled(NETWORKS[name], backend, sampler, seed=2)
    p = []
    for quantity in samples[0]:
        columns = (sample[quantity].reshape(DRAWS, -1).T for sample in samples)
        for a, b in zip(*columns, strict=True):
            if np.ptp(a) > 1e-9:  # an input or a norm fixes the others
                p.append(stats.ks_2samp(a, b).pvalue)
    return min(p), len(p)


def sampled(model: Model, backend: Backend, name: str, seed: int) -> dict[str, np.ndarray]:
    start = Ends(exchangeable_root(1.0, 0.5, model.tokens), exchangeable_root(1.0, 0.3, model.tokens))
    return run(model, backend, name, seed, range(DRAWS), start, through_readout=True)


SLOW = {"prenorm relu", "prenorm more tokens", "spannorm uniform causal", "spannorm swiglu"}
"""What the others have too: a PreNorm, a SpanNorm's norms, several heads, a mask, a gate."""


@pytest.mark.few(1)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in NETWORKS])
def test_weightless_and_dense_agree_in_law(name: str, backend: Backend) -> None:
    p, tests = smallest_p(name, backend, "weightless")
    assert tests >= 6
    assert p * tests > LEVEL


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        pytest.param("prenorm relu", unprojected, marks=pytest.mark.slow),
        ("postnorm relu", unprojected),
        ("postnorm swiglu causal", untied),
        pytest.param("spannorm swiglu", untied, marks=pytest.mark.slow),
    ],
)
def test_a_wrong_conditioning_is_found_out(
    name: str, wrong: Make, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SAMPLERS, "wrong", wrong)
    p, tests = smallest_p(name, backend, "wrong")
    assert p * tests < LEVEL


def there_and_back(make: Make, backend: Backend, seed: int) -> np.ndarray:
    """Coordinates of x W W^T and its squared length, over draws."""
    x = backend.xp.asarray(np.random.default_rng(0).standard_normal((1, 3, 6)).repeat(DRAWS, axis=0))
    y, pull = make(Normals(backend, seed, range(DRAWS)))(x, 64, 5)
    back = backend.to_host(pull(y)).reshape(DRAWS, -1)
    return np.column_stack([back, (back**2).sum(axis=1)])


@pytest.mark.few(2)
@pytest.mark.parametrize(("make", "same"), [(weightless, True), (unprojected, False), (untied, False)])
def test_one_map_there_and_back(make: Make, same: bool, backend: Backend) -> None:
    ours, theirs = there_and_back(make, backend, 1), there_and_back(dense, backend, 2)
    p = min(stats.ks_2samp(a, b).pvalue for a, b in zip(ours.T, theirs.T, strict=True))
    assert bool(p * ours.shape[1] > LEVEL) is same
