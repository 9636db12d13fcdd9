"""Second-moment maps against dense quadrature over their whole domain: tokens that point apart, small and large q.

The reference knows no series, no closed form and no drop: E phi(u) phi(v) by the trapezoid rule over two independent
normals, with a step that resolves phi at the variance; of half-lines in polar coordinates, over the wedge in which both
are positive.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from propagate.theory.gaussian import activations
from propagate.theory.gaussian.activations import ACTIVATIONS
from propagate.theory.tokens import kernels as gram_kernels
from propagate.theory.tokens.gram import Gram
from propagate.theory.tokens.kernels import KERNELS
from tests.test_activation_kernels import PHI, SLOPE

Array = NDArray[np.float64]
Function = Callable[[Array], Array]
VARIANCES = (1e-3, 0.2, 2.41, 3.0, 16.0, 40.0, 1e3)
CORRELATIONS = (-1.0, -0.95, -0.7, -1 / 7, 0.0, 0.5, 0.97, 1.0)
PLACES = [(q, c) for q in VARIANCES for c in (CORRELATIONS if q < 1e3 else (-0.7, 1.0))]
HALF_LINES = {"relu": (1, 1.0, 0, 1.0), "squared_relu": (2, 1.0, 1, 2.0)}  # powers and factors of phi and phi'
GATES = {"swiglu": "silu", "geglu": "gelu"}


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
    return _plane(name, which, q, r, c)


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


def of_pair(name: str, which: str, q: float, c: float) -> float:
    at_one, drop = getattr(ACTIVATIONS[name], which)(q, q * (1 - c))
    return float(at_one - drop)


def of_gram(name: str, which: str, q: float, r: float, c: float) -> float:
    covariance = c * math.sqrt(q * r)
    return float(getattr(KERNELS[name], which)(Gram.of([[q, covariance], [covariance, r]])).matrix[0, 1])


def wrong_places(found: Callable[..., float], name: str, which: str, ratio: float = 1.0) -> list[tuple[Any, ...]]:
    """Where a map is off by 1e-9 of its largest value at the variance, and the two values.

    (ReLU's slope is an angle: of parallel tokens, the root of the rounding of their covariance.)
    """
    wrong, tolerance = [], 1e-9 if (name, which) != ("relu", "slope") else 3e-8
    for q, c in PLACES:
        largest = max(expected(name, which, q, q, 1.0), expected(name, which, ratio * q, ratio * q, 1.0))
        values = found(q, c), expected(name, which, q, ratio * q, c)
        if not abs(values[0] - values[1]) < tolerance * largest:
            wrong.append((q, c, *values))
    return wrong


@pytest.mark.parametrize("which", ["value", "slope"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_pairs_of_tokens(name: str, which: str) -> None:
    assert not wrong_places(lambda q, c: of_pair(name, which, q, c), name, which)
    assert wrong_places(lambda q, c: of_pair(name, which, q, c) * (1 + 1e-7), name, which)


@pytest.mark.parametrize("ratio", [1.0, 1.7])
@pytest.mark.parametrize("which", ["value", "slope"])
@pytest.mark.parametrize("name", [*PHI, "geglu"])
def test_pairs_in_a_gram_matrix(name: str, which: str, ratio: float) -> None:
    assert not wrong_places(lambda q, c: of_gram(name, which, q, ratio * q, c), name, which, ratio)


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
        drop = getattr(KERNELS["gelu"], which)(u).deviation[0, 1]
        assert drop == pytest.approx(getattr(ACTIVATIONS["gelu"], which)(q, share * q)[1], rel=1e-12, abs=0)
