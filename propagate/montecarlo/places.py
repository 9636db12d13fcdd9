"""Where a worker computes, and how much memory there is."""

from __future__ import annotations

from dataclasses import dataclass

from propagate.checks import check_memory, integer, memory_of_host
from propagate.model import Model
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.memory import BATCH, ONE_DRAW, Plan, plan

ROOTS = 6  # arrays of tokens by tokens that a start is made with


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


def planned_at(where: Place, model: Model, precision: str, sampler: str, memory: int | None) -> Plan:
    """The plan of draws there, within `memory` bytes or what is taken by default.

    Raises:
        ModelError: for a memory out of range, or a draw that takes more than there is.
    """
    if memory is not None:
        integer("memory", memory, at_least=1)
    limits = {"batch": memory or where.batch, "one_draw": memory or where.one_draw}
    planned = plan(model, where.backend, precision, sampler, **limits)
    size = f"one draw of depth={model.depth}, width={model.width}, tokens={model.tokens}"
    check_memory(size, planned.taken + ROOTS * 8 * model.tokens**2, where.most)
    return planned
