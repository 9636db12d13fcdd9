"""The hand-written reverse pass of the simulation is torch's autograd, with the same weights in the same text."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.cells import ACTIVATIONS
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.blocks import State, block_of, read_state
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.operators import Pull, output_rms
from propagate.montecarlo.samplers import dense

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

from propagate.tracing.build import Network, build  # noqa: E402
from propagate.tracing.experts import Mixture  # noqa: E402
from propagate.tracing.layers import Attention, FeedForward, Projection, UniformAttention  # noqa: E402
from propagate.tracing.matrices import matrices_of, squared_norms  # noqa: E402

torch.set_num_threads(1)
HOST = choose_backend("numpy")
PLACEMENTS = [name for name, kind in pg.placements().items() if kind.__module__ == "propagate.placements"]
SIZE: dict[str, Any] = {"depth": 3, "width": 18, "tokens": 5, "heads": 3, "ffn_ratio": 1.5}


class Doubled(pg.Placement):
    """Several calls of each sublayer, in an order of their own."""

    def embed(self, x, block):
        return 2 * block.norm(x)

    def block(self, x, block):
        y = block.ffn(block.norm(x)) / 3 + block.attention(block.norm(block.attention(x)))
        return block.norm(x + block.ffn(y) + block.ffn(y)) if block.first else y + x

    def gains(self, index, depth):
        return pg.Gains(value=1.1, attention_out=1 / index, ffn_in=0.9, ffn_out=1.2)


def numpy_pass(
    model: pg.Model, x: Array, g: Array, norms: list[dict[str, Array]] | None = None
) -> tuple[Array, Array, list[Array]]:
    """Output and input cotangent of the simulation's network, and its matrices (fan_in, fan_out) in order of use.

    `norms` is filled with what it notes of its matrices' gradients, block by block.
    """
    normals, matrices = Normals(HOST, 7, range(1)), []
    apply = dense(normals)

    def sampler(x: Array, site: int, fan_out: int, *gain: float) -> tuple[Array, Pull]:
        matrices.append(normals(site, (x.shape[-1], fan_out))[0] / np.sqrt(x.shape[-1]))
        return apply(x, site, fan_out, *gain)

    placement, pulls = model.equations, []
    parts = [placement.embed, *[placement.block] * model.depth, placement.readout]
    state, cotangents = State((x,)), (g,)
    for index, equations in enumerate(parts):
        if norms is not None and 0 < index <= model.depth:
            norms.append({})
        noted = norms[-1] if norms and 0 < index <= model.depth else None
        block = block_of(model, HOST, sampler, index, norms=noted)
        state, pull = read_state(equations, block, state)
        pulls.append(pull)
    for pull in reversed(pulls):
        cotangents = pull(cotangents)
    return state.streams[0], cotangents[0], matrices


def assert_is_the_simulation(model: pg.Model, fill: Callable[[Network, list[Array]], None]) -> None:
    """Output, gradient of the input and squared gradient of every matrix, once `fill` has put the simulation's in."""
    random, norms = np.random.default_rng(5), list[Any]()
    x, g = random.standard_normal((2, 1, model.tokens, model.width))
    y, back, matrices = numpy_pass(model, x, g, norms)
    network = build(model, dtype=torch.float64)
    fill(network, matrices)
    stream = torch.from_numpy(x).requires_grad_()
    output = network(stream)
    output.backward(torch.from_numpy(g))
    np.testing.assert_allclose(output.detach().numpy(), y, rtol=1e-10)
    np.testing.assert_allclose(stream.grad.numpy(), back, rtol=1e-9, atol=1e-12)
    for own, weights in zip(norms, matrices_of(network, list(network.blocks)), strict=True):
        seen = squared_norms(weights, {id(w.parameter): w.parameter.grad for w in weights})
        assert set(seen) == set(own)
        for name, square in seen.items():
            assert square == pytest.approx(float(own[name][0]), rel=1e-9), name


