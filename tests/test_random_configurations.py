"""No verb of the theory returns a number that is not finite, warns of arithmetic or crashes: a random sweep."""

import random
import warnings
from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.theory import exchangeable
from propagate.theory.finite import allowances as finite_width
from tests.own_placements import OWN
from tests.random_configurations import Case, configuration, fault, faults

PLAIN = Case({"placement": "postnorm", "depth": 2, "width": 32, "heads": 4, "tokens": 4}, {}, {}, "predict")


@pytest.mark.few(1)
@pytest.mark.parametrize("seed", range(3))
def test_a_few_random_configurations(seed: int) -> None:
    assert faults(seed, 30, quick=True) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_two_thousand_random_configurations(seed: int) -> None:
    assert faults(seed, 100, quick=False) == []


def test_they_reach_every_corner() -> None:
    """Of what the sweep is to try, at least a few of each: it cannot pass by refusing or leaving out."""
    rng = random.Random(0)
    cases = [configuration(rng) for _ in range(2000)]
    answered = 0
    for case in cases[:100]:
        try:
            pg.Model(**case.model)
            answered += 1
        except pg.ModelError:
            pass
    assert answered > 80
    assert len({case.model["placement"] for case in cases}) == len(OWN)
    for reached in (
        lambda case: case.model["tokens"] == 2 and case.start["covariance"] == -case.start["variance"],
        lambda case: case.start["covariance"] == case.start["variance"],
        lambda case: case.model["tokens"] == 1 and "fluctuations" in case.asked.get("include", ()),
        lambda case: 0.0 in [case.model.get(f"{name}_gain") for name in ("value", "attention", "ffn")],
        lambda case: case.model["width"] // case.model["heads"] <= 2 and case.model["logit_std"] == 4.0,
        lambda case: "bias" in case.asked.get("include", ()),
        lambda case: case.start["grad_variance"] == 0.0,
        lambda case: "experts" in case.model and case.model["experts"].identity,
        lambda case: "gram" in case.start,
    ):
        assert sum(bool(reached(case)) for case in cases) >= 15


def _warning(*given: Any, **options: Any) -> Any:
    warnings.warn("invalid value encountered", RuntimeWarning, stacklevel=2)
    return finite_width.allowances(*given, **options)


def _crashing(*given: Any, **options: Any) -> Any:
    raise ZeroDivisionError("float division by zero")


def _not_finite(*given: Any, **options: Any) -> Any:
    found = finite_width.allowances(*given, **options)
    return found | {"grad_deviation_allowance": found["grad_deviation_allowance"] * np.nan}


def test_each_kind_of_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault(PLAIN) is None
    for broken, kind in ((_warning, "RuntimeWarning"), (_crashing, "ZeroDivisionError"), (_not_finite, "not finite")):
        monkeypatch.setattr(exchangeable, "allowances", broken)
        assert str(fault(PLAIN)).startswith(kind)
