"""Every pair of values stands in a covering array, and no fewer rows than the two largest factors need."""

import itertools

from covering import pairwise

FACTORS = ("abcdef", range(8), (0, 1), (False, True), "xy", (1, 2, 3))


def pairs(rows) -> set:
    return {(i, row[i], j, row[j]) for row in rows for i, j in itertools.combinations(range(len(FACTORS)), 2)}


def test_every_pair_is_met_in_few_rows() -> None:
    rows = pairwise(*FACTORS)
    assert pairs(rows) == pairs(itertools.product(*FACTORS))
    assert len(rows) <= 1.2 * 6 * 8
    assert pairs(rows[:-1]) != pairs(rows)  # none is there for nothing, at the end at least
