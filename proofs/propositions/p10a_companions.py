"""Proposition 10a: ScaleInit in the limit of many blocks, for three placements, and the thresholds in k."""

from __future__ import annotations

from functools import cache

import sympy as sp

from proofs import axioms, blocks, notation
from proofs.maps import Moments, mean_mode
from proofs.notation import L, T, a_a, a_f, c, chi, ell, gamma, q, rho
from proofs.propositions import p07_prenorm, p08_postnorm
from proofs.vocabulary import (
    PREVIOUS,
    Equality,
    Hypothesis,
    Inequality,
    Lemma,
    Limit,
    Named,
    Proposition,
    Quantity,
    Recurrence,
    Step,
    resting_on,
    stated,
)

u, t, k_c, r_c, m_0, q_0, b, s, z, eps = sp.symbols("u t k_c r_c m_0 q_0 b s z varepsilon", positive=True)
ONE = sp.Integer(1)
UNIT, STREAM, GRADIENT = Moments(ONE, c), Moments(q, c * q), Moments(gamma, rho * gamma)
MEAN = c + (1 - c) / T
GRAD_MEAN = mean_mode(GRADIENT, T)
GAINS = (a_a * u, T, a_f * u)  # attention's gain, tokens, the FFN's gain, with u = 1/L

WIDE = Hypothesis("wide limit; uniform attention")
LIPSCHITZ = Hypothesis(r"kernels Lipschitz on the range of $c$ (true for $c$ bounded away from 1)")


def drift(after: sp.Expr, before: sp.Expr, value: sp.Expr, reason: str, name: str, label: str) -> Limit:
    """L times the change over one block, as L grows."""
    return Limit(Named(label, (after - before) / u), u, 0, value, reason, name=name)


def drifts() -> tuple[Step, ...]:
    """What one block does to first order in 1/L, from the blocks' exact maps."""
    share = a_a * u * MEAN
    post = blocks.postnorm(UNIT, *GAINS, k_c)
    # The FFN reads a correlation that differs from c by O(u), so its kernels may be taken at c to this order.
    post_back = blocks.postnorm_backward(GRADIENT, share, a_a * u, T, a_f * u, chi, r_c)
    span = blocks.spannorm(UNIT, *GAINS, k_c)
    span_back = blocks.spannorm_backward(GRADIENT, share, a_a * u, T, a_f * u, chi, r_c)
    pre = blocks.prenorm(STREAM, *GAINS, k_c)
    pre_back = blocks.prenorm_backward(GRADIENT, q, q + share, a_a * u, T, a_f * u, chi, r_c)
    fed = a_a * GRAD_MEAN
    return (
        drift(
            post.covariance,
            c,
            a_a * MEAN * (1 - c) + a_f * (k_c - c),
            r"PostNorm, forward: attention pulls tokens together, the FFN pulls towards its own correlation $k_c = "
            r"K(c)/K(1)$",
            "post_c",
            r"L\,\Delta_{\text{PostNorm}} c",
        ),
        drift(
            post_back.variance,
            gamma,
            (chi - 1) * a_f * gamma + fed - a_a * MEAN * gamma,
            r"PostNorm, backward: the gradient's variance is fed through attention by its token mean and loses at "
            r"the norm",
            "post_gamma",
            r"L\,\Delta_{\text{PostNorm}} \gamma",
        ),
        drift(
            post_back.covariance,
            rho * gamma,
            (chi * r_c - 1) * a_f * rho * gamma + fed - a_a * MEAN * rho * gamma,
            "and its covariance",
            "post_kappa",
            r"L\,\Delta_{\text{PostNorm}} \kappa",
        ),
        drift(
            span.covariance,
            c,
            a_f * (k_c - c),
            "SpanNorm, forward: attention has dropped out",
            "span_c",
            r"L\,\Delta_{\text{SpanNorm}} c",
        ),
        drift(
            span_back.variance,
            gamma,
            (chi - 1) * a_f * gamma,
            "SpanNorm, backward: likewise",
            "span_gamma",
            r"L\,\Delta_{\text{SpanNorm}} \gamma",
        ),
        drift(pre.variance, q, a_a * MEAN + a_f, "PreNorm, variance", "pre_q", r"L\,\Delta_{\text{PreNorm}} q"),
        drift(
            pre.covariance,
            c * q,
            a_a * MEAN + a_f * k_c,
            "PreNorm, covariance",
            "pre_p",
            r"L\,\Delta_{\text{PreNorm}} p",
        ),
        drift(
            pre_back.variance,
            gamma,
            (chi * a_f * gamma + fed) / q,
            "PreNorm, backward",
            "pre_gamma",
            r"L\,\Delta_{\text{PreNorm}} \gamma",
        ),
    )


