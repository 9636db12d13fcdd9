"""The theory's formulas are those that the proofs derived: by SymPy where it can, else to 40 digits."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import sympy as sp

from proofs import gaussian, maps
from proofs.domain import value_at
from proofs.names import unfold
from proofs.propositions import p03b_gelu, p05_small_logits, p11_swiglu
from proofs.vocabulary import Domain, Equality, Quantity, check, step_of
from propagate.model import Model
from propagate.scaling import Gains
from propagate.theory.gaussian.activations import Maps, gated, maps_of
from propagate.theory.gaussian.softmax import softmax_averages
from propagate.theory.pairs.moments import Moments
from propagate.theory.pairs.sublayers import attention, ffn, ffn_of
from propagate.theory.reading.blocks import Applied, MomentAlgebra, alone, read
from propagate.theory.reading.reader import Block

q, gamma, T, gain = sp.symbols("q gamma T g", positive=True)
c, rho = sp.symbols("c rho", real=True)
alpha = sp.Symbol("alpha", positive=True)
DOMAIN = Domain(
    (
        Quantity(q, ""),
        Quantity(gamma, ""),
        Quantity(T, "", 2, sp.oo, integer=True),
        Quantity(gain, ""),
        Quantity(c, "", -1, 1),
        Quantity(rho, "", -1, 1),
        Quantity(alpha, ""),
    )
)
STREAM, GRADIENT = Moments(q, q * (1 - c)), Moments(gamma, gamma * (1 - rho))
PROVED_STREAM, PROVED_GRADIENT = maps.Moments(q, c * q), maps.Moments(gamma, rho * gamma)


def exact(expression: Any) -> sp.Expr:
    """The theory's floats are exact fractions: 0.5, 0.25."""
    return sp.nsimplify(expression, rational=True)


def pair(moments: Moments) -> tuple[sp.Expr, sp.Expr]:
    """Variance and covariance."""
    return exact(moments.variance), exact(moments.variance - moments.deviation)


def proved(moments: maps.Moments) -> tuple[sp.Expr, sp.Expr]:
    """The same of what the proofs compose."""
    return moments.variance, moments.covariance


def tied(left: sp.Expr, right: sp.Expr) -> bool:
    """SymPy reduces the difference to zero, and 60-digit numbers agree."""
    return check(Equality(left, right, "tie", derived=True), DOMAIN, random.Random(0)) is None


def equal_in_numbers(left: sp.Expr, right: sp.Expr, digits: int = 40) -> bool:
    """Equal to 40 digits at random points: for forms that are rearranged beyond SymPy's reach."""
    rng = random.Random(1)
    with mpmath.workdps(60):
        for _ in range(12):
            point = DOMAIN.point(DOMAIN.of(left, right), rng)
            if not mpmath.almosteq(value_at(left, point), value_at(right, point), rel_eps=mpmath.mpf(10) ** -digits):
                return False
    return True


ReLU, GELU, SQUARED = (maps_of(name) for name in ("relu", "gelu", "squared_relu"))
KERNELS: dict[str, tuple[Callable[..., Any], Callable[[sp.Expr], sp.Expr]]] = {
    "relu value": (ReLU.value, lambda r: gaussian.relu_kernel(q, r)),
    "relu slope": (ReLU.slope, lambda r: gaussian.relu_derivative_kernel(r)),
    "squared relu slope": (SQUARED.slope, lambda r: 4 * gaussian.relu_kernel(q, r)),
    "gelu value": (GELU.value, lambda r: gaussian.gelu_kernel(q, r * q)),
    "gelu slope": (GELU.slope, lambda r: gaussian.gelu_derivative_kernel(q, r * q)),
}
VARIANCES, CORRELATIONS = (1e-3, 0.3, 2.41, 16, 1e3), (-1, -0.999, -0.7, 0, 0.4, 0.999, 1)
PLACES = list(itertools.product(map(mpmath.mpf, VARIANCES), map(mpmath.mpf, CORRELATIONS)))


