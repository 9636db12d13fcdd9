"""Proposition 10a: ScaleInit in the limit of many blocks, for three placements, and the thresholds in k."""

from __future__ import annotations

import sympy as sp

from proofs import axioms, blocks, notation
from proofs.maps import Moments, mean_mode
from proofs.notation import L, T, a_a, a_f, c, chi, gamma, q, rho
from proofs.vocabulary import Equality, Inequality, Limit, Proposition, Quantity, Recurrence, Step

u, t, k_c, r_c, m_0, q_0, b, s, z, ell, eps = sp.symbols("u t k_c r_c m_0 q_0 b s z l varepsilon", positive=True)
ONE = sp.Integer(1)
UNIT, STREAM, GRADIENT = Moments(ONE, c), Moments(q, c * q), Moments(gamma, rho * gamma)
MEAN = c + (1 - c) / T
GRAD_MEAN = mean_mode(GRADIENT, T)
GAINS = (a_a * u, T, a_f * u)  # attention's gain, tokens, the FFN's gain, with u = 1/L


def drift(after: sp.Expr, before: sp.Expr, value: sp.Expr, reason: str, name: str, label: str) -> Limit:
    """L times the change over one block, as L grows."""
    return Limit((after - before) / u, u, 0, value, reason, name, label)


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
            r"L\,(c_{l+1}-c_l)",
        ),
        drift(
            post_back.variance,
            gamma,
            (chi - 1) * a_f * gamma + fed - a_a * MEAN * gamma,
            r"PostNorm, backward: the gradient's variance is fed through attention by its token mean and loses at "
            r"the norm",
            "post_gamma",
            r"L\,(\gamma_l-\gamma_{l+1})",
        ),
        drift(
            post_back.covariance,
            rho * gamma,
            (chi * r_c - 1) * a_f * rho * gamma + fed - a_a * MEAN * rho * gamma,
            "and its covariance",
            "post_kappa",
            r"L\,(\kappa_l-\kappa_{l+1})",
        ),
        drift(
            span.covariance,
            c,
            a_f * (k_c - c),
            "SpanNorm, forward: attention has dropped out",
            "span_c",
            r"L\,(c_{l+1}-c_l)",
        ),
        drift(
            span_back.variance,
            gamma,
            (chi - 1) * a_f * gamma,
            "SpanNorm, backward: likewise",
            "span_gamma",
            r"L\,(\gamma_l-\gamma_{l+1})",
        ),
        drift(pre.variance, q, a_a * MEAN + a_f, "PreNorm, variance", "pre_q", r"L\,(q_{l+1}-q_l)"),
        drift(pre.covariance, c * q, a_a * MEAN + a_f * k_c, "PreNorm, covariance", "pre_p", r"L\,(p_{l+1}-p_l)"),
        drift(
            pre_back.variance,
            gamma,
            (chi * a_f * gamma + fed) / q,
            "PreNorm, backward",
            "pre_gamma",
            r"L\,(\gamma_l-\gamma_{l+1})",
        ),
    )


def solutions() -> tuple[Step, ...]:
    """Closed forms of the limiting equations."""
    mean = 1 / (1 + (1 / m_0 - 1) * sp.exp(-a_a * t))
    discrete = 1 / (1 + (1 / m_0 - 1) * (1 + a_a / L) ** (-L))
    power = (q_0 + s * t) ** (b / s)
    return (
        Equality(
            sp.Derivative(mean, t),
            a_a * mean * (1 - mean),
            r"PostNorm, linear FFN ($k_c = c$): in $m = c + (1-c)/T$ the equation is logistic, and $t = l/L$",
            "logistic",
            r"\dot m",
        ),
        Limit(
            discrete,
            L,
            sp.oo,
            1 / (1 + (1 / m_0 - 1) * sp.exp(-a_a)),
            r"and the exact sequence of proposition 8 with $\sigma^2 = a_a/L$ tends to it: PostNorm's collapse, and "
            r"with it its "
            "gradient, stays bounded away from zero at $k = 1/2$",
            "post_limit",
            "m_L",
        ),
        Equality(
            sp.Derivative(sp.exp((chi - 1) * a_f * t), t),
            (chi - 1) * a_f * sp.exp((chi - 1) * a_f * t),
            r"SpanNorm: the gradient gain solves its equation, in agreement with proposition 10",
            "span_gain",
            r"\dot G",
        ),
        Equality(
            sp.Derivative(power, t),
            b / (q_0 + s * t) * power,
            r"PreNorm, identical tokens and gradients: $q(t) = q_0 + st$ with $s = a_a + a_f$, and with $b = a_a + "
            r"\chi a_f$ the "
            r"gain is $(1 + s/q_0)^{b/s}$",
            "pre_gain",
            r"\dot G",
        ),
    )


