"""Sums that are made on the way: where a norm reads them, and where a pull writes its result."""

import numpy as np
import pytest

from propagate.montecarlo.backend import Backend, choose_backend
from propagate.montecarlo.blocks import read
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.operators import NORMS
from propagate.montecarlo.pulls import AddingPull, chain

WIDTHS = [37, 64, 4 * 4 * 256 + 8]  # no multiple of four, one, and one row longer than registers keep


@pytest.fixture(params=["float32", "float64"])
def device(request: pytest.FixtureRequest) -> Backend:
    return choose_backend("cupy", request.param)


def arrays(backend: Backend, width: int, count: int) -> list[np.ndarray]:
    normals = Normals(backend, seed=0, draws=range(3))
    return [normals(site, (5, width)) for site in range(count)]


def close(backend: Backend, a: np.ndarray, b: np.ndarray) -> bool:
    """Up to the rounding of a few operations."""
    rounding = 100 * np.finfo(backend.dtype).eps
    return np.allclose(backend.to_host(a), backend.to_host(b), rtol=rounding, atol=rounding)


@pytest.mark.gpu
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", sorted(NORMS))
def test_a_norm_adds_up_what_it_reads_and_its_pull_what_it_writes(name: str, width: int, device: Backend) -> None:
    a, b, g, onto = arrays(device, width, 4)
    y, pull = NORMS[name](device, a, b)
    expected, pull_of_sum = NORMS[name](device, a + b)
    assert isinstance(pull, AddingPull)
    assert close(device, y, expected)
    assert not close(device, y, NORMS[name](device, a)[0])
    assert close(device, pull.add(g, onto), pull_of_sum(g) + onto)


@pytest.mark.gpu
@pytest.mark.parametrize("width", WIDTHS)
def test_a_map_adds_its_cotangent_to_another(width: int, device: Backend) -> None:
    from propagate.montecarlo.cuda.weightless import Fused

    x, onto = arrays(device, width, 2)
    (g,) = arrays(device, 50, 1)
    sampler = Fused(Normals(device, seed=1, draws=range(3)), device.xp.zeros(3, dtype=bool))
    for _, pull in (sampler(x, 64, 50), sampler.relu_ffn(x, (64, 65), 70, 50, 1.0, 1.0)):
        assert isinstance(pull, AddingPull)
        assert close(device, pull.add(g, onto), pull(g) + onto)


def test_pulls_in_a_chain_go_in_order_and_the_last_one_adds() -> None:
    last = AddingPull(lambda g, onto: 2 * g if onto is None else 2 * g + onto)
    whole = chain(lambda g: g + 1, last)
    assert isinstance(whole, AddingPull)
    assert whole(3) == 8
    assert whole.add(3, 100) == 108
    assert not isinstance(chain(last, lambda g: g + 1), AddingPull)
    assert chain(last, lambda g: g + 1)(3) == 7


def test_a_cotangent_that_arrives_in_parts_is_the_sum_of_them() -> None:
    from propagate.montecarlo.blocks import Stream

    def equations(x: Stream, block: object) -> Stream:
        return x + (x + x.apply(lambda value: (3 * value, AddingPull(added)))).apply(lambda v: (5 * v, lambda g: 5 * g))

    def added(g: np.ndarray, onto: np.ndarray | None) -> np.ndarray:
        return 3 * g if onto is None else 3 * g + onto

    class Host:
        backend = choose_backend("numpy")

    x = np.ones((1, 1, 2))
    y, pull = read(equations, Host(), x)
    assert y.tolist() == [[[21.0, 21.0]]]
    assert pull(x).tolist() == [[[21.0, 21.0]]]