def equal_over_the_domain(left: sp.Expr, right: sp.Expr) -> bool:
    """Equal to 40 digits at variances from 1e-3 to 1e3 and correlations from -1 to 1."""
    sides = [sp.lambdify((q, c), side, "mpmath") for side in (left, right)]
    with mpmath.workdps(60):
        tiny, pairs = mpmath.mpf(10) ** -40, [[side(*place) for side in sides] for place in PLACES]
        return all(mpmath.almosteq(*pair, rel_eps=tiny, abs_eps=tiny) for pair in pairs)


@pytest.mark.parametrize("name", KERNELS)
def test_activations_closed_forms(name: str) -> None:
    """K at equal arguments and its drop to correlation c, value and slope, at any variance."""
    theory, kernel = KERNELS[name]
    at_one, drop = map(exact, theory(q, q * (1 - c)))
    assert tied(at_one, kernel(sp.Integer(1)))
    assert equal_over_the_domain(drop, kernel(sp.Integer(1)) - kernel(c))
    assert not equal_over_the_domain(drop, kernel(sp.Integer(1)) - kernel(sp.Abs(c)))  # negative controls
    assert not equal_over_the_domain(drop, kernel(sp.Integer(1)) - kernel(c) * (1 + q * sp.Rational(1, 10**9)))
    assert not tied(at_one, sp.Rational(1001, 1000) * kernel(sp.Integer(1)))


def test_an_arcsine_that_folds_is_found_out() -> None:
    """The difference of two arcsines in one, which is beyond a right angle where tokens point apart: GELU, once."""
    s, a = q, c * q
    root1, root = sp.sqrt(1 + 2 * s), sp.sqrt((1 + s) ** 2 - a**2)
    right = sp.asin(s / (1 + s)) - sp.asin(a / (1 + s))
    for form, ties in (
        (2 * sp.atan((s - a) / (root1 + root)), True),
        (sp.asin((s * root - a * root1) / (1 + s) ** 2), False),
    ):
        assert equal_over_the_domain(form, right) is ties


def test_squared_relu_is_what_the_proved_kernel_of_relu_integrates_to() -> None:
    """By Price's theorem its derivative by the covariance is 4 times ReLU's; at correlation 0 it is (q / 2)^2."""
    at_one, drop = map(exact, SQUARED.value(q, q * (1 - c)))
    derivative = sp.diff(-drop, c) / q
    inside = [place for place in PLACES if -1 < place[1] < 1]
    slope, claim = (sp.lambdify((q, c), side, "mpmath") for side in (derivative, 4 * gaussian.relu_kernel(q, c)))
    with mpmath.workdps(60):
        assert all(mpmath.almosteq(slope(*at), claim(*at), rel_eps=mpmath.mpf(10) ** -40) for at in inside)
        assert not any(mpmath.almosteq(slope(*at), 1.001 * claim(*at), rel_eps=1e-6, abs_eps=0) for at in inside)
    assert sp.simplify((at_one - drop).subs(c, 0) - (q / 2) ** 2) == 0


def test_gelu_ratio_is_the_proved_one() -> None:
    """chi, from the proposition's step."""
    value, slope = (exact(part(sp.Integer(1), sp.Integer(0))[0]) for part in (GELU.value, GELU.slope))
    chi = step_of(p03b_gelu.PROPOSITION, "chi").right  # type: ignore[union-attr]
    assert tied(slope / value, chi)
    assert not tied(slope / value, chi + sp.Rational(1, 10**6))


