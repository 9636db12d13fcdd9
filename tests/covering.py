"""Few combinations in which every two values of different factors meet (a pairwise covering array)."""

import itertools
from collections.abc import Sequence
from typing import Any

Row = tuple[Any, ...]


def pairwise(*factors: Sequence[Any]) -> list[Row]:
    """Rows, one value of each factor, such that any two values of two factors stand together in some row.

    Greedy: each row begins with a pair that is missing and takes, factor by factor, the value with most missing pairs.

    Example:
        >>> rows = pairwise("abc", [0, 1], [False, True])
        >>> len(rows), len(set(itertools.product("abc", [0, 1], [False, True])))
        (6, 12)
    """
    missing = {
        ((i, a), (j, b))
        for (i, one), (j, other) in itertools.combinations(enumerate(factors), 2)
        for a, b in itertools.product(range(len(one)), range(len(other)))
    }
    rows: list[Row] = []
    while missing:
        chosen = dict(min(missing))
        for factor, values in enumerate(factors):
            if factor not in chosen:
                chosen[factor] = max(range(len(values)), key=lambda v: len(missing & _met({**chosen, factor: v})))
        missing -= _met(chosen)
        rows.append(tuple(values[chosen[factor]] for factor, values in enumerate(factors)))
    return rows


def _met(chosen: dict[int, int]) -> set[tuple[tuple[int, int], tuple[int, int]]]:
    return set(itertools.combinations(sorted(chosen.items()), 2))
