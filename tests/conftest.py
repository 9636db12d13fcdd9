"""One BLAS thread a worker, set before NumPy loads; tests marked `gpu` skip where no CUDA device answers."""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

from collections.abc import Iterator  # noqa: E402
from concurrent.futures import Executor, ThreadPoolExecutor  # noqa: E402

import pytest  # noqa: E402


def _device_answers() -> bool:
    try:
        import cupy
    except Exception:
        return False
    return bool(cupy.cuda.is_available())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _device_answers():
        return
    skip = pytest.mark.skip(reason="no CUDA device that CuPy can use")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="module")
def here() -> Iterator[Executor]:
    """A pool of one thread of this process: what the networks of a figure are simulated on in tests."""
    with ThreadPoolExecutor(1) as pool:
        yield pool
