"""What the last matrices of all branches do in a step of sign type, over depth: proposition 14 against simulation."""

import math

import numpy as np
import pytest

import propagate as pg

TOKENS, WIDTH = 2, 256


def effects(placement: str, matrix: str, exponent: float, depth: int) -> tuple[float, float]:
    """Sum over blocks of e, in units of the top's gradient, and its standard error (an upper bound).

    A gradient with respect to a matrix drawn small is the one with a multiplier, over the multiplier.
    """
    model = pg.Model(
        placement, depth=depth, width=WIDTH, heads=4, tokens=TOKENS, logit_std=0.0, scaling=pg.ScaleInit(exponent)
    )
    alike = {"covariance": 1.0, "grad_covariance": 1.0}
    seen = pg.simulate(model, draws=48, seed=depth, backend="numpy", include={"param_grad"}, progress=False, **alike)
    of_blocks = seen.sel(matrix=matrix).isel(block=slice(1, None))
    fan_in, constant = (WIDTH, 1.0) if matrix == "attention_out" else (model.at(1).ffn.units, math.sqrt(2))  # of ReLU
    squares, errors = of_blocks.param_grad.to_numpy(), of_blocks.param_grad_se.to_numpy()
    unit = constant * depth**-exponent / (TOKENS * math.sqrt(fan_in * WIDTH))
    roots = np.sqrt(squares)
    return unit * float(roots.sum()), unit * float((errors / (2 * roots)).sum())


@pytest.mark.few(1)
@pytest.mark.parametrize("depth", [4, 16])
@pytest.mark.parametrize("exponent", [0.25, 0.5])
def test_exponents_of_depth(exponent: float, depth: int) -> None:
    """Attention in PostNorm as L^(1 - alpha), in SpanNorm as L^(1 - 2 alpha); PreNorm's FFNs between once and twice."""
    b = depth ** (-2 * exponent)  # both branches' gains are 1
    said = {"postnorm": depth * math.sqrt(b / (1 + b)), "spannorm": depth * b / (1 + b)}
    for placement, right in said.items():
        seen, error = effects(placement, "attention_out", exponent, depth)
        assert abs(seen - right) < 4 * error + 0.03 * right, placement  # blocks of finite width: 1 / width each
        wrong = said["postnorm" if placement == "spannorm" else "spannorm"]
        assert abs(seen - wrong) > 4 * error + 0.03 * wrong, placement
    seen, error = effects("prenorm", "ffn_out", exponent, depth)
    least = depth * math.sqrt(b)
    assert least - 4 * error < seen < 2 * least + 4 * error
    q = 1 + 2 * b * np.arange(1, depth + 1)
    assert seen == pytest.approx(least * float(np.sqrt(q[-1] / q).mean()), abs=4 * error + 0.03 * least)
