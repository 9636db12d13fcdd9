"""What the equations promise of every placement, activation and norm holds of `predict`: symmetries, bounds, limits."""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import propagate as pg
from propagate.cells import ACTIVATIONS
from propagate.norms import NORMS
from propagate.placements import DeepNorm
from propagate.theory.pairs.moments import Joint, Moments
from propagate.theory.walks import walk

PLACEMENTS = ("prenorm", "postnorm", "spannorm", "periln", "deepnorm", "layernormscaling")
ENDS_IN_NORM = ("postnorm", "spannorm", "deepnorm")
UNIFORM_BLOCKS = ("prenorm", "postnorm")  # no block is told its index or the depth
EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True)
GAIN = st.floats(0.1, 1.5)


@st.composite
def networks(draw: st.DrawFn, placements: tuple[str, ...] = PLACEMENTS, longest: int = 12) -> pg.Model:
    exponent = draw(st.sampled_from([None, 0.25, 0.5, 1.0]))
    return pg.Model(
        draw(st.sampled_from(placements)),
        depth=draw(st.integers(1, longest)),
        tokens=draw(st.sampled_from([2, 5, 32])),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        norm=draw(st.sampled_from(NORMS)),
        logit_std=draw(st.sampled_from([0.0, 0.7, 1.0])),
        value_gain=draw(GAIN),
        attention_gain=draw(GAIN),
        ffn_gain=draw(GAIN),
        scaling=exponent and pg.ScaleInit(exponent),
    )


def share(most: float) -> st.SearchStrategy[float]:
    """0, or a number that squares and products leave a number."""
    return st.just(0.0) | st.floats(1e-9, most)


CORRELATION = share(0.95)


@EXAMPLES
@given(networks(), CORRELATION)
def test_correlation_stays_between_0_and_1(model: pg.Model, correlation: float) -> None:
    found = pg.predict(model, covariance=correlation, grad_covariance=0.5)
    for prefix in ("", "grad_"):
        ratio = found[f"{prefix}deviation"] / found[f"{prefix}variance"]
        assert float(ratio.min()) >= 0
        assert float(ratio.max()) <= 1 + 1e-6  # the stated accuracy of the softmax averages
        assert np.allclose(found[f"{prefix}variance"] - found[f"{prefix}deviation"], found[f"{prefix}covariance"])


@pytest.mark.slow
@EXAMPLES
@given(networks(ENDS_IN_NORM), CORRELATION)
def test_a_stream_that_leaves_a_norm_has_variance_1(model: pg.Model, correlation: float) -> None:
    variance = pg.predict(model, variance=3.0, covariance=3 * correlation).variance.to_numpy()
    assert variance[0] == 3.0
    assert np.abs(variance[1:] - 1).max() < 1e-12


@EXAMPLES
@given(networks(("prenorm",)), CORRELATION)
def test_the_stream_of_prenorm_has_not(model: pg.Model, correlation: float) -> None:
    assume(model.ffn_gain > 0.2)
    assert np.all(np.diff(pg.predict(model, covariance=correlation).variance) > 1e-12)


@EXAMPLES
@given(networks(), CORRELATION, st.floats(0.1, 10))
def test_scale_of_the_start(model: pg.Model, correlation: float, scale: float) -> None:
    """Where everything passes a norm first, the start's scale is forgotten and the gradient carries its inverse.

    Logits of standard deviation 1 are left out: there the softmax averages pass from one series to the next, and a
    rounding error decides which of the two, equal to 1e-6, is read.
    """
    logit_std = min(model.logit_std, 0.7)
    normed = dataclasses.replace(model, placement=NormedFirst(model.equations), logit_std=logit_std)
    one = pg.predict(normed, covariance=correlation)
    other = pg.predict(normed, variance=scale, covariance=scale * correlation)
    for name in ("variance", "deviation"):
        assert np.allclose(one[name], other[name], rtol=1e-10, atol=0)
    assert np.allclose(one.grad_variance, other.grad_variance, rtol=1e-10, atol=0)
    at_input = [embedded_gradient(normed, v, v * correlation) for v in (1.0, scale)]
    assert at_input[1] * scale == pytest.approx(at_input[0], rel=1e-10)


def embedded_gradient(model: pg.Model, variance: float, covariance: float) -> float:
    """Gradient variance before the embedding's norm: its scale is 1 / variance (section 2.2 of the notes)."""
    inside = pg.Model(Behind(model.equations), **{f: getattr(model, f) for f in FIELDS}, depth=model.depth)
    return float(pg.predict(inside, variance=variance, covariance=covariance).grad_variance[0])


FIELDS = tuple(f.name for f in dataclasses.fields(pg.Model) if f.name not in ("placement", "depth"))


class NormedFirst(pg.Placement):
    """Another placement, behind a norm on the embedding."""

    inner: pg.Placement

    def embed(self, x, block):
        return block.norm(x)

    def block(self, x, block):
        return self.inner.block(x, block)

    def gains(self, index, depth):
        return self.inner.gains(index, depth)


class Behind(pg.Placement):
    """Another placement, with that norm inside its first block, where the cotangent passes it too."""

    inner: pg.Placement

    def block(self, x, block):
        return self.inner.block(block.norm(x) if block.first else x, block)

    def gains(self, index, depth):
        return self.inner.gains(index, depth)


@EXAMPLES
@given(networks(UNIFORM_BLOCKS, longest=6), CORRELATION, st.integers(1, 5))
def test_depths_compose(model: pg.Model, correlation: float, more: int) -> None:
    model = dataclasses.replace(model, scaling=None)
    whole = propagate(dataclasses.replace(model, depth=model.depth + more), Moments(1.0, 1 - correlation))
    first = propagate(model, Moments(1.0, 1 - correlation))
    second = propagate(dataclasses.replace(model, depth=more), first.forward[-1][0][0])
    assert close(whole.forward, first.forward + second.forward[1:])
    assert close(whole.backward[model.depth :], second.backward)
    back = walk(model, Moments(1.0, 1 - correlation), second.backward[0][0][0])
    assert close(whole.backward[: model.depth + 1], back.backward)


