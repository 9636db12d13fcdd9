"""The torch module of linear attention is the simulation's network: same weights, same output, same gradients."""

from typing import Any

import numpy as np
import pytest
from test_linear_attention import GATED, RETENTION, SCALAR

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

from test_torch_autograd import assert_is_the_simulation  # noqa: E402

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
    assert_is_the_simulation(model, fill)


def test_what_is_built_has_its_initialisation_and_trains() -> None:
    model = pg.Model("prenorm", depth=1, width=32, tokens=6, attention=GATED.with_(heads=4), activation="swiglu")
    network = pg.build(model, seed=1)
    (module,) = [part for part in network.modules() if isinstance(part, Recurrence)]
    for name, fan_in, _, gain in model.at(1).attention.matrices(32):
        assert float(module.weights[name].weight.detach().std()) * fan_in**0.5 == pytest.approx(float(gain), rel=0.25)
    run = pg.train(model, pg.corpus(), pg.Adam(lr=1e-2), seeds=(0,), steps=6)
    assert float(run.loss.isel(step=-1).squeeze()) < float(run.loss.isel(step=0).squeeze())
