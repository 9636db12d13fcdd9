"""Theorems about single placements hold of `predict`, and products of deviation modes that were printed before."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import propagate as pg
from propagate.placements import DyT, LayerScale, ReZero

EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True)
GAIN = st.floats(0.1, 1.5)
TOKENS = st.sampled_from([2, 7, 32])
ELSEWHERE = ("prenorm", "postnorm", "spannorm", "periln", "deepnorm", "layernormscaling")  # tests/test_theorems.py
LINEAR = sorted(
    name
    for name, kind in pg.placements().items()
    if kind.__module__ == DyT.__module__ and name not in (*ELSEWHERE, "dyt")
)


def stack(placement, depth: int, **fields) -> pg.Model:
    placement = ReZero(a=0.6) if placement == "rezero" else placement
    return pg.Model(placement, depth=depth, **{"activation": "linear", "logit_std": 0.0} | fields)


def ends(model: pg.Model, **start: float):
    """The table at the two ends of the network as a whole, of wide heads, in which norms of values only scale."""
    found = pg.predict(model, head_size=math.inf, **start)
    return found.sel(stream="joined") if "stream" in found.dims else found


@EXAMPLES
@given(st.sampled_from(LINEAR), st.integers(1, 12), TOKENS, st.floats(0, 0.95), GAIN, GAIN)
def test_duality(placement: str, depth: int, tokens: int, correlation: float, attention: float, ffn: float) -> None:
    """Linear FFN, uniform attention: in each token mode the gradient gains what the signal gains."""
    model = stack(placement, depth, tokens=tokens, attention_gain=attention, ffn_gain=ffn)
    start = ends(model, covariance=correlation)
    # where the embedding is normed, its variance is 1 and nothing changes
    deviation, back = start.deviation.to_numpy(), start.grad_deviation.to_numpy()
    assert back[0] / back[-1] == pytest.approx(deviation[-1] / deviation[0], rel=1e-8)
    mean, back_mean = (
        (start[f"{p}variance"] + (tokens - 1) * start[f"{p}covariance"]).to_numpy() for p in ("", "grad_")
    )
    assert back_mean[0] / back_mean[-1] == pytest.approx(mean[-1] / mean[0], rel=1e-8)


def test_duality_needs_linear_norms() -> None:
    """tanh in place of the norm is no number that both ways share."""
    found = ends(stack("dyt", 6), covariance=0.3)
    forward = float(found.deviation[-1] / found.deviation[0])
    assert float(found.grad_deviation[0]) != pytest.approx(forward, rel=1e-2)


@EXAMPLES
@given(
    st.integers(1, 20),
    TOKENS,
    st.floats(0, 0.95),
    GAIN,
    GAIN,
    st.sampled_from(["relu", "gelu"]),
    st.sampled_from([0, 1]),
)
def test_admin_is_prenorm_normed(
    depth: int, tokens: int, correlation: float, attention: float, ffn: float, activation: str, logit_std: int
) -> None:
    """The same correlations; the gradient is PreNorm's over the variance that Admin's norms have divided by."""
    gains = {"tokens": tokens, "attention_gain": attention, "ffn_gain": ffn}
    admin, pre = (
        pg.predict(stack(name, depth, activation=activation, logit_std=logit_std, **gains), covariance=correlation)
        for name in ("admin", "prenorm")
    )
    assert np.allclose(admin.deviation / admin.variance, pre.deviation / pre.variance, rtol=1e-11, atol=0)
    last = float(pre.variance[-1])
    assert float(admin.grad_variance[0]) * last == pytest.approx(float(pre.grad_variance[0]), rel=1e-10)
    post = pg.predict(stack("postnorm", depth, activation=activation, **gains), covariance=correlation)
    if depth > 3:
        assert not np.allclose(post.deviation / post.variance, pre.deviation / pre.variance, rtol=1e-6)


@EXAMPLES
@given(st.sampled_from(["deepnorm", "keel"]), st.integers(1, 64), st.floats(0, 0.95), GAIN, GAIN)
def test_strong_skips_keep_the_deviation_mode(
    placement: str, depth: int, correlation: float, attention: float, ffn: float
) -> None:
    """|log of the deviation mode's gain| <= (sublayers) (largest branch variance) / alpha^2."""
    found = pg.predict(stack(placement, depth, attention_gain=attention, ffn_gain=ffn), covariance=correlation)
    beta4 = 1 / (8 * depth) if placement == "deepnorm" else 1.0
    alpha2 = math.sqrt(2 * depth) if placement == "deepnorm" else (2 * depth) ** 2
    bound = 2 * depth * max(attention, ffn) ** 2 * beta4 / alpha2
    assert abs(math.log(float(found.grad_deviation[0]))) <= bound * (1 + 1e-9)


def test_postnorm_breaks_that_bound() -> None:
    found = pg.predict(stack("postnorm", 64), covariance=0.3)
    assert abs(math.log(float(found.grad_deviation[0]))) > 2 * 64 / (2 * 64) ** 2