def test_depths_of_an_index_dependent_placement_do_not_compose() -> None:
    model = pg.Model("layernormscaling", depth=3)
    first = propagate(model, Moments(1.0, 1.0))
    again = propagate(model, first.forward[-1][0][0])
    whole = propagate(dataclasses.replace(model, depth=6), Moments(1.0, 1.0))
    assert not close(whole.forward[-1:], again.forward[-1:])


def propagate(model: pg.Model, start: Moments):
    return walk(model, start, Moments(1.0, 0.7))


def close(left: list[Joint], right: list[Joint]) -> bool:
    return np.allclose(np.array(left, dtype=float), np.array(right, dtype=float), rtol=1e-12, atol=0)


@EXAMPLES
@given(networks(("prenorm", "postnorm", "deepnorm", "layernormscaling")), CORRELATION)
def test_without_branch_gains_a_block_is_the_identity(model: pg.Model, correlation: float) -> None:
    none = dataclasses.replace(model, attention_gain=0.0, ffn_gain=0.0)
    found = pg.predict(none, covariance=correlation, grad_variance=2.0, grad_covariance=0.5)
    expected = {"variance": 1, "deviation": 1 - correlation, "grad_variance": 2, "grad_deviation": 1.5, "skip_gain": 1}
    for name, value in expected.items():
        assert np.allclose(found[name], value, rtol=1e-12, atol=0), name


@EXAMPLES
@given(networks(("spannorm",)), CORRELATION, st.floats(1e-4, 1e-3))
def test_branch_gains_to_zero_tend_to_the_identity_as_their_square(
    model: pg.Model, correlation: float, small: float
) -> None:
    def distance(gain: float) -> float:
        weak = dataclasses.replace(model, attention_gain=gain, ffn_gain=gain)
        return abs(float(pg.predict(weak, covariance=correlation).deviation[-1]) - (1 - correlation))

    # the change a block makes is at most its branches' second moments, gain^2 times (value_gain^2 + 1) each
    assert distance(small) <= 2 * model.depth * small**2 * (model.value_gain**2 + 1)
    assert distance(0.0) < 1e-12


@EXAMPLES
@given(networks(("postnorm",)), CORRELATION, share(1))
def test_deepnorm_with_alpha_1_and_beta_1_is_postnorm(model: pg.Model, correlation: float, shared: float) -> None:
    start = {"covariance": correlation, "grad_covariance": shared}
    post = pg.predict(model, **start)
    deep = pg.predict(dataclasses.replace(model, placement=DeepNorm(1.0, 1.0)), **start)
    for name in post.data_vars:
        scale = post[name.replace("covariance", "variance")]  # a covariance is a difference of variances
        assert float(abs((post[name] - deep[name]) / scale).max()) < 1e-12, name
    other = pg.predict(dataclasses.replace(model, placement=DeepNorm(1.1, 1.0)), **start)
    assert not np.allclose(post.skip_gain, other.skip_gain, rtol=1e-12, atol=0)


@EXAMPLES
@given(networks(("periln",)), CORRELATION)
def test_the_variance_of_peri_ln_grows_by_2_a_block_whatever_the_gains(model: pg.Model, correlation: float) -> None:
    assume(model.tokens == 32 or correlation > 0)
    variance = pg.predict(model, variance=7.0, covariance=7 * correlation).variance
    assert np.allclose(variance, 1 + 2 * np.arange(model.depth + 1), rtol=1e-12, atol=0)


@EXAMPLES
@given(networks(), CORRELATION, st.floats(0.1, 9), share(1))
def test_the_gradient_is_linear_in_what_enters(
    model: pg.Model, correlation: float, gamma: float, shared: float
) -> None:
    def gradients(grad_variance: float, grad_covariance: float) -> np.ndarray:
        found = pg.predict(model, covariance=correlation, grad_variance=grad_variance, grad_covariance=grad_covariance)
        return np.array([found.grad_variance, found.grad_covariance])

    kappa = gamma * shared
    mixed = (gamma - kappa) * gradients(1.0, 0.0) + kappa * gradients(1.0, 1.0)
    whole = gradients(gamma, kappa)
    assert np.allclose(whole, mixed, rtol=1e-9, atol=1e-9 * np.abs(whole).max())
    assert not np.allclose(whole * 1.001, mixed, rtol=1e-9, atol=1e-9 * np.abs(whole).max())


@EXAMPLES
@given(networks(), CORRELATION)
def test_rms_and_layer_norm_have_one_limit(model: pg.Model, correlation: float) -> None:
    one, other = (pg.predict(dataclasses.replace(model, norm=norm), covariance=correlation) for norm in NORMS)
    assert np.array_equal(one.variance, other.variance)
    assert np.array_equal(one.grad_variance, other.grad_variance)


def test_arrays_of_starts_give_what_single_starts_give() -> None:
    import xarray as xr

    starts = xr.DataArray([0.0, 0.3, 0.8], dims="start")
    for name in PLACEMENTS:
        model = pg.Model(name, depth=4)
        together = pg.predict(model, covariance=starts)
        assert together.variance.dims == ("block", "start")
        for i, start in enumerate(starts.to_numpy()):
            alone = pg.predict(model, covariance=float(start))
            for quantity in alone.data_vars:
                assert np.allclose(together[quantity].isel(start=i), alone[quantity], rtol=1e-12, equal_nan=True)
