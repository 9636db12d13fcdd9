"""A forward pass of what `build` makes copies nothing from the host: a step that does cannot be one CUDA graph."""

import dataclasses
from typing import Any

import numpy as np
import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

SIZE: Any = {"depth": 1, "width": 16, "heads": 2, "tokens": 8}
NETWORKS = {
    "causal": {"causal": True},
    "rotary": {"causal": True, "rope": 10000.0, "key_value_heads": 1},
    "window": {"causal": True, "window": 3},
    "mask": {"mask": np.tril(np.ones((8, 8), bool))},
    "uniform": {"causal": True, "logit_std": 0.0},
    "gated": {"causal": True, "activation": "swiglu", "normed": ("query", "key"), "norm": "layer"},
}


class Hosts(TorchDispatchMode):
    """Counts tensors of another device than the network's that an operation is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        self.seen += [str(function) for one in given if one.device.type != "meta"]
        return function(*args, **(kwargs or {}))


def hosts(tokens: int, **fields: Any) -> list[str]:
    learner = pg.build_language_model(pg.Model("spannorm", **SIZE, **fields), 11).to("meta")
    ids = torch.empty(2, tokens, dtype=torch.int64, device="meta")
    with Hosts() as mode:
        learner(ids)
    return mode.seen


@pytest.mark.parametrize("name", NETWORKS)
def test_tables_are_buffers(name: str) -> None:
    assert hosts(8, **NETWORKS[name]) == []


def test_a_table_that_is_made_in_passing_would_be_seen() -> None:
    assert hosts(9, **NETWORKS["rotary"]) != []
    assert hosts(9, **NETWORKS["uniform"]) != []


@pytest.mark.parametrize("optimizer", [pg.Adam(0.1, decay=0.1), pg.Sign(0.1, momentum=0.5)], ids=["adam", "sign"])
@pytest.mark.parametrize("name", ["rotary", "uniform", "gated", "experts", "measured"])
def test_a_step_of_an_ensemble_needs_nothing(name: str, optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    from propagate.tracing.training import ensemble
    from propagate.tracing.training.arm import Arm
    from propagate.tracing.training.plan import Plan
    from propagate.transfer import factors_by_kind

    more: Any = {"experts": {"experts": pg.Experts(3, 2, shared=1, identity=1)}, "measured": {"placement": "admin"}}
    fields = {"placement": "spannorm", "causal": True} | NETWORKS.get(name, {}) | more.get(name, {})
    model = pg.Model(**SIZE, **fields)
    learner = Arm.learner
    monkeypatch.setattr(Arm, "learner", lambda arm: learner(dataclasses.replace(arm, device="cpu")).to("meta"))
    monkeypatch.setattr(ensemble, "evaluated", lambda *_: None)
    monkeypatch.setattr(ensemble, "products_in", lambda *_: nullcontext())
    factors = factors_by_kind(model, "complete-p", (8, 1))
    arms = [Arm(model, pg.corpus(), optimizer, Plan(2, 3), seed, factors, "meta", together=True) for seed in (0, 1)]
    made = ensemble.Ensemble(arms)
    with Hosts() as mode:
        made._step()
    assert mode.seen == []
