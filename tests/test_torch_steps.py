"""Torch's first steps are those of a hand-written step on the simulation's networks, with the same weights."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.losses import CrossEntropy
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.blocks import State, block_of, read_state
from propagate.optimizers import SGD, Adam, Muon, Sign
from propagate.transfer import Factors, kind_of

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

from propagate.tracing.build import build  # noqa: E402
from propagate.tracing.layers import Projection  # noqa: E402
from propagate.tracing.optimizers import torch_optimizer  # noqa: E402
from propagate.tracing.starts import Entering  # noqa: E402
from propagate.tracing.stepping import stepped  # noqa: E402
from propagate.tracing.steps import trace_steps  # noqa: E402

torch.set_num_threads(1)
HOST = choose_backend("numpy")
STEPS = 3
SIZE: dict[str, Any] = {"depth": 2, "width": 16, "tokens": 5, "heads": 2, "activation": "swiglu", "ffn_ratio": 1.5}
CALLS = (("query", "key", "value"), ("attention_out",), ("ffn_gate", "ffn_in"), ("ffn_out",))
"""The matrices side by side at each site of a block."""
OPTIMIZERS = [
    SGD(lr=3e-3, momentum=0.9, decay=0.1),
    Sign(lr=1e-3, momentum=0.5),
    Adam(lr=1e-3, eps=1e-3, decay=0.1),
    Muon(lr=1e-2, momentum=0.9, nesterov=True, scale="original"),
    Muon(lr=1e-2, scale="rms", decay=0.1),
]


def factors_of(matrix: str) -> Factors:
    return Factors(gain=1.5, multiplier=0.7, lr=0.6, decay=3.0, eps=0.5) if kind_of(matrix) == "hidden" else Factors()


class Network:
    """The simulation's equations with matrices that are kept, (fan_in, fan_out) each, and trained by hand."""

    def __init__(self, model: pg.Model) -> None:
        self.model, self.random = model, np.random.default_rng(5)
        self.matrices: dict[tuple[int, str], Array] = {}
        self.gradients: dict[tuple[int, str], Array] = {}
        self.memory: dict[tuple[int, str], dict[str, Any]] = {}
        self.sites: list[int] = []

    def names(self, site: int) -> list[tuple[int, str]]:
        return [(site, name) for name in CALLS[self.sites.index(site) % len(CALLS)]]

    def sampler(self, x: Array, site: int, fan_out: int, gain: float = 1.0) -> tuple[Array, Callable[[Array], Array]]:
        if site not in self.sites:
            self.sites.append(site)
            whole = self.random.standard_normal((x.shape[-1], fan_out)) * gain / np.sqrt(x.shape[-1])
            names = self.names(site)
            parts = np.split(whole, len(names), axis=1)
            self.matrices |= {name: part * factors_of(name[1]).gain for name, part in zip(names, parts, strict=True)}
        names = self.names(site)
        scales = [factors_of(name).multiplier for _, name in names]
        weight = np.concatenate([m * self.matrices[name] for m, name in zip(scales, names, strict=True)], axis=1)

        def pull(g: Array) -> Array:
            parts = np.split(x[0].T @ g[0], len(names), axis=1)
            self.gradients |= {name: m * part for name, m, part in zip(names, scales, parts, strict=True)}
            return g @ weight.T

        return x @ weight, pull

    def gradient(self, x: Array, g: Array) -> Array:
        """The stream that leaves the last block; gradients are kept."""
        placement, pulls, state = self.model.equations, [], State((x,))
        for index, equations in enumerate([placement.embed, *[placement.block] * self.model.depth]):
            state, pull = read_state(equations, block_of(self.model, HOST, self.sampler, index), state)
            pulls.append(pull)
        cotangents: tuple[Array, ...] = (g,)
        for pull in reversed(pulls):
            cotangents = pull(cotangents)
        return state.streams[0]

    def step(self, optimizer: Any) -> None:
        for name, weight in self.matrices.items():
            memory, own = self.memory.setdefault(name, {}), factors_of(name[1])
            self.matrices[name] = by_hand(optimizer, weight, self.gradients[name], memory, own)


def by_hand(optimizer: Any, weight: Array, gradient: Array, state: dict[str, Array], factors: Factors) -> Array:
    """One step of a matrix (fan_in, fan_out), from the formulas."""
    lr = optimizer.lr * factors.lr
    weight = weight * (1 - lr * optimizer.decay * factors.decay)
    if isinstance(optimizer, Adam):
        (a, b), count = optimizer.betas, state.get("count", 0) + 1
        mean = a * state.get("mean", 0) + (1 - a) * gradient
        square = b * state.get("square", 0) + (1 - b) * gradient**2
        state.update(count=count, mean=mean, square=square)
        root = np.sqrt(square / (1 - b**count)) + optimizer.eps * factors.eps
        return weight - lr * mean / (1 - a**count) / root
    state["moved"] = moved = optimizer.momentum * state.get("moved", 0) + gradient
    if isinstance(optimizer, SGD):
        return weight - lr * moved
    if isinstance(optimizer, Sign):
        return weight - lr * np.sign(moved)
    moved = gradient + optimizer.momentum * moved if optimizer.nesterov else moved
    u, s, vt = np.linalg.svd(moved, full_matrices=False)
    rank = int((s > 1e-12 * s[0]).sum())
    fan_in, fan_out = weight.shape
    scale = {"none": 1, "original": max(1, fan_out / fan_in) ** 0.5, "rms": 0.2 * max(fan_in, fan_out) ** 0.5}
    return weight - lr * scale[optimizer.scale] * u[:, :rank] @ vt[:rank]


