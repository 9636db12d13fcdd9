"""Blocks run twice: the same table to the bit, in memory that grows with the square root of depth."""

import subprocess
import sys
import tracemalloc

import pytest

from propagate.model import Model
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.memory import plan
from propagate.montecarlo.simulate import run, simulate
from propagate.montecarlo.starts import start_of

HOST = choose_backend("numpy")


def model(depth: int, placement: str = "postnorm", **others: object) -> Model:
    return Model(placement, depth, **{"width": 16, "tokens": 4, "heads": 2} | others)


def measured(network: Model, sampler: str, segment: int | None, draws: int = 1) -> dict[str, bytes]:
    start = start_of(network, 1.0, 0.3, 1.0, 0.1, None, None)
    found = run(network, HOST, sampler, 0, range(draws), start, through_readout=True, segment=segment)
    return {name: values.tobytes() for name, values in found.items()}


@pytest.mark.parametrize("segment", [1, 3, 6, 7, 100])
@pytest.mark.parametrize("sampler", ["dense", "weightless"])
@pytest.mark.parametrize("network", [model(7, "spannorm", activation="swiglu"), model(7, "prenorm", causal=True)])
def test_blocks_run_twice_leave_no_trace(network: Model, sampler: str, segment: int) -> None:
    assert measured(network, sampler, segment, draws=3) == measured(network, sampler, None, draws=3)


def peak(network: Model, sampler: str, segment: int | None) -> int:
    """Bytes that a run takes at most."""
    measured(network, sampler, segment)  # whatever is made once and kept
    tracemalloc.start()
    try:
        measured(network, sampler, segment)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "network",
    [model(8, width=96, tokens=12), model(8, "spannorm", width=96, tokens=12, activation="swiglu"), model(8, width=64)],
)
@pytest.mark.parametrize("sampler", ["dense", "weightless"])
def test_the_estimate_of_memory_is_near_the_truth(network: Model, sampler: str) -> None:
    for one_draw, segments in ((2**40, 8), (1, None)):
        planned = plan(network, sampler, 2**40, one_draw)
        assert segments is None or planned.segment == segments
        estimate = 2**40 / planned.batch
        assert 0.5 < peak(network, sampler, planned.segment) / estimate < 1.3


def test_memory_grows_with_the_root_of_depth_where_blocks_are_run_twice() -> None:
    def growth(one_draw: int) -> float:
        short, long = (
            peak(network, "weightless", plan(network, "weightless", 2**20, one_draw).segment)
            for network in (model(15, width=64), model(135, width=64))
        )
        return long / short

    assert growth(one_draw=2**40) > 7  # nine times as deep, all of it remembered
    assert growth(one_draw=1) < 4


def test_blocks_are_run_twice_only_where_one_draw_does_not_fit() -> None:
    network = model(100)
    assert plan(network, "dense", batch=1, one_draw=2**30).segment == 100
    assert plan(network, "dense", batch=2**30, one_draw=2**15).segment < 20
    assert plan(network, "dense", batch=1, one_draw=1).batch == 1


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
