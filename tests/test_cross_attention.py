"""Cross-attention: theory and simulation say the same, forward, backward and by matrix, and not of another memory."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.testing import assert_adjoint

START = pg.Start(covariance=0.3, grad_covariance=0.2)
GAINS = {"query_gain": 1.2, "key_gain": 0.8, "value_gain": 0.7, "out_gain": 1.3}
MEMORY = pg.Memory.alike(7, 1.5, 0.4)
CROSS = pg.CrossAttention(MEMORY, heads=16, logit_std=1.5, **GAINS)
RUN: dict[str, Any] = {"backend": "numpy", "progress": False, "draws": 60}


class CrossedAlone(pg.Placement):
    """Nothing else."""

    cross: pg.CrossAttention

    def block(self, x: Any, block: Any) -> Any:
        return block.apply(self.cross, block.norm(x))


class CrossedDecoder(pg.Placement):
    """T5's decoder (arXiv:1910.10683): PreNorm, with cross-attention between self-attention and FFN."""

    cross: pg.CrossAttention

    def block(self, x: Any, block: Any) -> Any:
        x = x + block.attention(block.norm(x))
        x = x + block.apply(self.cross, block.norm(x))
        return x + block.ffn(block.norm(x))

    def readout(self, x: Any, block: Any) -> Any:
        return block.norm(x)


def alone(cross: pg.CrossAttention) -> pg.Model:
    return pg.Model(CrossedAlone(cross), depth=1, width=256, tokens=5, heads=16)


def decoder(cross: pg.CrossAttention, **fields: Any) -> pg.Model:
    own = {"depth": 2, "width": 256, "tokens": 5, "heads": 16, "causal": True} | fields
    return pg.Model(CrossedDecoder(cross), **own)


@pytest.mark.parametrize("normed", [(), ("query", "key"), ("value",), ("heads",)], ids=str)
@pytest.mark.parametrize("norm", ["rms", pg.Norm("layer", eps=0.1)], ids=str)
def test_the_reverse_pass_is_the_adjoint(normed: tuple[str, ...], norm: Any) -> None:
    kind = replace(CROSS, heads=2, normed=normed)
    assert_adjoint(kind, pg.Model("prenorm", depth=1, width=12, tokens=5, heads=3, norm=norm))


@pytest.mark.parametrize(
    ("own", "wrong"),
    [
        ({}, {"memory": pg.Memory.alike(7, 1.5)}),
        ({"normed": ("query", "key")}, {"memory": pg.Memory.alike(14, 1.5, 0.4)}),
        ({"logit_std": 0.0}, {"logit_std": 3.0}),
    ],
    ids=["plain", "normed", "uniform"],
)
def test_theory_and_simulation_agree_and_not_of_another_memory(own: dict[str, Any], wrong: dict[str, Any]) -> None:
    kind = replace(CROSS, **own)
    seen = pg.simulate(alone(kind), START, **RUN)
    assert float(pg.compare(pg.predict(alone(kind), START), seen).worst_z.max()) < 4
    assert pg.compare(pg.predict(alone(replace(kind, **wrong)), START), seen).attrs["verdict"] == "disagrees"


def test_a_decoder_agrees_and_so_do_the_gradients_of_its_matrices() -> None:
    include = {"param_grad"}
    seen = pg.simulate(decoder(CROSS), START, sampler="weightless", include=include, **RUN)
    said = pg.predict(decoder(CROSS), START, include=include)
    assert set(said.matrix.values) == set(seen.matrix.values) > {"cross_query", "cross_key", "cross_value", "cross_out"}
    assert float(pg.compare(said, seen).worst_z.max()) < 4
    scaled = pg.compare(said.assign(param_grad=3 * said.param_grad), seen).worst_z
    assert all(float(scaled.sel(quantity=f"param_grad[{name}]")) > 4 for name in said.matrix.values)
    deaf = pg.predict(pg.Model("prenorm", 2, 256, 5, heads=16, causal=True), START)
    assert pg.compare(deaf, seen).attrs["verdict"] == "disagrees"


def test_every_token_of_a_memory_counts_as_it_is() -> None:
    """One loud token among silent ones that are alike: a memory of their means is rejected."""
    gram = np.diag([4.0, 0.1, 0.1, 0.1])
    kind = replace(CROSS, memory=gram)
    seen = pg.simulate(alone(kind), START, **RUN)
    assert float(pg.compare(pg.predict(alone(kind), START), seen).worst_z.max()) < 4
    mean = replace(kind, memory=pg.Memory.alike(4, gram.trace() / 4))
    assert pg.compare(pg.predict(alone(mean), START), seen).attrs["verdict"] == "disagrees"


