"""Shorter ways to the same numbers: both modes of a pull at once, complex turns, interpolated coefficients."""

import numpy as np
import pytest

import propagate as pg
from propagate.theory.gaussian import quadrature
from propagate.theory.gaussian.activations import silu_slope
from propagate.theory.pairs.moments import Moments
from propagate.theory.reading import blocks
from propagate.theory.reading.blocks import alone, read
from propagate.theory.tokens import drawn_heads
from propagate.theory.tokens.drawn_heads import Norms, side_by_side, turn, turned
from propagate.theory.tokens.experts import _of_vectors
from propagate.theory.tokens.gram import Gram
from propagate.theory.tokens.softmax import Attention
from propagate.theory.walks import block_of

MODELS = (
    pg.Model("periln", depth=3, width=64, heads=4, tokens=5, dropout=0.1, activation="gelu"),
    pg.Model("olmo2", depth=3, width=64, heads=4, tokens=5, activation="swiglu", norm="layer"),
    pg.Model("prenorm", depth=3, width=64, heads=16, tokens=5, logit_std=3.0, activation="elu"),
    pg.Model("dyt", depth=3, width=64, heads=4, tokens=5, attention=pg.LatentAttention(4, key_value_rank=16)),
)


def pulled(model: pg.Model, cotangents: list[Moments]) -> list[Moments]:
    """Through the second block, one after the other."""
    block = block_of(model, 2)
    found = read(lambda x: model.equations.block(x, block), block.algebra, alone(Moments(1.3, 0.4)))
    return [found.pull(((g,),))[0][0] for g in cotangents]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model.equations).__name__)
