"""What the theory holds in memory: nothing of size tokens x tokens where tokens are exchangeable."""

import tracemalloc

import numpy as np
import pytest

import propagate as pg
from propagate.masks import Mask, all_visible, visible


def peak_bytes(model: pg.Model) -> int:
    """Of a prediction, its modules being loaded."""
    pg.predict(pg.Model("prenorm", depth=1, tokens=2, logit_std=0.0), covariance=0.3)
    tracemalloc.start()
    try:
        pg.predict(model, covariance=0.3)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.filterwarnings("ignore::propagate.ValidityWarning")
def test_exchangeable_tokens_are_told_from_the_description() -> None:
    many = pg.Model("prenorm", depth=2, tokens=20_000, logit_std=0.0)
    assert many.exchangeable
    assert peak_bytes(many) < 20_000**2 / 20  # a twentieth of the array of booleans


FULL, HOLED = np.ones((3, 3), dtype=bool), np.tri(3, dtype=bool) | np.tri(3, k=-2, dtype=bool).T


@pytest.mark.parametrize(
    ("tokens", "causal", "window", "mask"),
    [
        (1, False, None, None),
        (1, True, None, None),
        (1, True, 1, None),
        (2, True, None, None),
        (3, True, 3, None),
        (3, True, 1, None),
        (3, False, None, None),
        (3, False, None, FULL),
        (3, False, None, HOLED),
    ],
)
def test_the_description_says_what_the_array_says(tokens: int, causal: bool, window: int | None, mask: object) -> None:
    given = None if mask is None else Mask.of(mask)
    assert all_visible(tokens, causal, given) == visible(tokens, causal, window, given).all()
