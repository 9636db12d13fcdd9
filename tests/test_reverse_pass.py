"""The hand-written reverse pass is the adjoint of the forward pass, operator by operator and block by block."""

import numpy as np
import pytest
from covering import pairwise

import propagate as pg
from propagate import cells
from propagate.activations import ACTIVATIONS
from propagate.montecarlo import operators
from propagate.montecarlo.backend import Backend, choose_backend
from propagate.montecarlo.blocks import block_of, read
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.samplers import dense

PLACEMENTS = ("prenorm", "postnorm", "spannorm", "periln", "deepnorm", "layernormscaling")
BACKENDS = ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)]
STEP = 1e-3  # of a difference of fourth order: an error of 1e-12 times a fifth derivative


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return choose_backend(request.param)


def relative_mismatch(apply, x, backend: Backend, scale: float = 1.0, step: float = STEP) -> float:
    """|<v, J u> - <J^T v, u>| over |v| |J u|, with J u by a central difference."""
    xp = backend.xp
    random = np.random.default_rng(3)
    y, pull = apply(x)
    u, v = xp.asarray(random.standard_normal(x.shape)), xp.asarray(random.standard_normal(y.shape))

    def at(k: int):
        return apply(x + k * step * u)[0]

    pushed = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
    v = v + pushed / xp.sqrt(xp.mean(pushed * pushed))  # half along J u, so that the product is no chance zero
    forward, backward = float((v * pushed).sum()), scale * float((pull(v) * u).sum())
    return abs(forward - backward) / float(xp.sqrt((v * v).sum() * (pushed * pushed).sum()))


def apply_block(model: pg.Model, backend: Backend, index: int, part: str = "block"):
    """A block as a function of its input alone: the same site numbers, so the same weights, at every call."""
    normals = Normals(backend, 7, range(2))

    def apply(x):
        block = block_of(model, backend, dense(normals), index)
        return read(getattr(model.equations, part), block, x)

    return apply


def start(model: pg.Model, backend: Backend):
    x = Normals(backend, 11, range(2))(0, (model.tokens, model.width))
    return x + 0.3  # off the axis, so that a missing mean is noticed


@pytest.mark.parametrize(
    ("placement", "activation", "norm", "logit_std", "causal", "index"),
    pairwise(PLACEMENTS, cells.ACTIVATIONS, ("rms", "layer"), (0.0, 1.0), (False, True), (1, 2)),
)
def test_blocks(placement, activation, norm, logit_std, causal, index, backend) -> None:
    size = {"depth": 3, "width": 12, "tokens": 5, "heads": 3, "ffn_ratio": 1.5}
    model = pg.Model(placement, activation=activation, norm=norm, causal=causal, logit_std=logit_std, **size)
    # ReLU is a straight line between kinks: a small step stays on one, and rounding leaves 1e-16 / step
    step = 1e-6 if "relu" in activation else STEP
    block = apply_block(model, backend, index)
    assert relative_mismatch(block, start(model, backend), backend, step=step) < 1e-6
    assert relative_mismatch(block, start(model, backend), backend, scale=1.001, step=step) > 1e-6


