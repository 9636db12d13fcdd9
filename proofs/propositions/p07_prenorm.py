"""Proposition 7: PreNorm. Linear growth of the variance, power laws for the gradient and for 1 - correlation."""

from __future__ import annotations

import sympy as sp

from proofs import axioms, notation
from proofs.maps import Moments, deviation_mode, ffn, mean_mode, norm_backward, normed, uniform_attention
from proofs.notation import T, c, chi, ell, gamma, q, rho, s_b, s_f, sigma
from proofs.vocabulary import Equality, Inequality, Limit, Proposition, Quantity, Recurrence, Step

M, delta, q_0, s, b, r_0, eta, C = sp.symbols("M delta q_0 s b r_0 eta C", positive=True)
A, beta, L, z = sp.symbols("A beta L z", positive=True)
ATTENTION = sigma**2 * (c + (1 - c) / T)
STREAM = Moments(M + (T - 1) / T * delta, M - delta / T)  # variance and covariance from the two modes
Q = STREAM.variance


def product_closed_form(initial: sp.Expr, growth: sp.Expr, gain: sp.Expr, index: sp.Expr) -> sp.Expr:
    """prod over l < index of 1 + gain/(initial + growth*l), as a ratio of gamma functions."""
    a, e = initial / growth, gain / growth
    return sp.gamma(index + a + e) * sp.gamma(a) / (sp.gamma(index + a) * sp.gamma(a + e))


def variance_steps() -> tuple[Step, ...]:
    """One block forward, the bracket, and the closed form."""
    stream = Moments(q, c * q)
    after = stream + uniform_attention(normed(stream), sigma**2, T)
    return (
        Equality(
            (after + ffn(s_f, sp.Integer(0))).variance,
            q + ATTENTION + s_f,
            "both branches read the normed stream, of variance 1, and add to the stream (propositions 2-4, 6)",
            "block",
            r"q_{l+1}",
        ),
        Inequality(sigma**2 / T, ATTENTION, r"attention's share lies between uncorrelated tokens", larger_label="s_a"),
        Inequality(ATTENTION, sigma**2, "and identical tokens", smaller_label="s_a"),
        Recurrence(
            ell,
            lambda n, y: y + s,
            q_0,
            q_0 + s * ell,
            r"with the smallest and the largest $s = s_a + s_f$ this brackets the variance: it grows linearly, "
            r"$q_0 + l\,(s_f + \sigma^2/T) \le q_l \le q_0 + l\,(s_f + \sigma^2)$, with equality on the right for "
            r"identical "
            "tokens",
            "q",
            "growth",
            solve=True,
        ),
    )


def gradient_steps() -> tuple[Step, ...]:
    """One sublayer backward and the product over the depth."""
    g = Moments(gamma, rho * gamma)
    through = g + norm_backward(g, q).scaled(s_b)
    total = q + sigma**2
    return (
        Equality(
            through.variance,
            gamma * (1 + s_b / q),
            "one sublayer backward: the skip carries the gradient unchanged, the branch adds its gain over the "
            "variance at "
            "its norm",
            "sublayer",
            r"\gamma_x",
        ),
        Equality(
            (1 + sigma**2 / q) * (1 + chi * s_f / total),
            1 + (sigma**2 + chi * s_f) / q,
            r"identical tokens with identical gradients: one block (attention, gain $\sigma^2$, then FFN, gain "
            r"$\chi s_f$, "
            "whose norm sees what attention added)",
            "block_gradient",
            r"\gamma_{l}/\gamma_{l+1}",
        ),
        Recurrence(
            ell,
            lambda n, y: y * (1 + b / (q_0 + s * n)),
            sp.Integer(1),
            product_closed_form(q_0, s, b, ell),
            r"the product of $l$ such factors, $b$ over the variance $q_0 + sj$",
            "P",
            "product",
        ),
        Limit(
            sp.gamma(L + A + beta) / sp.gamma(L + A) * L ** (-beta),
            L,
            sp.oo,
            sp.Integer(1),
            r"Stirling: with $A = q_0/s$ and $\beta = b/s$ the product is $\sim "
            r"\frac{\Gamma(A)}{\Gamma(A+\beta)}L^{\beta}$",
            "power",
        ),
        Equality(
            product_closed_form(q_0, s, s, ell),
            1 + s * ell / q_0,
            r"when backward and forward gains agree ($\chi = 1$) the product telescopes to $q_l/q_0$",
            "telescoped",
            r"P_l\big|_{b=s}",
        ),
    )