def copy(matrices: list[Array], network: Network) -> None:
    """The simulation's matrices times the model's gains, into the modules, in order of their calls."""
    waiting, output = iter(matrices), output_rms(network.model.activation)

    def fill(projection: Projection, *gains: float) -> None:
        parts = np.split(next(waiting), np.cumsum(projection.sizes)[:-1], axis=-1)
        gains = gains * len(parts) if len(gains) == 1 else gains  # of a gate as of what it opens
        matrix = np.concatenate([part * float(gain) for part, gain in zip(parts, gains, strict=True)], axis=-1)
        with torch.no_grad():
            projection.weight.copy_(torch.from_numpy(matrix.T))

    for block in (network.embed, *network.blocks, network.readout):
        layer = network.model.at(block.index)
        heads, dense = layer.attention, getattr(layer.ffn, "expert", layer.ffn)
        for sublayer in block.sublayers.values():
            if isinstance(sublayer, FeedForward):
                fill(sublayer.read, dense.in_gain)
                normed = not isinstance(sublayer.inner, torch.nn.Identity)
                fill(sublayer.write, dense.out_gain / (1 if normed else output))
            elif isinstance(sublayer, Mixture):
                normed = not isinstance(sublayer.routed[0].inner, torch.nn.Identity)
                size = 1 if normed else output
                fill(sublayer.router, sublayer.experts.router_std)
                fill_experts(sublayer.routed, next(waiting), next(waiting), dense, size)
                if sublayer.experts.shared:
                    read = next(waiting)  # one FFN, as many times as wide: all gates, then all that they open
                    halves = np.split(read, 2 if network.model.activation.gated else 1, axis=1)
                    parts = [np.split(half, len(sublayer.shared), axis=1) for half in halves]
                    read = np.concatenate([part for expert in zip(*parts, strict=True) for part in expert], axis=1)
                    fill_experts(sublayer.shared, read, next(waiting), dense, size)
            elif isinstance(sublayer, Attention | UniformAttention):
                logits = [] if isinstance(sublayer, UniformAttention) else [heads.query_gain, heads.key_gain]
                fill(sublayer.read, *logits, heads.value_gain)
                fill(sublayer.write, heads.out_gain)
    assert next(waiting, None) is None


def fill_experts(experts: Any, read: Array, write: Array, uncut: pg.FFN, output: float) -> None:
    """Matrices that experts share side by side, cut up."""
    root = np.sqrt(len(write) / uncut.units)  # the simulation's entries have variance 1 over all hidden units together
    for expert, own, back in zip(
        experts, np.split(read, len(experts), axis=1), np.split(write, len(experts)), strict=True
    ):
        with torch.no_grad():
            expert.read.weight.copy_(torch.from_numpy(own.T * uncut.in_gain))
            expert.write.weight.copy_(torch.from_numpy(back.T * root * uncut.out_gain / output))


def both(model: pg.Model) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Output and input cotangent, as the simulation and as torch compute them."""
    random = np.random.default_rng(3)
    x, g = (random.standard_normal((1, model.tokens, model.width)) + 0.3 for _ in range(2))
    y, back, matrices = numpy_pass(model, x, g)
    network = build(model, dtype=torch.float64)
    copy(matrices, network)
    source = torch.from_numpy(x).requires_grad_()
    output = network(source)
    (grad,) = torch.autograd.grad(output, source, torch.from_numpy(g))
    return (y, back), (output.detach().numpy(), grad.numpy())


def mismatch(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.few(32)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("placement", [*PLACEMENTS, "doubled"])
def test_the_reverse_pass_is_autograd(placement: str, activation: str) -> None:
    few = [("rms", True, 1.0), ("layer", False, 1.0), ("layer", True, 0.0)]
    settings = product(("rms", "layer"), (False, True), (0.0, 1.0)) if activation == "gelu" else few
    for norm, causal, logit_std in settings:
        model = pg.Model(placement, activation=activation, norm=norm, causal=causal, logit_std=logit_std, **SIZE)
        (y, back), (output, grad) = both(model)
        assert mismatch(output, y) < 1e-10, model
        assert mismatch(grad, back) < 1e-10, model
        assert mismatch(grad * (1 + 1e-9), back) > 1e-10, model


MASK = ((True, False, True, False, False), (True,) * 5, (False, True, False, True, False), (True,) * 5, (True,) * 5)
SEEN: list[dict[str, Any]] = [
    {"causal": True, "window": 2},
    {"mask": MASK},
    {"rope": 100.0},
    {"rope": 100.0, "causal": True, "normed": ("query", "key")},
    {"key_value_heads": 1},
    {"key_value_heads": 1, "causal": True, "window": 3, "rope": 10.0, "normed": ("value",)},
]


@pytest.mark.parametrize("fields", SEEN)
def test_masks_positions_and_grouped_heads_too(fields: dict[str, Any]) -> None:
    for logit_std in (0.0, 1.0):
        model = pg.Model("spannorm", activation="gelu", logit_std=logit_std, **SIZE, **fields)
        (y, back), (output, grad) = both(model)
        assert mismatch(output, y) < 1e-10
        assert mismatch(grad, back) < 1e-10
    plain = pg.Model("spannorm", activation="gelu", **SIZE)
    if "key_value_heads" not in fields:
        assert mismatch(both(plain)[1][1], both(model)[1][1]) > 1e-3  # what was added matters


EXPERTS = {
    "two of five": pg.Experts(5, 2),
    "softmax before": pg.Experts(5, 3, softmax="before", gain=2.5),
    "shared": pg.Experts(4, 1, softmax="before", shared=2, router_std=2.0),
    "identity": pg.Experts(4, 3, identity=2, shared=1),
    "split": pg.Experts(3, 2, split=3, identity=1, softmax="before"),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("kind", EXPERTS)
@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_experts_too(kind: str, activation: str) -> None:
    experts = EXPERTS[kind]
    for placement, causal in product(("prenorm", "spannorm", "residual"), (False, True)):
        gains = {"ffn_gain": 0.7, "scaling": pg.ScaleInit(0.5), "causal": causal}
        model = pg.Model(placement, activation=activation, experts=experts, **gains, **SIZE)
        (y, back), (output, grad) = both(model)
        assert mismatch(output, y) < 1e-10
        assert mismatch(grad, back) < 1e-10


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_std": 2.0},
        {"activation": "swiglu", "causal": True, "key_value_heads": 1, "rope": 10.0, "normed": ("query", "hidden")},
        {"logit_std": 0.0, "normed": ("value",)},
        {"experts": EXPERTS["shared"], "activation": "geglu"},
        {"experts": EXPERTS["split"]},
        {"experts": EXPERTS["shared"], "activation": "swiglu", "norm": "layer", "normed": ("hidden",)},
    ],
)
def test_gradients_of_every_matrix_too(fields: dict[str, Any]) -> None:
    """What the simulation notes of matrices that it may never make is autograd's gradient of those of `build`."""
    gains = {"value_gain": 1.3, "attention_gain": 0.7, "ffn_gain": 0.6, "scaling": Scaled()}
    for placement in ("spannorm", "residual"):
        model = pg.Model(placement, **{"activation": "relu"} | SIZE | gains | fields)
        random = np.random.default_rng(3)
        x, g = (random.standard_normal((1, model.tokens, model.width)) + 0.3 for _ in range(2))
        noted: list[dict[str, Array]] = []
        y, _, matrices = numpy_pass(model, x, g, noted)
        network = build(model, dtype=torch.float64)
        copy(matrices, network)
        output = network(torch.from_numpy(x))
        assert mismatch(output.detach().numpy(), y) < 1e-10
        output.backward(torch.from_numpy(g))
        gradients = {id(parameter): parameter.grad for parameter in network.parameters()}
        for weights, own in zip(matrices_of(network, list(network.blocks)), noted, strict=True):
            found = squared_norms(weights, gradients)
            assert found == pytest.approx({name: float(norm[0]) for name, norm in own.items()}, rel=1e-9, abs=1e-20)
            if model.logit_std == 2:  # which is in no matrix
                assert found["query"] / 2 != pytest.approx(float(own["query"][0]), rel=0.1)