def test_one_token_of_memory_is_heard_as_it_is() -> None:
    said = pg.predict(alone(pg.CrossAttention(np.array([[2.0]]), value_gain=0.5, out_gain=3.0)))
    np.testing.assert_allclose(said.token_variance[1], 2.0 * 0.25 * 9.0, rtol=1e-12)
    np.testing.assert_allclose(said.grad_variance[0], 0.0, atol=1e-12)  # whatever is asked


def test_what_an_encoder_leaves_is_a_memory() -> None:
    encoder = pg.Model("prenorm", depth=3, tokens=6)
    plain = pg.memory_of(encoder, START)
    resolved = pg.memory_of(encoder, pg.Start(gram=np.full((6, 6), 0.3) + 0.7 * np.eye(6)))
    np.testing.assert_allclose(resolved.gram, plain.gram, atol=0.01)
    assert plain.gram[0, 1] > 0.4
    said = pg.predict(encoder, START)
    assert plain.gram[0, 1] == pytest.approx(float(said.covariance[-1] / said.variance[-1]))


def test_what_a_memory_hears_is_the_gradient_of_torch() -> None:
    """Means over networks of the second moments of autograd's gradient; without the keys' part they differ."""
    torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
    kind = replace(CROSS, memory=np.diag([2.0, 1.0, 0.5]), logit_std=3.0)
    model = decoder(kind, depth=1, width=128, tokens=4)
    found = []
    for seed in range(40):
        network = pg.build(model, seed=seed)
        draw = torch.Generator().manual_seed(seed)
        memory, stream, cotangent = (torch.randn(tokens, 128, generator=draw) for tokens in (3, 4, 4))
        memory = (torch.tensor([2.0, 1.0, 0.5]).sqrt()[:, None] * memory).requires_grad_()
        pg.tracing.remember(network, memory)
        for block in network.blocks:
            stream = block(stream)
        (stream * cotangent).sum().backward()
        found.append((memory.grad @ memory.grad.T / 128).numpy())
    mean, error = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / 40**0.5
    said = pg.memory_gradient(model)
    assert float((abs(mean - said) / (error + 0.05 * said.diagonal().max())).max()) < 3
    deaf = pg.memory_gradient(decoder(replace(kind, key_gain=1e-6), depth=1, width=128, tokens=4))
    assert float((abs(mean - deaf) / (error + 0.05 * said.diagonal().max())).max()) > 4


def test_torch_has_one_memory_a_network_and_the_simulations_moments() -> None:
    torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
    model = decoder(CROSS)
    one, other = pg.build(model, seed=1), pg.build(model, seed=2)
    first, second = (block.sublayers["crossattention1"].memory for block in one.blocks)
    assert bool((first == second).all())
    assert not bool((first == other.blocks[0].sublayers["crossattention1"].memory).any())
    inputs = torch.randn(8, 5, 256, generator=torch.Generator().manual_seed(12345))
    seen = pg.trace((pg.build(model, seed=seed) for seed in range(12)), inputs)
    said = pg.predict(model, pg.start_of(seen), include={"param_grad"})
    assert set(seen.matrix.values) == set(said.matrix.values)
    assert pg.compare(said, seen).attrs["verdict"] != "disagrees"
    wrong = pg.predict(decoder(replace(CROSS, out_gain=2.6)), pg.start_of(seen))
    assert pg.compare(wrong, seen).attrs["verdict"] == "disagrees"


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: pg.CrossAttention(7), "memory must be a matrix of second moments"),
        (lambda: pg.CrossAttention([[1.0, 2.0], [2.0, 1.0]]), "memory must be symmetric and positive semi-definite"),
        (lambda: pg.Memory.alike(2, covariance=3.0), "memory must be symmetric and positive semi-definite"),
        (lambda: pg.CrossAttention(MEMORY, normed=("hidden",)), "normed must be one of"),
        (lambda: pg.CrossAttention(MEMORY, heads=3).fitted(16, 4), "heads must divide the width"),
        (lambda: pg.predict(decoder(CROSS), include={"bias"}), "bias does not cover CrossAttention"),
        (lambda: pg.predict_step(decoder(CROSS), pg.SGD(lr=0.1)), "predict_step does not cover CrossAttention"),
        (
            lambda: pg.simulate_steps(decoder(CROSS), pg.SGD(lr=0.1), steps=1, draws=2, sampler="weightless"),
            "sampler 'weightless' does not cover CrossAttention in training",
        ),
        (lambda: pg.memory_gradient(pg.Model("prenorm", 1)), "needs a network that attends to one memory, got 0"),
        (lambda: pg.memory_of(pg.Model("prenorm", 1), pg.Start(inputs=np.ones((32, 512)))), "not inputs"),
    ],
)
def test_what_is_not_covered_is_refused_in_words(ask: Any, words: str) -> None:
    with pytest.raises(pg.ModelError, match=words):
        ask()
