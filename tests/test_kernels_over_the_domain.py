"""Second-moment maps against dense quadrature over their whole domain: tokens that point apart, small and large q.

The reference knows no series, no closed form and no drop: E phi(u) phi(v) by the trapezoid rule over two independent
normals, with a step that resolves phi at the variance; of half-lines in polar coordinates, over the wedge in which both
are positive.
"""

import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import sympy
from numpy.typing import NDArray

from propagate.activations import GATES, Activation, as_activation
from propagate.expressions import symbol
from propagate.theory.gaussian import activations, expressions
from propagate.theory.gaussian.activations import maps_of
from propagate.theory.gaussian.panels import drop
from propagate.theory.tokens import kernels as gram_kernels
from propagate.theory.tokens.gram import Gram
from propagate.theory.tokens.kernels import kernel_of
from propagate.theory.tokens.kinked import map_of
from tests.test_activation_kernels import PHI, SLOPE

Array = NDArray[np.float64]
Function = Callable[[Array], Array]
VARIANCES = (1e-3, 0.2, 2.41, 3.0, 16.0, 40.0, 1e3)
CORRELATIONS = (-1.0, -0.95, -0.7, -1 / 7, 0.0, 0.5, 0.97, 1.0)
PLACES = [(q, c) for q in VARIANCES for c in (CORRELATIONS if q < 1e3 else (-0.7, 1.0))]
FEW_PLACES = [(1e-3, 0.5), (0.2, -1.0), (2.41, -0.95), (3.0, 0.97), (3.0, -1 / 7), (40.0, 0.5), (1e3, 1.0)]
HALF_LINES = {"relu": (1, 1.0, 0, 1.0), "squared_relu": (2, 1.0, 1, 2.0)}  # powers and factors of phi and phi'
KINKED = ("leaky_relu", "elu")  # at 0
LATER = [name for name in PHI if name not in HALF_LINES and name not in ("linear", "gelu", "silu", "tanh")]


def expected(name: str, which: str, q: float, r: float, c: float) -> float:
    """E phi(u) phi(v), or with "slope" E phi'(u) phi'(v), for variances q and r and correlation c."""
    if name in GATES:
        gate, covariance = GATES[name], c * math.sqrt(q * r)
        if which == "value":
            return expected(gate, "value", q, r, c) * covariance
        return expected(gate, "value", q, r, c) + covariance * expected(gate, "slope", q, r, c)
    if name in HALF_LINES:
        power, factor = HALF_LINES[name][:2] if which == "value" else HALF_LINES[name][2:]
        return factor**2 * _wedge(power, c) * math.sqrt(q * r) ** power
    return (_quadrants if name in KINKED else _plane)(name, which, q, r, c)


def _wedge(power: int, c: float) -> float:
    """E (u+ v+)^power of unit normals: r^(2 power) averages to 2^power power!; the angle by Gauss-Legendre."""
    angle = math.acos(c)
    t, w = np.polynomial.legendre.leggauss(40)
    half = (math.pi - angle) / 2
    theta = angle / 2 + half * t
    return float(w @ (np.cos(theta) * np.cos(theta - angle)) ** power) * half / (2 * math.pi) * 2**power * (power or 1)


@cache
def _plane(name: str, which: str, q: float, r: float, c: float) -> float:
    phi = PHI[name] if which == "value" else SLOPE[name]
    step = min(0.1, 0.3 / math.sqrt(max(q, r)))
    z = np.arange(-8.7, 8.7 + step / 2, step)
    weight = np.exp(-z * z / 2) * step / math.sqrt(2 * math.pi)
    if abs(c) == 1:
        return float(weight @ (phi(math.sqrt(q) * z) * phi(c * math.sqrt(r) * z)))
    second = c * z[:, None] + math.sqrt(1 - c * c) * z
    return float(weight @ (phi(math.sqrt(q) * z) * (phi(math.sqrt(r) * second) @ weight)))


