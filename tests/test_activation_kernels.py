"""The second-moment maps of every activation are the Gaussian integrals they claim to be, without cancellation."""

import math
import subprocess
import sys

import mpmath
import numpy as np
import pytest
from scipy.special import erf, expit, log_ndtr, ndtr

from propagate.cells import ACTIVATIONS
from propagate.theory.gaussian.activations import maps_of

PHI = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "squared_relu": lambda x: np.maximum(x, 0.0) ** 2,
    "gelu": lambda x: x * ndtr(x),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "erf": erf,
    "sin": np.sin,
    "softplus": lambda x: np.logaddexp(0, x),
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "quick_gelu": lambda x: x * expit(1.702 * x),
    "tanh_gelu": lambda x: x * expit(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
}
SLOPE = {
    "linear": np.ones_like,
    "relu": lambda x: (x > 0).astype(float),
    "squared_relu": lambda x: 2 * np.maximum(x, 0.0),
    "gelu": lambda x: ndtr(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    "silu": lambda x: (1 + x / (1 + np.exp(x))) / (1 + np.exp(-x)),
    "tanh": lambda x: np.cosh(np.clip(x, -300, 300)) ** -2,
    "leaky_relu": lambda x: np.where(x > 0, 1.0, 0.01),
    "erf": lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x),
    "sin": np.cos,
    "softplus": expit,
    "mish": lambda x: np.tanh(np.logaddexp(0, x)) + x * expit(x) / np.cosh(np.clip(np.logaddexp(0, x), 0, 300)) ** 2,
    "elu": lambda x: np.exp(np.minimum(x, 0)),
    "quick_gelu": lambda x: expit(1.702 * x) * (1 + 1.702 * x * expit(-1.702 * x)),
    "tanh_gelu": lambda x: _tanh_gelu_slope(x, math.sqrt(8 / math.pi)),
}


def _tanh_gelu_slope(x, scale):
    inner = scale * (x + 0.044715 * x**3)
    return expit(inner) * (1 + x * expit(-inner) * scale * (1 + 3 * 0.044715 * x * x))


SMOOTH = ("linear", "gelu", "silu", "tanh")
VARIANCES = (0.05, 0.7, 1.0, 3.0, 20.0)
CORRELATIONS = (0.0, 0.3, 0.8, 0.99)


def value(name: str, variance: float, correlation: float) -> float:
    at_one, drop = maps_of(name).value(variance, variance * (1 - correlation))
    return at_one - drop


def slope(name: str, variance: float, correlation: float) -> float:
    at_one, drop = maps_of(name).slope(variance, variance * (1 - correlation))
    return at_one - drop


def plane(phi, variance: float, correlation: float, step: float = 0.02) -> float:
    """E phi(u) phi(v) by the trapezoid rule over independent z, w: for smooth phi the error is far below 1e-10."""
    z = np.arange(-9.5, 9.5 + step / 2, step)
    weight = np.exp(-z * z / 2) * step / math.sqrt(2 * math.pi)
    if correlation == 1:
        return float(weight @ phi(math.sqrt(variance) * z) ** 2)
    rest = math.sqrt(1 - correlation**2)
    root = math.sqrt(variance)
    inner = phi(root * (correlation * z[:, None] + rest * z)) @ weight
    return float(weight @ (phi(root * z) * inner))


def half_lines(phi, variance: float, correlation: float) -> float:
    """The same for phi that vanishes on negative numbers: polar coordinates, where nothing is rough in the wedge."""
    angle = math.acos(correlation)
    t, w = np.polynomial.legendre.leggauss(60)
    half = (math.pi - angle) / 2
    theta = angle / 2 + half * t  # the wedge in which cos(theta) and cos(theta - angle) are positive
    r = np.arange(0, 12, 0.005) + 0.0025
    radial = r * np.exp(-r * r / 2) * 0.005
    root = math.sqrt(variance)
    u, v = root * np.outer(np.cos(theta), r), root * np.outer(np.cos(theta - angle), r)
    return float(w @ (phi(u) * phi(v)) @ radial) * half / (2 * math.pi)


