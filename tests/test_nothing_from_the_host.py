"""A forward pass of what `build` makes copies nothing from the host: a step that does cannot be one CUDA graph."""

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