MASK = np.array([[1, 0, 1, 0, 0], [0, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=bool)


@pytest.mark.parametrize("logit_std", [0.0, 1.0])
@pytest.mark.parametrize("seen", [{"causal": True, "window": 2}, {"mask": MASK}, {"rope": 10.0}], ids=str)
def test_masks_windows_and_rotary_positions(seen, logit_std: float, backend: Backend) -> None:
    model = pg.Model("spannorm", depth=3, width=12, tokens=5, heads=3, activation="gelu", logit_std=logit_std, **seen)
    block, x = apply_block(model, backend, 2), start(model, backend)
    assert relative_mismatch(block, x, backend) < 1e-6
    assert relative_mismatch(block, x, backend, scale=1.001) > 1e-6
    changed = x.copy()
    changed[:, 1] += 1
    moved = backend.to_host(abs(block(changed)[0] - block(x)[0])).max(axis=(0, 2)) > 0
    assert moved.tolist() == (model.at(2).attention.visible(5)[:, 1] | (np.arange(5) == 1)).tolist()


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("part", ["embed", "readout"])
def test_embedding_and_readout(placement: str, part: str, backend: Backend) -> None:
    model = pg.Model(placement, depth=3, width=12, tokens=5, heads=3)
    block = apply_block(model, backend, 0, part)
    assert relative_mismatch(block, start(model, backend), backend) < 1e-6


def draws_of_arrays(backend: Backend, shape=(3, 4, 10)):
    return backend.xp.asarray(np.random.default_rng(2).standard_normal(shape)) + 0.4


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, backend: Backend) -> None:
    x = draws_of_arrays(backend)

    def apply(x):
        return operators.operator_of(name)(backend, x)

    step = 1e-6 if "relu" in name or name == "elu" else STEP
    assert relative_mismatch(apply, x, backend, step=step) < 1e-8
    assert relative_mismatch(apply, x, backend, scale=1.0001, step=step) > 1e-8


@pytest.mark.parametrize("name", operators.NORMS)
def test_norms(name: str, backend: Backend) -> None:
    x = draws_of_arrays(backend)

    def apply(x):
        return operators.NORMS[name](backend, x)

    assert relative_mismatch(apply, x, backend) < 1e-8
    y, pull = apply(x)
    y, back = backend.to_host(y), backend.to_host(pull(draws_of_arrays(backend)[::-1]))
    assert np.abs((y * y).mean(axis=-1) - 1).max() < 1e-12
    assert np.abs((back * backend.to_host(x)).sum(axis=-1)).max() < 1e-12
    assert np.abs((back * y).sum(axis=-1)).max() < 1e-12
    mean = np.abs(y.mean(axis=-1)).max(), np.abs(back.mean(axis=-1)).max()
    if name == "layer":
        assert max(mean) < 1e-12
    else:
        assert min(mean) > 1e-3


def test_softmax(backend: Backend) -> None:
    x = draws_of_arrays(backend)

    def apply(x):
        return operators.softmax(backend, x)

    assert relative_mismatch(apply, x, backend) < 1e-8
    weights, pull = apply(x)
    assert np.abs(backend.to_host(weights).sum(axis=-1) - 1).max() < 1e-14
    assert np.abs(backend.to_host(pull(x)).sum(axis=-1)).max() < 1e-14


def test_rotary_products_depend_on_distance_alone(backend: Backend) -> None:
    """A query and a key, each turned by its place, have one product for one distance; turning back is the inverse."""
    x = draws_of_arrays(backend, (1, 2, 6))
    query, key = (backend.xp.repeat(x[:, i : i + 1], 4, axis=1) for i in (0, 1))
    turn = operators.rotary(backend, (1.0, 0.3, 0.01), 4)
    products = backend.to_host(turn(query, 1) @ turn(key, 1).swapaxes(-1, -2))[0]
    for distance in range(-3, 4):
        assert np.ptp(np.diagonal(products, distance)) < 1e-12
    assert np.ptp(products) > 0.1
    assert np.abs(backend.to_host(turn(turn(query, 1), -1) - query)).max() < 1e-14


def test_a_masked_logit_has_no_weight_and_no_gradient(backend: Backend) -> None:
    xp = backend.xp
    x = draws_of_arrays(backend, (1, 4, 4))
    weights, pull = operators.softmax(backend, xp.where(xp.tri(4, dtype=bool), x, -xp.inf))
    above = np.triu(np.ones((4, 4)), 1).astype(bool)
    assert (backend.to_host(weights)[0][above] == 0).all()
    assert (backend.to_host(pull(x))[0][above] == 0).all()


@pytest.mark.parametrize("logit_std", [0.0, 1.0])
def test_causal_attention_reads_no_later_token(logit_std: float, backend: Backend) -> None:
    for causal in (True, False):
        model = pg.Model("prenorm", depth=3, width=12, tokens=5, heads=3, causal=causal, logit_std=logit_std)
        block, x = apply_block(model, backend, 2), start(model, backend)
        changed = x.copy()
        changed[:, 3] += 1
        moved = backend.to_host(abs(block(changed)[0] - block(x)[0])).max(axis=(0, 2))
        assert (moved[:3].max() == 0) == causal
        assert moved[3] > 0
        assert moved[4] > 0


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_permuting_tokens_permutes_everything(placement: str, backend: Backend) -> None:
    model = pg.Model(placement, depth=3, width=12, tokens=5, heads=3)
    order = np.array([3, 0, 4, 1, 2])
    block, x = apply_block(model, backend, 2), start(model, backend)
    y, pull = block(x)
    other, other_pull = block(x[:, order])
    g = draws_of_arrays(backend, (2, 5, 12))
    assert np.allclose(backend.to_host(other), backend.to_host(y)[:, order], rtol=1e-12)
    assert np.allclose(backend.to_host(other_pull(g[:, order])), backend.to_host(pull(g))[:, order], rtol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_output_rms_is_that_of_samples(activation: str) -> None:
    host = choose_backend("numpy")
    z = np.random.default_rng(4).standard_normal((1, 1, 400_000))
    squares = operators.operator_of(activation)(host, z)[0] ** 2
    error = squares.std() / np.sqrt(squares.size)
    assert abs(squares.mean() - operators.output_rms(activation) ** 2) < 4 * error
    assert abs(squares.mean() - 1.1 * operators.output_rms(activation) ** 2) > 4 * error
