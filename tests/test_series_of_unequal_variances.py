"""The series of tokens of unequal variance, whose terms are counted and whose coefficients are interpolated, against
all terms one by one with coefficients of each token's own variance."""

import numpy as np
import pytest

from propagate.theory.gaussian import quadrature
from propagate.theory.gaussian.activations import silu, silu_slope
from propagate.theory.tokens import series
from propagate.theory.tokens.gram import Gram

TOKENS = 6


def tokens_of(shared: float, uneven: float, size: float, replicas: int) -> Gram:
    """Random tokens that share a part, of sizes that differ; distances as far as they are small."""
    random = np.random.default_rng([int(1e6 * shared), replicas])
    x = np.sqrt(1 - shared) * random.normal(size=(replicas, TOKENS, 30)) / 30**0.5
    x = size * (x + np.sqrt(shared) * random.normal(size=(replicas, 1, 30)) / 30**0.5)
    x = x * np.exp(uneven * random.normal(size=(replicas, TOKENS, 1)))
    return Gram(x @ x.swapaxes(-1, -2), ((x[:, :, None] - x[:, None]) ** 2).sum(axis=-1) / 2)


def term_by_term(phi: quadrature.Elementwise, u: Gram) -> Gram:
    at = quadrature.coefficients(phi, u.variance.ravel()).reshape(*u.variance.shape, -1)
    loss = u.loss_of_correlation()
    matrix, apart = np.zeros_like(loss), np.zeros_like(loss)
    with np.errstate(divide="ignore"):
        log = np.log1p(-np.minimum(loss, 1.0))
    for n, a in enumerate(np.moveaxis(at, -1, 0)):
        product, power = a[:, :, None] * a[:, None, :], (1 - loss) ** n
        matrix += product * power
        fall = np.where(loss < 0.5, -np.expm1(n * log) if n else 0.0, 1 - power)
        apart += (a[:, :, None] - a[:, None, :]) ** 2 / 2 + product * fall
    return Gram(matrix, apart)


@pytest.mark.parametrize("phi", [silu, silu_slope, np.tanh])
@pytest.mark.parametrize(
    ("shared", "uneven", "size"),
    [(0.0, 0.3, 1.0), (0.5, 1e-4, 1.0), (0.99, 0.2, 1.5), (1 - 1e-6, 1e-5, 0.1), (1 - 1e-9, 0.0, 1.0)],
)
def test_it_is_the_sum_of_all_terms(
    phi: quadrature.Elementwise, shared: float, uneven: float, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    u = tokens_of(shared, uneven, size, replicas=17)  # more variances than are taken one by one
    expected = term_by_term(phi, u)

    def error() -> float:
        found, both = series.unequal_variances(phi, u), ~np.eye(TOKENS, dtype=bool)
        scale = np.sqrt(expected.variance[..., :, None] * expected.variance[..., None, :])
        apart = (found.deviation / np.where(both, expected.deviation, 1.0) - 1)[..., both]
        return float(max(abs((found.matrix - expected.matrix) / scale).max(), abs(apart).max()))

    assert error() < 1e-10
    monkeypatch.setattr(series, "LEAST", 1e-5)  # too few terms show
    assert error() > 1e-8