@cache
def _quadrants(name: str, which: str, q: float, r: float, c: float) -> float:
    """Of a function with a kink at 0, by Gauss-Legendre over dense panels on either side: u, and v given u."""
    phi = PHI[name] if which == "value" else SLOPE[name]
    t, w = np.polynomial.legendre.leggauss(16)

    def panels(edges: Array) -> tuple[Array, Array]:
        half = np.diff(edges, axis=-1)[..., None] / 2
        middle = (edges[..., 1:, None] + edges[..., :-1, None]) / 2
        shape = (*edges.shape[:-1], -1)
        return (middle + half * t).reshape(shape), (half * w).reshape(shape)

    length = min(0.5, 1.0 / math.sqrt(max(q, r)))
    even = np.linspace(-8.7, 8.7, 2 * math.ceil(8.7 / length) + 1)  # 0 among them
    # where v given u is all on one side of its kink or the other, as u moves, takes panels as short as v's spread
    spread = math.sqrt(1 - c * c)
    near = np.geomspace(max(spread, 1e-3) * 1e-1, 8.7, 40) if 0 < spread < 0.9 else np.zeros(0)
    z, weight = panels(np.sort(np.concatenate([even, near, -near])))
    weight = weight * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    u = math.sqrt(q) * z
    if abs(c) == 1:
        return float(weight @ (phi(u) * phi(c * math.sqrt(r) * z)))
    kink = np.clip(-c * z / spread, -8.7, 8.7)[:, None]
    y, other = panels(np.sort(np.concatenate([np.broadcast_to(even, (len(z), len(even))), kink], axis=1), axis=1))
    v = math.sqrt(r) * (c * z[:, None] + spread * y)
    inner = (phi(v) * other * np.exp(-y * y / 2)).sum(axis=1) / math.sqrt(2 * math.pi)
    return float(weight @ (phi(u) * inner))


def of_pair(name: str, which: str, q: float, c: float) -> float:
    at_one, drop = getattr(maps_of(name), which)(q, q * (1 - c))
    return float(at_one - drop)


def of_gram(name: str, which: str, q: float, r: float, c: float) -> float:
    covariance = c * math.sqrt(q * r)
    return float(getattr(kernel_of(name), which)(Gram.of([[q, covariance], [covariance, r]])).matrix[0, 1])


def wrong_places(found: Callable[..., float], name: str, which: str, ratio: float = 1.0) -> list[tuple[Any, ...]]:
    """Where a map is off by 1e-9 of its largest value at the variance, and the two values.

    (ReLU's slope is an angle: of parallel tokens, the root of the rounding of their covariance.)
    """
    wrong, tolerance = [], 1e-9 if (name, which) != ("relu", "slope") else 3e-8
    for q, c in FEW_PLACES if name in LATER else PLACES:
        largest = max(expected(name, which, q, q, 1.0), expected(name, which, ratio * q, ratio * q, 1.0))
        values = found(q, c), expected(name, which, q, ratio * q, c)
        if not abs(values[0] - values[1]) < tolerance * largest:
            wrong.append((q, c, *values))
    return wrong


@pytest.mark.few(12)
@pytest.mark.parametrize("which", ["value", "slope"])
@pytest.mark.parametrize("name", [*PHI, *GATES])
def test_pairs_of_tokens(name: str, which: str) -> None:
    assert not wrong_places(lambda q, c: of_pair(name, which, q, c), name, which)
    assert wrong_places(lambda q, c: of_pair(name, which, q, c) * (1 + 1e-7), name, which)


@pytest.mark.few(5)
@pytest.mark.parametrize("ratio", [1.0, 1.7])
@pytest.mark.parametrize("which", ["value", "slope"])
@pytest.mark.parametrize("name", [*(name for name in PHI if name not in LATER), "geglu", "mish", "elu"])
def test_pairs_in_a_gram_matrix(name: str, which: str, ratio: float) -> None:
    assert not wrong_places(lambda q, c: of_gram(name, which, q, ratio * q, c), name, which, ratio)


