"""Sums of what pulls send back, in as few passes as the device can."""

from __future__ import annotations

from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import Backend
from propagate.montecarlo.pulls import AddingPull, Pull


def added(backend: Backend, pull: Pull, g: Array, onto: Array) -> Array:
    """What a pull makes of a cotangent, added to another array."""
    return pull.add(g, onto) if isinstance(pull, AddingPull) else backend.add(onto, pull(g))


def summed(backend: Backend, first: Pull, *others: Pull) -> AddingPull:
    """The sum of what several pulls make of one cotangent.

    Example:
        >>> from propagate.montecarlo.backend import choose_backend
        >>> pull = summed(choose_backend("numpy"), lambda g: 2 * g, lambda g: 3 * g)
        >>> pull(1), pull.add(1, 10)
        (5, 15)
    """

    def add(g: Array, onto: Array | None) -> Array:
        total = first(g) if onto is None else added(backend, first, g, onto)
        for pull in others:
            total = added(backend, pull, g, total)
        return total

    return AddingPull(add)
