"""A simulation starts from the token Gram matrix, or the inputs, that it was given."""

import numpy as np
import pytest

import propagate as pg
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.starts import exchangeable_root, gram_root, with_gram

BACKENDS = ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)]
SMALL = pg.Model("prenorm", depth=1, width=16, tokens=4, heads=2)


def grams(root: np.ndarray, tokens_width: int, draws: int, backend: str) -> np.ndarray:
    host = choose_backend(backend)
    x = host.to_host(with_gram(root, Normals(host, 1, range(draws)), 0, tokens_width))
    return x @ x.swapaxes(1, 2) / tokens_width


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("variance", "covariance"), [(1.0, 0.0), (2.0, 0.7), (1.0, 1.0), (3.0, -1.0)])
def test_the_gram_matrix_is_exact_in_every_draw(variance: float, covariance: float, backend: str) -> None:
    found = grams(exchangeable_root(variance, covariance, 4), 16, 3, backend)
    wanted = covariance * np.ones((4, 4)) + (variance - covariance) * np.eye(4)
    assert np.abs(found - wanted).max() < 1e-13 * variance


@pytest.mark.parametrize("backend", BACKENDS)
def test_draws_are_different_networks(backend: str) -> None:
    host = choose_backend(backend)
    x = host.to_host(with_gram(np.eye(4), Normals(host, 1, range(3)), 0, 16))
    assert np.abs(x[0] - x[1]).max() > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_tokens_than_coordinates_hold_in_expectation(backend: str) -> None:
    tokens, width, draws = 12, 8, 4000
    found = grams(exchangeable_root(1.0, 0.4, tokens), width, draws, backend)
    wanted = 0.4 * np.ones((tokens, tokens)) + 0.6 * np.eye(tokens)
    z = (found.mean(axis=0) - wanted) / (found.std(axis=0) / np.sqrt(draws))
    assert found.std(axis=0).min() > 0.1  # no draw is exact
    assert np.abs(z).max() < 4.5  # the largest of 78: 4 for one alone
    assert np.abs((found.mean(axis=0) - 1.05 * wanted) / (found.std(axis=0) / np.sqrt(draws))).max() > 4.5


def test_a_gram_of_any_tokens() -> None:
    a = np.random.default_rng(0).standard_normal((4, 4))
    gram = a @ a.T
    root = gram_root(gram)
    assert np.abs(root @ root - gram).max() < 1e-12 * np.trace(gram)
    assert np.abs(grams(root, 16, 2, "numpy") - gram).max() < 1e-12 * np.trace(gram)
    found = pg.simulate(SMALL, draws=2, gram=gram, backend="numpy")
    off = (gram.sum() - np.trace(gram)) / 12
    assert float(found.variance[0]) == pytest.approx(np.trace(gram) / 4, rel=1e-12)
    assert float(found.covariance[0]) == pytest.approx(off, abs=1e-12 * np.trace(gram))
    assert float(found.variance_se[0]) == pytest.approx(0, abs=1e-12)


def test_a_gram_of_lower_rank() -> None:
    gram = np.ones((4, 4))
    found = pg.simulate(SMALL, draws=2, gram=gram, backend="numpy")
    assert float(found.deviation[0]) == pytest.approx(0, abs=1e-14)


def test_an_exchangeable_gram_is_a_variance_and_a_covariance() -> None:
    gram = 0.3 * np.ones((4, 4)) + 0.7 * np.eye(4)
    named = pg.simulate(SMALL, draws=3, covariance=0.3, backend="numpy")
    other = pg.simulate(SMALL, draws=3, gram=gram, backend="numpy")
    for name in named.data_vars:
        assert np.allclose(named[name], other[name], rtol=1e-9, atol=1e-12, equal_nan=True), name


def test_inputs_are_taken_as_they_are() -> None:
    inputs = np.random.default_rng(5).standard_normal((4, 16))
    found = pg.simulate(SMALL, draws=3, inputs=inputs, backend="numpy")
    assert float(found.variance[0]) == pytest.approx((inputs**2).mean(), rel=1e-12)
    assert float(found.variance_se[0]) == 0
    assert float(found.variance_se[1]) > 0  # the weights still differ
    mean = inputs.mean(axis=0)
    off = (4 * (mean @ mean) - (inputs**2).sum() / 4) / 3 / 16
    assert float(found.covariance[0]) == pytest.approx(off, abs=1e-12)


def test_the_cotangent_is_exact_too() -> None:
    found = pg.simulate(SMALL, draws=3, grad_variance=2.0, grad_covariance=0.5, backend="numpy")
    assert float(found.grad_variance[-1]) == pytest.approx(2.0, rel=1e-12)
    assert float(found.grad_covariance[-1]) == pytest.approx(0.5, rel=1e-12)
    assert float(found.grad_variance_se[-1]) < 1e-12