class Scaled:
    """A scaling with a gain of its own for every matrix."""

    def gains(self, index: int, depth: int) -> pg.Gains:
        return pg.Gains(query=1.5, key=0.7, value=1.2, attention_out=0.8, ffn_in=0.5, ffn_out=0.9)


def test_the_routers_gradient_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates that autograd takes for constants give another gradient."""
    model = pg.Model("prenorm", experts=EXPERTS["softmax before"], **SIZE)
    gates = Mixture.gates
    monkeypatch.setattr(Mixture, "gates", lambda self, x: gates(self, x.detach()))
    (y, back), (output, grad) = both(model)
    assert mismatch(output, y) < 1e-10
    assert mismatch(grad, back) > 1e-3


def test_dropout_is_of_branch_outputs() -> None:
    network = build(pg.Model("postnorm", dropout=0.25, **SIZE), dtype=torch.float64)
    sublayer, x = network.blocks[0].sublayers["ffn1"], torch.randn(400, 5, 18, dtype=torch.float64)
    kept, dropped = sublayer.eval()(x), sublayer.train()(x)
    ratio = dropped / kept
    assert torch.allclose(ratio[ratio != 0], torch.tensor(4 / 3, dtype=torch.float64))
    assert abs((ratio == 0).double().mean() - 0.25) < 0.02


@pytest.mark.parametrize("name", ["query", "key", "value", "heads", "hidden"])
def test_inner_norms_too(name: str) -> None:
    for logit_std in (0.0, 1.0):
        model = pg.Model("postnorm", activation="gelu", normed=(name,), logit_std=logit_std, **SIZE)
        (y, back), (output, grad) = both(model)
        assert mismatch(output, y) < 1e-10
        assert mismatch(grad, back) < 1e-10


def test_scaling_and_gains_reach_the_module() -> None:
    gains = {"value_gain": 0.7, "attention_gain": 1.3, "ffn_gain": 0.4, "scaling": pg.ScaleInit(0.5)}
    (y, back), (output, grad) = both(pg.Model("deepnorm", activation="swiglu", **gains, **SIZE))
    assert mismatch(output, y) < 1e-10
    assert mismatch(grad, back) < 1e-10
    (_, other), _ = both(pg.Model("deepnorm", activation="swiglu", **(gains | {"scaling": None}), **SIZE))
    assert mismatch(other, back) > 0.01
