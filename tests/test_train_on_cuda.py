"""On a CUDA device an ensemble is one graph a step, and what the plain loop is there, in all precisions."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

from propagate.tracing.training import together as togethers  # noqa: E402
from propagate.tracing.training.arm import Arm  # noqa: E402
from propagate.tracing.training.ensemble import Ensemble  # noqa: E402
from propagate.tracing.training.plan import Plan  # noqa: E402
from propagate.transfer import factors_by_kind  # noqa: E402

pytestmark = pytest.mark.gpu
TEXT = pg.corpus()
NETWORK: dict[str, Any] = {"depth": 3, "width": 128, "heads": 2, "tokens": 64, "causal": True, "activation": "swiglu"}
SPAN = pg.Model("spannorm", rope=10000.0, scaling=pg.ScaleInit(), **NETWORK)
MODELS = {
    "spannorm": SPAN,
    "prenorm layernorm": pg.Model("prenorm", norm="layer", **NETWORK),
    "grouped heads, window": pg.Model("prenorm", key_value_heads=1, window=9, rope=10.0, **NETWORK),
    "experts": pg.Model("spannorm", experts=pg.Experts(4, 2, shared=1), **NETWORK),
    "several streams": pg.Model("siamesenorm", **NETWORK),
    "a measured standard deviation": pg.Model("admin", **NETWORK),
}
ADAM = pg.Adam(lr=0.003, betas=(0.9, 0.95), decay=0.1)
SETTINGS: dict[str, Any] = {"steps": 6, "batch": 4, "warmup": 0.3, "traces": (), "progress": False, "device": "cuda"}
ARMS: dict[str, Any] = {"lrs": (0.001, 0.004), "seeds": (0, 5)}


def ensemble(
    model: pg.Model, precision: Any, backend: Any = None, optimizer: Any = ADAM, lrs: Any = ARMS["lrs"]
) -> Ensemble:
    """Four arms, two rates."""
    plan, factors = Plan(6, 4, clip=None), factors_by_kind(model, None, None)
    arms = [
        Arm(model, TEXT, dataclasses.replace(optimizer, lr=lr), plan, seed, factors, "cuda", precision, together=True)
        for lr in lrs
        for seed in ARMS["seeds"]
    ]
    return Ensemble(arms, backend)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-9), ("float32", 2e-4), ("bfloat16", 2e-2)])
def test_an_ensemble_is_its_arms(name: str, precision: Any, tolerance: float) -> None:
    given = SETTINGS | ARMS | {"precision": precision}
    together, alone = (pg.train(MODELS[name], TEXT, ADAM, together=together, **given) for together in (None, 1))
    assert (together.attrs["together"], alone.attrs["together"]) == ("an ensemble", "one by one")
    for seen in ("loss", "held_out_loss"):
        np.testing.assert_allclose(together[seen], alone[seen], rtol=tolerance)
    np.testing.assert_allclose(together.grad_norm, alone.grad_norm, rtol=5 * tolerance)
    swapped = alone.assign_coords(lr=alone.lr[::-1]).sortby("lr")
    assert np.abs(together.loss / swapped.loss - 1).max() > tolerance


def test_a_replayed_graph_is_the_step_itself() -> None:
    one, other = (ensemble(SPAN, "float32") for _ in "ab")
    other._graph = None
    graph, steps = one.advance(0, 6), other.advance(0, 6)
    np.testing.assert_allclose(graph, steps, rtol=1e-5)
    assert (graph[0][0] != graph[0][5]).all()
    again = ensemble(SPAN, "float32")
    first, rest = again.advance(0, 2), again.advance(2, 6)
    np.testing.assert_allclose(np.concatenate([first[0], rest[0]]), graph[0], rtol=1e-5)


def gradients(precision: Any, backend: Any, first: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every parameter and member, by the change of weights in one step of SGD."""
    lrs = 10.0, 20.0  # so that rounding of the weights is nothing beside the step
    made = ensemble(SPAN, precision, backend, pg.SGD(1.0), lrs)
    for place, weights in enumerate(first):
        made.load(place, {"learner": weights})
    made.advance(0, 1)
    return {
        path: torch.stack([(first[p][path].double() - made.weights(p)[path]) / lrs[p // 2] for p in range(4)])
        for path in first[0]
    }


@pytest.mark.parametrize("backend", [None, "inductor"])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_gradients_are_those_of_double_precision(precision: Any, backend: Any) -> None:
    least = {"float32": 0.9999, "tf32": 0.9999, "bfloat16": 0.98}[precision]
    drawn = ensemble(SPAN, "float32")
    first = [drawn.weights(place) for place in range(4)]
    exact, found = gradients("float64", None, first), gradients(precision, backend, first)
    for path, gradient in found.items():
        assert torch.isfinite(gradient).all(), path
        cosine = torch.cosine_similarity(gradient.flatten(1), exact[path].flatten(1))
        assert (cosine > least).all(), (path, cosine)
        others = torch.cosine_similarity(gradient.flatten(1), exact[path].flatten(1).roll(1, 0))
        assert (others < least).all(), path  # of another seed


@pytest.mark.parametrize("name", MODELS)
def test_compiled_blocks_train_as_others(name: str) -> None:
    plain, compiled = (ensemble(MODELS[name], "float32", one).advance(0, 6) for one in (None, "inductor"))
    np.testing.assert_allclose(compiled[0], plain[0], rtol=2e-4)
    np.testing.assert_allclose(compiled[1], plain[1], rtol=2e-3)


def test_one_that_diverges_leaves_the_others_alone(tmp_path: Path) -> None:
    given = SETTINGS | {"clip": None, "warmup": 0.0, "together": 3, "to": tmp_path}
    seen = pg.train(SPAN, TEXT, pg.SGD(0.1), lrs=(0.01, 1e30, 0.02), **given)
    alone = pg.train(SPAN, TEXT, pg.SGD(0.1), lrs=(0.01, 0.02), **(given | {"to": None}))
    assert seen.attrs["diverged"] == 1
    np.testing.assert_allclose(seen.loss[[0, 2]], alone.loss, rtol=1e-5)
    assert np.isfinite(seen.held_out_loss[[0, 2]]).all()
    assert seen.equals(pg.train(SPAN, TEXT, pg.SGD(0.1), lrs=(0.01, 1e30, 0.02), **given))  # read from its files


def test_a_member_is_traced_as_an_arm_by_itself() -> None:
    given = SETTINGS | ARMS | {"traces": (0, 3), "precision": "float64"}
    together, alone = (pg.train(SPAN, TEXT, ADAM, together=together, **given) for together in (None, 1))
    for name in ("variance", "grad_variance", "decorrelation", "attention_logit", "update_ratio", "step_ratio"):
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-6)
    assert np.isfinite(together.grad_variance.sel(probe=[0, 3])).all()
    assert (together.step_ratio.sel(probe=3, matrix="query", block=1) > 0).all()


def test_a_long_run_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    given = SETTINGS | ARMS | {"steps": 300, "batch": 16, "precision": "bfloat16", "probes": (100,)}
    monkeypatch.setattr(togethers, "WORTH_COMPILING", 0)
    seen = pg.train(SPAN, TEXT, ADAM, **given)
    assert (seen.held_out_loss[..., -1] < TEXT.unigram_loss - 0.5).all()
    assert np.isfinite(seen.loss).all()
