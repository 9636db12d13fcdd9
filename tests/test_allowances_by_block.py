"""What a block of few heads, wide logits or few hidden units is allowed is its own, where blocks differ."""

from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.theory.finite import allowances as finite_width

SIZES: dict[str, Any] = {"width": 64, "tokens": 4, "heads": 8}
ODD: dict[str, dict[str, Any]] = {
    "one head, wide logits": {"attention": pg.Attention(heads=1, logit_std=4.0)},
    "few hidden units": {"ffn": pg.FFN(hidden=3)},
    "wild units": {"ffn": pg.FFN("swiglu")},
    "small heads": {"attention": pg.Attention(heads=8, head_size=2, logit_std=2.0)},
    "experts cut in four": {"experts": pg.Experts(8, split=4, ffn=pg.FFN(hidden=8))},
}
MATRICES = ("query", "value", "ffn_in", "ffn_out")


def added(model: pg.Model) -> dict[str, Any]:
    """What each block adds, of a network whose blocks keep half of what enters them."""
    blocks = model.depth + 1
    columns = dict.fromkeys(("variance", "deviation", "grad_variance", "grad_deviation"), np.ones(blocks))
    columns["skip_gain"] = 0.5 ** np.arange(blocks)[::-1]
    stated = finite_width.allowances(columns, model)
    none = np.zeros(blocks)
    return {
        "forward": np.diff(stated["variance_allowance"]),
        "backward": -np.diff(stated["grad_variance_allowance"]),
        "matrices": finite_width.matrix_allowances(none, none, model, MATRICES, wide=True)[1:],
    }


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("at", [1, 2])
def test_a_block_of_its_own_is_allowed_what_a_network_of_such_blocks_is(
    odd: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what wide logits hear, which is of the blocks before."""
    monkeypatch.setattr(finite_width, "_heard", lambda model, kept, distinct, forward: 0 * forward)
    like = [added(pg.Model("postnorm", depth=3, **SIZES, layers=[own] * 3)) for own in ({}, ODD[odd])]
    mixed = added(pg.Model("postnorm", depth=3, **SIZES, layers={at: ODD[odd]}))
    for name, values in mixed.items():
        for block in (0, 1):
            expected = like[block + 1 == at][name][block]
            assert values[block] == pytest.approx(expected, rel=1e-12), (name, block)
    assert any(np.abs(like[0][name] - like[1][name]).max() > 1e-4 for name in mixed)  # or nothing was asked


def test_a_dense_ffn_beside_experts_counts_where_it_is_the_smaller() -> None:
    class Both(pg.Placement):
        def block(self, x: Any, block: Any) -> Any:
            return x + block.ffn(x) + block.experts(x)

    few, many = pg.FFN(hidden=4), pg.FFN(hidden=256)
    found = [
        added(pg.Model(Both(), depth=1, **SIZES, ffn=ffn, experts=pg.Experts(8, ffn=own)))["forward"][0]
        for ffn, own in ((many, many), (few, many), (many, few))
    ]
    assert found[0] < found[1] == found[2]


def test_blocks_of_few_units_behind_one_of_many_agree_with_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the allowance that the first block has, they would not."""
    own = {"ffn": pg.FFN("swiglu", hidden=4)}
    fields: dict[str, Any] = {"depth": 4, "width": 128, "tokens": 4, "ffn_ratio": 1.0, "logit_std": 0.0}
    model = pg.Model("postnorm", **fields, layers=lambda index: own if index > 1 else {})
    start = {"covariance": 0.3, "grad_covariance": 0.2}
    seen = pg.simulate(model, draws=100, seed=5, backend="numpy", progress=False, **start)
    assert float(pg.compare(pg.predict(model, **start), seen).worst_z.max()) < 3
    first = [model.at(1)] * model.depth
    monkeypatch.setattr(finite_width, "layers_of", lambda model: first)
    assert float(pg.compare(pg.predict(model, **start), seen).worst_z.max()) > 3.5
