"""Gradients of weight matrices in configurations that a generator chose: theory against simulation."""

import random
from typing import Any

import pytest

import propagate as pg
from propagate.cells import ACTIVATIONS
from tests.own_placements import OWN

CONFIGURATIONS = 40


def configuration(draw: random.Random) -> tuple[pg.Model, dict[str, Any]]:
    """A model and a start."""
    tokens, width = draw.choice([2, 4, 8]), draw.choice([128, 256])
    some: dict[str, Any] = {
        "depth": draw.choice([1, 2, 3]),
        "heads": width // draw.choice([8, 16, 32, 64]),
        "activation": draw.choice(ACTIVATIONS),
        "norm": draw.choice(["rms", "layer"]),
        "logit_std": draw.choice([0.0, 0.3, 1.0, 2.0]),
        "ffn_ratio": draw.choice([0.5, 1.0, 2.0]),
        "causal": draw.random() < 0.5,
        "rope": draw.choice([None, None, None, 100.0]),
        "dropout": draw.choice([0.0, 0.0, 0.1, 0.5]),
        "normed": draw.choice([(), (), (), ("query", "key"), ("heads", "hidden"), ("value",)]),
        "key_value_heads": draw.choice([None, None, 2]),
    }
    if draw.random() < 0.3:
        some["experts"] = pg.Experts(
            draw.choice([2, 4]),
            draw.choice([1, 2]),
            softmax=draw.choice(["before", "after"]),
            shared=draw.choice([0, 1]),
            split=draw.choice([1, 2]),
            router_std=draw.choice([0.5, 1.0, 2.0]),
        )
    model = pg.Model(draw.choice(OWN), width=width, tokens=tokens, **some)
    return model, {"covariance": draw.choice([0.0, 0.3, 0.8]), "grad_covariance": draw.choice([0.0, 0.3])}


@pytest.mark.slow
def test_theory_and_simulation_agree_in_configurations_chosen_at_random() -> None:
    draw, found, refused = random.Random(12), dict[str, float](), 0
    for number in range(CONFIGURATIONS):
        model, start = configuration(draw)
        try:
            said = pg.predict(model, include={"param_grad"}, **start)
        except pg.ModelError:
            refused += 1
            continue
        seen = pg.simulate(model, draws=60, seed=number, backend="numpy", include={"param_grad"}, **start)
        scores = pg.compare(said, seen).worst_z.to_series()
        scores = scores[[name for name in scores.index if name.startswith("param_grad")]]
        found |= {f"{name}, {model}": score for name, score in scores.items() if score > 4}
    assert not found
    assert refused < CONFIGURATIONS / 10