@pytest.mark.parametrize("variance", [0.3, 1.0, 4.0])
def test_silu_series_against_the_proofs_quadrature(variance: float) -> None:
    """No closed form: Hermite series against mpmath quadrature; the SwiGLU ratio follows proposition 11's formula."""
    kernel = float(gaussian.univariate(lambda u: gaussian.silu(u) ** 2, mpmath.mpf(variance)))
    slope = float(gaussian.univariate(lambda u: gaussian.silu_derivative(u) ** 2, mpmath.mpf(variance)))
    silu, swiglu = maps_of("silu"), maps_of("swiglu")
    assert silu.value(variance, 0.0)[0] == pytest.approx(kernel, rel=1e-12)
    assert silu.slope(variance, 0.0)[0] == pytest.approx(slope, rel=1e-12)
    ratio = variance * swiglu.slope(variance, 0.0)[0] / swiglu.value(variance, 0.0)[0]
    assert ratio == pytest.approx(1 + variance * slope / kernel, rel=1e-12)
    assert ratio != pytest.approx(variance * slope / kernel, rel=0.1)  # the gate's path alone


def test_gate_is_the_proved_one() -> None:
    """SwiGLU's way back, in proposition 11's own symbols at unit variance."""
    K, dK = p11_swiglu.K, p11_swiglu.dK
    gate = gated(Maps(lambda v, d: (K, sp.Integer(0)), lambda v, d: (dK, sp.Integer(0))))
    _, pull = ffn_of(gate, gate.value(1.0, 0.0)[0], Gains(ffn_out=gain))(Moments(sp.Integer(1), sp.Integer(0)))
    back = exact(pull(Moments(gamma, sp.Integer(0))).variance)
    claim = step_of(p11_swiglu.PROPOSITION, "backward").right  # type: ignore[union-attr]
    claim = claim.subs({p11_swiglu.q: 1, p11_swiglu.s_f: gain**2, p11_swiglu.gamma: gamma})
    assert sp.simplify(back - claim) == 0
    assert sp.simplify(back - claim.subs(dK, 2 * dK)) != 0


def test_uniform_attention_is_the_proved_one() -> None:
    """Forward and backward, for any number of tokens, one included."""
    out, pull = attention(T, sp.Integer(0), Gains(attention_out=gain))(STREAM)
    for theory, proof in (
        (out, maps.uniform_attention(PROVED_STREAM, gain**2, T)),
        (pull(GRADIENT), maps.uniform_attention(PROVED_GRADIENT, gain**2, T)),
    ):
        assert all(map(tied, pair(theory), proved(proof)))
        assert not tied(pair(theory)[0], proof.variance * T / (T + 1))
    one_token, pull_alone = attention(1, 0.0, Gains(attention_out=gain))(Moments(q, sp.Integer(0)))
    assert exact(one_token.variance) == gain**2 * q
    assert exact(pull_alone(Moments(gamma, sp.Integer(0))).variance) == gain**2 * gamma


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["linear", "relu", "gelu"])
def test_ffn_is_the_proved_one(name: str) -> None:
    """At unit variance, with the proved kernels; chi and the ratio of kernels enter backward."""
    one = sp.Integer(1)
    value, slope = {
        "linear": (lambda r: r, lambda r: one),
        "relu": (lambda r: gaussian.relu_kernel(one, r), gaussian.relu_derivative_kernel),
        "gelu": (lambda r: gaussian.gelu_kernel(one, r), lambda r: gaussian.gelu_derivative_kernel(one, r)),
    }[name]
    out, pull = ffn(name, Gains(ffn_out=gain))(Moments(one, 1 - c))
    forward = maps.ffn(gain**2, value(c) / value(one))
    chi, ratio = slope(one) / value(one), slope(c) / slope(one)
    backward = maps.ffn_backward(PROVED_GRADIENT, gain**2, chi, ratio)
    digits = 13 if name == "gelu" else 40  # the theory divides by K(1, 1) as a float
    for theory, proof in ((out, forward), (pull(GRADIENT), backward)):
        assert all(equal_in_numbers(*sides, digits) for sides in zip(pair(theory), proved(proof), strict=True))
    wrong = maps.ffn_backward(PROVED_GRADIENT, gain**2, chi, one + c)
    assert not equal_in_numbers(pair(pull(GRADIENT))[1], wrong.covariance)


