"""One BLAS thread a worker, set before NumPy loads; tests marked `gpu` skip where no CUDA device answers."""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import gc  # noqa: E402
import random  # noqa: E402
from collections import defaultdict  # noqa: E402
from collections.abc import Generator, Iterator  # noqa: E402
from concurrent.futures import Executor, ThreadPoolExecutor  # noqa: E402

import pytest  # noqa: E402


def _device_answers() -> bool:
    try:
        import cupy
    except Exception:
        return False
    return bool(cupy.cuda.is_available())


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays to the end: nobody looks for garbage in it, then or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before slow tests are deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _mark_all_but_few(items)
    if _device_answers():
        return
    skip = pytest.mark.skip(reason="no CUDA device that CuPy can use")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def _mark_all_but_few(items: list[pytest.Item]) -> None:
    """Of a test marked `few(n)`, n cases are run every time, always the same ones; the others are slow."""
    cases = defaultdict(list)
    for item in items:
        if item.get_closest_marker("few") and not any(map(item.get_closest_marker, ("slow", "gpu"))):
            cases[item.nodeid.partition("[")[0]].append(item)
    for name, of_test in cases.items():
        [number] = of_test[0].get_closest_marker("few").args
        kept = random.Random(name).sample(of_test, min(number, len(of_test)))
        for item in of_test:
            if item not in kept:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def here() -> Iterator[Executor]:
    """A pool of one thread of this process: what the networks of a figure are simulated on in tests."""
    with ThreadPoolExecutor(1) as pool:
        yield pool