def test_a_pull_of_both_modes_at_once_is_that_of_each(model: pg.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    cotangents = [Moments(1.0, 0.0), Moments(1.0, 1.0), Moments(0.7, 0.2)]
    at_once = pulled(model, cotangents)
    monkeypatch.setattr(blocks, "_on_two_modes", lambda pull, tape: pull)
    apart = pulled(model, cotangents)
    assert at_once[:2] == apart[:2]  # to the last bit
    np.testing.assert_allclose(at_once[2], apart[2], rtol=1e-14)
    assert at_once[0] != apart[1]


@pytest.mark.parametrize("direction", [1, -1])
def test_complex_numbers_turn_as_pairs_of_coordinates_do(direction: int) -> None:
    x, frequencies = np.random.default_rng(0).standard_normal((3, 5, 8)), (1.0, 0.3, 0.1, 0.02)
    found = side_by_side(x)
    turn(found, frequencies, direction)
    np.testing.assert_allclose(found, side_by_side(turned(x, frequencies, direction)), rtol=0, atol=1e-15)
    assert np.abs(found - side_by_side(turned(x, frequencies, -direction))).max() > 0.1


def test_coefficients_of_many_variances_are_interpolated_to_rounding() -> None:
    variances = np.geomspace(3.0, 11.0, 200)
    direct = quadrature.coefficients(silu_slope, variances)
    found = quadrature.coefficients_of_many(silu_slope, variances)
    common = min(found.shape[1], direct.shape[1])
    assert np.abs(found[:, :common] - direct[:, :common]).max() < 4e-15
    assert not np.array_equal(found[:, :common], direct[:, :common])  # another way


def test_what_varies_too_fast_is_not_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the last terms of the series: without it 6 nodes would be off."""
    variances, angles = np.geomspace(3.0, 11.0, 200), (np.arange(6) + 0.5) * np.pi / 6
    few = {"MANY": 6, "_ANGLES": angles, "_NODES": np.cos(angles), "_SIGNS": (-1.0) ** np.arange(6) * np.sin(angles)}
    for name, value in few.items():
        monkeypatch.setattr(quadrature, name, value)
    monkeypatch.setattr(quadrature, "_over_octave", quadrature._over_octave.__wrapped__)  # nothing kept of 24 nodes
    direct = quadrature.coefficients(silu_slope, variances)
    np.testing.assert_array_equal(quadrature.coefficients_of_many(silu_slope, variances), direct)


def test_distances_of_gates_that_nearly_agree_do_not_cancel() -> None:
    one = np.random.default_rng(1).random((1, 1, 40))
    both = np.concatenate([one, one + 1e-12], axis=1)
    found = _of_vectors(both)
    assert found.deviation[0, 0, 1] == pytest.approx(40 * 1e-24 / 2, rel=1e-3, abs=0)
    matrix = found.matrix[0]
    assert (matrix[0, 0] + matrix[1, 1]) / 2 - matrix[0, 1] != pytest.approx(40 * 1e-24 / 2, rel=1e-3, abs=0)


SIZE = 1e-45
"""Of second moments: those of what is sent back, SIZE**2, are below single precision's range."""


def sent_back(norms: Norms) -> list[np.ndarray]:
    """By heads with rotary positions, to queries and keys, of alike tokens and cotangents that fade over tokens."""
    tokens = 6
    attention = Attention(np.tri(tokens, dtype=bool), 4.0, (1.0, 0.1, 0.01), 64, (3, 1), 6)
    x = Gram.exchangeable(1.0, 1e-6, tokens)
    g = Gram.of(np.eye(tokens)[None]).times(10.0 ** -np.arange(tokens))
    seen, values, g = (Gram(one.matrix.reshape(1, 6, 6), one.deviation.reshape(1, 6, 6)) for one in (x, x, g))
    drawn = drawn_heads.draw_heads(seen, seen, attention, norms)
    found = drawn_heads.to_logits(drawn, values.weighted(SIZE), g.weighted(SIZE), attention, norms)
    return [one.matrix / SIZE**2 for one in found]


@pytest.mark.parametrize("norms", [Norms(False, False, False), Norms(True, True, True)], ids=["plain", "normed"])
def test_heads_that_turn_are_as_in_double_precision(norms: Norms, monkeypatch: pytest.MonkeyPatch) -> None:
    single = sent_back(norms)
    with monkeypatch.context() as patch:
        patch.setattr(drawn_heads, "_largest", lambda matrix: np.ones((1, 1, 1)))
        unscaled = sent_back(norms)
    monkeypatch.setattr(drawn_heads, "precision_of", lambda attention: np.float64)
    for one, double, lost in zip(single, sent_back(norms), unscaled, strict=True):
        apart = np.sqrt(np.diagonal(double, axis1=1, axis2=2))
        scale = apart[:, :, None] * apart[:, None, :] + 1e-300
        assert 1e-9 < np.abs((one - double) / scale).max() < 3e-6
        assert np.abs((lost - double) / scale).max() > 0.1


@pytest.mark.parametrize("left", [1.0, np.array([[2.0, 0.0, -1.0]])], ids=["a number", "of each token"])
def test_tokens_scaled_in_place_leave_the_old_ones(left: float | np.ndarray) -> None:
    """Also a number and factors, whose product is a row; and a token that is 0 has no correlation to lose."""
    x, right = Gram.of([[[1.0, 0.3, 0.1], [0.3, 2.0, 0.2], [0.1, 0.2, 0.5]]]), np.array([[0.5, 0.0, 3.0]])
    kept = [part.copy() for part in x]
    found = x.scaled(left, right)
    np.testing.assert_allclose(found.matrix[0], np.reshape(left * np.ones(3), (3, 1)) * kept[0][0] * right, rtol=1e-15)
    x.product(x), x.loss_of_correlation()
    assert all(np.array_equal(part, old) for part, old in zip(x, kept, strict=True))
    loss = x.times(right).loss_of_correlation()[0]
    assert loss[1].tolist() == [0.0, 0.0, 0.0]
    assert loss[0, 2] == pytest.approx(1 - 0.1 / 0.5**0.5)
