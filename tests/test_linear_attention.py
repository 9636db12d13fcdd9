"""Linear attention with a decay: theory and simulation by both samplers say the same, and not of another recurrence."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.testing import assert_adjoint
from propagate.theory.tokens import recurrent

START = pg.Start(covariance=0.3, grad_covariance=0.2)
GAINS = {"query_gain": 0.8, "key_gain": 0.7, "value_gain": 0.6, "out_gain": 1.3}
RETENTION = pg.LinearAttention(64, decay=(0.3, 0.5, 0.7, 0.9) * 16, **GAINS)
GATED = pg.LinearAttention(
    64, 3, 5, 0.6, "coordinate", 0.5, "silu", decay_gain=3.0, output_gate_gain=1.2, normed=("heads",), **GAINS
)
SCALAR = pg.LinearAttention(
    64, decay=(0.5, 0.8) * 32, gate="head", gate_power=(1.0, 4.0) * 32, output_gate="silu", normed=("gated",), **GAINS
)
RUN: dict[str, Any] = {"backend": "numpy", "progress": False, "draws": 80}


class RecurrenceAlone(pg.Placement):
    """Nothing else, so that what it makes is not drowned in a skip."""

    def block(self, x: Any, block: Any) -> Any:
        return block.attention(block.norm(x))


def network(attention: Any, **fields: Any) -> pg.Model:
    return pg.Model("recurrencealone", **{"depth": 1, "width": 256, "tokens": 6} | fields, attention=attention)


@pytest.mark.parametrize("norm", ["rms", pg.Norm("layer", eps=0.1)], ids=str)
@pytest.mark.parametrize(
    "kind",
    [
        pg.LinearAttention(3),
        RETENTION.with_(heads=3, decay=(0.3, 0.6, 1.0)),
        GATED.with_(heads=3),
        SCALAR.with_(heads=3, decay=(0.3, 0.6, 0.9), gate_power=(0.5, 1.0, 3.0)),
    ],
    ids=["plain", "retention", "coordinate", "head"],
)
def test_the_reverse_pass_is_the_adjoint(kind: pg.LinearAttention, norm: Any) -> None:
    assert_adjoint(kind, pg.Model("prenorm", depth=1, width=12, tokens=5, heads=3, norm=norm))


@pytest.mark.parametrize(
    ("kind", "sampler", "wrong"),
    [
        (RETENTION, "weightless", {"decay": 0.95}),
        (GATED, "dense", {"decay_gain": 0.5}),
        (SCALAR, "weightless", {"decay": 0.999}),
    ],
    ids=["retention", "coordinate", "head"],
)
def test_theory_and_simulation_agree_and_not_of_other_decays(
    kind: pg.LinearAttention, sampler: str, wrong: dict[str, Any]
) -> None:
    """Streams, gradients and every matrix's gradient, token by token."""
    model, include = network(kind), {"param_grad"}
    seen = pg.simulate(model, START, sampler=sampler, include=include, **RUN)
    said = pg.predict(model, START, include=include)
    found = pg.compare(said, seen)
    assert float(found.worst_z.max()) < 4
    assert (
        set(said.matrix.values) == {name for name, *_ in model.at(1).attention.matrices(256)} == set(seen.matrix.values)
    )
    other = pg.predict(network(replace(kind, **wrong)), START, include=include)
    assert pg.compare(other, seen).attrs["verdict"] == "disagrees"
    tripled = pg.compare(said.assign(param_grad=3 * said.param_grad), seen).worst_z
    assert all(float(tripled.sel(quantity=f"param_grad[{name}]")) > 4 for name in said.matrix.values)


def test_few_heads_in_front_of_a_norm_are_allowed_for() -> None:
    """What few heads give one token varies, and a norm divides by it; an allowance of many heads is not enough."""
    few, many = (
        pg.Model("periln", depth=1, width=256, tokens=8, attention=RETENTION.with_(heads=n, decay=0.5, **GAINS))
        for n in (4, 64)
    )
    seen = pg.simulate(few, START, **RUN | {"draws": 300})
    said = pg.predict(few, START)
    assert pg.compare(said, seen).attrs["verdict"] != "disagrees"
    narrow = {name: value for name, value in pg.predict(many, START).items() if str(name).endswith("_allowance")}
    assert pg.compare(said.assign(narrow), seen).attrs["verdict"] == "disagrees"


