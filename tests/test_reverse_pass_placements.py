"""From embedding to readout, every placement's reverse pass is the adjoint of its forward pass."""

import numpy as np
import pytest

import propagate as pg
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.blocks import Block, State, block_of, read_state
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.samplers import dense
from propagate.placements import ReZero

HOST = choose_backend("numpy")
SIZE = {"depth": 3, "width": 12, "tokens": 5, "heads": 3, "ffn_ratio": 1.5, "activation": "gelu"}
NAMES = sorted(name for name, kind in pg.placements().items() if kind.__module__ == ReZero.__module__)
STEP = 1e-3


def network(model: pg.Model):
    """The network as a function of its embedded tokens alone: the same weights at every call."""
    normals, equations = Normals(HOST, 7, range(2)), model.equations

    def apply(x):
        state, pulls = State((x,)), []
        parts = [equations.embed, *[equations.block] * model.depth, equations.readout]
        for index, part in enumerate(parts):
            state, pull = read_state(part, block_of(model, HOST, dense(normals), index), state)
            pulls.append(pull)

        def back(g):
            cotangents = (g,)
            for pull in reversed(pulls):
                cotangents = pull(cotangents)
            return cotangents[0]

        return state.streams[0], back

    return apply


def mismatch(apply, x) -> float:
    """|<v, J u> - <J^T v, u>| over |v| |J u|, with J u by a central difference of fourth order."""
    random = np.random.default_rng(3)
    y, pull = apply(x)
    u, v = random.standard_normal(x.shape), random.standard_normal(y.shape)
    pushed = (8 * (apply(x + STEP * u)[0] - apply(x - STEP * u)[0])) / (12 * STEP)
    pushed -= (apply(x + 2 * STEP * u)[0] - apply(x - 2 * STEP * u)[0]) / (12 * STEP)
    v = v + pushed / np.sqrt(np.mean(pushed * pushed))
    return float(abs((v * pushed).sum() - (pull(v) * u).sum()) / np.sqrt((v * v).sum() * (pushed * pushed).sum()))


def start() -> np.ndarray:
    return Normals(HOST, 11, range(2))(0, (SIZE["tokens"], SIZE["width"])) + 0.3


class Recorded:
    """`block.std` as the constant that the gradient takes it for: the values of the first run, again and again."""

    def __init__(self) -> None:
        self.values: list = []
        self.call = 0

    def __call__(self, block: Block, x):
        found = HOST.xp.sqrt((x.value * x.value).mean(axis=(-1, -2), keepdims=True))
        if len(self.values) <= self.call:
            self.values.append(found)
        self.call += 1
        return self.values[self.call - 1]


@pytest.mark.few(48)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("name", NAMES)
def test_networks(name: str, norm: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    placement = ReZero(a=0.5) if name == "rezero" else name
    apply = network(pg.Model(placement, norm=norm, causal=causal, **SIZE))
    recorded = Recorded()
    monkeypatch.setattr(Block, "std", lambda block, x: recorded(block, x))

    def again(x):
        recorded.call = 0
        return apply(x)

    assert mismatch(again, start()) < 1e-6
    assert mismatch(lambda x: (again(x)[0], lambda g: 1.001 * again(x)[1](g)), start()) > 1e-6


@pytest.mark.parametrize("name", ["admin", "deepscalelm"])
def test_a_standard_deviation_is_a_constant_to_the_gradient(name: str) -> None:
    """Were it not, finite differences would see the same derivative."""
    assert mismatch(network(pg.Model(name, **SIZE)), start()) > 1e-4


@pytest.mark.parametrize("logit_std", [0.0, 1.0])
@pytest.mark.parametrize("normed", [("query",), ("key",), ("value",), ("heads",), ("hidden",)])
def test_inner_norms(normed: tuple[str, ...], logit_std: float) -> None:
    for norm in ("rms", "layer"):
        apply = network(pg.Model("tfixup", normed=normed, norm=norm, logit_std=logit_std, **SIZE))
        assert mismatch(apply, start()) < 1e-6
        assert mismatch(lambda x, apply=apply: (apply(x)[0], lambda g: 1.001 * apply(x)[1](g)), start()) > 1e-6
