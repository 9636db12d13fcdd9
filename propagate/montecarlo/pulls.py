"""How cotangents go back through an operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from propagate.montecarlo.backend import Array, Backend

Pull = Callable[[Array], Array]  # from the cotangent of what an operator gave to that of what it was given


@dataclass(frozen=True, eq=False, slots=True)
class AddingPull:
    """A pull that can add its result to another array in the pass that makes it.

    Attributes:
        add: takes a cotangent, and the array to add to or None.
    """

    add: Callable[[Array, Array | None], Array]

    def __call__(self, g: Array) -> Array:
        return self.add(g, None)


def chain(*pulls: Pull) -> Pull:
    """One pull after another, in the order in which a cotangent meets them.

    Example:
        >>> chain(lambda g: g + 1, lambda g: 2 * g)(3)
        8
    """

    def first(g: Array) -> Array:
        for pull in pulls[:-1]:
            g = pull(g)
        return g

    def whole(g: Array) -> Array:
        return pulls[-1](first(g))

    last = pulls[-1]
    return AddingPull(lambda g, onto: last.add(first(g), onto)) if isinstance(last, AddingPull) else whole


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
