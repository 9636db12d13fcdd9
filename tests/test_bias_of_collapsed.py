"""Bias in networks whose tokens become one."""

from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.theory.finite import bias, covered
from propagate.theory.tokens.gram import Gram

ENDS = Gram.exchangeable(1.0, 1e-4, 4), Gram.exchangeable(1.0, 1.0, 4)


def sampled(kept: float, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> bias.Table:
    """Of twelve blocks in which deviations fall from 1e-4 of the variance."""
    monkeypatch.setattr(covered, "KEPT", kept)
    model = pg.Model("postnorm", depth=12, width=256, tokens=4, heads=4, **fields)
    return bias.sampled(model, *ENDS, pairs=12)


@pytest.mark.parametrize("fields", [{}, {"causal": True, "logit_std": 0.0}], ids=["all", "causal"])
def test_deviations_made_larger_change_no_bias(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws give the same samples, to the order of a deviation; not if deviations are made large."""
    as_they_are, larger, large = (sampled(kept, monkeypatch, **fields) for kept in (1e-30, covered.KEPT, 0.3))
    for name, block in (("deviation", -1), ("grad_variance", 0)):
        here, there, off = (table[name][block][0] for table in (as_they_are, larger, large))
        assert abs(there.log - here.log) < 0.1 * min(here.log_error, abs(off.log - here.log))
        assert there.square == pytest.approx(here.square, rel=0.02)
        assert off.square != pytest.approx(here.square, rel=0.05)


def test_where_tokens_are_one_from_the_start_it_is_refused() -> None:
    """Rounding gave 700 for the width times a gradient's log bias of about -35."""
    model = pg.Model("postnorm", depth=2, width=64, tokens=4, heads=4)
    for covariance, said in ((1.0, "got 0"), (1 - 1e-12, "got 1e-12")):
        with pytest.raises(pg.ModelError, match=rf"differ by 1e-10 of their variance, {said} in block 0$"):
            pg.predict(model, covariance=covariance, include={"bias"})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "depth", "width"), [("postnorm", 80, 128), ("spannorm", 64, 64)])
def test_where_tokens_become_one_it_is_met(name: str, depth: int, width: int) -> None:
    """Deviations fall to 1e-24 and 1e-8 of the variance. At 128 blocks rounding gave 94 for a bias of about -0.4."""
    model = pg.Model(name, depth=depth, width=width, tokens=4, heads=width // 16, logit_std=1.0, activation="relu")
    said = pg.predict(model, covariance=0.3, include={"bias"})
    seen = pg.simulate(model, covariance=0.3, draws=400, seed=5, progress=False)
    for key, block in (("deviation", depth), ("grad_variance", 0), ("grad_variance", depth // 2)):
        off = float(seen[f"log_{key}"][block] - np.log(said[key][block]))
        predicted = float(said[f"log_{key}_bias"][block])
        error = float(np.hypot(seen[f"log_{key}_se"][block], said[f"{key}_se"][block] / said[key][block]))
        assert abs(off - predicted) < 4 * error
        if key == "grad_variance":
            assert abs(off) > 4 * error  # no bias is rejected, and the opposite one
            assert abs(off + predicted) > 4 * error


def test_where_two_of_several_tokens_are_the_same_it_is_refused() -> None:
    """It gave the gradient's logarithm a bias of 0.25, where simulation has next to none."""
    model = pg.Model("prenorm", depth=1, width=512, tokens=3, heads=64, ffn_ratio=8.0)
    gram = np.eye(3)
    gram[0, 2] = gram[2, 0] = 1.0
    with pytest.raises(pg.ModelError, match=r"does not cover tokens of which some are the same, got .* 1 and 3"):
        pg.predict(model, gram=gram, include={"bias"})
    gram[0, 2] = gram[2, 0] = 0.9
    assert np.isfinite(pg.predict(model, gram=gram, include={"bias"}).log_grad_variance_bias).all()
