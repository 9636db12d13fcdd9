"""Blocks run twice: the same table to the bit, in memory that grows with the square root of depth."""

import subprocess
import sys
import tracemalloc

import pytest

from propagate.model import Model
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.memory import Plan, plan
from propagate.montecarlo.run import run
from propagate.montecarlo.simulate import simulate
from propagate.montecarlo.starts import ends_of
from propagate.start import Start


def planned(network: Model, sampler: str, batch: int, one_draw: int, precision: str = "float64") -> Plan:
    return plan(network, "numpy", precision, sampler, batch=batch, one_draw=one_draw)


def model(depth: int, placement: str = "postnorm", **others: object) -> Model:
    return Model(placement, depth, **{"width": 16, "tokens": 4, "heads": 2} | others)


def measured(
    network: Model, sampler: str, segment: int | None, draws: int = 1, precision: str = "float64"
) -> dict[str, bytes]:
    start = ends_of(network, Start(covariance=0.3, grad_covariance=0.1))
    found = run(
        network,
        choose_backend("numpy", precision),
        sampler,
        0,
        range(draws),
        start,
        through_readout=True,
        segment=segment,
    )
    return {name: values.tobytes() for name, values in found.items()}


@pytest.mark.parametrize("segment", [1, 3, 6, 7, 100])
@pytest.mark.parametrize("sampler", ["dense", "weightless"])
@pytest.mark.parametrize("network", [model(7, "spannorm", activation="swiglu"), model(7, "prenorm", causal=True)])
def test_blocks_run_twice_leave_no_trace(network: Model, sampler: str, segment: int) -> None:
    assert measured(network, sampler, segment, draws=3) == measured(network, sampler, None, draws=3)


def peak(network: Model, sampler: str, segment: int | None, precision: str = "float64") -> int:
    """Bytes that a run takes at most."""
    measured(network, sampler, segment, precision=precision)  # whatever is made once and kept
    tracemalloc.start()
    try:
        measured(network, sampler, segment, precision=precision)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.few(4)
@pytest.mark.parametrize(
    "network",
    [
        model(8, width=96, tokens=12),
        model(8, "spannorm", width=96, tokens=12, activation="swiglu"),
        model(8, width=256),
    ],
)
@pytest.mark.parametrize(
    ("sampler", "precision"), [("dense", "float64"), ("weightless", "float64"), ("weightless", "float32")]
)
def test_the_estimate_of_memory_is_near_the_truth(network: Model, sampler: str, precision: str) -> None:
    for one_draw, segments in ((2**40, 8), (1, None)):
        found = planned(network, sampler, 2**40, one_draw, precision)
        assert segments is None or found.segment == segments
        estimate = 2**40 / found.batch
        assert 0.5 < peak(network, sampler, found.segment, precision) / estimate < 1.3


@pytest.mark.slow
def test_memory_grows_with_the_root_of_depth_where_blocks_are_run_twice() -> None:
    def growth(one_draw: int) -> float:
        short, long = (
            peak(network, "weightless", planned(network, "weightless", 2**20, one_draw).segment)
            for network in (model(15, width=64), model(135, width=64))
        )
        return long / short

    assert growth(one_draw=2**40) > 7  # nine times as deep, all of it remembered
    assert growth(one_draw=1) < 4


def test_blocks_are_run_twice_only_where_one_draw_does_not_fit() -> None:
    network = model(100)
    assert planned(network, "dense", 1, 2**30).segment == 100
    assert planned(network, "dense", 2**30, 2**15).segment < 20
    assert planned(network, "dense", 1, 1).batch == 1


DEEP = """
import resource
from propagate import Model, simulate

def kilobytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

few = dict(width=64, tokens=8, heads=2)
simulate(Model("postnorm", 10, **few), draws=2, backend="numpy", sampler="weightless")
before = kilobytes()
found = simulate(Model("postnorm", 10_000, **few), draws=2, backend="numpy", sampler="weightless", memory=2**25)
assert found.sizes["block"] == 10_001 and bool((found.grad_variance > 0).all())
print(kilobytes() - before)
"""


@pytest.mark.slow
def test_ten_thousand_blocks_in_64_mebibytes() -> None:
    """Of which the records of ten thousand blocks take a part. All blocks remembered would take 1.3 GB a draw."""
    done = subprocess.run([sys.executable, "-c", DEEP], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 * 1024


def test_a_small_memory_makes_the_same_table() -> None:
    network = model(9)
    whole, small = (simulate(network, draws=3, backend="numpy", memory=memory) for memory in (None, 1))
    assert all(whole[name].values.tobytes() == small[name].values.tobytes() for name in whole)
