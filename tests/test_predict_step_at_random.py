"""The theory of the first step against simulated steps, on networks and optimisers drawn at random."""

import random
from typing import Any

import numpy as np
import pytest
from own_placements import OWN

import propagate as pg

FAST = (3,)
"""Seeds of networks that are tried every time."""


class Uneven:
    """A scaling with a gain of its own for every matrix."""

    def gains(self, index: int, depth: int) -> pg.Gains:
        return pg.Gains(query=1.5, key=0.7, value=1.2, attention_out=0.8, ffn_in=0.5, ffn_out=0.9)


OPTIMIZERS = (
    pg.SGD(1e-3),
    pg.SGD(1e-3, decay=5.0),
    pg.Muon(0.1),
    pg.Muon(0.1, scale="original"),
    pg.Muon(0.1, scale="rms"),
    pg.Sign(1e-3),
    pg.Adam(1e-3),
    pg.Adam(1e-3, eps=0.1),
    pg.Adam(1e-3, eps=0.05, decay=5.0),
)


def drawn(seed: int) -> tuple[pg.Model, Any, pg.Start, dict[str, Any]]:
    """A network, an optimiser, a start and a rule of transfer."""
    choose = random.Random(seed)
    tokens, heads = choose.choice((1, 2, 4, 6)), choose.choice((8, 16, 32))
    activation = choose.choice(("relu", "gelu", "silu", "tanh", "linear", "swiglu", "geglu", "squared_relu"))
    fields: dict[str, Any] = {"depth": choose.choice((1, 2, 3)), "width": 128, "tokens": tokens, "heads": heads}
    fields |= {"activation": activation, "ffn_ratio": choose.choice((1.0, 2.0))}
    fields |= {"logit_std": choose.choice((0.0, 0.5, 1.0, 2.0)), "norm": choose.choice(("rms", "layer"))}
    if choose.random() < 0.3:
        fields["causal"] = True
    if choose.random() < 0.2:
        fields["rope"] = 100.0
    if choose.random() < 0.3:
        fields["key_value_heads"] = heads // 2
    if heads < 32 and choose.random() < 0.3:
        fields["normed"] = tuple(choose.sample(("query", "key", "value", "heads", "hidden"), 2))
    fields["scaling"] = choose.choice((None, None, Uneven(), pg.ScaleInit(0.5)))
    start = pg.Start(covariance=0.3, grad_covariance=0.2) if tokens > 1 else pg.Start()
    if tokens > 1 and choose.random() < 0.2:
        near = 0.7 ** np.abs(np.subtract.outer(np.arange(tokens), np.arange(tokens)))
        size = np.arange(1, tokens + 1) / 2
        start = pg.Start(gram=near * np.sqrt(np.outer(size, size)), grad_covariance=0.2)
    placement = choose.choice([name for name in OWN if name not in ("dyt", "derf")])
    rule = choose.choice((None, None, "complete-p", "mup", "spectral", "standard"))
    base = choose.choice((None, (64, 1), (32, 2)))
    return pg.Model(placement, **fields), choose.choice(OPTIMIZERS), start, {"transfer": rule, "base": base}


@pytest.mark.parametrize("seed", [pytest.param(s, marks=[pytest.mark.slow] * (s not in FAST)) for s in range(40)])
def test_theory_and_simulated_steps_agree(seed: int) -> None:
    model, optimizer, start, rule = drawn(seed)
    said = pg.predict_step(model, optimizer, start, **rule)
    seen = pg.simulate_steps(model, optimizer, start, steps=1, draws=40, seed=seed, backend="numpy", **rule)
    judged = pg.compare(said, seen.sel(step=1))
    assert judged.sizes["quantity"] == (4 if model.tokens > 1 else 3) * said.sizes["matrix"]
    assert float(judged.worst_z.max()) < 4, judged.worst_z.to_series().to_dict()


def test_the_rule_of_another_width_is_rejected() -> None:
    model = pg.Model("spannorm", depth=2, width=128, tokens=4, heads=16)
    rule = {"transfer": "mup", "base": (64, 2)}
    seen = pg.simulate_steps(model, pg.Adam(1e-3), steps=1, draws=24, backend="numpy", **rule)
    assert pg.compare(pg.predict_step(model, pg.Adam(1e-3), **rule), seen.sel(step=1)).worst_z.max() < 4
    wrong = pg.predict_step(model, pg.Adam(1e-3), transfer="mup", base=(32, 2))
    judged = pg.compare(wrong, seen.sel(step=1)).worst_z.to_series()
    assert min(judged[f"own_change[{name}]"] for name in ("query", "value", "ffn_in", "ffn_out")) > 4