@pytest.mark.parametrize("placement", ["periln", "olmo2"])
def test_normed_branches_add_2_a_block(placement: str) -> None:
    for gain in (0.3, 1.2):
        model = stack(placement, 9, activation="gelu", logit_std=1.0, attention_gain=gain, ffn_gain=gain)
        assert np.allclose(pg.predict(model, covariance=0.3).variance, 1 + 2 * np.arange(10), rtol=1e-12)
    assert not np.allclose(pg.predict(stack("prenorm", 9), covariance=0.3).variance, 1 + 2 * np.arange(10), rtol=1e-2)


def test_layernorm_scaling_grows_like_the_logarithm() -> None:
    """ReLU: at most (s_a + s_f) times the harmonic numbers; a SwiGLU's share is bounded, s_f sum 1 / l^2."""
    depth = 400
    harmonic = np.cumsum(1 / np.arange(1, depth + 1))
    relu = pg.predict(stack("layernormscaling", depth, activation="relu", attention_gain=0.8), covariance=0.3)
    growth = relu.variance.to_numpy()[1:] - 1
    assert np.all(growth <= (0.64 + 1) * harmonic * (1 + 1e-12))
    assert growth[-1] > 1.0 * harmonic[-1]  # the FFN's share alone: a logarithm, not less
    swiglu = pg.predict(stack("layernormscaling", depth, activation="swiglu", attention_gain=0.0), covariance=0.3)
    assert float(swiglu.variance[-1]) - 1 < math.pi**2 / 6
    pre = pg.predict(stack("prenorm", depth, activation="relu"), covariance=0.3)
    assert float(pre.variance[-1]) - 1 > 10 * harmonic[-1]


def log_gain_of_dyt(depth: int) -> float:
    """One token; equal tokens are the same thing, and need no integral over pairs."""
    model = stack("dyt", depth, tokens=1, activation="linear")
    return math.log(float(pg.predict(model, covariance=1.0, grad_covariance=1.0).grad_variance[0]))


def test_dyt_is_a_stretched_exponential() -> None:
    """log gain goes as C sqrt(depth): the printed values, and C -> 8 alpha / (3 sqrt(pi)), alpha = 1/2."""
    printed = {16: 3.26, 64: 7.04, 256: 13.8}
    for depth, value in printed.items():
        assert log_gain_of_dyt(depth) == pytest.approx(value, abs=0.5 * 10 ** (math.floor(math.log10(value)) - 2))


@pytest.mark.slow
def test_the_slope_of_dyt_tends_to_its_limit() -> None:
    limit = 8 * 0.5 / (3 * math.sqrt(math.pi))
    slope = (log_gain_of_dyt(4096) - log_gain_of_dyt(1024)) / (64 - 32)
    assert slope == pytest.approx(0.771, abs=1e-3)  # as printed
    assert slope == pytest.approx(limit, rel=0.05)
    assert slope != pytest.approx(2 * limit, rel=0.05)


# Linear FFN, 32 tokens, covariance 0.3 at the start: grad_deviation at the bottom, 16 and 1024 blocks
PRODUCTS = {
    "deepnorm": ("deepnorm", 0.9929, 0.9991),
    "keel": ("keel", 0.9950, 0.9999),
    "admin": ("admin", 0.26, 0.034),
    "dsinit": ("dsinit", 0.558, 0.538),
    "ngpt": ("ngpt", 0.957, 0.059),
    "rezero": (None, 1.64, 1.65),
    "residual": ("residual", 0.095, 0.0014),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("depth", [16, 1024])
def test_printed_products_of_the_deviation_mode(name: str, depth: int) -> None:
    placement, *printed = PRODUCTS[name]
    model = stack(ReZero(a=(2 * depth) ** -0.5) if placement is None else placement, depth)
    value = printed[depth == 1024]
    digits = len(str(value).rstrip("0").split(".")[1])
    found = float(ends(model, covariance=0.3).grad_deviation[0])
    assert found == pytest.approx(value, abs=0.5001 * 10**-digits)
    wrong = float(ends(stack("postnorm", depth), covariance=0.3).grad_deviation[0])
    assert wrong != pytest.approx(value, abs=0.5001 * 10**-digits)


def test_branches_of_nothing_leave_the_identity() -> None:
    """ReZero at initialisation, and LayerScale as its scale goes to 0."""
    for placement in (ReZero(), LayerScale(scale=0.0)):
        found = pg.predict(pg.Model(placement, depth=8), variance=2.0, covariance=0.5, grad_covariance=0.3)
        for name in ("variance", "covariance", "grad_variance", "grad_covariance", "skip_gain"):
            assert np.allclose(found[name], found[name][-1], rtol=1e-12), name


def test_the_skips_of_several_streams_join_once() -> None:
    """ResiDual along the skips alone: PostNorm's falling to 0, and the second stream's, which no norm meets."""
    found = pg.predict(stack("residual", 40), covariance=0.3)
    first, second = (found.skip_gain.sel(stream=name).to_numpy() for name in "12")
    assert first[0] < 1e-18 < first[-1] == 1
    assert np.all(second == second[-1])
    assert second[-1] == pytest.approx(1 / float(found.variance.sel(stream="2")[-1]), rel=1e-12)
