"""`simulate(executor=...)`: the same table to the bit, whatever the workers, and nothing lost on the way."""

import queue
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import xarray as xr

import propagate as pg
from propagate.montecarlo import run as module
from propagate.montecarlo.starts import ends_of
from propagate.montecarlo.statistics import Summary
from propagate.montecarlo.workers import in_order
from propagate.start import Start

MODEL = pg.Model("spannorm", depth=2, width=16, tokens=4, heads=2)
RUN = {"draws": 41, "seed": 3, "covariance": 0.3, "backend": "numpy", "memory": 2**18}


def same(left: xr.Dataset, right: xr.Dataset) -> bool:
    return left.attrs == right.attrs and all(
        left[name].to_numpy().tobytes() == right[name].to_numpy().tobytes() for name in left.variables
    )


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("pool", "workers"), [(pg.process_pool, 2), *((ThreadPoolExecutor, number) for number in (1, 2, 3))]
)
def test_workers_leave_no_trace(pool: Callable[[int], Executor], workers: int) -> None:
    with pool(workers) as executor:
        for sampler, precision in (("dense", "float64"), ("weightless", "float32")):
            how = RUN | {"sampler": sampler, "precision": precision}
            assert same(pg.simulate(MODEL, **how), pg.simulate(MODEL, **how, executor=executor))


def test_the_order_of_draws_shows_so_that_it_must_be_kept() -> None:
    """Else the test above could not fail."""
    host, start = module.choose_backend("numpy"), ends_of(MODEL, Start(covariance=0.3, grad_covariance=0.0))
    batches = [
        module.run(MODEL, host, "dense", 3, range(k, k + 5), start, through_readout=False) for k in (0, 5, 10, 15)
    ]
    forward, backward = Summary(), Summary()
    for batch in batches:
        forward.add(batch)
    for batch in reversed(batches):
        backward.add(batch)
    assert forward.variables()["variance"].tobytes() != backward.variables()["variance"].tobytes()


def test_results_come_in_order_though_later_ones_are_done_first() -> None:
    def slow_at_first(batch: range) -> int:
        time.sleep(0.2 if batch.start == 0 else 0.0)
        return batch.start

    batches = [range(k, k + 1) for k in range(6)]
    with ThreadPoolExecutor(3) as pool:
        assert list(in_order(pool, slow_at_first, batches)) == [(batch, batch.start) for batch in batches]


class Later(Executor):
    """Runs a task when its result is asked for, and counts the tasks it ran and those that were cancelled."""

    def __init__(self) -> None:
        self.ran, self.futures = 0, []

    def submit(self, task: Callable, /, *arguments: object, **options: object) -> Future:
        outer, future = self, Future()
        ask = future.result

        def result(timeout: float | None = None) -> object:
            if not future.done():
                outer.ran += 1
                try:
                    future.set_result(task(*arguments, **options))
                except BaseException as error:
                    future.set_exception(error)
            return ask(timeout)

        future.result = result
        self.futures.append(future)
        return future


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_cancels_what_has_not_begun_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    whole, kept = pg.simulate(MODEL, **RUN), RUN | {"checkpoint": tmp_path / "draws.npz"}
    run = module.run

    def failing(*arguments, **options):
        draws = next(a for a in arguments if isinstance(a, range))
        if 20 in draws:
            raise error
        return run(*arguments, **options)

    executor = Later()
    with monkeypatch.context() as patch:
        patch.setattr(module, "run", failing)
        with pytest.raises(error):
            pg.simulate(MODEL, **kept, executor=executor)
    cancelled = sum(future.cancelled() for future in executor.futures)
    assert cancelled > 0
    assert executor.ran + cancelled == len(executor.futures)
    again = Later()
    assert same(whole, pg.simulate(MODEL, **kept, executor=again))
    assert again.ran < executor.ran + cancelled  # finished draws are not run again


def test_there_are_enough_batches_for_several_workers() -> None:
    executor = Later()
    pg.simulate(MODEL, **RUN | {"draws": 64, "memory": None}, executor=executor)
    assert len(executor.futures) == 1 + 32  # the first asks a worker where it computes


def test_memory_that_does_not_hold_a_batch_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, run, sizes = pg.simulate(MODEL, **RUN), module.run, []

    def small(*arguments, **options):
        sizes.append(len(next(a for a in arguments if isinstance(a, range))))
        if sizes[-1] > 2:
            raise MemoryError
        return run(*arguments, **options)

    monkeypatch.setattr(module, "run", small)
    assert same(whole, pg.simulate(MODEL, **RUN))
    assert max(sizes) > 2

    def full(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(module, "run", full)
    with pytest.raises(MemoryError):
        pg.simulate(MODEL, **RUN)


def test_what_is_no_executor_is_refused() -> None:
    with pytest.raises(pg.ModelError, match=r"executor must be a concurrent.futures.Executor, got 3"):
        pg.simulate(MODEL, draws=2, executor=3)


def test_a_worker_that_lacks_the_backend_says_so_in_one_line() -> None:
    if module.choose_backend("auto").name == "cupy":
        pytest.skip("CuPy works here")
    with pg.process_pool(1) as pool, pytest.raises(pg.ModelError, match="backend 'cupy' is not available"):
        pg.simulate(MODEL, draws=2, backend="cupy", executor=pool)


def test_a_worker_takes_the_next_number() -> None:
    numbers: queue.Queue[int] = queue.Queue()
    for number in range(3):
        numbers.put(number)
    pg.use_device(numbers)
    assert numbers.get() == 1


@pytest.mark.gpu
def test_workers_take_devices_in_turn() -> None:
    import cupy

    numbers: queue.Queue[int] = queue.Queue()
    count = cupy.cuda.runtime.getDeviceCount()
    before = cupy.cuda.Device()
    try:
        for number in (count, count - 1):
            numbers.put(number)
            pg.use_device(numbers)
            assert cupy.cuda.Device().id == number % count
    finally:
        before.use()