def mode_steps() -> tuple[Step, ...]:
    """Linear FFN: the two token modes, and the exponent of 1 - correlation."""
    after = STREAM + uniform_attention(normed(STREAM), sigma**2, T)
    share = M / Q
    ratio = r_0  # delta/M
    return (
        Equality(
            mean_mode(after, T), M * (1 + sigma**2 / Q), "attention feeds the token-mean mode only", label=r"\bar q'"
        ),
        Equality(deviation_mode(after), delta, "token deviations stay as they are", label=r"\delta'"),
        Equality(
            deviation_mode(STREAM + normed(STREAM).scaled(s_f)),
            delta * (1 + s_f / Q),
            "a linear FFN feeds both in proportion",
            label=r"\delta''",
        ),
        Equality(
            deviation_mode(after) / mean_mode(after, T),
            delta / M / (1 + sigma**2 / Q),
            r"so the ratio $r = \delta/\bar q$ falls by $1 + \sigma^2/q$ at each attention, with $q_l \le q_0 + "
            r"sl$: by the "
            r"product above, $r_l \le r_0\,P_l^{-1} \sim l^{-\sigma^2/s}$, $s = \sigma^2 + s_f$",
            label=r"r'",
        ),
        Inequality(
            1 - (share.subs(delta, ratio * M)),
            ratio,
            r"hence the token-mean share of variance tends to 1",
            smaller_label=r"1 - \bar q/q",
        ),
        Equality(
            sp.Derivative((z ** (1 - eta) - 1) / (1 - eta), z),
            z ** (-eta),
            r"with $\eta = \sigma^2/s < 1$, the variance's deficit against $q_0 + sl$, $\sigma^2\sum_j(1-\bar "
            r"q_j/q_j)$, is "
            r"at most of order $\int_1^L z^{-\eta}dz = (L^{1-\eta}-1)/(1-\eta)$",
        ),
        Limit(
            -(L ** (-eta)) / eta + 1 / eta,
            L,
            sp.oo,
            1 / eta,
            r"so relative deficits are $O(l^{-\eta})$ and change $\sum_l s_f/q_l$ by a convergent sum ($\int_1^L "
            r"z^{-1-\eta}dz$ "
            r"stays bounded): exponents may be read off with $q_l = q_0 + sl$",
        ),
        Equality(
            s_f / (sigma**2 + s_f) - 1,
            -(sigma**2) / (sigma**2 + s_f),
            r"$\delta_L \sim L^{s_f/s}$ by the product with $b = s_f$, $q_L \sim L$, and $1 - c = \delta/q$: the "
            r"exponent of "
            r"$1-c$ in depth",
            "exponent",
            r"\frac{d\log(1-c_L)}{d\log L}",
        ),
        Equality(
            (-(sigma**2) / (sigma**2 + s_f)).subs(s_f, sigma**2),
            -sp.Rational(1, 2),
            r"for equal gains $s_f = \sigma^2$",
            "half",
            r"\frac{d\log(1-c_L)}{d\log L}\Big|_{s_f=\sigma^2}",
            derived=True,
        ),
    )


PROPOSITION = Proposition(
    name="prenorm",
    number="7",
    title="PreNorm",
    quantities=(
        notation.VARIANCE,
        notation.CORRELATION,
        notation.GRAD_VARIANCE,
        notation.GRAD_CORRELATION,
        notation.TOKENS,
        notation.SIGMA,
        notation.FFN_GAIN,
        notation.CHI,
        notation.BLOCK,
        Quantity(L, "depth in blocks", 1),
        Quantity(s_b, "backward gain of a branch"),
        Quantity(q_0, "variance of the embedding"),
        Quantity(s, r"growth per block, $s_a + s_f$"),
        Quantity(b, "backward gain of a block's branches together"),
        Quantity(M, r"$\bar q$, the token-mean mode"),
        Quantity(delta, r"$q(1-c)$, a token-deviation mode"),
        Quantity(r_0, r"ratio $\delta/\bar q$"),
        Quantity(A, r"$q_0/s$"),
        Quantity(beta, r"$b/s$"),
        Quantity(eta, "an exponent", sp.Rational(1, 4), sp.Rational(3, 4)),
        Quantity(z, "an integration variable", 1),
    ),
    setting=(
        r"A block is $u = x + \mathrm{Attn}(\mathrm N(x))$, $x' = u + \mathrm{FFN}(\mathrm N(u))$. Attention is "
        r"uniform, with "
        r"gain $\sigma^2$; the FFN has forward gain $s_f$ and backward gain $\chi s_f$. $q_l$ and $c_l$ are "
        r"variance and "
        r"correlation of the stream after block $l$."
    ),
    hypotheses=(
        "wide limit; uniform attention",
        "for the exact gradient product: identical tokens and identical gradients ($T = 1$ is such a case)",
        r"for the exponent of $1-c$: linear FFN and $0 < \sigma^2, s_f$",
    ),
    statement=(
        "The variance grows linearly, between $q_0 + l(s_f+\\sigma^2/T)$ and $q_0 + "
        "l(s_f+\\sigma^2)$:\n\n$$<<block>>$$\n\n"
        "The gradient obeys a power law: with $b = \\sigma^2 + \\chi s_f$ and $s = \\sigma^2 + "
        "s_f$,\n\n$$<<block_gradient>>$$\n\n"
        "$$<<product>>$$\n\nwhich grows like $L^{b/s}$: like $L$ for ReLU and linear FFNs, where it is $q_L/q_0$ "
        "exactly. "
        "Tokens grow alike slowly:\n\n$$<<exponent>>$$\n\nso $1 - c_L \\sim L^{-1/2}$ for equal gains; a "
        "token-deviation "
        r"gradient grows towards the input like $L^{s_f/s}$ (proposition 10b)."
    ),
    source="Xiong et al. 2020, arXiv:2002.04745, for linear growth; exponents derived here.",
    confronted="tests/test_proofs_against_simulation_depth.py::test_prenorm",
    derivation=lambda: variance_steps() + gradient_steps() + mode_steps(),
    axioms=(axioms.WIDE, axioms.INDEPENDENCE),
)
