"""A norm that divides by what few units gave lets the gradient grow; what it divides with others' does not."""

from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.outline import outline

FEW = {
    "values": {"attention": pg.Attention(heads=16, key_value_heads=1, head_size=8, logit_std=0.0)},
    "hidden units": {"attention": pg.Attention(logit_std=0.0), "ffn": pg.FFN("swiglu", hidden=16)},
}
SIZES: dict[str, Any] = {"depth": 1, "width": 256, "tokens": 8}


def added(placement: Any, depth: int = 1, **few: Any) -> Any:
    """What each block allows the gradient beyond a network of many units."""
    sizes = SIZES | {"depth": depth}
    few, many = (
        pg.predict(pg.Model(placement, **sizes, **fields)).grad_variance_allowance
        for fields in (few, {"attention": pg.Attention(logit_std=0.0)})
    )
    return -np.diff(few - many)


@pytest.mark.parametrize("of", FEW)
def test_the_gradient_grows_as_allowed(of: str) -> None:
    """In Sandwich-Norm; in PreNorm, whose branches are added as they are, neither does."""
    seen = {
        name: pg.simulate(pg.Model(name, **SIZES, **FEW[of]), draws=400, backend="numpy", progress=False)
        for name in ("sandwichnorm", "prenorm")
    }
    grown = {}
    for name, measured in seen.items():
        said = pg.predict(pg.Model(name, **SIZES, **FEW[of]))
        assert pg.compare(said, measured).verdict.sel(quantity="grad_variance") != "disagrees"
        grown[name] = float(measured.grad_variance[0] / said.grad_variance[0] - 1)
    allowed = float(added("sandwichnorm", **FEW[of])[0])
    assert 0.3 * allowed < grown["sandwichnorm"] < 2 * allowed, (grown, allowed)
    assert abs(grown["prenorm"]) < 0.3 * allowed
    assert added("prenorm", **FEW[of])[0] < 0.3 * allowed


class Summed(pg.Placement):
    """The norm divides by both sublayers' sum."""

    def block(self, x: Any, block: Any) -> Any:
        return x + block.norm(block.attention(block.norm(x)) + block.ffn(block.norm(x)))


class Applied(pg.Placement):
    """A description of its own, which no field of the model holds."""

    few: pg.FFN

    def block(self, x: Any, block: Any) -> Any:
        return x + block.norm(2.0 * block.apply(self.few, block.norm(x))) + block.attention(block.norm(x))


def test_only_where_it_divides_by_them_alone() -> None:
    of_values = added("periln", **FEW["values"])[0]
    assert of_values > 0.05
    assert added(Summed(), **FEW["values"])[0] < 0.2 * of_values
    pair = (pg.predict(pg.Model(Applied(pg.FFN(hidden=units)), **SIZES)) for units in (16, 1024))
    few, many = (float(said.grad_variance_allowance[0]) for said in pair)
    assert few > many + 0.02


def test_a_block_that_is_scarce_alone_is_allowed_for_alone() -> None:
    many = pg.Attention(logit_std=0.0)
    layered = pg.Model("periln", **SIZES | {"depth": 3}, attention=many, layers={2: FEW["values"]})
    plain = pg.Model("periln", **SIZES | {"depth": 3}, attention=many)
    more = -np.diff(
        pg.predict(layered).grad_variance_allowance.to_numpy() - pg.predict(plain).grad_variance_allowance.to_numpy()
    )
    assert more[1] > 0.04
    assert more[[0, 2]] == pytest.approx(0.0, abs=2e-3)


def test_the_outline_says_what_alone_a_norm_reads() -> None:
    def reads(placement: str) -> list[str | None]:
        calls = outline(pg.placement(placement), 4, 2)
        return [call.reads.verb if call.reads else None for call in calls if call.verb == "norm"]

    assert reads("sandwichnorm") == [None, "attention", None, "ffn"]
    assert reads("postnorm") == [None, None]
