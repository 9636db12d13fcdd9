"""Gradients of the weight matrices where tokens differ or choose: masks, positions, Gram matrices, dropout, experts."""

import dataclasses
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import xarray as xr

import propagate as pg
from propagate.theory import uses as theory
from propagate.theory.pairs.experts import MixturePull
from propagate.theory.pairs.products import Seen
from propagate.theory.reading.blocks import Call
from propagate.theory.tokens import experts as gram_experts
from propagate.theory.tokens.gram import Gram

SIZES = {"depth": 2, "width": 256, "tokens": 8, "heads": 16, "ffn_ratio": 1.0}
GRAM = 0.7 ** np.abs(np.subtract.outer(np.arange(8), np.arange(8))) * np.sqrt(np.outer(*[np.arange(1, 9) / 4] * 2))
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "causal, logits of 2": ("prenorm", {"causal": True, "logit_std": 2.0}, {}),
    "rotary positions": ("spannorm", {"causal": True, "rope": 100.0, "activation": "swiglu", "heads": 4}, {}),
    "a Gram matrix": ("postnorm", {"logit_std": 0.3, "activation": "gelu"}, {"gram": GRAM}),
    "several streams, a window": ("residual", {"causal": True, "window": 3}, {}),
    "norms inside": ("subln", {"causal": True, "norm": "layer", "activation": "geglu", "logit_std": 0.5}, {}),
    "dropout": ("prenorm", {"dropout": 0.1}, {}),
    "much dropout, causal": ("postnorm", {"dropout": 0.5, "causal": True}, {}),
    "shared keys": ("prenorm", {"key_value_heads": 4}, {}),
    "top 1 of 4": ("postnorm", {"experts": pg.Experts(4, 1, softmax="before", router_std=0.5, gain=4.0)}, {}),
    "shared and split experts": (
        "postnorm",
        {"experts": pg.Experts(4, 1, split=2, shared=2), "activation": "swiglu", "causal": True},
        {},
    ),
    "identity experts": ("prenorm", {"experts": pg.Experts(4, 2, identity=2), "dropout": 0.2}, {}),
    "experts with norms inside": (
        "subln",
        {"experts": pg.Experts(4, 2, shared=2, split=2), "activation": "geglu", "norm": "layer", "causal": True},
        {},
    ),
}


def arguments(name: str, **changes: Any) -> tuple[pg.Model, dict[str, Any]]:
    placement, fields, start = CASES[name]
    start = start or {"covariance": 0.3}
    return pg.Model(placement, **SIZES | fields | changes), start | {
        "grad_covariance": 0.2,
        "include": ["param_grad"],
    }


@lru_cache(maxsize=len(CASES))
def seen(name: str) -> xr.Dataset:
    model, start = arguments(name)
    return pg.simulate(model, draws=60, seed=2, backend="numpy", **start)


def said(name: str, **changes: Any) -> xr.Dataset:
    model, start = arguments(name, **changes)
    return pg.predict(model, **start)


def scores(prediction: xr.Dataset, name: str) -> dict[str, float]:
    """The worst |z| of each matrix."""
    judged = pg.compare(prediction, seen(name)).worst_z.to_series()
    return {matrix: judged[f"param_grad[{matrix}]"] for matrix in prediction.matrix.to_numpy().tolist()}


@pytest.mark.few(5)
@pytest.mark.parametrize("name", CASES)
def test_theory_and_simulation_agree(name: str) -> None:
    found = scores(said(name), name)
    assert max(found.values()) < 4, found
    assert list(found) == seen(name).matrix.to_numpy().tolist()


def test_gradients_of_queries_and_keys_with_logit_std_in_their_matrices_are_rejected() -> None:
    for name in ("causal, logits of 2", "a Gram matrix"):
        prediction = said(name)
        for power in (1, -1, 2):
            of_logits = ["query", "key"]
            wrong = prediction.assign(param_grad=prediction.param_grad.copy())
            wrong.param_grad.loc[{"matrix": of_logits}] *= arguments(name)[0].logit_std ** power
            found = scores(wrong, name)
            assert min(found[matrix] for matrix in of_logits) > 4, (name, power, found)


