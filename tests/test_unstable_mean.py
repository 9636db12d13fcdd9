"""Tokens that add up to nothing: networks leave 1 / width to their mean, which grows; it is allowed for and told."""

import warnings

import numpy as np
import pytest

import propagate as pg
from propagate.theory import unstable

LOWEST = -1 / 3
MODEL = pg.Model("postnorm", depth=10, width=64, tokens=4, heads=4, logit_std=0.0, activation="linear")
START = {"covariance": LOWEST, "grad_covariance": LOWEST}


def judged() -> tuple[str, list[str]]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        said = pg.predict(MODEL, **START)
    seen = pg.simulate(MODEL, draws=40, seed=2, backend="numpy", progress=False, **START)
    return pg.compare(said, seen).attrs["verdict"], [str(warning.message) for warning in told]


def test_what_a_mean_of_nothing_becomes_is_allowed_for_and_told() -> None:
    verdict, told = judged()
    assert verdict == "cannot tell"
    assert len(told) == 1
    assert "add up to next to nothing" in told[0]


def test_without_leaks_such_a_prediction_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    monkeypatch.setattr(unstable, "LEAKS", (0.0, 0.0))
    assert judged() == ("disagrees", [])


def test_a_start_with_a_mean_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for start in ({"covariance": 0.0}, {"covariance": -0.1, "grad_covariance": 1.0}):
        wide = pg.Model("postnorm", depth=10, width=512, tokens=4, logit_std=0.0)
        stated = pg.predict(wide, **start)
        with monkeypatch.context() as without:
            without.setattr(unstable, "LEAKS", (0.0, 0.0))
            assert pg.predict(wide, **start).equals(stated)


def test_a_gram_matrix_says_the_same() -> None:
    gram = 1.25 * np.eye(5) - 0.25
    model = pg.Model("spannorm", depth=3, width=64, tokens=5, logit_std=0.0)
    pairs, tokens = pg.predict(model, covariance=-0.25), pg.predict(model, gram=gram)
    for name in ("covariance_allowance", "grad_variance_allowance"):
        np.testing.assert_allclose(tokens[name], pairs[name], rtol=0.05, atol=1e-3)
