"""Smooth activations with straight ends, such as SiLU, against quadrature at variances from 1e-3 to 1e6.

The reference knows nothing but the function: an average over u, and one over v given u, by Gauss-Legendre panels that
are short about 0, where the function bends, and about the mean of v.
"""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import sympy
from numpy.typing import NDArray

from propagate.activations import Activation, as_activation
from propagate.expressions import symbol
from propagate.theory.gaussian.activations import maps_of, silu, silu_slope
from propagate.theory.gaussian.expressions import functions
from propagate.theory.gaussian.panels import drop
from propagate.theory.gaussian.quadrature import Elementwise
from propagate.theory.gaussian.straight_ends import StraightEnds, at_correlation_1, straight_ends
from propagate.theory.tokens import angles
from propagate.theory.tokens.gram import Gram, distances
from propagate.theory.tokens.kernels import kernel_of
from propagate.theory.tokens.large_variances import by_ends, of_large_variance

Array = NDArray[np.float64]
NAMES = ("silu", "mish", "softplus", "quick_gelu", "tanh_gelu", "gelu", "tanh", "erf", "elu")
PLACES = [(1e-3, 1e3, -0.4), (40.0, 60.0, -1.0), (300.0, 300.0, 0.95), (2e4, 1e4, 0.0), (1e6, 1e6, 1 - 1e-5)]
NODES, WEIGHTS = np.polynomial.legendre.leggauss(12)
BENDS = np.array([0.0, *np.geomspace(0.8, 1e4, 16)])


def panels(edges: Array) -> tuple[Array, Array]:
    half = np.diff(edges, axis=-1)[..., None] / 2
    shape = (*edges.shape[:-1], -1)
    at = (edges[..., 1:, None] + edges[..., :-1, None]) / 2 + half * NODES
    return at.reshape(shape), (half * WEIGHTS).reshape(shape)


def density(x: Array, variance: float) -> Array:
    return np.asarray(np.exp(-x * x / (2 * variance)) / math.sqrt(2 * math.pi * variance))


def expected(f: Elementwise, s: float, t: float, c: float) -> float:
    """E f(u) f(v) for variances s and t and correlation c."""
    along, left = c * math.sqrt(t / s), t * (1 - c * c)
    even, bends, reach = np.linspace(-8.7, 8.7, 16), np.concatenate([BENDS, -BENDS]), 8.7 * math.sqrt(s)
    near = np.concatenate([bends, bends / along]) if c else bends
    u, weight = panels(np.sort(np.concatenate([math.sqrt(s) * even, np.clip(near, -reach, reach)])))
    weight = weight * density(u, s) * f(u)
    if left == 0:
        return float(weight @ f(along * u))
    mean, reach = along * u[:, None], 8.7 * math.sqrt(left)
    edges = np.concatenate([mean + math.sqrt(left) * even, np.clip(bends, mean - reach, mean + reach)], axis=1)
    v, inner = panels(np.sort(edges, axis=1))
    return float(weight @ (inner * density(v - mean, left) * f(v)).sum(axis=1))


def two(s: float, t: float, c: float) -> Gram:
    return Gram.of([[s, c * math.sqrt(s * t)], [c * math.sqrt(s * t), t]])


def error(found: float, f: Elementwise, s: float, t: float, c: float) -> float:
    """Relative to the tokens' own root mean squares."""
    size = math.prod(math.sqrt(expected(f, q, q, 1.0)) for q in (s, t))
    return abs(found - expected(f, s, t, c)) / size


@pytest.mark.few(2)
@pytest.mark.parametrize("name", NAMES)
def test_pairs_of_any_variances(name: str) -> None:
    of = functions(as_activation(name))
    ends = straight_ends(of.slope, of.kinked[0].kinks)
    assert ends is not None
    for f, fall in ((of.value, ends.drop), (of.slope, ends.slope_drop)):
        assert all(error(by_ends(f, fall, two(*place)).matrix[0, 1], f, *place) < 1e-9 for place in PLACES)


def test_ends_alone_are_rejected() -> None:
    """A ReLU for SiLU, and widths that are a little wrong."""
    place, found = (40.0, 60.0, 0.5), straight_ends(silu_slope)
    assert found is not None

    def of(law: StraightEnds) -> float:
        s, t, loss = (np.array([x]) for x in (place[0], place[1], 0.5))
        one, two = at_correlation_1(silu_slope, np.array(place[:2]))
        return float(one @ two - law.slope_drop(s, t, loss)[0])

    assert error(of(found), silu_slope, *place) < 1e-9
    assert error(of(replace(found, squares=1e-12 * found.squares)), silu_slope, *place) > 1e-3
    assert error(of(replace(found, squares=1.001 * found.squares)), silu_slope, *place) > 1e-6


