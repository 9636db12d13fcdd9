"""Products that leave a mask's zeros out, against NumPy's with all of them."""

import math

import numpy as np
import pytest

from propagate.theory.tokens import averages, triangular
from propagate.theory.tokens.averages import Projected
from propagate.theory.tokens.gram import Gram
from propagate.theory.tokens.softmax import Attention, heads

TOKENS = 12
BLOCK = 3
CAUSAL = np.tri(TOKENS, dtype=bool)
WINDOW = CAUSAL & ~np.tri(TOKENS, k=-4, dtype=bool)
PREFIX = CAUSAL | (np.arange(TOKENS) < 5)
ALL = np.ones((TOKENS, TOKENS), dtype=bool)
MASKS = {"causal": CAUSAL, "window": WINDOW, "prefix": PREFIX, "all": ALL}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("sign", [1, -1])
def test_products_are_those_with_the_zeros(name: str, sign: int) -> None:
    draw = np.random.default_rng(1)
    seen = MASKS[name]
    a, m = draw.standard_normal((2, 4, TOKENS, TOKENS)) * seen, draw.standard_normal((2, 1, TOKENS, TOKENS))
    other, sided = a.swapaxes(-1, -2), m + sign * m.swapaxes(-1, -2)
    symmetric, ends = m + m.swapaxes(-1, -2), triangular.ends_of(seen, BLOCK)
    made, behind = triangular.times(a, sided, ends), triangular.after(sided, a, ends)
    for found, expected in (
        (made, a @ sided),
        (behind, sided @ a),
        (triangular.times_transposed(m, a, ends), m @ other),
        (triangular.transposed_times(a, m, ends), other @ m),
        (triangular.rows_met(made, a, ends, sign), a @ sided @ other),
        (triangular.columns_met(behind, a, ends, sign), other @ sided @ a),
        (triangular.of_rows(a, symmetric, ends), a @ symmetric @ other),
        (triangular.of_columns(a, symmetric, ends), other @ symmetric @ a),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_blocks_are_as_many_as_the_mask_allows() -> None:
    found = {name: triangular.ends_of(seen, BLOCK) for name, seen in MASKS.items()}
    assert found == {"causal": (3, 6, 9, 12), "window": (3, 6, 9, 12), "prefix": (5, 8, 12), "all": (12,)}
    assert triangular.ends_of(CAUSAL | CAUSAL.T[::-1], BLOCK) == (12,)


def test_blocks_that_the_mask_does_not_have_are_noticed() -> None:
    a = np.random.default_rng(2).standard_normal((TOKENS, TOKENS)) * PREFIX
    wrong = triangular.of_rows(a, np.eye(TOKENS), triangular.ends_of(CAUSAL, BLOCK))
    assert np.abs(wrong - a @ a.T).max() > 0.1


@pytest.mark.parametrize("size", [4, math.inf])
@pytest.mark.parametrize("name", ["causal", "prefix"])
def test_averages_do_not_depend_on_the_blocks(name: str, size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws in blocks and in one, which is every product written out; draws of another mask differ."""
    tokens, g, value = (Gram.of(_positive(seed)) for seed in (3, 4, 5))

    def of(seen: np.ndarray, block: int) -> list[np.ndarray]:
        monkeypatch.setattr(triangular.ends_of, "__defaults__", (block,))
        kind = Attention(seen, 1.5, (), 8, (1, 0), size)
        drawn = heads(tokens, tokens, kind)
        assert (len(drawn.ends) > 1) == (block < TOKENS)
        paths = averages.logits(drawn, Projected(tokens, tokens, value), g, kind)
        made = (averages.output(drawn, value), averages.values(drawn, g), *paths)
        return [part for gram in made for part in gram]

    written_out = of(MASKS[name], TOKENS)
    for found, expected in zip(of(MASKS[name], BLOCK), written_out, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    for other, expected in zip(of(WINDOW, BLOCK), written_out, strict=True):
        assert np.abs(other - expected).max() > 1e-2 * np.abs(expected).max()


def _positive(seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((2, TOKENS, 2 * TOKENS))
    return np.asarray(x @ x.swapaxes(-1, -2) / (2 * TOKENS))
