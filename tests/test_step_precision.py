"""Hidden units and heads drawn in single precision, their normals looked up in a table, against drawn in double."""

import numpy as np
import pytest

import propagate as pg
from propagate.theory import updates
from propagate.theory.tokens import drawn_units

MODEL = pg.Model("postnorm", depth=1, width=128, tokens=4, heads=16, activation="swiglu", causal=True, rope=100.0)


def worst(one: object, other: object) -> float:
    """Largest difference in standard errors of both."""
    names = ("own_change", "first_order_fall")
    found = [(one[n] - other[n]) / np.hypot(one[f"{n}_se"], other[f"{n}_se"]) for n in names]  # type: ignore[index]
    return max(float(np.abs(of).max()) for of in found)


def test_single_precision_is_told_from_double_by_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pg.Adam(1e-3, eps=0.05), pg.Start(covariance=0.3, grad_covariance=0.2)
    single = pg.predict_step(MODEL, *asked, samples=2**11)
    signs = np.repeat(np.float32([-1.0, 1.0]), drawn_units.PIECES // 2)  # of the same mean and variance
    with monkeypatch.context() as wrong:
        wrong.setattr(drawn_units, "_table", lambda: signs)
        two_values = pg.predict_step(MODEL, *asked, samples=2**11)
    monkeypatch.setattr(updates, "precision", lambda *sizes: np.float64)
    double = pg.predict_step(MODEL, *asked, samples=2**11)
    assert worst(single, double) < 5  # of 14 differences, each with 7 degrees of freedom twice
    assert worst(two_values, double) > 10


def test_no_digits_are_lost_of_what_single_precision_cannot_hold() -> None:
    """Gradients 1e-30 times as large make the same step but for their size."""
    plain, small = (
        pg.predict_step(MODEL, pg.Sign(1e-3), pg.Start(covariance=0.3, grad_variance=size, grad_covariance=0.2 * size))
        for size in (1.0, 1e-60)
    )
    errors = np.hypot(plain.own_change_se, small.own_change_se)
    np.testing.assert_array_less(np.abs(small.own_change - plain.own_change)[1:], 5 * errors[1:] + 1e-12)
    np.testing.assert_allclose(small.first_order_fall[1:] * 1e30, plain.first_order_fall[1:], rtol=0.2)