def both(model: pg.Model, optimizer: Any, rate_of_one: float = 1.0) -> tuple[list[float], list[float], float]:
    """The linear loss at every step, by hand and by torch, and how far the matrices lie apart behind the last.

    `rate_of_one` is a factor on torch's rate for the first block's value matrix.
    """
    random = np.random.default_rng(3)
    x, g = (random.standard_normal((1, model.tokens, model.width)) + 0.3 for _ in range(2))
    hand = Network(model)
    hand.gradient(x, g)
    module = build(model, dtype=torch.float64)
    projections = [part for part in module.modules() if isinstance(part, Projection)]
    for site, projection in zip(hand.sites, projections, strict=True):
        parts = [hand.matrices[name] / factors_of(name[1]).gain for name in hand.names(site)]
        with torch.no_grad():
            projection.weight.copy_(torch.from_numpy(np.concatenate(parts, axis=1).T))

    def of_torch(matrix: str) -> Factors:
        own = factors_of(matrix)
        return replace(own, lr=own.lr * rate_of_one) if matrix == "value" else own

    columns, leaves = stepped(module, Entering(torch.from_numpy(x), torch.from_numpy(g)), optimizer, of_torch, STEPS)
    losses = []
    for step in range(STEPS + 1):
        losses.append(float((g * hand.gradient(x, g)).sum()))
        if step < STEPS:
            hand.step(optimizer)
    pairs = zip(leaves, hand.matrices.values(), strict=True)
    apart = max(float(np.abs(leaf.tensor.detach().numpy() - weight.T).max()) for leaf, weight in pairs)
    return losses, [row["loss"] for row in columns], apart


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_three_steps_are_equal_to_rounding(optimizer: Any) -> None:
    # an orthogonal factor is as exact as rounding times the gradient's condition number
    rounding = 1e-8 if isinstance(optimizer, Muon) else 1e-12
    for placement in ("spannorm", "prenorm"):
        hand, by_torch, apart = both(pg.Model(placement, **SIZE), optimizer)
        np.testing.assert_allclose(by_torch, hand, rtol=1e3 * rounding)
        assert apart < rounding
    _, _, apart = both(pg.Model("prenorm", **SIZE), optimizer, rate_of_one=1.001)  # negative control
    assert apart > 10 * rounding


@pytest.mark.parametrize("scale", ["none", "original", "rms"])
def test_muon_of_torch_is_within_its_stated_approximation(scale: Any) -> None:
    """Newton-Schulz leaves singular values S' between 0.5 and 1.5 where the exact factor has 1."""
    random, optimizer = torch.Generator().manual_seed(1), Muon(lr=0.1, scale=scale, momentum=0.9, nesterov=True)
    first = torch.randn((24, 12), generator=random)
    gradients = [torch.randn((24, 12), generator=random) for _ in range(2)]
    moved = []
    for approximate in (False, True):
        matrix = first.clone().requires_grad_()
        made = torch_optimizer(optimizer, [matrix], [Factors(lr=0.5)], approximate=approximate)
        for gradient in gradients:
            before = matrix.detach().clone()
            matrix.grad = gradient
            made.step()
        moved.append(before - matrix.detach())
    exact, approximated = moved
    size = float(torch.linalg.svdvals(exact)[0])  # of one size all
    inside = exact.T @ approximated / size**2  # V S' V^T
    values = torch.linalg.eigvalsh(inside + inside.T) / 2
    assert isinstance(made, torch.optim.Muon)
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.5
    assert abs(float(values.mean()) - 1) < 0.15
    assert float((inside - inside.T).abs().max()) < 0.05  # bfloat16


def test_the_table_is_of_every_step_block_and_matrix() -> None:
    model = pg.Model("prenorm", depth=2, width=32, tokens=4, heads=2)
    seen = trace_steps(model, Adam(lr=1e-4), steps=2, draws=3, loss=CrossEntropy(20), transfer="mup", base=(16, 2))
    assert dict(seen.sizes) == {"step": 3, "block": 3, "matrix": 8}
    assert float(seen.change[0].max()) == float(seen.own_change[0].max()) == 0
    query, ends = seen.sel(matrix="query"), seen.sel(matrix="unembedding")
    assert bool(query.own_change[1, 1:].notnull().all())
    assert np.isnan(query.own_change[1, 0])
    assert bool(ends.own_change[:, :2].isnull().all())
    rate = 1e-4 / 2  # of a hidden matrix, twice as wide as the base; a first step of Adam's is of this size everywhere
    ratio = float(seen.update_ratio.sel(matrix="ffn_in")[1, 1])
    assert abs(ratio / (rate * np.sqrt(32)) - 1) < 0.1
    fall = float(seen.first_order_fall.sum())
    assert abs(float(seen.loss[0] - seen.loss[1]) / fall - 1) < 0.05


def test_matrices_that_are_not_known_are_refused() -> None:
    model = pg.Model("prenorm", depth=1, width=8, tokens=3, heads=2)
    for given, message in (
        ({"steps": 0}, "steps must be at least 1"),
        ({"transfer": "mub"}, "transfer must be one of"),
        ({"base": 3, "transfer": "mup"}, "base must be a width and a depth"),
        ({"start": pg.Start(covariance=0.5), "loss": CrossEntropy(9)}, "start must say only the variance"),
    ):
        with pytest.raises(pg.ModelError, match=message):
            trace_steps(model, SGD(lr=0.1), **given)
