"""Draws whose factors failed on a device are run again, and only their results replaced."""

import numpy as np
import pytest

from propagate.model import Model
from propagate.montecarlo import run as running
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.cuda.weightless import Fused
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.starts import ends_of
from propagate.start import Start

pytestmark = pytest.mark.gpu
MODEL = Model("postnorm", depth=3, width=64, tokens=6, heads=4)
START = ends_of(MODEL, Start(covariance=0.3, grad_covariance=0.0))
MARKED = [1, 3]


def table(model: Model = MODEL, precision: str = "float64", draws: int = 5) -> dict[str, np.ndarray]:
    backend = choose_backend("cupy", precision)
    return running.run(model, backend, "weightless", 0, range(draws), START, through_readout=False)


def test_marked_draws_alone_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    untouched = table()
    real = running._pass
    monkeypatch.setattr(running, "Fused", marked)
    monkeypatch.setattr(running, "_pass", lambda model, normals, *rest: shifted(real(model, normals, *rest), normals))
    found = table()
    for name, values in untouched.items():
        others = [row for row in range(5) if row not in MARKED]
        assert np.array_equal(found[name][others], values[others])
        # the second pass covers draws 1 to 3, and `shifted` adds the number of draws of a pass
        assert np.allclose(found[name][MARKED], values[MARKED] + 3, rtol=1e-9, atol=1e-12)


def marked(normals: Normals, unsound: np.ndarray) -> Fused:
    unsound[MARKED] = True
    return Fused(normals, unsound)


def shifted(found: dict[str, np.ndarray], normals: Normals) -> dict[str, np.ndarray]:
    return {name: values + (0 if len(normals.draws) == 5 else len(normals.draws)) for name, values in found.items()}


def test_collapse_under_a_causal_mask_leaves_numbers() -> None:
    found = table(Model("postnorm", depth=48, width=64, tokens=16, heads=4, causal=True), "float32", draws=8)
    assert all(np.isfinite(values).all() for values in found.values())