def thresholds() -> tuple[Step, ...]:
    """Which exponents k keep each placement bounded; epsilon = 1 - 2k."""
    return (
        Inequality(
            z / (1 + z),
            sp.log(1 + z),
            r"PostNorm, linear FFN, loses $\log(1+z)$ of its deviation modes per block, $z = a_aL^{-2k}$: at least",
            along=z,
        ),
        Inequality(sp.log(1 + z), z, "and at most; so over $L$ blocks about $a_aL^{1-2k}$", along=z),
        Limit(
            L * a_a * L ** (-1 + eps) / (1 + a_a),
            L,
            sp.oo,
            sp.oo,
            r"unbounded for $k < 1/2$ ($\varepsilon = 1-2k > 0$): tokens collapse",
            "post_below",
        ),
        Limit(
            L * a_a * L ** (-1 - eps),
            L,
            sp.oo,
            sp.Integer(0),
            r"and vanishing for $k > 1/2$: nothing happens",
            "post_above",
        ),
        Recurrence(
            ell,
            lambda n, y: y + s,
            q_0,
            q_0 + s * ell,
            r"PreNorm with $s = (a_a+a_f)L^{-2k}$ and identical tokens; for $\chi = 1$ the gradient gain is $q_L/q_0$ "
            "(proposition 7)",
            "q",
            solve=True,
        ),
        Limit(
            1 + (a_a + a_f) * L**eps / q_0,
            L,
            sp.oo,
            sp.oo,
            r"a power of the depth for $k < 1/2$",
            "pre_below",
            r"\frac{q_L}{q_0}\Big|_{k<1/2}",
        ),
        Limit(
            1 + (a_a + a_f) * L ** (-eps) / q_0,
            L,
            sp.oo,
            ONE,
            r"and no change at all for $k > 1/2$; at $k = 1/2$ it is $1 + (a_a+a_f)/q_0$ at every depth",
            "pre_above",
            r"\frac{q_L}{q_0}\Big|_{k>1/2}",
        ),
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
        "wide limit; uniform attention",
        r"kernels Lipschitz on the range of $c$ (true for $c$ bounded away from 1)",
    ),
    statement=(
        "At $k = 1/2$ the recursions tend to differential equations. "
        "PostNorm:\n\n$$<<post_c>>$$\n\n$$<<post_gamma>>$$\n\n"
        "$$<<post_kappa>>$$\n\nSpanNorm:\n\n$$<<span_c>>$$\n\n$$<<span_gamma>>$$\n\nPreNorm:\n\n$$<<pre_q>>$$\n\n$$<<pre_p>>$$"
        "\n\n$$<<pre_gamma>>$$\n\nPostNorm with a linear FFN ends at\n\n$$<<post_limit>>$$\n\nPostNorm's tokens "
        "collapse with "
        "depth unless $k \\ge 1/2$, PreNorm's variance and gradient grow unless $k \\ge 1/2$, while SpanNorm with a "
        "homogeneous "
        "FFN is bounded already for $k \\ge 1/4$ (proposition 10)."
    ),
    source="Derived here; depth limits at 1/sqrt(L) are known for residual networks (e.g. Hayou 2023, "
    "arXiv:2302.00453).",
    confronted="tests/test_proofs_against_simulation_depth.py::test_companions",
    derivation=lambda: drifts() + solutions() + thresholds(),
    axioms=(axioms.WIDE, axioms.INDEPENDENCE, axioms.ONE_STEP),
)
