"""x = root @ rows with orthonormal rows, whatever the rank of x and however close its tokens are."""

import numpy as np
import pytest
from token_arrays import ARRAYS, DRAWS

from propagate.montecarlo.backend import Backend, choose_backend
from propagate.montecarlo.factor import factor, root_of

BACKENDS = ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)]
UNSQUARABLE = ("vanishing", "huge")  # beyond the square root of the range of floats


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return choose_backend(request.param)


def factors(backend: Backend, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = backend.xp.asarray(ARRAYS[name])
    root, change, basis = factor(backend.xp, x)
    return backend.to_host(root), backend.to_host(change @ basis), backend.to_host(root_of(backend.xp, x))


def factors_of(backend: Backend, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    root, change, basis = factor(backend.xp, x)
    return root, change @ basis


def deviation_gram(tokens: np.ndarray) -> np.ndarray:
    """Gram matrix of the tokens less their mean, in extended precision."""
    exact = tokens.astype(np.longdouble)
    deviation = exact - exact.mean(axis=1, keepdims=True)
    return np.einsum("dti,dsi->dts", deviation, deviation)


@pytest.mark.parametrize("name", [name for name in ARRAYS if name != "vanishing"])
def test_the_product_is_x(name: str, backend: Backend) -> None:
    x, (root, rows, _) = ARRAYS[name], factors(backend, name)
    assert np.abs(root @ rows - x).max() <= 1e-13 * np.abs(x).max()


@pytest.mark.parametrize("name", ARRAYS)
def test_the_rows_are_orthonormal_or_zero(name: str, backend: Backend) -> None:
    root, rows, _ = factors(backend, name)
    gram = rows @ rows.swapaxes(-1, -2)
    kept = np.diagonal(gram, axis1=-2, axis2=-1).round()
    assert set(np.unique(kept)) <= {0.0, 1.0}
    assert np.abs(gram - kept[..., None] * np.eye(gram.shape[-1])).max() < 1e-9
    assert (root * (1 - kept)[:, None, :] == 0).all()


@pytest.mark.parametrize("name", [name for name in ARRAYS if name not in UNSQUARABLE])
def test_deviations_keep_their_gram_matrix(name: str, backend: Backend) -> None:
    """Relative to the deviations themselves, down to what the rounding of x lets them mean."""
    x, (root, _, root_alone) = ARRAYS[name], factors(backend, name)
    expected = deviation_gram(x)
    amplitude = np.sqrt(np.abs(expected).max() / x.shape[-1]) or np.finfo(float).tiny
    relative_rounding = 1e-14 * np.abs(x).max() / amplitude
    for candidate in (root, root_alone):
        error = np.abs(deviation_gram(candidate) - expected).max()
        assert error <= max(1e-12, relative_rounding) * np.abs(expected).max()


def test_a_factor_of_the_gram_matrix_loses_the_deviations() -> None:
    """The check above can fail: eigenvectors of the Gram matrix do not pass it."""
    x = ARRAYS["1 - correlation 1e-12"]
    values, vectors = np.linalg.eigh(x @ x.swapaxes(-1, -2))
    root = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
    expected = deviation_gram(x)
    assert np.abs(deviation_gram(root) - expected).max() > 1e-5 * np.abs(expected).max()


def test_a_draw_does_not_depend_on_its_batch(backend: Backend) -> None:
    for name, x in ARRAYS.items():
        root, rows, alone = factors(backend, name)
        for draw in range(DRAWS):
            one = backend.xp.asarray(x[draw : draw + 1])
            for ours, theirs in zip(
                (root, rows, alone), (*factors_of(backend, one), root_of(backend.xp, one)), strict=True
            ):
                assert np.allclose(ours[draw], backend.to_host(theirs)[0], rtol=1e-12, atol=0) or backend.name == "cupy"
                assert backend.name == "cupy" or ours[draw].tobytes() == theirs[0].tobytes()
