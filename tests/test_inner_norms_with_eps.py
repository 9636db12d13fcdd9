"""A norm with an eps does not undo the gain of the projection that it norms inside attention."""

import numpy as np
import pytest
from test_layers_simulated import HOST, Alone, block_at, matrices_of
from test_reverse_pass import relative_mismatch, start

import propagate as pg
from propagate import Attention, Norm


@pytest.mark.parametrize("logit_std", [0.0, 0.8])
@pytest.mark.parametrize("normed", [("query",), ("key", "heads"), ("value",), ("heads",), ("heads", "value")], ids=str)
def test_an_inner_norm_with_eps_sees_the_gain_of_its_projection(normed: tuple[str, ...], logit_std: float) -> None:
    kind = Attention(heads=3, logit_std=logit_std, query_gain=1.5, key_gain=0.7, value_gain=1.6, normed=normed)
    model = pg.Model(Alone("attention"), depth=2, width=12, tokens=5, attention=kind, norm=Norm(eps=0.5))
    x = start(model, HOST)
    project, write = matrices_of(x, (12, 36 if logit_std else 12), (12, 12))
    last = (x @ project).reshape(2, 5, -1, 3, 4).transpose(2, 0, 3, 1, 4)

    def norm(name: str, y):
        return y / np.sqrt((y * y).mean(axis=-1, keepdims=True) + 0.5) if name in normed else y

    def said(gains: dict[str, float]):
        found = dict(zip(["query", "key", "value"][-len(last) :], last, strict=True))
        inner = {name: norm(name, gains[name] * part) for name, part in found.items()}
        weights = np.full((5, 5), 0.2)
        if logit_std:
            logits = logit_std * inner["query"] @ inner["key"].swapaxes(-1, -2) / 2
            weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        return norm("heads", (weights @ inner["value"]).swapaxes(1, 2).reshape(2, 5, 12)) @ write

    gains = {"query": 1.5, "key": 0.7, "value": 1.6}
    found = block_at(model, 2)(x)[0]
    assert np.allclose(found, said(gains), rtol=1e-12)
    for name in normed:
        if logit_std or name not in ("query", "key"):
            assert not np.allclose(found, said(gains | {"value" if name == "heads" else name: 1.0}), rtol=1e-2)
    assert relative_mismatch(block_at(model, 2), x, HOST) < 1e-6
