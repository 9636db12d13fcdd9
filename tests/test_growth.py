"""Growth: a network stacked on itself, its copies with the same weights, in theory, simulation and torch."""

from typing import Any

import numpy as np
import pytest

import propagate as pg

SIZES: dict[str, Any] = {"depth": 2, "width": 96, "tokens": 4, "heads": 6, "ffn_ratio": 2.0}
START = pg.Start(covariance=0.3, grad_covariance=0.2)
MODELS = {
    "prenorm": pg.Model("prenorm", **SIZES),
    "causal span": pg.Model(
        "spannorm", causal=True, rope=1e4, activation="swiglu", scaling=pg.ScaleInit(1.0), **SIZES | {"depth": 4}
    ),
    "two streams": pg.Model("residual", activation="gelu", **SIZES),
    "queries normed": pg.Model("olmo2", scaling=pg.ScaleInit(0.5), **SIZES),
    "a law of blocks": pg.Model("prenorm", layers={2: {"ffn": pg.FFN("tanh")}}, norm="layer", **SIZES),
}
MOMENTS = ("variance", "covariance", "deviation", "grad_variance", "grad_covariance", "grad_deviation")


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("case", "rescaled"),
    [
        pytest.param(case, own, marks=[pytest.mark.slow] * own)
        for case, own in ((case, case == "queries normed") for case in MODELS)
    ],
)
def test_theory_of_copies_is_what_simulation_finds_and_that_of_fresh_weights_is_not(case: str, rescaled: bool) -> None:
    model = MODELS[case]
    said = pg.predict_growth(model, START, rescaled=rescaled)
    seen = pg.simulate_growth(model, START, rescaled=rescaled, draws=100, seed=2, progress=False)
    judged = pg.compare(said, seen)
    assert judged.attrs["verdict"] != "disagrees", judged.worst_z
    fresh = said.assign({name: said[f"{name}_fresh"] for name in MOMENTS})
    assert pg.compare(fresh, seen).attrs["verdict"] == "disagrees"


def test_three_copies_and_one() -> None:
    model = MODELS["prenorm"]
    said = pg.predict_growth(model, times=3)
    seen = pg.simulate_growth(model, times=3, draws=100, seed=5, progress=False)
    assert pg.compare(said, seen).attrs["verdict"] != "disagrees"
    two = pg.predict_growth(model)
    assert two.variance.values[:5] == pytest.approx(said.variance.values[:5], rel=0.02)
    assert float(said.variance[6]) > 1.3 * float(said.variance_fresh[6])
    alone = pg.predict_growth(model, times=1)
    for name in MOMENTS:
        assert alone[name].values == pytest.approx(alone[f"{name}_fresh"].values, rel=3e-3, abs=1e-3)


def test_the_second_copy_of_a_linear_block_is_derived_by_hand() -> None:
    """One token, branches of variance 0.01 that read normed streams; the same branch's two outputs add up."""
    model = pg.Model("layerscale", depth=1, activation="linear", tokens=1, heads=1, width=64, logit_std=0.0)
    instance = pg.placement("layerscale")
    b2 = instance.scale**2
    v1 = 1 + 2 * b2  # after one block, norms before branches
    said = pg.predict_growth(model)
    assert float(said.variance[1]) == pytest.approx(v1)
    # second: what enters attention is correlated with what entered it first by 1 / sqrt(v1), its output so too
    attention = v1 + b2 + 2 * b2 * v1**-0.5
    # and the FFN's: the normed sums of 1 + a, and of 1 + a + f + a'
    one, other = 1 + b2, attention
    shared = 1 + b2 + b2 * v1**-0.5
    ffn = attention + b2 + 2 * b2 * shared / (one * other) ** 0.5
    assert float(said.variance[2]) == pytest.approx(ffn)
    assert float(said.variance_fresh[2]) == pytest.approx(v1 + 2 * b2)
    assert float(said.variance[2]) != pytest.approx(float(said.variance_fresh[2]), rel=0.01)


def test_weights_keep_their_gains_or_have_those_of_the_new_depth() -> None:
    for name in ("spannorm", "deepnorm", "dsinit", "subln"):
        model = pg.Model(name, depth=4, scaling=pg.ScaleInit(0.5))
        kept, again = pg.grown(model), pg.grown(model, rescaled=True)
        for index in (1, 3, 5, 7):
            own = (index - 1) % 4 + 1
            assert kept.at(index).ffn.out_gain == pytest.approx(model.at(own).ffn.out_gain)
        fresh = pg.Model(name, depth=8, scaling=pg.ScaleInit(0.5))
        assert again.at(2).ffn.out_gain == pytest.approx(fresh.at(2).ffn.out_gain)
        assert again.at(6).ffn.out_gain == pytest.approx(fresh.at(2).ffn.out_gain)
    pattern = pg.Model("prenorm", depth=2, layers={2: {"ffn": pg.FFN("silu")}})
    assert [pg.grown(pattern, 3).at(index).ffn.activation.name for index in range(1, 7)] == ["relu", "silu"] * 3


