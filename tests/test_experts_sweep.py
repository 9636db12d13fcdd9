"""Mixtures drawn at random, in networks drawn at random: theory is never silently off."""

import random
import warnings

import pytest

import propagate as pg

PLACEMENTS = ("prenorm", "postnorm", "spannorm", "periln", "residual", "siamesenorm", "b2t", "olmo2", "dyt", "keel")


def configuration(rng: random.Random) -> tuple[pg.Model, dict[str, float]]:
    identity, count, split = rng.choice([0, 0, 1, 3, 7]), rng.choice([1, 2, 4, 8]), rng.choice([1, 1, 2])
    experts = pg.Experts(
        count,
        rng.randint(1, min(3, (count * split + identity) // split)),
        identity=identity,
        softmax=rng.choice(["before", "after"]),
        split=split,
        shared=rng.choice([0, 0, 1]),
        gain=rng.choice([None, 1.0, 4.0]),
        router_std=rng.choice([0.3, 1.0, 2.0, 3.0]),
    )
    model = pg.Model(
        rng.choice(PLACEMENTS),
        experts=experts,
        depth=rng.choice([1, 2, 3]),
        width=256,
        tokens=rng.choice([2, 4, 8]),
        heads=16,
        ffn_ratio=0.5,
        logit_std=rng.choice([0.0, 0.0, 1.0]),
        activation=rng.choice(["relu", "gelu", "tanh", "swiglu", "silu"]),
        norm=rng.choice(["rms", "layer"]),
        causal=rng.random() < 0.3,
        dropout=rng.choice([0.0, 0.0, 0.3]),
    )
    return model, {"covariance": rng.choice([0.0, 0.3, 0.8]), "grad_covariance": rng.choice([0.0, 0.3])}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_a_random_mixture_agrees_or_is_refused_or_warned_of(seed: int) -> None:
    model, start = configuration(random.Random(1000 + seed))
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            said = pg.predict(model, **start)
    except pg.ModelError:  # identity experts hand a tanh on
        assert model.placement == pg.placement("dyt")
        return
    seen = pg.simulate(model, draws=80, seed=seed, backend="numpy", progress=False, **start)
    worst = pg.compare(said, seen).worst_z.to_series()
    assert told or worst.max() < 4, (model, worst.to_dict())
    wrong = said.assign(grad_variance=said.grad_variance * 4, variance=said.variance * 4)
    assert pg.compare(wrong, seen).worst_z.max() > 4
