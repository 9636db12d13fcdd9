"""What was computed last, with what was warned of meanwhile, so that it comes back at once when asked for again."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """Values by all that they depend on, of which those that were asked for longest ago are forgotten.

    Args:
        most: how many there are at most.

    Example: of three, two are kept.
        >>> kept = Kept[int](most=2)
        >>> [kept.made(name, lambda: len(name)) for name in ("a", "bb", "ccc")]
        [1, 2, 3]
        >>> kept.known("a"), kept.known("bb")
        (None, 2)
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, tuple[Value, list[warnings.WarningMessage]]] = OrderedDict()

    def known(self, key: Hashable) -> Value | None:
        """The value, if it is kept; that is no wish for it."""
        found = self._values.get(key)
        return None if found is None else found[0]

    def made(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value, made if it is not kept; what was warned of when it was made is warned of every time."""
        if key not in self._values:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self._values[key] = make(), caught
        self._values.move_to_end(key)
        value, said = self._values[key]
        while len(self._values) > self._most:
            self._values.popitem(last=False)
        for one in said:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        return value
