"""On the realised pair the pull is the transpose, <g, x W> = <g W^T, x>, and finite, whatever x and g are."""

import itertools

import numpy as np
import pytest
from token_arrays import ARRAYS, DRAWS

from propagate.montecarlo.backend import Backend, choose_backend
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.weightless import weightless

BACKENDS = ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)]
FAN_OUT = 40


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return choose_backend(request.param)


def there_and_back(backend: Backend, x: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x W, and g W^T."""
    sampler = weightless(Normals(backend, seed=3, draws=range(DRAWS)))
    y, pull = sampler(backend.xp.asarray(x), 64, g.shape[-1])
    return backend.to_host(y), backend.to_host(pull(backend.xp.asarray(g)))


def worst_mismatch(x: np.ndarray, y: np.ndarray, g: np.ndarray, back: np.ndarray) -> float:
    """Of every token's cotangent with every token's input, relative to the longest two of the draw."""
    lengths = [np.linalg.norm(a, axis=-1).max(axis=-1)[:, None, None] for a in (x, g)]
    wrong = np.abs(g @ y.swapaxes(-1, -2) - back @ x.swapaxes(-1, -2))
    assert (wrong[np.broadcast_to(lengths[0] * lengths[1] == 0, wrong.shape)] == 0).all()
    return float((wrong / np.maximum(lengths[0] * lengths[1], np.finfo(float).tiny)).max())


PAIRS = [
    (name, other)
    for name, other in itertools.product(ARRAYS, repeat=2)
    if (name == "independent" or other == "independent" or name == other)
    and ARRAYS[name].shape[1] == ARRAYS[other].shape[1]
    and not {"vanishing", "huge"} & {name, other}
]


@pytest.mark.parametrize(("name", "other"), PAIRS)
def test_the_pull_is_the_transpose(name: str, other: str, backend: Backend) -> None:
    x, g = ARRAYS[name], ARRAYS[other]
    y, back = there_and_back(backend, x, g)
    assert np.isfinite(y).all()
    assert np.isfinite(back).all()
    assert worst_mismatch(x, y, g, back) < 1e-10


def test_another_cotangent_is_found_out(backend: Backend) -> None:
    x, g = ARRAYS["1 - correlation 1e-6"], ARRAYS["independent"]
    y, back = there_and_back(backend, x, g)
    assert worst_mismatch(x, y, g[:, ::-1], back) > 1e-2


@pytest.mark.parametrize("name", ["vanishing", "huge"])
def test_extreme_sizes_stay_finite(name: str, backend: Backend) -> None:
    for x, g in itertools.product((ARRAYS[name], ARRAYS["independent"]), repeat=2):
        y, back = there_and_back(backend, x, g)
        assert np.isfinite(y).all()
        assert np.isfinite(back).all()


def test_equal_tokens_stay_equal_forward(backend: Backend) -> None:
    x = ARRAYS["exactly equal"]
    y, back = there_and_back(backend, x, x)
    assert (y == y[:, :1]).all()
    assert np.abs(back - back[:, :1]).max() < 1e-13
    assert y.std() > 0.5


def test_nothing_comes_of_nothing(backend: Backend) -> None:
    zero, other = ARRAYS["zero"], ARRAYS["independent"]
    assert (there_and_back(backend, zero, other)[0] == 0).all()
    assert (there_and_back(backend, other, zero)[1] == 0).all()


def test_what_comes_back_outside_the_seen_directions_is_fresh_noise_of_the_right_size(backend: Backend) -> None:
    """From a zero input nothing is known of W, so g W^T has coordinates of mean square |g|^2 / fan_in."""
    zero, g = ARRAYS["zero"], ARRAYS["1 - correlation 1e-12"]
    back = there_and_back(backend, zero, g)[1]
    deviation, sent = back - back.mean(axis=1, keepdims=True), g - g.mean(axis=1, keepdims=True)
    assert (back**2).sum() == pytest.approx((g**2).sum(), rel=0.5)
    assert (deviation**2).sum() == pytest.approx((sent**2).sum(), rel=0.2)
