"""`simulate` takes the sampler it is told, or the cheaper one, and says which; another sampler is another run."""

from pathlib import Path

import numpy as np
import pytest

from propagate.model import Model, ModelError
from propagate.montecarlo.memory import plan
from propagate.montecarlo.simulate import CROSSOVER, simulate


def model(width: int = 64, tokens: int = 4, depth: int = 2, **others: object) -> Model:
    return Model("spannorm", depth, width=width, tokens=tokens, heads=2, **others)


def simulated(network: Model, **others: object) -> object:
    return simulate(network, backend="numpy", **({"draws": 4, "covariance": 0.3} | others))


@pytest.mark.parametrize(
    ("network", "taken"),
    [
        (model(width=CROSSOVER * 4), "weightless"),
        (model(width=CROSSOVER * 4 - 2), "dense"),
        (model(width=CROSSOVER * 4, ffn_ratio=0.5), "dense"),  # the second matrix of the FFN has the smaller fan-in
        (model(width=16, tokens=16), "dense"),
        (model(width=CROSSOVER * 4, weights="uniform"), "dense"),
    ],
)
def test_auto_follows_the_cost_rule(network: Model, taken: str) -> None:
    automatic, named = simulated(network), simulated(network, sampler=taken)
    assert automatic.attrs["sampler"] == named.attrs["sampler"] == taken
    assert automatic.identical(named)


def test_the_samplers_draw_different_networks_from_one_seed() -> None:
    dense, weightless = simulated(model(), sampler="dense"), simulated(model(), sampler="weightless")
    assert (dense.grad_variance.values[0], dense.attrs["sampler"]) != (weightless.grad_variance.values[0], "weightless")
    assert dense.grad_variance.values[0] != weightless.grad_variance.values[0]


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(ModelError, match="sampler must be one of auto, dense, weightless, got 'sparse'"):
        simulated(model(), sampler="sparse")


@pytest.mark.parametrize("network", [model(), model(width=4, tokens=6), model(causal=True, activation="swiglu")])
def test_a_seed_gives_the_same_bytes_in_whatever_batches(network: Model) -> None:
    whole, again = (simulated(network, sampler="weightless", draws=5, seed=3) for _ in range(2))
    one_by_one = simulated(network, sampler="weightless", draws=5, seed=3, memory=1)
    for name in whole:
        assert whole[name].values.tobytes() == again[name].values.tobytes() == one_by_one[name].values.tobytes()


def test_another_seed_gives_other_networks() -> None:
    one, other = (simulated(model(), sampler="weightless", seed=seed) for seed in (1, 2))
    assert one.grad_variance.values[0] != other.grad_variance.values[0]


def test_a_checkpoint_goes_on_with_its_own_sampler_only(tmp_path: Path) -> None:
    file = tmp_path / "draws.npz"
    simulated(model(), sampler="weightless", draws=3, checkpoint=file)
    with pytest.raises(ModelError, match="belongs to another run"):
        simulated(model(), sampler="dense", checkpoint=file)
    continued = simulated(model(), sampler="weightless", draws=6, checkpoint=file)
    straight = simulated(model(), sampler="weightless", draws=6)
    assert np.array_equal(continued.grad_variance, straight.grad_variance)


def test_memory_of_a_batch_grows_with_width_and_not_with_its_square() -> None:
    def draws(sampler: str, width: int) -> int:
        return plan(model(width=width), "numpy", "float64", sampler, batch=2**36, one_draw=2**36).batch

    assert draws("weightless", 1024) / draws("weightless", 4096) == pytest.approx(4, rel=0.01)
    assert draws("dense", 1024) / draws("dense", 4096) == pytest.approx(16, rel=0.05)
