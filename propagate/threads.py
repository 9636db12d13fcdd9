"""Linear algebra in one thread, whatever the environment says.

Threads of one matrix product wait for one another by spinning: at the sizes met here that costs more than it brings,
and several times the work itself where other processes want the cores too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Within it NumPy's and SciPy's linear algebra has one thread for each of ours.

    The limit holds for the whole process, until it is left.

    Example:
        >>> import numpy as np
        >>> with one_thread_each():
        ...     print(np.ones((2, 3)) @ np.ones(3))
        [3. 3.]
    """
    with _libraries().limit(limits=1):
        yield


def cores() -> int:
    """That this process may use.

    Example:
        >>> cores() >= 1
        True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _libraries() -> Any:
    """Those that are loaded, looked for once: that takes a millisecond, a prediction hardly more."""
    import numpy as np  # noqa: F401
    import scipy.linalg  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