def test_tokens_taken_for_independent_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_tokens(tokens: int, x: Any, g: Any) -> Any:
        return (x.variance * g.variance).sum(axis=-1)

    monkeypatch.setattr(theory, "frobenius", of_tokens)
    for name in ("causal, logits of 2", "rotary positions", "a Gram matrix", "several streams, a window"):
        found = scores(said(name), name)
        assert min(found[matrix] for matrix in ("value", "attention_out", "ffn_in", "ffn_out")) > 4, (name, found)


def test_masks_and_dropout_are_missed() -> None:
    for name, without, known in (
        ("causal, logits of 2", {"causal": False}, ["query", "key"]),
        ("much dropout, causal", {"dropout": 0.0}, ["query", "key", "value", "attention_out"]),
    ):
        found = scores(said(name, **without), name)
        assert min(found[matrix] for matrix in known) > 4, (name, found)


def test_experts_that_see_all_tokens_and_routers_without_what_norms_take_are_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = theory.uses_of

    def all_tokens(call: Call, *others: Any) -> Any:
        if isinstance(call.pull, MixturePull):
            ones = Gram(np.ones_like(call.entered.matrix), np.zeros_like(call.entered.matrix))
            call = dataclasses.replace(call, pull=dataclasses.replace(call.pull, overlap=ones))
        return right(call, *others)

    for wrong, name, known in (
        (lambda call, g, seen, layer: right(call, g, seen and Seen(), layer), "top 1 of 4", ["router"]),
        (all_tokens, "shared and split experts", ["ffn_in", "ffn_gate", "ffn_out"]),
    ):
        monkeypatch.setattr(theory, "uses_of", wrong)
        found = scores(said(name), name)
        assert min(found[matrix] for matrix in known) > 4, (name, found)


def test_norms_inside_experts_are_in_the_moments_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of SubLN's experts; without those norms the gradient is another."""
    name = "experts with norms inside"
    assert pg.compare(said(name), seen(name)).worst_z.max() < 4
    right = gram_experts.mixture

    def forgetful(*args: Any, **options: Any) -> Any:
        apply = right(*args, **options)
        return lambda x, normed: apply(x)

    monkeypatch.setattr(gram_experts, "mixture", forgetful)
    judged = pg.compare(said(name), seen(name)).worst_z.to_series()
    assert judged["grad_variance"] > 4, judged.to_dict()


def test_resolutions_agree_on_exchangeable_tokens() -> None:
    """The mean over the token-resolved theory's own draws, against the closed forms."""
    for fields in ({"activation": "swiglu"}, {"normed": ("heads", "hidden"), "norm": "layer", "dropout": 0.3}):
        model = pg.Model("prenorm", **SIZES | {"tokens": 4, "logit_std": 1.5} | fields)
        closed = pg.predict(model, covariance=0.3, grad_covariance=0.2, include={"param_grad"})
        start = {"gram": 0.7 * np.eye(4) + 0.3, "grad_covariance": 0.2}
        drawn = pg.predict(model, **start, samples=2048, include={"param_grad"})
        error = np.log(drawn.param_grad / closed.param_grad)[1:]
        own = (drawn.param_grad_se / drawn.param_grad)[1:]
        assert bool((np.abs(error) < 5 * own + 1e-9).all()), (error / own).values
        assert float(own.max()) < 0.02


def test_what_a_causal_block_adds_when_tokens_collapse_keeps_its_digits() -> None:
    """Of keys only differences of tokens count: (1 - correlation)^3 down to where subtraction has nothing left."""
    found = []
    for apart in (1e-4, 1e-12):
        gram = 1 - apart * (1 - np.eye(4))
        model = pg.Model("postnorm", depth=1, width=64, tokens=4, heads=4, causal=True)
        found.append(pg.predict(model, gram=gram, include={"param_grad"}).param_grad.sel(matrix="key")[1])
    assert float(found[1] / found[0]) == pytest.approx(1e-16, rel=1e-2)