def test_what_returns_through_the_gate_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A theory that leaves it out is rejected by the gradient at the input: of gates this steep it is half."""
    model = network(pg.LinearAttention(64, decay=0.5, gate="head", decay_gain=30.0))
    seen = pg.simulate(model, START, **RUN)
    assert float(pg.compare(pg.predict(model, START), seen).worst_z.max()) < 4
    whole = recurrent._into_heads
    monkeypatch.setattr(recurrent, "_into_heads", lambda *args: {k: v for k, v in whole(*args).items() if k != "decay"})
    assert float(pg.compare(pg.predict(model, START), seen).worst_z.sel(quantity="grad_variance")) > 4


def test_without_a_decay_it_is_a_sum_worked_out_by_hand() -> None:
    """Of uncorrelated tokens of variance 1 the t-th output adds up t of them, and T - t + 1 answer to the t-th value;
    queries and keys of t tokens likewise.
    """
    said = pg.predict(network(pg.LinearAttention(8, 4, 2)))
    np.testing.assert_allclose(said.token_variance[1], np.arange(1, 7), rtol=1e-12)
    expected = 2 * (6 - np.arange(6)) + np.arange(1, 7)
    np.testing.assert_allclose(said.grad_token_variance[0], expected, rtol=1e-12)
    assert "variance_se" not in said  # where nothing is drawn
    assert "variance_se" in pg.predict(network(SCALAR))


def test_gates_of_one_value_are_a_decay_that_is_a_number() -> None:
    gate = replace(GATED, decay_gain=0.0, normed=(), output_gate=None, output_gate_gain=1.0)
    number = replace(gate, gate=None, gate_power=1.0, decay_gain=1.0)
    one, other = (pg.predict(network(kind), START) for kind in (gate, number))
    for name in ("token_variance", "deviation", "grad_token_variance", "grad_deviation"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-9)


def test_any_placement_takes_it_and_depth_keeps_agreement() -> None:
    """With an FFN, the placement's norms and a scaling, over blocks; a softmax is told from it."""
    kind = replace(SCALAR, normed=("heads",))
    model = pg.Model("spannorm", depth=3, width=256, tokens=6, attention=kind, scaling=pg.ScaleInit(0.5))
    seen = pg.simulate(model, START, **RUN)
    assert pg.compare(pg.predict(model, START), seen).attrs["verdict"] != "disagrees"
    wrong = replace(model, attention=replace(kind, decay=0.99))
    assert pg.compare(pg.predict(wrong, START), seen).attrs["verdict"] == "disagrees"
    assert "head_size" not in str(model)
    assert "gate head" in str(model)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: pg.LinearAttention(decay=1.5), "decay must be at most 1"),
        (lambda: pg.LinearAttention(gate="head"), "decay must be below 1"),
        (lambda: pg.LinearAttention(decay=0.0), "decay must be positive"),
        (lambda: pg.LinearAttention(decay=(0.5, 0.5)), "decay must be a number or a tuple of 8"),
        (lambda: pg.LinearAttention(gate="token", decay=0.5), "gate must be one of head, coordinate"),
        (lambda: pg.LinearAttention(decay_gain=2.0), "decay_gain must be 1 without a gate"),
        (lambda: pg.LinearAttention(gate_power=2.0), "gate_power must be 1 without a gate"),
        (lambda: pg.LinearAttention(output_gate="swiglu"), "output_gate must be no gated activation"),
        (lambda: pg.LinearAttention(normed=("key",)), "normed must be one of heads, gated"),
        (lambda: pg.LinearAttention(heads=3).fitted(16, 4), "heads must divide the width"),
        (lambda: pg.predict(pg.Model("hybridnorm", 1, attention=GATED)), "normed must be one of heads, gated"),
        (lambda: pg.predict(network(GATED), include={"bias"}), "bias does not cover LinearAttention"),
        (lambda: pg.predict_step(network(GATED), pg.SGD(lr=0.1)), "predict_step does not cover LinearAttention"),
        (lambda: pg.recursion(pg.Model("prenorm", 1, attention=pg.LinearAttention())), "LinearAttention"),
        (
            lambda: pg.simulate_steps(network(GATED), pg.SGD(lr=0.1), steps=1, draws=2, transfer="mup"),
            "transfer does not cover LinearAttention",
        ),
    ],
)
def test_what_is_not_covered_is_refused_in_words(ask: Any, words: str) -> None:
    with pytest.raises(pg.ModelError, match=words):
        ask()