def test_norm_and_residual_sum_are_the_proved_ones() -> None:
    """alpha x + Attn(x), and a norm after it, read off the theory's tape."""
    sublayer = attention(T, sp.Integer(0), Gains(attention_out=gain))
    layer = Model("postnorm", depth=3).at(2)
    algebra = MomentAlgebra(lambda _, x: Applied(*sublayer(x, frozenset())))
    block = Block(2, 3, False, False, layer, algebra)
    found = read(lambda x: block.norm(alpha * x + block.attention(x)), algebra, alone(STREAM))
    ((out,),), ((back_to_input,),) = found.output.joint, found.pull(alone(GRADIENT).joint)
    total = PROVED_STREAM.scaled(alpha**2) + maps.uniform_attention(PROVED_STREAM, gain**2, T)
    back = maps.norm_backward(PROVED_GRADIENT, total.variance)
    back = back.scaled(alpha**2) + maps.uniform_attention(back, gain**2, T)
    assert all(map(tied, pair(out), proved(maps.normed(total))))
    assert all(map(tied, pair(back_to_input), proved(back)))
    assert not tied(pair(back_to_input)[0], back.scaled(total.variance).variance)  # a norm left out


def small_logits(*names: str) -> sp.Expr:
    """The sum of proposition 5's right sides, gains 1 but for the logits' tau."""
    p = p05_small_logits
    claim = sum(step_of(p.PROPOSITION, name).right for name in names)  # type: ignore[union-attr]
    return unfold(claim).subs({p.s_v: 1, p.s_o: 1, p.s_q: 1})


def remainder_orders(left: Callable[[float], float], right: sp.Expr, at: dict[sp.Symbol, float]) -> float:
    """How the difference falls with tau: the slope of its logarithm."""
    taus = np.array([0.01, 0.02, 0.04])
    errors = [abs(left(tau) - float(right.subs({**at, p05_small_logits.s_k: sp.sqrt(tau)}))) for tau in taus]
    return float(np.polyfit(np.log(taus), np.log(errors), 1)[0])


@pytest.mark.parametrize(("tokens", "variance", "correlation", "share"), [(8, 1.2, 0.4, 0.3), (32, 0.8, 0.1, 0.0)])
def test_softmax_attention_starts_as_the_proved_expansion(
    tokens: int, variance: float, correlation: float, share: float
) -> None:
    """The exact averages leave proposition 5's first order by O(tau^2); without the key path, by O(tau)."""
    p = p05_small_logits
    at = {p.T: tokens, p.q: variance, p.c: correlation, p.gamma: 1.0, p.rho: share}
    stream, gradient = Moments(variance, variance * (1 - correlation)), Moments(1.0, 1.0 - share)

    def theory(which: str) -> Callable[[float], float]:
        def at_tau(tau: float) -> float:
            out, pull = attention(tokens, tau, Gains())(stream)
            back = pull(gradient)
            spread = tau * stream.variance * stream.deviation
            averages = softmax_averages(tokens, spread, correlation)
            return {
                "A2": averages.second,
                "B2": averages.overlap,
                "forward": out.variance,
                "forward_cov": out.covariance,
                "back": back.variance,
                "back_cov": back.covariance,
            }[which]

        return at_tau

    average = (1 + (tokens - 1) * p.rho) / tokens  # value path at uniform weights, the zeroth order of the covariance
    claims = {name: small_logits(name) for name in ("A2", "B2", "forward", "forward_cov")}
    claims["back"] = small_logits("value", "query", "key")
    claims["back_cov"] = average + small_logits("kappa_value", "kappa_query", "kappa_key")
    orders = {name: remainder_orders(theory(name), claim, at) for name, claim in claims.items()}
    assert all(1.8 < order < 2.2 for order in orders.values()), orders
    assert remainder_orders(theory("back"), small_logits("value", "query"), at) < 1.2
    assert remainder_orders(theory("forward"), claims["forward"] + small_logits("A2"), at) < 1.2