def solutions() -> tuple[Step, ...]:
    """Closed forms of the limiting equations."""
    mean = 1 / (1 + (1 / m_0 - 1) * sp.exp(-a_a * t))
    discrete = 1 / (1 + (1 / m_0 - 1) * (1 + a_a / L) ** (-L))
    power = (q_0 + s * t) ** (b / s)
    return (
        Equality(
            Named(r"\dot m", sp.Derivative(mean, t)),
            a_a * mean * (1 - mean),
            r"PostNorm, linear FFN ($k_c = c$): in $m = c + (1-c)/T$ the equation is logistic, and $t = l/L$",
            name="logistic",
            uses=("post_c",),
        ),
        Limit(
            Named("m_L", discrete),
            L,
            sp.oo,
            1 / (1 + (1 / m_0 - 1) * sp.exp(-a_a)),
            r"and the exact sequence of proposition 8 with $\sigma^2 = a_a/L$ tends to it: PostNorm's collapse, and "
            r"with it its "
            "gradient, stays bounded away from zero at $k = 1/2$",
            name="post_limit",
            uses=("logistic", Lemma(p08_postnorm.PROPOSITION, "mean_share")),
        ),
        Equality(
            Named(r"\dot G_{\text{SpanNorm}}", sp.Derivative(sp.exp((chi - 1) * a_f * t), t)),
            (chi - 1) * a_f * sp.exp((chi - 1) * a_f * t),
            r"SpanNorm: the gradient gain solves its equation, in agreement with proposition 10",
            name="span_gain",
            uses=("span_gamma",),
        ),
        Equality(
            Named(r"\dot G_{\text{PreNorm}}", sp.Derivative(power, t)),
            b / (q_0 + s * t) * power,
            r"PreNorm, identical tokens and gradients: $q(t) = q_0 + st$ with $s = a_a + a_f$, and with $b = a_a + "
            r"\chi a_f$ the "
            r"gain is $(1 + s/q_0)^{b/s}$",
            name="pre_gain",
            uses=("pre_q", "pre_gamma"),
        ),
    )


def thresholds() -> tuple[Step, ...]:
    """Which exponents k keep each placement bounded; epsilon = 1 - 2k."""
    return (
        Inequality(
            z / (1 + z),
            sp.log(1 + z),
            r"PostNorm, linear FFN, loses $\log(1+z)$ of its deviation modes per block, $z = a_aL^{-2k}$: at least",
            name="loss_least",
            along=z,
        ),
        Inequality(sp.log(1 + z), z, "and at most; so over $L$ blocks about $a_aL^{1-2k}$", name="loss_most", along=z),
        Limit(
            L * a_a * L ** (-1 + eps) / (1 + a_a),
            L,
            sp.oo,
            sp.oo,
            r"unbounded for $k < 1/2$ ($\varepsilon = 1-2k > 0$): tokens collapse",
            name="post_below",
            uses=("loss_least",),
        ),
        Limit(
            L * a_a * L ** (-1 - eps),
            L,
            sp.oo,
            sp.Integer(0),
            r"and vanishing for $k > 1/2$: nothing happens",
            name="post_above",
            uses=("loss_most",),
        ),
        Recurrence(
            ell,
            PREVIOUS + s,
            q_0,
            q_0 + s * ell,
            r"PreNorm with $s = (a_a+a_f)L^{-2k}$ and identical tokens; for $\chi = 1$ the gradient gain is $q_L/q_0$ "
            "(proposition 7)",
            sequence=sp.IndexedBase("q"),
            name="pre_growth",
            uses=(Lemma(p07_prenorm.PROPOSITION, "telescoped"),),
            solve=True,
        ),
        Limit(
            Named(r"\frac{q_L}{q_0}\Big|_{k<1/2}", 1 + (a_a + a_f) * L**eps / q_0),
            L,
            sp.oo,
            sp.oo,
            r"a power of the depth for $k < 1/2$",
            name="pre_below",
            uses=("pre_growth",),
        ),
        Limit(
            Named(r"\frac{q_L}{q_0}\Big|_{k>1/2}", 1 + (a_a + a_f) * L ** (-eps) / q_0),
            L,
            sp.oo,
            ONE,
            r"and no change at all for $k > 1/2$; at $k = 1/2$ it is $1 + (a_a+a_f)/q_0$ at every depth",
            name="pre_above",
            uses=("pre_growth",),
        ),
    )


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return resting_on((axioms.WIDE, axioms.INDEPENDENCE, WIDE), drifts(), thresholds()) + resting_on(
        (axioms.WIDE, axioms.INDEPENDENCE, axioms.ONE_STEP, WIDE, LIPSCHITZ), solutions()
    )


