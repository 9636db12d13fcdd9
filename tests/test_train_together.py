"""An ensemble is its arms, each trained by the plain loop: losses, gradients, weights; on CUDA as one graph a step."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

from propagate.tracing.training import train as trains  # noqa: E402
from propagate.tracing.training.arm import Arm, trained  # noqa: E402
from propagate.tracing.training.ensemble import Ensemble  # noqa: E402
from propagate.tracing.training.plan import Plan  # noqa: E402
from propagate.transfer import KINDS, Factors, factors_by_kind  # noqa: E402

TEXT = pg.corpus()
NETWORK: dict[str, Any] = {"depth": 2, "width": 16, "heads": 2, "tokens": 8, "causal": True}
SPAN = pg.Model("spannorm", rope=10000.0, activation="swiglu", **NETWORK)
ADAM = pg.Adam(lr=0.01, betas=(0.9, 0.95), decay=0.1)
SETTINGS: dict[str, Any] = {"steps": 5, "batch": 3, "progress": False, "precision": "float64", "warmup": 0.3}
ARMS: dict[str, Any] = {"lrs": (0.003, 0.02), "seeds": (0, 5)}
MODELS = {
    "prenorm": pg.Model("prenorm", **NETWORK),
    "postnorm layernorm": pg.Model("postnorm", norm="layer", scaling=pg.ScaleInit(), **NETWORK),
    "spannorm swiglu rope": SPAN,
    "grouped heads, window": pg.Model("spannorm", key_value_heads=1, window=3, rope=10.0, **NETWORK),
    "uniform attention": pg.Model("prenorm", logit_std=0.0, **NETWORK),
    "experts": pg.Model("spannorm", experts=pg.Experts(4, 2, shared=1, identity=1), activation="swiglu", **NETWORK),
    "normed inside": pg.Model("prenorm", normed=("query", "key", "heads", "hidden"), **NETWORK),
    "several streams": pg.Model("siamesenorm", **NETWORK),
}


def both(model: pg.Model, optimizer: Any, **more: Any) -> tuple[Any, Any]:
    """The table of an ensemble, and that of the plain loop."""
    given = SETTINGS | ARMS | more
    return tuple(pg.train(model, TEXT, optimizer, together=together, **given) for together in (4, 1))


def apart(one: Any, other: Any) -> float:
    """Largest relative difference of what an arm is seen to do."""
    names = [name for name in other.data_vars if other[name].size]
    assert set(names) == set(one.data_vars)
    found = [0.0]
    for name in names:
        assert (np.isnan(one[name]) == np.isnan(other[name])).all(), name
        scale = np.abs(other[name]).max()
        found.append(float((np.abs(one[name] - other[name]) / (np.abs(other[name]) + 1e-3 * scale + 1e-300)).max()))
    return max(found)


@pytest.mark.parametrize("name", MODELS)
def test_an_ensemble_is_its_arms(name: str) -> None:
    optimizer = {"prenorm": pg.SGD(0.1, momentum=0.9, decay=0.1), "experts": pg.SGD(1.0)}.get(name, ADAM)
    together, alone = both(MODELS[name], optimizer, traces=(0,), probes=(3,))
    assert apart(together, alone) < 1e-7
    assert apart(together[["loss", "grad_norm"]], alone[["loss", "grad_norm"]]) < 1e-10
    swapped = alone.assign_coords(lr=alone.lr[::-1]).sortby("lr")  # each rate by the other's name
    assert apart(together[["loss"]], swapped[["loss"]]) > 1e-6
