"""The torch module of linear attention is the simulation's network: same weights, same output, same gradients."""

from typing import Any

import numpy as np
import pytest
from test_linear_attention import GATED, RETENTION, SCALAR

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

from test_torch_autograd import numpy_pass  # noqa: E402

from propagate.tracing.matrices import matrices_of, squared_norms  # noqa: E402
from propagate.tracing.recurrent import Recurrence  # noqa: E402

torch.set_num_threads(1)
KINDS = {
    "plain": pg.LinearAttention(3),
    "retention": RETENTION.with_(heads=3, decay=(0.3, 0.6, 1.0)),
    "coordinate": GATED.with_(heads=3),
    "head": SCALAR.with_(heads=3, decay=(0.3, 0.6, 0.9), gate_power=(0.5, 1.0, 3.0)),
}


class RecurrentBlock(pg.Placement):
    """Behind a norm, with a skip."""

    def block(self, x: Any, block: Any) -> Any:
        return x + block.attention(block.norm(x))


def fill(network: Any, matrices: list[Any]) -> None:
    """The simulation's matrices of gain 1 times their gains, each into the weight of its name."""
    waiting = iter(matrices)
    for block in network.blocks:
        (module,) = [part for part in block.modules() if isinstance(part, Recurrence)]
        *first, last = module.kind.matrices(network.model.width)
        for parts in (first, [last]):
            pieces = np.split(next(waiting), np.cumsum([fan_out for _, _, fan_out, _ in parts])[:-1], axis=-1)
            for (name, _, _, gain), piece in zip(parts, pieces, strict=True):
                with torch.no_grad():
                    module.weights[name].weight.copy_(torch.from_numpy(gain * piece.T))


@pytest.mark.parametrize("norm", ["rms", pg.Norm("layer", eps=0.1)], ids=str)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_output_and_gradients_are_the_simulations(kind: pg.LinearAttention, norm: Any) -> None:
    model = pg.Model(RecurrentBlock(), depth=2, width=18, tokens=5, norm=norm, attention=kind)
    random, norms = np.random.default_rng(5), list[Any]()
    x, g = random.standard_normal((2, 1, 5, 18))
    y, back, matrices = numpy_pass(model, x, g, norms)
    network = pg.build(model, dtype=torch.float64)
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


def test_what_is_built_has_its_initialisation_and_trains() -> None:
    model = pg.Model("prenorm", depth=1, width=32, tokens=6, attention=GATED.with_(heads=4), activation="swiglu")
    network = pg.build(model, seed=1)
    (module,) = [part for part in network.modules() if isinstance(part, Recurrence)]
    for name, fan_in, _, gain in model.at(1).attention.matrices(32):
        assert float(module.weights[name].weight.detach().std()) * fan_in**0.5 == pytest.approx(float(gain), rel=0.25)
    run = pg.train(model, pg.corpus(), pg.Adam(lr=1e-2), seeds=(0,), steps=6)
    assert float(run.loss.isel(step=-1).squeeze()) < float(run.loss.isel(step=0).squeeze())