PROPOSITION = Proposition(
    name="companions",
    number="10a",
    title="ScaleInit with k = 1/2: the limit of many blocks, and thresholds",
    quantities=(
        notation.VARIANCE,
        notation.CORRELATION,
        notation.GRAD_VARIANCE,
        notation.GRAD_CORRELATION,
        notation.TOKENS,
        notation.CHI,
        Quantity(L, "number of blocks", 1),
        Quantity(u, r"$1/L$"),
        Quantity(t, r"depth as a fraction, $l/L$", 0, 1),
        Quantity(a_a, r"attention gain at $L = 1$"),
        Quantity(a_f, r"FFN gain at $L = 1$"),
        Quantity(k_c, r"$K(1,c)/K(1,1)$", 0, 1),
        Quantity(r_c, r"$\dot K(1,c)/\dot K(1,1)$", 0, 1),
        Quantity(m_0, r"$c_0 + (1-c_0)/T$ at the input", 0, 1),
        Quantity(q_0, "variance of the embedding"),
        Quantity(s, "growth of the variance"),
        Quantity(b, "backward gain"),
        Quantity(z, "a positive number"),
        Quantity(eps, r"$\lvert 1 - 2k\rvert$", sp.Rational(1, 4), sp.Rational(3, 4)),
        Quantity(ell, "number of blocks", 0, sp.oo, integer=True),
    ),
    setting=(
        r"Output matrices of both branches are scaled so that $\sigma^2 = a_aL^{-2k}$ and $s_f = a_fL^{-2k}$. At $k "
        r"= 1/2$ each "
        r"block changes the state by $O(1/L)$. $m = c + (1-c)/T$, $\kappa = \rho\gamma$, $\bar\gamma = "
        r"(\gamma+(T-1)\kappa)/T$; "
        r"forward time runs with $l$, backward time against it."
    ),
    hypotheses=(
        WIDE,
        LIPSCHITZ,
    ),
    statement=(
        "At $k = 1/2$ the recursions tend to differential equations. "
        "PostNorm:\n\n$$<<post_c>>$$\n\n$$<<post_gamma>>$$\n\n"
        "$$<<post_kappa>>$$\n\nSpanNorm:\n\n$$<<span_c>>$$\n\n$$<<span_gamma>>$$\n\n"
        "PreNorm:\n\n$$<<pre_q>>$$\n\n$$<<pre_p>>$$"
        "\n\n$$<<pre_gamma>>$$\n\nPostNorm with a linear FFN ends at\n\n$$<<post_limit>>$$\n\n(a forward difference "
        "$\\Delta$ is over one block, along its own direction). "
        "The gradient gains of SpanNorm and of PreNorm with identical tokens solve\n\n$$<<span_gain>>$$\n\n"
        "$$<<pre_gain>>$$\n\nPostNorm's tokens collapse with depth unless $k \\ge 1/2$ and nothing happens beyond: "
        "what $L$ blocks lose is, with $\\varepsilon = |1-2k|$,\n\n$$<<post_below>>$$\n\n$$<<post_above>>$$\n\n"
        "PreNorm's variance, and with $\\chi = 1$ its gradient, grow unless $k \\ge 1/2$:\n\n$$<<pre_below>>$$\n\n"
        "$$<<pre_above>>$$\n\nSpanNorm with a homogeneous FFN is bounded already for $k \\ge 1/4$ (proposition 10)."
    ),
    source="Derived here; depth limits at 1/sqrt(L) are known for residual networks (e.g. Hayou 2023, "
    "arXiv:2302.00453).",
    confronted="tests/test_proofs_against_simulation_depth.py::test_companions",
    derivation=derivation,
    conclusion=lambda: stated(
        derivation,
        "post_c",
        "post_gamma",
        "post_kappa",
        "span_c",
        "span_gamma",
        "pre_q",
        "pre_p",
        "pre_gamma",
        "post_limit",
        *("span_gain", "pre_gain", "post_below", "post_above", "pre_below", "pre_above"),
    ),
)
