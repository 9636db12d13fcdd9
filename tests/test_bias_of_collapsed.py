"""Bias in networks whose tokens have become one."""

import numpy as np
import pytest

import propagate as pg


@pytest.mark.parametrize("name", ["postnorm", "spannorm"])
def test_where_tokens_have_become_one_it_is_refused(name: str) -> None:
    """At 128 blocks rounding gave 94 and 15 for a gradient's log bias of about -0.4."""
    deep = pg.Model(name, depth=128, width=512, tokens=16, heads=8, logit_std=1.0)
    limit = pg.predict(deep, covariance=0.3)
    block = int(np.argmax((limit.deviation < 1e-10 * limit.variance).values))
    with pytest.raises(pg.ModelError, match=rf"differ by 1e-10 of their variance, got .* in block {block}$"):
        pg.predict(deep, covariance=0.3, include={"bias"})


def test_where_two_of_several_tokens_are_the_same_it_is_refused() -> None:
    """It gave the gradient's logarithm a bias of 0.25, where simulation has next to none."""
    model = pg.Model("prenorm", depth=1, width=512, tokens=3, heads=64, ffn_ratio=8.0)
    gram = np.eye(3)
    gram[0, 2] = gram[2, 0] = 1.0
    with pytest.raises(pg.ModelError, match=r"does not cover tokens of which some are the same, got .* 1 and 3"):
        pg.predict(model, gram=gram, include={"bias"})
    gram[0, 2] = gram[2, 0] = 0.9
    assert np.isfinite(pg.predict(model, gram=gram, include={"bias"}).log_grad_variance_bias).all()
