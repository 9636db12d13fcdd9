"""The averages of a softmax over Gaussian logits are those of sampled logits, and keep their bounds and limits."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from propagate.theory.gaussian.softmax import SoftmaxAverages, _integrals, softmax_averages

SAMPLES = 40_000


def uniform(tokens: int) -> SoftmaxAverages:
    slope = (tokens - 1) / tokens**2
    return SoftmaxAverages(1 / tokens, 1 / tokens, slope, slope)


def whole(tokens: int, spread_squared: float, correlation: float) -> SoftmaxAverages:
    excess = softmax_averages(tokens, spread_squared, correlation)
    return SoftmaxAverages(*(e + u for e, u in zip(excess, uniform(tokens), strict=True)))


def sampled(tokens: int, spread_squared: float, correlation: float, seed: int) -> dict[str, tuple[float, float]]:
    """Mean and standard error of each average, over pairs of softmax rows."""
    random = np.random.default_rng(seed)
    z = math.sqrt(spread_squared) * random.standard_normal((2, SAMPLES, tokens))
    z[1] = correlation * z[0] + math.sqrt(1 - correlation**2) * z[1]
    a, b = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    two, three, both = (a**2).sum(-1), (a**3).sum(-1), (a * b).sum(-1)
    samples = {
        "second": two,
        "overlap": both,
        "self_slope": two + two**2 - 2 * three,
        "cross_slope": both + both**2 - (a * b**2).sum(-1) - (a**2 * b).sum(-1),
    }
    return {name: (float(x.mean()), float(x.std() / math.sqrt(SAMPLES))) for name, x in samples.items()}


@pytest.mark.few(8)
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("spread_squared", [0.25, 1.0, 4.0, 9.0])
@pytest.mark.parametrize("tokens", [2, 16, 64])
def test_against_sampled_softmax(tokens: int, spread_squared: float, correlation: float) -> None:
    seed = int(1000 * tokens + 100 * spread_squared + 10 * correlation)
    exact = whole(tokens, spread_squared, correlation)
    for name, (mean, error) in sampled(tokens, spread_squared, correlation, seed).items():
        assert abs(mean - getattr(exact, name)) < 4 * error, name


@pytest.mark.parametrize("tokens", [16, 64])
def test_the_closed_form_of_the_literature_is_rejected(tokens: int) -> None:
    mean, error = sampled(tokens, 1.0, 0.0, seed=tokens)["second"]
    closed = math.e / (tokens - 1 + math.e)
    assert abs(mean - closed) > 4 * error
    assert abs(mean - whole(tokens, 1.0, 0.0).second) < 4 * error


@pytest.mark.parametrize("tokens", [2, 7, 32, 300])
def test_the_jacobian_of_a_sampled_row_has_the_self_slope(tokens: int) -> None:
    """self_slope is E tr(J J) with J = diag(a) - a a^T, written out as a matrix."""
    a = np.random.default_rng(tokens).dirichlet(np.ones(tokens))
    jacobian = np.diag(a) - np.outer(a, a)
    two, three = (a**2).sum(), (a**3).sum()
    assert np.trace(jacobian @ jacobian) == pytest.approx(two + two**2 - 2 * three, rel=1e-12)


@pytest.mark.parametrize("tokens", [2, 8, 32, 128])
def test_interpolated_against_integrated(tokens: int) -> None:
    """The stated accuracy of the Chebyshev series, 1e-6 of the excess; the largest of the four sets the scale."""
    random = np.random.default_rng(tokens)
    for spread, correlation in random.uniform((0.01, 0), (2, 1), (12, 2)):
        series = softmax_averages(tokens, spread**2, correlation)
        direct = _integrals(tokens, spread, np.array([correlation]))[0]
        scale = max(map(abs, direct))
        assert np.abs(np.subtract(series, direct)).max() < 1e-6 * scale
        assert np.abs(np.subtract(series, direct) + 1e-3 * scale).max() > 1e-6 * scale


@pytest.mark.parametrize("tokens", [2, 16, 64])
def test_integrals_do_not_depend_on_the_step(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = _integrals(tokens, 1.5, np.array([0.3]))[0]
    monkeypatch.setattr("propagate.theory.gaussian.softmax._STEP", 0.17)
    fine = _integrals(tokens, 1.5, np.array([0.3]))[0]
    assert coarse == pytest.approx(fine, abs=1e-9)  # the module states an error of about 1e-11
    monkeypatch.setattr("propagate.theory.gaussian.softmax._STEP", 2.0)
    assert _integrals(tokens, 1.5, np.array([0.3]))[0] != pytest.approx(fine, abs=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from([2, 3, 16, 64]), st.floats(1e-6, 16), st.floats(0, 1))
def test_bounds(tokens: int, spread_squared: float, correlation: float) -> None:
    second, overlap, self_slope, cross_slope = whole(tokens, spread_squared, correlation)
    slack = 2e-6  # the stated accuracy of the series
    assert 1 / tokens - slack <= overlap <= second + slack
    assert second <= 1 + slack
    assert -slack <= cross_slope
    assert self_slope <= second + slack  # S2 - self_slope = 2 S3 - S2^2 >= 0, because S2^2 <= S3
    assert abs(cross_slope) <= self_slope + slack


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.sampled_from([2, 16, 64]), st.floats(0.01, 3.9), st.floats(0, 0.95))
def test_overlap_grows_with_correlation_and_second_with_spread(tokens: int, spread_squared: float, c: float) -> None:
    assert whole(tokens, spread_squared, c + 0.05).overlap > whole(tokens, spread_squared, c).overlap
    assert whole(tokens, spread_squared * 1.05, c).second > whole(tokens, spread_squared, c).second


@pytest.mark.parametrize("tokens", [2, 16, 64])
def test_limits(tokens: int) -> None:
    assert softmax_averages(tokens, 0.0, 0.3) == (0, 0, 0, 0)
    assert softmax_averages(1, 1.0, 0.0) == (0, 0, 0, 0)
    equal = whole(tokens, 1.0, 1.0)  # two equal rows
    assert equal.overlap == pytest.approx(equal.second, rel=1e-6)
    assert equal.cross_slope == pytest.approx(equal.self_slope, rel=1e-6)
    independent = whole(tokens, 1.0, 0.0)  # independent rows overlap as their means do
    assert independent.overlap == pytest.approx(1 / tokens, abs=1e-6)
    # first order in the spread: second - 1/T -> b (T - 1)/T^2, overlap - 1/T -> b c (T - 1)/T^2
    tiny = 1e-8
    small = softmax_averages(tokens, tiny, 0.4)
    slope = (tokens - 1) / tokens**2
    assert small.second / tiny == pytest.approx(slope, rel=1e-5)
    assert small.overlap / tiny == pytest.approx(0.4 * slope, rel=1e-5)


def test_a_large_spread_costs_no_warning_and_little_memory() -> None:
    """The first block of PostNorm reads the raw start: variance 20 makes logits of standard deviation 20."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", LARGE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-200:])
    mean, error = sampled(16, 400.0, 0.0, seed=5)["second"]
    assert abs(float(done.stdout) - mean) < 4 * error


LARGE = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
from propagate.theory.gaussian.softmax import softmax_averages
print(1 / 16 + float(softmax_averages(16, 400.0, 0.0).second))
"""
