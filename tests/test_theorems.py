"""Theorems about placements hold of `predict`: duality, floors, bounded gain, order of decay, exponents."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, ndtr

import propagate as pg

PLACEMENTS = ("prenorm", "postnorm", "spannorm", "periln", "deepnorm", "layernormscaling")
EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True)
GAIN = st.floats(0.1, 1.5)
TOKENS = st.sampled_from([2, 7, 32])


def stack(placement: str, depth: int, **fields) -> pg.Model:
    return pg.Model(placement, depth=depth, **{"activation": "linear", "logit_std": 0.0} | fields)


@EXAMPLES
@given(st.sampled_from(PLACEMENTS), st.integers(1, 20), TOKENS, st.floats(0, 0.95), GAIN, GAIN)
def test_duality(placement: str, depth: int, tokens: int, correlation: float, attention: float, ffn: float) -> None:
    """Linear FFN, uniform attention: in each token mode the gradient gains what the signal gains."""
    model = stack(placement, depth, tokens=tokens, attention_gain=attention, ffn_gain=ffn)
    found = pg.predict(model, covariance=correlation)

    def mean_mode(prefix: str) -> np.ndarray:
        return (found[f"{prefix}variance"] + (tokens - 1) * found[f"{prefix}covariance"]).to_numpy()

    deviation, back = found.deviation.to_numpy(), found.grad_deviation.to_numpy()
    assert np.allclose(back / back[-1], deviation[-1] / deviation, rtol=1e-8, atol=0)
    mean, back = mean_mode(""), mean_mode("grad_")
    assert np.allclose(back / back[-1], mean[-1] / mean, rtol=1e-8, atol=0)
    gain = (mean[-1] / mean[0] + (tokens - 1) * deviation[-1] / deviation[0]) / tokens
    assert float(found.grad_variance[0]) == pytest.approx(gain, rel=1e-8)


def test_duality_needs_the_linear_ffn() -> None:
    found = pg.predict(stack("postnorm", 6, activation="gelu"), covariance=0.3)
    backward = float(found.grad_deviation[0] / found.grad_deviation[-1])
    assert backward != pytest.approx(float(found.deviation[-1] / found.deviation[0]), rel=1e-2)


@EXAMPLES
@given(st.sampled_from(PLACEMENTS), st.integers(1, 20), TOKENS, GAIN, GAIN)
def test_uncorrelated_tokens_gain_as_much_gradient_as_variance(
    placement: str, depth: int, tokens: int, attention: float, ffn: float
) -> None:
    found = pg.predict(stack(placement, depth, tokens=tokens, attention_gain=attention, ffn_gain=ffn))
    assert float(found.grad_variance[0]) == pytest.approx(float(found.variance[-1] / found.variance[0]), rel=1e-10)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("tokens", [4, 32])
def test_postnorm_gradient_has_a_floor(tokens: int, correlation: float) -> None:
    """Linear FFN, uniform attention: the gain tends to 1 / (1 + (T - 1) c), not to 0."""
    floor = 1 / (1 + (tokens - 1) * correlation)
    found = pg.predict(stack("postnorm", 256, tokens=tokens), covariance=correlation)
    assert float(found.grad_variance[0]) == pytest.approx(floor, rel=1e-6)
    skips = float(found.skip_gain[0])  # the product over the skip paths alone, which the literature quotes
    assert skips < 1e-100 < floor


def mean_hermite_degree(phi, slope) -> float:
    """chi = E phi'^2 / E phi^2 at unit variance, by a dense trapezoid rule."""
    z = np.arange(-12, 12, 1e-3)
    weight = np.exp(-z * z / 2)
    return float(weight @ slope(z) ** 2 / (weight @ phi(z) ** 2))


def silu_slope(x: np.ndarray) -> np.ndarray:
    return expit(x) * (1 + x * expit(-x))


CHI = {
    "linear": 1.0,
    "relu": 1.0,
    "gelu": mean_hermite_degree(lambda x: x * ndtr(x), lambda x: ndtr(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)),
    "swiglu": 1 + mean_hermite_degree(lambda x: x * expit(x), silu_slope),
}


