"""Networks whose blocks differ, by their descriptions, and placements that apply a description of their own."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import propagate as pg

SIZES: dict[str, Any] = {"width": 32, "tokens": 5, "heads": 2}
LOCAL, WHOLE = (pg.Attention(heads=2, causal=True, window=window, logit_std=0.0) for window in (2, None))


class OwnShortcut(pg.Placement):
    """LongCat-Flash's order of sublayers, as a user would write it."""

    def block(self, x: Any, block: Any) -> Any:
        a = x + block.attention(block.norm(x))
        u = block.norm(a)
        b = a + block.ffn(u)
        c = b + block.attention(block.norm(b))
        return c + block.ffn(block.norm(c)) + block.experts(u)


class Wide(pg.Placement):
    """A second FFN, unlike the model's own."""

    def block(self, x: Any, block: Any) -> Any:
        y = x + block.attention(block.norm(x))
        return y + block.apply(pg.FFN("gelu", ratio=2.0, out_gain=3.0), block.norm(y))


@dataclass(frozen=True)
class Unknown(pg.Sublayer):
    """A description that no witness has a function for."""


class Mixing(pg.Placement):
    def block(self, x: Any, block: Any) -> Any:
        return x + block.apply(Unknown(), block.norm(x))


def pattern(index: int) -> dict[str, Any]:
    """Gemma's, in small."""
    return {"attention": WHOLE if index % 3 == 0 else LOCAL}


def chained(model: pg.Model, kinds: list[pg.Attention]) -> list[np.ndarray]:
    """Variances of single tokens, from one network of one block after another."""
    from propagate.theory.tokens.gram import Gram
    from propagate.theory.walks import walk_grams

    gram, found = Gram.of(np.eye(model.tokens)), []
    for kind in kinds:
        one = pg.Model(model.placement, depth=1, width=32, tokens=5, attention=kind)
        gram = Gram(*(part[0] for part in walk_grams(one, gram, gram).forward[-1][0][0]))
        found.append(gram.variance)
    return found


def test_a_pattern_of_blocks_is_the_blocks_one_after_another() -> None:
    model = pg.Model("prenorm", depth=6, **SIZES, layers=pattern)
    found = pg.predict(model).token_variance[1:].to_numpy()
    kinds = [WHOLE if index % 3 == 0 else LOCAL for index in range(1, 7)]
    np.testing.assert_allclose(found, chained(model, kinds), rtol=1e-12)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found, chained(model, kinds[::-1]), rtol=1e-3)


@pytest.mark.parametrize("layers", [pattern, {i: pattern(i) for i in (1, 2, 3)}, [pattern(i) for i in (1, 2, 3)]])
def test_ways_to_say_it(layers: Any) -> None:
    model = pg.Model("prenorm", depth=3, **SIZES, layers=layers)
    assert [model.at(index).attention.window for index in (1, 2, 3)] == [2, 2, None]
    assert repr(model) == repr(pg.Model("prenorm", depth=3, **SIZES, layers=pattern))
    assert not model.exchangeable


def test_short_fields_say_what_they_meant() -> None:
    short = pg.Model("spannorm", depth=2, **SIZES, activation="gelu", attention_gain=0.5, ffn_gain=2.0, causal=True)
    long = pg.Model(
        "spannorm",
        depth=2,
        width=32,
        tokens=5,
        attention=pg.Attention(heads=2, out_gain=0.5, causal=True),
        ffn=pg.FFN("gelu", out_gain=2.0),
    )
    assert [short.at(index) == long.at(index) for index in (1, 2)] == [True, True]
    assert (long.heads, long.activation, long.causal, long.ffn_gain) == (2, "gelu", True, 2.0)
    assert pg.predict(short).drop_attrs().equals(pg.predict(long).drop_attrs())
    assert replace(long, depth=3).at(3).attention.out_gain == 0.5


def test_first_blocks_may_be_dense() -> None:
    model = pg.Model("prenorm", depth=3, **SIZES, experts=pg.Experts(4, 2), layers={1: {"experts": None}})
    found = pg.predict(model, include={"param_grad"}).param_grad.sel(matrix="router").to_numpy()
    assert found[1] == 0.0
    assert (found[2:] > 0).all()


def test_experts_beside_the_ffn() -> None:
    calls = pg.predict(pg.Model("ownshortcut", depth=2, **SIZES, experts=pg.Experts(4, 2)), include={"calls"})
    assert {"attention2", "ffn2", "experts1"} <= set(calls.call.to_numpy())
    one, other = (calls.call_variance.sel(block=1, call=name).item() for name in ("ffn1", "experts1"))
    assert one == pytest.approx(1.0)
    assert 0.4 < other < 0.9  # two of four gates, which sum to 1
    with pytest.raises(pg.ModelError, match=r"experts must be given where the placement calls block.experts"):
        pg.predict(pg.Model("ownshortcut", depth=2, **SIZES))


def test_any_description_can_be_applied() -> None:
    found = pg.predict(pg.Model("wide", depth=1, **SIZES), include={"calls"})
    assert found.call_variance.sel(block=1, call="ffn1").item() == pytest.approx(9.0)
    with pytest.raises(pg.ModelError, match=r"theory does not cover Unknown, got Unknown\(\)"):
        pg.predict(pg.Model("mixing", depth=1, **SIZES))


def test_tokens_are_resolved_where_a_block_tells_them_apart() -> None:
    assert "token_variance" in pg.predict(pg.Model("prenorm", depth=3, **SIZES, layers=pattern))
    assert "token_variance" not in pg.predict(pg.Model("prenorm", depth=3, **SIZES))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"attention": pg.Attention(heads=4), "heads": 2}, "heads must be left out beside attention=.* got 2"),
        ({"layers": lambda index: {"mlp": None}}, "layers, block 1: must be one of attention, ffn, experts, norm"),
        ({"layers": [{}]}, "layers must be None, a function of the block's index, a mapping or 2 mappings"),
        ({"layers": {9: {}}}, "layers must be of blocks 1 to 2, got 9"),
        ({"layers": {1: {"attention": "causal"}}}, "layers, block 1: attention must be a propagate.Attention"),
        ({"layers": {2: {"attention": pg.Attention(heads=5)}}}, "heads must divide the width, got heads=5"),
        (
            {"attention": "causal"},
            "attention must be None or a propagate.Attention, propagate.LatentAttention or propagate.LinearAttention",
        ),
        ({"ffn": pg.FFN("gelu"), "activation": "silu"}, "activation must be left out beside ffn="),
        ({"norm": 3}, "norm must be one of rms, layer or a propagate.Norm, got 3"),
    ],
)
def test_bad_descriptions_are_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(pg.ModelError, match=said):
        pg.Model("prenorm", depth=2, **{"width": 32, "tokens": 5} | fields)
