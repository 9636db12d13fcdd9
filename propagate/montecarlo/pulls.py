"""How cotangents go back through an operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from propagate.montecarlo.arrays import Array

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