CLOSED_FORMS = ("relu", "leaky_relu", "gelu", "tanh")


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms_are_the_quadrature_of_the_expression(name: str) -> None:
    """Over panels, however smooth, for pairs and Gram matrices, down to deviations of 1e-20."""
    found = expressions.functions(as_activation(name))
    bare = activations.by_panels(*found.kinked, name)
    grams = [map_of(kinked, name) for kinked in found.kinked]
    for i, which in enumerate(("value", "slope")):
        closed, of_gram = getattr(maps_of(name), which), getattr(kernel_of(name), which)
        for q, share in itertools.product((0.2, 1.0, 25.0), (1e-20, 1e-6, 0.3, 1.0, 1.9)):
            expected = closed(q, q * share)
            assert getattr(bare, which)(q, q * share) == pytest.approx(expected, rel=1e-8, abs=0)
            if share < 1:  # an even function has its least average at correlation 0
                assert getattr(bare, which)(q, q * share * (1 + 1e-5)) != pytest.approx(expected, rel=1e-8, abs=0)
        tokens = Gram.of([[1.0, 0.2, -0.5], [0.2, 2.0, 1.1], [-0.5, 1.1, 0.7]])
        np.testing.assert_allclose(grams[i](tokens).matrix, of_gram(tokens).matrix, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_many_pairs_of_one_variance_are_interpolated_well() -> None:
    """Against each by itself, also where kinks at two places meet; and distances keep their digits."""
    z = symbol()
    clipped = expressions.functions(Activation("clipped", sympy.Min(1, sympy.Max(-1, z))))
    losses = np.concatenate([[1e-18, 1e-9], np.linspace(1e-4, 2.0, 100)])
    apart = np.array([[0 * losses, losses], [losses, 0 * losses]]).transpose(2, 0, 1)
    elu = expressions.functions(as_activation("elu"))
    for kinked, q in ((clipped.kinked[0], 1.0), (clipped.kinked[1], 9.0), (elu.kinked[1], 1.0)):
        found = map_of(kinked, "it")(Gram(q * (1 - apart), q * apart)).deviation[:, 0, 1]
        one_by_one = np.array([drop(kinked, q, q, q * lost) for lost in losses])
        np.testing.assert_allclose(found[:3], one_by_one[:3], rtol=1e-7)
        np.testing.assert_allclose(found, one_by_one, rtol=0, atol=1e-9 * one_by_one.max())
        assert abs(found - one_by_one * (1 + 1e-7)).max() > 1e-9 * one_by_one.max()


@pytest.mark.parametrize("gain", [0.4, 2.5])
def test_a_gate_with_a_gain_of_its_own(gain: float) -> None:
    """K(gain^2 q) q and its derivative, from the gate's own maps; at gain 1 it would be rejected."""
    q, p = 1.3, 0.4
    gate = maps_of("silu")
    k1, k_drop = gate.value(gain**2 * q, gain**2 * (q - p))
    s1, s_drop = gate.slope(gain**2 * q, gain**2 * (q - p))
    for which, expected in (("value", (k1 - k_drop) * p), ("slope", k1 - k_drop + gain**2 * p * (s1 - s_drop))):
        one, apart = getattr(maps_of("swiglu", gain), which)(q, q - p)
        of_gram = getattr(kernel_of("swiglu", gain), which)(Gram.of([[q, p], [p, q]]))
        assert one - apart == pytest.approx(expected, rel=1e-12)
        assert of_gram.matrix[0, 1] == pytest.approx(expected, rel=1e-9)
        one, apart = getattr(maps_of("swiglu"), which)(q, q - p)
        assert one - apart != pytest.approx(expected, rel=0.1)


UNFOLDED = activations._gelu_parts


def folded(variance: float, deviation: float) -> tuple[float, ...]:
    """GELU's pieces with two arcsines in one, which folds where tokens point apart at a variance above 2.41."""
    parts = list(UNFOLDED(variance, deviation))
    a, square_drop, root1, root = parts[:4]
    sine = square_drop / (variance * root + a * root1) if deviation < 2 * variance else 0.0
    parts[-1] = math.asin(min(max(sine, -1.0), 1.0)) / (2 * math.pi)
    return tuple(parts)


@pytest.mark.parametrize("name", ["gelu", "geglu"])
def test_the_folded_arcsine_is_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_gelu_parts", folded)
    for which in ("value", "slope"):
        found = wrong_places(lambda q, c, which=which: of_pair(name, which, q, c), name, which)
        assert found
        assert all((q > 2.4 and c < 0) or c == -1 for q, c, *_ in found)


def test_gelu_of_tokens_that_point_apart() -> None:
    """By Gauss-Hermite quadrature, and once by simulation, of the value that was wrong."""
    assert of_pair("gelu", "value", 16.0, -0.7) == pytest.approx(0.291, abs=1e-3)
    assert of_pair("gelu", "slope", 16.0, -0.7) == pytest.approx(0.1183, abs=1e-4)


@pytest.mark.parametrize("share", [1e-6, 1e-12, 1e-20])
def test_large_variances_in_a_gram_matrix_keep_small_deviations(share: float) -> None:
    """Where tokens have one variance, GELU's closed form for unequal ones would leave the rounding of a difference."""
    q = 2.5 * gram_kernels.quadrature.LARGEST_SERIES
    u = Gram.exchangeable(q, share * q, 2)
    for which in ("value", "slope"):
        drop = getattr(kernel_of("gelu"), which)(u).deviation[0, 1]
        assert drop == pytest.approx(getattr(maps_of("gelu"), which)(q, share * q)[1], rel=1e-12, abs=0)
