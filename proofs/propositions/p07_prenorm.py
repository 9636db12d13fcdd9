"""Proposition 7: PreNorm. Linear growth of the variance, power laws for the gradient and for 1 - correlation."""

from __future__ import annotations

from functools import cache

import sympy as sp

from proofs import axioms, notation
from proofs.maps import Moments, deviation_mode, ffn, mean_mode, norm_backward, normed, uniform_attention
from proofs.notation import T, c, chi, ell, gamma, q, rho, s_b, s_f, sigma
from proofs.vocabulary import (
    PREVIOUS,
    Bounds,
    Equality,
    Hypothesis,
    Inequality,
    Limit,
    Named,
    Proposition,
    Quantity,
    Recurrence,
    Step,
    resting_on,
    stated,
)

M, delta, q_0, s, b, r_0, eta, C = sp.symbols("M delta q_0 s b r_0 eta C", positive=True)
A, beta, L, z = sp.symbols("A beta L z", positive=True)
ATTENTION = sigma**2 * (c + (1 - c) / T)
STREAM = Moments(M + (T - 1) / T * delta, M - delta / T)  # variance and covariance from the two modes
Q = STREAM.variance

WIDE = Hypothesis("wide limit; uniform attention")
IDENTICAL = Hypothesis(
    "for the exact gradient product: identical tokens and identical gradients ($T = 1$ is such a case)"
)
LINEAR = Hypothesis(r"for the exponent of $1-c$: linear FFN and $0 < \sigma^2, s_f$")


def product_closed_form(initial: sp.Expr, growth: sp.Expr, gain: sp.Expr, index: sp.Expr) -> sp.Expr:
    """prod over l < index of 1 + gain/(initial + growth*l), as a ratio of gamma functions."""
    a, e = initial / growth, gain / growth
    return sp.gamma(index + a + e) * sp.gamma(a) / (sp.gamma(index + a) * sp.gamma(a + e))


def variance_steps() -> tuple[Step, ...]:
    """One block forward, the bracket, and the closed form."""
    stream = Moments(q, c * q)
    after = stream + uniform_attention(normed(stream), sigma**2, T)
    share = Named("s_a", ATTENTION)
    least = Inequality(
        sigma**2 / T, share, "attention's share lies between that of uncorrelated tokens", name="least", uses=("block",)
    )
    most = Inequality(share, sigma**2, "and that of identical tokens", name="most", uses=("block",))
    return (
        Equality(
            Named(r"q_{l+1}", (after + ffn(s_f, sp.Integer(0))).variance),
            q + ATTENTION + s_f,
            "both branches read the normed stream, of variance 1, and add to the stream (propositions 2-4, 6)",
            name="block",
        ),
        least,
        most,
        Bounds(
            ell,
            PREVIOUS + ATTENTION + s_f,
            q_0,
            q_0 + ell * (s_f + sigma**2 / T),
            q_0 + ell * (s_f + sigma**2),
            (c,),
            "so the variance grows linearly, whatever the correlation is in each block",
            sequence=sp.IndexedBase("q"),
            name="growth_bounds",
            uses=("block",),
            below=least,
            above=most,
        ),
        Recurrence(
            ell,
            PREVIOUS + s,
            q_0,
            q_0 + s * ell,
            r"and for identical tokens exactly so, with $s = \sigma^2 + s_f$",
            sequence=sp.IndexedBase("q"),
            name="growth",
            solve=True,
            uses=("block",),
        ),
    )


def gradient_steps() -> tuple[Step, ...]:
    """One sublayer backward and the product over the depth."""
    g = Moments(gamma, rho * gamma)
    through = g + norm_backward(g, q).scaled(s_b)
    return (
        Equality(
            Named(r"\gamma_x", through.variance),
            gamma * (1 + s_b / q),
            "one sublayer backward: the skip carries the gradient unchanged, the branch adds its gain over the "
            "variance at "
            "its norm",
            name="sublayer",
        ),
    )


def product_steps() -> tuple[Step, ...]:
    """The product over the depth, for identical tokens."""
    total = q + sigma**2
    return (
        Equality(
            Named(r"\gamma_{l}/\gamma_{l+1}", (1 + sigma**2 / q) * (1 + chi * s_f / total)),
            1 + (sigma**2 + chi * s_f) / q,
            r"identical tokens with identical gradients: one block (attention, gain $\sigma^2$, then FFN, gain "
            r"$\chi s_f$, "
            "whose norm sees what attention added)",
            name="block_gradient",
            uses=("sublayer", "growth"),
        ),
        Recurrence(
            ell,
            PREVIOUS * (1 + b / (q_0 + s * ell)),
            sp.Integer(1),
            product_closed_form(q_0, s, b, ell),
            r"the product of $l$ such factors, $b$ over the variance $q_0 + sj$",
            sequence=sp.IndexedBase("P"),
            name="product",
            uses=("block_gradient", "growth"),
        ),
        Limit(
            sp.gamma(L + A + beta) / sp.gamma(L + A) * L ** (-beta),
            L,
            sp.oo,
            sp.Integer(1),
            r"Stirling: with $A = q_0/s$ and $\beta = b/s$ the product is $\sim "
            r"\frac{\Gamma(A)}{\Gamma(A+\beta)}L^{\beta}$",
            name="power",
            uses=("product",),
        ),
        Equality(
            Named(r"P_l\big|_{b=s}", product_closed_form(q_0, s, s, ell)),
            1 + s * ell / q_0,
            r"when backward and forward gains agree ($\chi = 1$) the product telescopes to $q_l/q_0$",
            name="telescoped",
            uses=("product",),
        ),
    )


