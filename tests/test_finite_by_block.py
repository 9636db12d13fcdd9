"""Bias and spreads of networks whose blocks differ, and what of a description they refuse."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.theory.finite import bias, perturbed_network
from propagate.theory.finite.perturbation import Noise
from propagate.theory.tokens.gram import Gram

START = {"covariance": 0.3, "grad_covariance": 0.2}
ENDS = Gram.exchangeable(1.0, 0.7, 3), Gram.exchangeable(1.0, 0.8, 3)
SIZES: dict[str, Any] = {"width": 32, "tokens": 3, "heads": 4, "activation": "gelu"}
OWN = {
    "attention": pg.Attention(heads=1, logit_std=2.0, out_gain=1.5),
    "ffn": pg.FFN("squared_relu", hidden=16),
}
MIXED = pg.Model("spannorm", depth=2, **SIZES, layers={2: OWN})


class Applied(pg.Placement):
    """The same sublayers, called by their descriptions."""

    def block(self, x: Any, block: Any) -> Any:
        one, other = (OWN["attention"], OWN["ffn"]) if block.last else (pg.Attention(heads=4), pg.FFN("gelu"))
        y = block.norm(x + block.apply(one, x))
        return block.norm(x + y + block.apply(other, y))


class Plain(pg.Placement):
    def block(self, x: Any, block: Any) -> Any:
        y = block.norm(x + block.attention(x))
        return block.norm(x + y + block.ffn(y))


@pytest.mark.parametrize(
    "layers",
    [{2: OWN}, {1: {"norm": "layer"}}, {2: {"norm": pg.Norm("layer")}}, {2: {"attention": pg.Attention(causal=True)}}],
    ids=str,
)
def test_without_noise_it_is_the_limit(layers: Any) -> None:
    model = pg.Model("spannorm", depth=2, **SIZES, layers=layers)
    said, noise = pg.predict(model, **START), Noise(1, np.random.default_rng(0))
    found = perturbed_network.evaluated(model, noise, *(end.matrix for end in ENDS), through_readout=False)
    for name, blocks in (("variance", found.forward), ("grad_variance", found.backward)):
        values = [streams[0][-1].trace() / 3 for streams in blocks]
        error = said.get(f"{name}_se", 0 * said[name]).to_numpy()
        assert (np.abs(values - said[name]) < 1e-9 + 5 * error).all()


@pytest.mark.few(1)
def test_one_token_as_worked_out_by_hand() -> None:
    """As in `test_bias.by_hand`, block by block: an FFN takes 3/4 + 1 / (4 ratio), attention 1, the first norm 1."""
    ratios = {1: 4.0, 2: 0.125, 3: 4.0}
    layers = {index: {"ffn": pg.FFN("relu", ratio=ratio)} for index, ratio in ratios.items()}
    model, one = pg.Model("postnorm", depth=3, tokens=1, heads=1, layers=layers), Gram.of(np.eye(1))
    found = bias.sampled(model, one, one, pairs=3000)["grad_variance"]
    for entered, [block] in zip((0, 1, 2), found, strict=False):
        behind = [ratio for index, ratio in ratios.items() if index > entered]
        by_hand = -1 - sum(1.75 + 1 / (4 * ratio) for ratio in behind)
        assert abs(block.log - by_hand) < 4 * block.log_error
        if entered < 2:  # as if all were like the first block
            assert abs(block.log + 1 + len(behind) * 1.8125) > 5 * block.log_error


def test_an_applied_description_is_the_blocks_own() -> None:
    called, own = (
        pg.Model(kind, depth=2, **SIZES, layers=layers) for kind, layers in ((Applied(), None), (Plain(), {2: OWN}))
    )
    one, other = (bias.sampled(model, *ENDS, pairs=20) for model in (called, own))
    assert one == other
    assert one != bias.sampled(pg.Model(Plain(), depth=2, **SIZES), *ENDS, pairs=20)


@pytest.mark.slow
def test_spreads_of_blocks_that_differ_are_the_same_in_closed_form() -> None:
    closed, found = pg.predict(MIXED, **START, include={"fluctuations"}), bias.sampled(MIXED, *ENDS, pairs=2000)
    other = pg.predict(pg.Model("spannorm", depth=2, **SIZES), **START, include={"fluctuations"})
    for name, at in (("deviation", -1), ("grad_variance", 0)):
        square = found[name][at][0].square / MIXED.width
        assert float(closed[f"{name}_spread"][at]) ** 2 == pytest.approx(square, rel=0.15)
        assert float(other[f"{name}_spread"][at]) ** 2 != pytest.approx(square, rel=0.3)


@dataclass(frozen=True)
class Tanhed(pg.Norm):
    """A norm of one's own."""


@dataclass(frozen=True)
class Halved(pg.FFN):
    """A description of one's own."""


class WithExperts(pg.Placement):
    def block(self, x: Any, block: Any) -> Any:
        return x + block.ffn(block.norm(x)) + block.experts(x)


class Applying(pg.Placement):
    kind: pg.Sublayer

    def block(self, x: Any, block: Any) -> Any:
        return x + block.ffn(block.norm(x)) + block.apply(self.kind, x)


@pytest.mark.parametrize("asked", ["bias", "fluctuations"])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"norm": pg.Norm(eps=0.1)}, "does not cover a norm with eps"),
        ({"layers": {2: {"norm": pg.Norm(eps=0.1)}}}, "does not cover a norm with eps"),
        ({"norm": Tanhed()}, "does not cover Tanhed"),
        ({"attention": pg.Attention(heads=2, head_size=8)}, r"not width / heads \(8 for 32 / 2\)"),
        (
            {"layers": {2: {"attention": pg.Attention(heads=2, rope=10.0, normed=("key",)), "norm": "layer"}}},
            "not cover LayerNorm of queries or keys with rotary positions",
        ),
        ({"layers": {2: {"experts": pg.Experts(4)}}}, r"needs experts=None, got Experts\(count=4"),
        ({"layers": {2: {"ffn": pg.FFN(normed=("hidden",)), "norm": "layer"}}}, "not cover LayerNorm of hidden units"),
        ({"placement": WithExperts(), "experts": pg.Experts(4)}, "needs experts=None"),
        ({"placement": Applying(pg.Experts(4))}, "does not cover Experts"),
        ({"placement": Applying(Halved())}, "does not cover Halved"),
    ],
    ids=str,
)
def test_what_is_not_covered_is_refused(fields: dict[str, Any], said: str, asked: str) -> None:
    sizes = {"placement": "prenorm", "width": 32, "tokens": 3, "depth": 2} | fields
    sizes |= {} if "attention" in fields else {"heads": 4}
    with pytest.raises(pg.ModelError, match=f"{asked} .*{said}"):
        pg.predict(pg.Model(**sizes), include={asked})


def test_a_branch_of_nothing_is_named_in_the_block_that_has_it() -> None:
    model = pg.Model("prenorm", depth=3, **SIZES, layers={2: {"attention": pg.Attention(heads=4, out_gain=0.0)}})
    with pytest.raises(pg.ModelError, match="attention_gain must be positive for bias, got 0 in block 2"):
        pg.predict(model, include={"bias"})