@pytest.mark.few(30)
@pytest.mark.parametrize("correlation", CORRELATIONS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_activations_against_a_dense_quadrature(name: str, variance: float, correlation: float) -> None:
    assert value(name, variance, correlation) == pytest.approx(
        plane(PHI[name], variance, correlation), rel=1e-9, abs=1e-13
    )
    assert slope(name, variance, correlation) == pytest.approx(plane(SLOPE[name], variance, correlation), rel=1e-9)
    wrong = plane(PHI[name], variance * 1.001, correlation)
    if value(name, variance, correlation) > 1e-12:  # odd functions have no moment at correlation 0
        assert value(name, variance, correlation) != pytest.approx(wrong, rel=1e-9)


@pytest.mark.parametrize("correlation", CORRELATIONS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("name", ["relu", "squared_relu"])
def test_half_lines_against_a_dense_quadrature(name: str, variance: float, correlation: float) -> None:
    # the midpoint rule in r is good to step^2 / 24 of the integrand's slope at 0, which vanishes for the value
    assert value(name, variance, correlation) == pytest.approx(half_lines(PHI[name], variance, correlation), rel=1e-5)
    assert slope(name, variance, correlation) == pytest.approx(half_lines(SLOPE[name], variance, correlation), rel=1e-5)
    wrong = half_lines(PHI[name], variance * 1.001, correlation)
    assert value(name, variance, correlation) != pytest.approx(wrong, rel=1e-5)


GATES = {"swiglu": "silu", "geglu": "gelu"}


@pytest.mark.parametrize("name", ["relu", "squared_relu", "gelu", "silu", "tanh", *GATES])
def test_against_monte_carlo(name: str) -> None:
    draws, variance, correlation = 400_000, 1.7, 0.6
    z = np.random.default_rng(1).standard_normal((4, draws)) * math.sqrt(variance)
    u, v = z[0], correlation * z[0] + math.sqrt(1 - correlation**2) * z[1]
    if name in GATES:
        w, x = z[2], correlation * z[2] + math.sqrt(1 - correlation**2) * z[3]
        phi, derivative = PHI[GATES[name]], SLOPE[GATES[name]]
        values = phi(u) * w * phi(v) * x
        # the cotangent returns along the gate (times both linear factors) and along the linear factor
        slopes = derivative(u) * w * derivative(v) * x + phi(u) * phi(v)
    else:
        values, slopes = PHI[name](u) * PHI[name](v), SLOPE[name](u) * SLOPE[name](v)
    for sample, exact in ((values, value(name, variance, correlation)), (slopes, slope(name, variance, correlation))):
        error = sample.std() / math.sqrt(draws)
        assert abs(sample.mean() - exact) < 4 * error
        assert abs(sample.mean() - 1.05 * exact) > 4 * error


@pytest.mark.parametrize("name", [*SMOOTH, "relu", "squared_relu"])
@pytest.mark.parametrize("variance", [0.3, 1.0, 4.0])
def test_price_theorem(name: str, variance: float) -> None:
    """dK/dp = S, by a central difference of fourth order."""
    h = 2e-3 * variance
    for correlation in (0.0, 0.4, 0.9):
        p = variance * correlation

        def at(shift: float, p: float = p) -> float:
            return value(name, variance, (p + shift) / variance)

        derivative = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        # the rule's error is h^4 / 30 times a fifth derivative; at correlation 0.9 ReLU's is ~ (1 - c^2)^(-9/2)
        assert derivative == pytest.approx(slope(name, variance, correlation), rel=1e-6)
        assert derivative != pytest.approx(1.001 * slope(name, variance, correlation), rel=1e-6)


@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_price_for_both_of_its_factors(name: str) -> None:
    """S of a gate is d(K p)/dp, because its two inputs share q and p."""
    variance, p, h = 1.3, 0.5, 1e-4

    def at(p: float) -> float:
        return value(name, variance, p / variance)

    derivative = (8 * (at(p + h) - at(p - h)) - (at(p + 2 * h) - at(p - 2 * h))) / (12 * h)
    assert derivative == pytest.approx(slope(name, variance, p / variance), rel=1e-8)
    assert derivative != pytest.approx(slope(GATES[name], variance, p / variance), rel=1e-2)


def exact_relu(q, p):
    root = mpmath.sqrt(q * q - p * p)
    return (root + p * (mpmath.pi - mpmath.acos(p / q))) / (2 * mpmath.pi)


def exact_squared_relu(q, p):
    """Arc-cosine kernel of order 2 (Cho & Saul 2009, Eq. 6), over 2 as E is over half of their integral's domain."""
    theta = mpmath.acos(p / q)
    order2 = 3 * mpmath.sin(theta) * mpmath.cos(theta) + (mpmath.pi - theta) * (1 + 2 * mpmath.cos(theta) ** 2)
    return q * q * order2 / (2 * mpmath.pi)


def exact_gelu(s, a):
    inside = (1 + s) ** 2 - a * a
    quadrant = mpmath.mpf(1) / 4 + mpmath.asin(a / (1 + s)) / (2 * mpmath.pi)
    return a * quadrant + (s * s + a * a - 2 * s * a * a / (1 + s)) / (2 * mpmath.pi * mpmath.sqrt(inside))


EXACT = {"relu": exact_relu, "squared_relu": exact_squared_relu, "gelu": exact_gelu, "linear": lambda q, p: p}
EXACT["geglu"] = lambda q, p: p * exact_gelu(q, p)


def exact_drops(name: str, variance: float, deviation: float) -> tuple[float, float]:
    """K(q, q) - K(q, p) and the same of S, with 60 digits; S is the derivative of K."""
    with mpmath.workdps(60):
        q, d = mpmath.mpf(variance), mpmath.mpf(deviation)
        kernel = EXACT[name]
        slope_at = {
            "linear": lambda p: mpmath.mpf(1),
            "relu": lambda p: (mpmath.pi - mpmath.acos(p / q)) / (2 * mpmath.pi),
            "squared_relu": lambda p: 4 * exact_relu(q, p),
            "gelu": lambda p: mpmath.diff(lambda x: kernel(q, x), p, h=mpmath.mpf(10) ** -25),
            "geglu": lambda p: mpmath.diff(lambda x: kernel(q, x), p, h=mpmath.mpf(10) ** -25),
        }[name]
        return float(kernel(q, q) - kernel(q, q - d)), float(slope_at(q) - slope_at(q - d))


@pytest.mark.parametrize("share", [0.5, 1e-2, 1e-5, 1e-8, 1e-11, 1e-14])
@pytest.mark.parametrize("variance", [0.3, 1.0, 7.0])
@pytest.mark.parametrize("name", EXACT)
def test_closed_forms_keep_small_deviations(name: str, variance: float, share: float) -> None:
    deviation = share * variance
    drops = maps_of(name).value(variance, deviation)[1], maps_of(name).slope(variance, deviation)[1]
    assert drops == pytest.approx(exact_drops(name, variance, deviation), rel=1e-12, abs=0)


@pytest.mark.parametrize("share", [1e-5, 1e-8, 1e-11, 1e-14])
@pytest.mark.parametrize("name", ["silu", "tanh"])
def test_series_keep_small_deviations(name: str, share: float) -> None:
    """To first order the drop of K is deviation times S(q, q), and of S times the mean square of phi''."""
    variance, h = 1.4, 1e-3
    deviation = share * variance
    found = maps_of(name).value(variance, deviation)[1], maps_of(name).slope(variance, deviation)[1]

    def curvature(x):
        near, far = SLOPE[name](x + h) - SLOPE[name](x - h), SLOPE[name](x + 2 * h) - SLOPE[name](x - 2 * h)
        return (8 * near - far) / (12 * h)

    second = plane(curvature, variance, 1.0)
    # the next order is deviation times a ratio of kernels of order 1; differences in `curvature` are good to 1e-10
    assert found[0] / deviation == pytest.approx(slope(name, variance, 1.0), rel=5 * share + 1e-10)
    assert found[1] / deviation == pytest.approx(second, rel=10 * share + 1e-8)


@pytest.mark.parametrize("name", ["relu", "squared_relu", "gelu"])
def test_the_naive_difference_would_be_rejected(name: str) -> None:
    deviation = 1e-11
    naive = value(name, 1.0, 1.0) - value(name, 1.0, 1.0 - deviation)
    assert naive != pytest.approx(exact_drops(name, 1.0, deviation)[0], rel=1e-12, abs=0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_arrays_give_what_numbers_give(name: str) -> None:
    variance, deviation = np.array([0.4, 1.0, 2.5]), np.array([0.1, 1.0, 1e-9])
    for part in (maps_of(name).value, maps_of(name).slope):
        together = [np.broadcast_to(values, 3) for values in part(variance, deviation)]
        for i in range(3):
            alone = part(float(variance[i]), float(deviation[i]))
            assert [values[i] for values in together] == pytest.approx(alone, rel=1e-13, abs=0)


def test_the_mean_hermite_degrees() -> None:
    """chi = S / K at variance 1: 1 for functions homogeneous of degree 1, and the numbers of the literature."""
    chi = {name: slope(name, 1.0, 1.0) / value(name, 1.0, 1.0) for name in ACTIVATIONS}
    assert chi["linear"] == chi["relu"] == 1.0
    assert chi["squared_relu"] == pytest.approx(4 / 3, rel=1e-15)  # E (2 u)^2 / E u^4 over the positive half
    assert chi["geglu"] == pytest.approx(1 + chi["gelu"], rel=1e-15)
    printed = {"gelu": 1.0720, "silu": 1.0666, "tanh": 1.1778, "swiglu": 2.0666}
    assert {name: round(chi[name], 4) for name in printed} == printed


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
from propagate.theory.gaussian.activations import maps_of
print(repr(float(maps_of("tanh").slope(400.0, 0.0)[0])))
"""


def test_large_variance_within_four_gigabytes() -> None:
    """At variance 400, where 96 Gauss-Hermite nodes are nine times too small, against a dense quadrature."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr.splitlines()[-1]
    exact = plane(SLOPE["tanh"], 400.0, 1.0, step=1e-3)
    assert float(done.stdout) == pytest.approx(exact, rel=1e-9)
    nodes, weight = np.polynomial.hermite_e.hermegauss(96)
    gauss = float(weight @ SLOPE["tanh"](20 * nodes) ** 2) / math.sqrt(2 * math.pi)
    assert gauss != pytest.approx(exact, rel=0.5)


def test_the_test_s_own_gelu_is_the_exact_one() -> None:
    x = np.linspace(-3, 3, 7)
    assert PHI["gelu"](x) == pytest.approx(x * (1 + erf(x / math.sqrt(2))) / 2, rel=1e-14)
    assert np.exp(log_ndtr(x)) == pytest.approx(ndtr(x), rel=1e-14)