@pytest.mark.parametrize("activation", CHI)
@EXAMPLES
@given(st.floats(0, 0.95), st.floats(0, 1), st.floats(0.1, 1.5), TOKENS)
def test_postnorm_ffn_alone(activation: str, correlation: float, shared: float, gain: float, tokens: int) -> None:
    """Without attention an FFN sublayer multiplies the gradient by (1 + chi s) / (1 + s), for every correlation."""
    model = stack("postnorm", 1, activation=activation, tokens=tokens, attention_gain=0.0, ffn_gain=gain)
    found = pg.predict(model, covariance=correlation, grad_covariance=shared)
    factor = (1 + CHI[activation] * gain**2) / (1 + gain**2)
    assert float(found.grad_variance[0]) == pytest.approx(factor, rel=1e-9)
    assert float(found.grad_variance[0]) != pytest.approx(factor / (1 + gain**2), rel=1e-9)  # the norm left out


@EXAMPLES
@given(st.floats(0, 0.95), st.floats(0, 1), st.floats(0.1, 1.5), TOKENS)
def test_postnorm_attention_alone(correlation: float, shared: float, gain: float, tokens: int) -> None:
    model = stack("postnorm", 1, tokens=tokens, attention_gain=gain, ffn_gain=0.0)
    factor = float(pg.predict(model, covariance=correlation, grad_covariance=shared).grad_variance[0])
    added = gain**2 * (correlation + (1 - correlation) / tokens)
    assert (1 - 1e-12) / (1 + added) <= factor <= (1 + gain**2) / (1 + added) * (1 + 1e-12)


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_one_token_and_a_homogeneous_ffn_keep_the_gradient(activation: str) -> None:
    found = pg.predict(stack("postnorm", 30, tokens=1, activation=activation, logit_std=1.0, attention_gain=0.7))
    assert np.allclose(found.grad_variance, 1, rtol=1e-12)
    other = pg.predict(stack("postnorm", 30, tokens=1, activation="gelu"))
    assert float(other.grad_variance[0]) > 2


def log_gain(placement: str, depth: int, exponent: float, correlation: float, shared: float, **fields) -> float:
    model = stack(placement, depth, activation="relu", scaling=pg.ScaleInit(exponent), **fields)
    found = pg.predict(model, covariance=correlation, grad_covariance=shared)
    return abs(math.log(float(found.grad_variance[0])))


@EXAMPLES
@given(st.integers(1, 64), st.floats(0.25, 1), st.floats(0, 0.95), st.floats(0, 1), GAIN, GAIN, TOKENS)
def test_spannorm_has_bounded_gain(
    depth: int, exponent: float, correlation: float, shared: float, attention: float, ffn: float, tokens: int
) -> None:
    """ReLU, uniform attention, ScaleInit(k >= 1/4): |log gain| <= a_a a_f L^(1 - 4k)."""
    bound = attention**2 * ffn**2 * depth ** (1 - 4 * exponent)
    gains = {"attention_gain": attention, "ffn_gain": ffn, "tokens": tokens}
    assert log_gain("spannorm", depth, exponent, correlation, shared, **gains) <= bound * (1 + 1e-9)


def test_postnorm_breaks_the_bound_of_spannorm() -> None:
    assert log_gain("postnorm", 64, 0.5, 0.3, 0.0) > 10 * 64**-1.0
    assert log_gain("spannorm", 64, 0.5, 0.3, 0.0) <= 64**-1.0


@EXAMPLES
@given(TOKENS, st.floats(0, 0.9), GAIN, GAIN)
def test_spannorm_loses_less_of_the_deviation_mode_than_postnorm(
    tokens: int, correlation: float, attention: float, ffn: float
) -> None:
    def factor(placement: str) -> float:
        equations = pg.placement(placement)
        model = stack(equations, 1, tokens=tokens, attention_gain=attention, ffn_gain=ffn)
        return float(pg.predict(model, covariance=correlation).grad_deviation[0])

    s_a, s_f = attention**2 * (correlation + (1 - correlation) / tokens), ffn**2
    assert factor("postnorm") == pytest.approx(1 / (1 + s_a), rel=1e-12)
    assert factor("spannorm") - factor("postnorm") == pytest.approx(s_a / ((1 + s_f) * (1 + s_a)), rel=1e-9)


DEPTHS = (256, 1024, 4096)


