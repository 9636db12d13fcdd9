"""Where a worker computes, and how much memory there is."""

from __future__ import annotations

from dataclasses import dataclass

from propagate.checks import memory_of_host
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.memory import BATCH, ONE_DRAW


@dataclass(frozen=True)
class Place:
    """Where a worker computes, the bytes that a batch and a single draw may take by default, and all there are."""

    backend: str
    device: str
    batch: int
    one_draw: int
    most: int


def place_of(backend: str, precision: str) -> Place:
    """Of a worker, when it is asked; see `choose_backend` for the errors raised."""
    chosen = choose_backend(backend, precision)
    if chosen.name == "numpy":
        return Place(chosen.name, chosen.device, BATCH, ONE_DRAW, memory_of_host())
    pool = chosen.xp.get_default_memory_pool()  # what CuPy holds for its next arrays is free too
    half = int(chosen.xp.cuda.Device().mem_info[0] + pool.free_bytes()) // 2
    return Place(chosen.name, chosen.device, half, half, 2 * half)