def test_simulated_copies_have_the_same_matrices() -> None:
    """Of two copies without anything else between them: x + W x twice is (1 + W)^2 x, whose mean square is known."""

    class LinearGrowth(pg.Placement):
        def block(self, x: Any, block: Any) -> Any:
            return x + block.ffn(x)

    model = pg.Model(LinearGrowth(), depth=1, width=64, tokens=1, heads=1, activation="linear")
    seen = pg.simulate_growth(model, draws=600, progress=False)
    # (1 + W)^2 = 1 + 2 W + W^2: 1 + 4 + 1, and W W' has no mean with 1; fresh matrices would make 4
    assert abs(float(seen.variance[2]) - 6) < 4 * float(seen.variance_se[2]) + 6 / 64
    assert abs(float(seen.variance[2]) - 4) > 8 * float(seen.variance_se[2])
    first = pg.simulate(model, draws=600, sampler="dense", progress=False)
    assert float(seen.variance[1]) == pytest.approx(float(first.variance[1]), rel=1e-12)
    halves = pg.simulate_growth(model, draws=10, progress=False, memory=1)
    assert np.allclose(halves.variance, pg.simulate_growth(model, draws=10, progress=False).variance, rtol=1e-12)


def test_stacked_torch_networks_are_the_third_witness() -> None:
    torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
    model = MODELS["prenorm"]
    said = pg.predict_growth(model)
    draw = torch.Generator().manual_seed(1)
    modules = [pg.grow(pg.build(model, seed=seed)) for seed in range(16)]
    seen = pg.trace(modules, torch.randn(16, 4, 96, generator=draw))
    for name in ("variance", "grad_variance"):
        for block in (1, 3, 4) if name == "variance" else (0, 1, 3):
            value, error = float(seen[name][block]), float(seen[f"{name}_se"][block])
            assert abs(value - float(said[name][block])) < 4 * error + 0.04 * value, (name, block)
    assert abs(float(seen.variance[4]) - float(said.variance_fresh[4])) > 4 * float(seen.variance_se[4]) + 0.04


def test_ways_to_stack_a_torch_network() -> None:
    torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
    x = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
    for name in ("spannorm", "residual", "deepnorm"):
        small = pg.build(pg.Model(name, depth=3, width=32, tokens=4, heads=4, scaling=pg.ScaleInit(0.5)), seed=1)
        y = small(x)
        off = [
            float(((pg.grow(small, **way)(x) - y).square().mean() / y.square().mean()).detach())
            for way in ({}, {"rescaled": True}, {"branches": 0.5, "adjacent": True}, {"branches": (1.0, 0.0)})
        ]
        if name != "deepnorm":  # whose alpha is another at twice the depth
            assert off[0] > off[1] > off[2] > off[3]
            assert off[3] < 1e-10
    learner = pg.build_language_model(pg.Model("prenorm", depth=2, width=16, heads=2, tokens=4, causal=True), 20)
    deeper = pg.grow(learner, 3)
    ids = torch.arange(4)[None]
    assert deeper(ids).shape == learner(ids).shape
    assert len(deeper.network.blocks) == 6
    with torch.no_grad():
        deeper.embedding.weight.zero_()
        deeper.network.blocks[0].sublayers["ffn1"].write.weight.zero_()
    assert float(learner.embedding.weight.detach().abs().sum()) > 0  # copies, not the very same
    assert float(deeper.network.blocks[2].sublayers["ffn1"].write.weight.detach().abs().sum()) > 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pg.grown("prenorm"), "model must be a propagate.Model"),
        (lambda: pg.grown(MODELS["prenorm"], 0), "times must be"),
        (lambda: pg.predict_growth(pg.Model("prenorm", depth=1, experts=pg.Experts(4))), "needs experts=None"),
        (lambda: pg.predict_growth(pg.Model("prenorm", depth=1, dropout=0.1)), "needs dropout=0"),
        (lambda: pg.predict_growth(pg.Model("dyt", depth=1)), "does not cover tanh of a stream"),
        (lambda: pg.predict_growth(pg.Model("postnorm", depth=20, logit_std=0.0)), "1 - correlation is above 1e-9"),
        (lambda: pg.simulate_growth(MODELS["prenorm"], draws=1), "draws must be"),
    ],
)  # fmt: skip
def test_what_is_refused(call: Any, words: str) -> None:
    with pytest.raises(pg.ModelError, match=words):
        call()


def test_what_torch_refuses() -> None:
    pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
    small = pg.build(pg.Model("periln", depth=1, width=16, tokens=4, heads=2))
    for call, words in (
        (lambda: pg.grow("network"), "module must be what build"),
        (lambda: pg.grow(small, branches=(1.0,)), "branches must be a number, or 2 of them"),
        (lambda: pg.grow(small, branches=(1.0, 0.0)), "norms a branch by itself"),
    ):
        with pytest.raises(pg.ModelError, match=words):
            call()