@pytest.mark.parametrize("q", [50.0, 1e6])
def test_tokens_that_nearly_coincide(q: float) -> None:
    """To first order in what they differ by, the variance or the angle; of a difference of averages nothing is left."""
    apart, change = 1e-14, 1e-9
    value, slope = of_large_variance(silu, silu_slope)
    of_angle = Gram.exchangeable(q, apart, 2)
    for law, derivative in ((value, silu_slope), (slope, functions(as_activation("silu")).kinked[1].slope)):
        per_distance = law(of_angle).deviation[0, 1] / apart
        assert per_distance == pytest.approx(expected(derivative, q, q, 1.0), rel=1e-8)
        assert per_distance != pytest.approx(1.001 * expected(derivative, q, q, 1.0), rel=1e-8)
    r, met = q * (1 + change) ** 2, q * (1 + change)
    of_size = Gram(np.array([[q, met], [met, r]]), q * change**2 / 2 * (1 - np.eye(2)))
    x, weight = panels(np.concatenate([-BENDS[:0:-1], BENDS]))
    moved = float(weight @ (density(x, q) * (x * silu_slope(x)) ** 2)) * change**2 / 2
    assert value(of_size).deviation[0, 1] == pytest.approx(moved, rel=1e-6, abs=0)
    assert distances(value(of_size).matrix)[0, 1] != pytest.approx(moved, rel=0.1, abs=0)


@pytest.mark.parametrize("name", ["silu", "elu"])
def test_one_token_and_tokens_that_are_zero(name: str) -> None:
    kernel, q = kernel_of(name), 90.0
    alone = kernel.value(Gram.of([[q]]))
    assert alone.matrix[0, 0] == pytest.approx(maps_of(name).value(q, 0.0)[0], rel=1e-12)
    with_zero = kernel.value(Gram.of([[0.0, 0.0], [0.0, q]]))
    np.testing.assert_allclose(with_zero.matrix, [[0.0, 0.0], [0.0, alone.matrix[0, 0]]], atol=1e-12)
    assert with_zero.deviation[0, 1] == pytest.approx(alone.matrix[0, 0] / 2, rel=1e-12)


def test_pairs_and_gram_matrices_are_of_one_law() -> None:
    q, apart = 1e5, 3e4
    for which in ("value", "slope"):
        of_pair = getattr(maps_of("swiglu"), which)(q, apart)
        of_gram = getattr(kernel_of("swiglu"), which)(Gram.exchangeable(q, apart, 3))
        assert of_pair == pytest.approx((of_gram.matrix[1, 1], of_gram.deviation[0, 1]), rel=1e-12)


def test_a_kink_at_0_however_near_the_tokens() -> None:
    """Against panels; without the sign that jumps a leaky slope is rejected."""
    z = symbol()
    selu = sympy.Piecewise((z, z > 0), (1.7 * (sympy.exp(z) - 1), True))  # whose slope jumps
    of = functions(Activation("selu", selu))
    ends = straight_ends(of.slope, (0.0,))
    assert ends is not None
    q, one = 3.0, np.array([3.0])
    for kinked, law in zip(of.kinked, (ends.drop, ends.slope_drop), strict=True):
        for loss in (1e-12, 1e-4, 0.3, 2.0):
            assert law(one, one, np.array([loss]))[0] == pytest.approx(drop(kinked, q, q, q * loss), rel=2e-7, abs=0)
    smooth = replace(ends, even=ends.even * (ends.squares > 1e-20))
    assert smooth.slope_drop(one, one, np.array([0.3]))[0] != pytest.approx(drop(of.kinked[1], q, q, 0.9), rel=1e-2)
    assert straight_ends(of.slope, (0.5,)) is None


def test_tables_over_angles_reach_as_near_as_a_large_variance_needs() -> None:
    ends, q = straight_ends(silu_slope), 1e6
    assert ends is not None
    fall = partial(ends.slope_drop, np.array([q]), np.array([q]))
    losses = np.concatenate([np.geomspace(1e-12, 1.0, 40), 2 - np.geomspace(1e-9, 1.0, 40)])
    np.testing.assert_allclose(angles.table(fall, q).at(losses), fall(losses), rtol=1e-9)
    of_1 = angles.table(fall, 1.0)
    assert np.abs(of_1.at(losses) / fall(losses) - 1).max() > 1e-3


def test_what_has_no_straight_ends_is_none() -> None:
    z = symbol()
    for expression in (sympy.sin(z), z + sympy.sin(z) / 2):
        assert straight_ends(functions(Activation("wave", expression)).slope) is None
    bump = functions(Activation("bump", z * sympy.exp(-(z**2))))
    assert straight_ends(bump.slope) is not None
    value, _ = of_large_variance(bump.value, bump.slope)
    assert error(value(two(80.0, 40.0, 0.7)).matrix[0, 1], bump.value, 80.0, 40.0, 0.7) < 1e-9