def mode_steps() -> tuple[Step, ...]:
    """Linear FFN: the two token modes, and the exponent of 1 - correlation."""
    after = STREAM + uniform_attention(normed(STREAM), sigma**2, T)
    share = M / Q
    ratio = r_0  # delta/M
    return (
        Equality(
            Named(r"\bar q'", mean_mode(after, T)),
            M * (1 + sigma**2 / Q),
            "attention feeds the token-mean mode only",
            name="mean",
        ),
        Equality(Named(r"\delta'", deviation_mode(after)), delta, "token deviations stay as they are", name="kept"),
        Equality(
            Named(r"\delta''", deviation_mode(STREAM + normed(STREAM).scaled(s_f))),
            delta * (1 + s_f / Q),
            "a linear FFN feeds both in proportion",
            name="fed",
        ),
        Equality(
            Named(r"r'", deviation_mode(after) / mean_mode(after, T)),
            delta / M / (1 + sigma**2 / Q),
            r"so the ratio $r = \delta/\bar q$ falls by $1 + \sigma^2/q$ at each attention, with $q_l \le q_0 + "
            r"sl$: by the "
            r"product above, $r_l \le r_0\,P_l^{-1} \sim l^{-\sigma^2/s}$, $s = \sigma^2 + s_f$",
            name="falls",
            uses=("mean", "kept", "growth_bounds", "product", "power"),
        ),
        Inequality(
            Named(r"1 - \bar q/q", 1 - (share.subs(delta, ratio * M))),
            ratio,
            r"hence the token-mean share of variance tends to 1",
            name="share",
            uses=("falls",),
        ),
        Equality(
            sp.Derivative((z ** (1 - eta) - 1) / (1 - eta), z),
            z ** (-eta),
            r"with $\eta = \sigma^2/s < 1$, the variance's deficit against $q_0 + sl$, $\sigma^2\sum_j(1-\bar "
            r"q_j/q_j)$, is "
            r"at most of order $\int_1^L z^{-\eta}dz = (L^{1-\eta}-1)/(1-\eta)$",
            name="deficit",
            uses=("share",),
        ),
        Limit(
            -(L ** (-eta)) / eta + 1 / eta,
            L,
            sp.oo,
            1 / eta,
            r"so relative deficits are $O(l^{-\eta})$ and change $\sum_l s_f/q_l$ by a convergent sum ($\int_1^L "
            r"z^{-1-\eta}dz$ "
            r"stays bounded): exponents may be read off with $q_l = q_0 + sl$",
            name="convergent",
            uses=("deficit",),
        ),
        Equality(
            Named(r"\frac{d\log(1-c_L)}{d\log L}", s_f / (sigma**2 + s_f) - 1),
            -(sigma**2) / (sigma**2 + s_f),
            r"$\delta_L \sim L^{s_f/s}$ by the product with $b = s_f$, $q_L \sim L$, and $1 - c = \delta/q$: the "
            r"exponent of "
            r"$1-c$ in depth",
            name="exponent",
            uses=("fed", "kept", "power", "convergent"),
        ),
        Equality(
            Named(
                r"\frac{d\log(1-c_L)}{d\log L}\Big|_{s_f=\sigma^2}",
                (-(sigma**2) / (sigma**2 + s_f)).subs(s_f, sigma**2),
            ),
            -sp.Rational(1, 2),
            r"for equal gains $s_f = \sigma^2$",
            name="half",
            uses=("exponent",),
            derived=True,
        ),
    )


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return (
        resting_on((axioms.WIDE, WIDE), variance_steps())
        + resting_on((axioms.WIDE, axioms.INDEPENDENCE, WIDE), gradient_steps())
        + resting_on((axioms.WIDE, axioms.INDEPENDENCE, WIDE, IDENTICAL), product_steps())
        + resting_on((axioms.WIDE, WIDE, LINEAR), mode_steps())
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
        WIDE,
        IDENTICAL,
        LINEAR,
    ),
    statement=(
        "The variance grows linearly:\n\n$$<<block>>$$\n\n$$<<growth_bounds>>$$\n\n"
        "For identical tokens and gradients the gradient obeys a power law: with $b = \\sigma^2 + \\chi s_f$ and $s "
        "= \\sigma^2 + "
        "s_f$,\n\n$$<<block_gradient>>$$\n\n"
        "$$<<product>>$$\n\nwhich grows like $L^{b/s}$, by Stirling's limit (with $A = q_0/s$ and $\\beta = "
        "b/s$):\n\n$$<<power>>$$\n\nlike $L$ for ReLU and linear FFNs, where it is $q_L/q_0$ exactly:\n\n"
        "$$<<telescoped>>$$\n\nTokens grow alike slowly, with exponent\n\n$$<<exponent>>$$\n\nand for equal "
        "gains\n\n$$<<half>>$$\n\nA "
        "token-deviation "
        r"gradient grows towards the input like $L^{s_f/s}$ (proposition 10b)."
    ),
    source="Xiong et al. 2020, arXiv:2002.04745, for linear growth; exponents derived here.",
    confronted="tests/test_proofs_against_simulation_depth.py::test_prenorm",
    derivation=derivation,
    conclusion=lambda: stated(
        derivation,
        *("block", "growth_bounds", "block_gradient", "product", "power", "telescoped", "exponent", "half"),
    ),
)
