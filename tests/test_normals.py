"""Random numbers are standard normal, and a function of (seed, draw, site) alone."""

import numpy as np
import pytest
from scipy import stats

from propagate.montecarlo.backend import Backend, choose_backend
from propagate.montecarlo.normals import Normals

BACKENDS = ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return choose_backend(request.param)


def sample(backend: Backend, seed: int, draws: range, site: int, shape: tuple[int, ...]) -> np.ndarray:
    return backend.to_host(Normals(backend, seed, draws)(site, shape))


def test_they_are_standard_normal(backend: Backend) -> None:
    values = sample(backend, 1, range(40), 3, (2500, 3)).ravel()
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert stats.kstest(values * 1.02, "norm").pvalue < 1e-3  # the test can fail
    assert abs(stats.kurtosis(values)) < 4 * np.sqrt(24 / values.size)


def test_different_seeds_draws_and_sites_are_uncorrelated(backend: Backend) -> None:
    base = sample(backend, 1, range(2), 3, (100_000,))
    others = [base[1], sample(backend, 2, range(1), 3, (100_000,))[0], sample(backend, 1, range(1), 4, (100_000,))[0]]
    for other in [*others, np.roll(base[0], 1)]:
        assert abs(np.mean(base[0] * other)) < 5 / np.sqrt(100_000)


def test_batches_leave_no_trace(backend: Backend) -> None:
    together = sample(backend, 7, range(5), 2, (4, 3))
    apart = np.concatenate([sample(backend, 7, range(k, k + 1), 2, (4, 3)) for k in range(5)])
    assert together.tobytes() == apart.tobytes()


def test_an_odd_number_of_elements_fills_the_array(backend: Backend) -> None:
    values = sample(backend, 0, range(3), 0, (7,))
    assert np.isfinite(values).all()
    assert len(np.unique(values)) == 21