def slope_of_log_deviation_gain(placement: str, exponent: float) -> float:
    """Of log |log grad_deviation_0| against log depth, one block's factor to the power of the depth.

    A linear FFN and tokens that have nearly collapsed: every block does the same, so one block stands for all.
    """
    logs = []
    for depth in DEPTHS:
        gain = depth**-exponent
        model = stack(placement, 1, attention_gain=gain, ffn_gain=gain)
        factor = float(pg.predict(model, covariance=1 - 1e-9).grad_deviation[0])
        logs.append(math.log(depth * abs(math.log(factor))))
    return float(np.polyfit(np.log(DEPTHS), logs, 1)[0])


@pytest.mark.parametrize(("placement", "order"), [("postnorm", 2), ("spannorm", 4)])
@pytest.mark.parametrize("exponent", [0.375, 0.5, 0.75])
def test_scale_init_thresholds(placement: str, order: int, exponent: float) -> None:
    """The deviation mode's log loss goes as L^(1 - 2k) in PostNorm and L^(1 - 4k) in SpanNorm."""
    # the log loss is s (1 - s / 2 ...) or s^2 (1 - 2 s ...): at most 4 k s of slope at the smallest depth, s = L^(-2k).
    # The smallest loss, 4096^-3 = 1.5e-11, is known to 1e-5 of itself.
    slack = 4 * exponent * DEPTHS[0] ** (-2 * exponent) + 2e-5
    slope = slope_of_log_deviation_gain(placement, exponent)
    assert abs(slope - (1 - order * exponent)) < slack
    assert abs(slope - (1 - (6 - order) * exponent)) > slack  # the other placement's exponent


def log_deviation_gain(placement: str, depth: int, exponent: float, correlation: float, tokens: int) -> float:
    """By hand, in the one number that changes: linear FFN, uniform attention, both gains depth^-exponent."""
    s, total = depth ** (-2 * exponent), 0.0
    for _ in range(depth):
        added = s * (correlation + (1 - correlation) / tokens)
        factor = 1 / (1 + added) if placement == "postnorm" else (1 + s / (1 + added)) / (1 + s)
        total += math.log(factor)
        correlation = 1 - (1 - correlation) * factor
    return total


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["postnorm", "spannorm"])
@pytest.mark.parametrize("exponent", [0.375, 0.5])
def test_thousands_of_blocks_against_a_recursion_by_hand(placement: str, exponent: float) -> None:
    found = pg.predict(stack(placement, 8192, scaling=pg.ScaleInit(exponent)), covariance=0.3)
    by_hand = log_deviation_gain(placement, 8192, exponent, 0.3, 32)
    assert math.log(float(found.grad_deviation[0])) == pytest.approx(by_hand, rel=1e-9)
    other = log_deviation_gain(placement, 8192, exponent, 0.3, 31)
    assert math.log(float(found.grad_deviation[0])) != pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize("activation", ["linear", "relu", "gelu", "swiglu"])
def test_prenorm_variance_is_bracketed_and_its_gradient_falls_with_the_block(activation: str) -> None:
    model = stack("prenorm", 40, activation=activation, logit_std=1.0, attention_gain=0.8, ffn_gain=0.6)
    found = pg.predict(model, covariance=0.3)
    blocks = np.arange(41)
    least, most = 1 + blocks * (0.36 + 0.64 / 32), 1 + blocks * (0.36 + 0.64)
    if activation in ("linear", "relu"):  # of the others the FFN's output has variance s_f too, its input being normed
        assert np.all(np.diff(found.variance) > 0)
    assert np.all(least <= found.variance + 1e-12)
    assert np.all(found.variance <= most + 1e-12)
    assert np.all(np.diff(found.grad_variance) <= 1e-12)


def test_scale_init_of_a_half_tends_to_a_limit_at_the_rate_1_over_depth() -> None:
    """SpanNorm with ScaleInit 1/2 tends to exp((chi - 1) a_f): the distance halves when the depth doubles."""
    chi = 1.0720
    distances = []
    for depth in (128, 256, 512):
        model = stack("spannorm", depth, activation="gelu", scaling=pg.ScaleInit(0.5))
        distances.append(math.log(float(pg.predict(model, covariance=0.3).grad_variance[0])) - (chi - 1))
    assert abs(distances[-1]) < 2 / 512
    ratio = (distances[0] - distances[1]) / (distances[1] - distances[2])
    assert ratio == pytest.approx(2, rel=0.05)


def test_dataclass_models_are_values() -> None:
    model = stack("prenorm", 3)
    assert dataclasses.replace(model, depth=3) == model
    assert dataclasses.replace(model, depth=4) != model
