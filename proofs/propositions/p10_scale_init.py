"""Proposition 10: SpanNorm with ScaleInit of exponent k. A two-sided bound on the end-to-end gradient gain."""

from __future__ import annotations

import sympy as sp

from proofs import axioms, blocks, notation
from proofs.maps import Moments, mean_mode
from proofs.notation import L, T, a_a, a_f, chi, gamma, k, rho, s_f
from proofs.vocabulary import Equality, Inequality, Limit, Proposition, Quantity, Recurrence, Step

B, m, ratio, s_ab, s_a, w, z, x, y = sp.symbols("B m r_c s_ab s_a w z x y", positive=True)
theta, phi, eps, small, ell = sp.symbols("theta phi varepsilon u l", positive=True)
ONE = sp.Integer(1)
GRADIENT = Moments(gamma, rho * gamma)
FACTOR = (1 + chi * s_f * (1 + s_ab) / (1 + s_a)) / (1 + s_f)
# s_a = theta B and s_ab = phi B with 0 <= theta, phi <= 1: all that is known of them is their bound B.
BOUNDED = {s_a: theta * B, s_ab: phi * B}


def ingredients() -> tuple[Step, ...]:
    """The block's factor, and the ranges of what enters it."""
    back = blocks.spannorm_backward(GRADIENT, s_a, B, T, s_f, chi, ratio)
    arriving = B * (1 + (T - 1) * rho * ratio) / T
    stream = Moments(ONE, (T * m - 1) / (T - 1))
    cone = (x * rho + y * ratio) / (x + y)
    return (
        Equality(
            back.variance / gamma,
            FACTOR.subs(s_ab, arriving),
            r"one block backward (proposition 9), $s_{ab}$ being attention's gain for the gradient that arrives at "
            r"it and "
            r"$B = \sigma^2$ the gain of attention's maps",
            "factor",
            r"\gamma_l/\gamma_{l+1}",
        ),
        Equality(
            blocks.attention_share(stream, B, T),
            B * mean_mode(stream, T),
            r"forward, attention's branch has variance $s_a = \sigma^2 m$ with $0 \le m \le 1$: so $s_a = \theta B$, "
            r"$0\le\theta\le 1$, and the variances before the two norms lie in $[1, 1+B]$ and equal $1+s_f$",
            label="s_a",
            derived=True,
        ),
        Inequality(
            arriving,
            B,
            r"backward, because $0 \le \rho r_c \le 1$: so $s_{ab} = \phi B$ with $0 \le \phi \le 1$",
            smaller_label=r"s_{ab}",
        ),
        Inequality(
            sp.Integer(0),
            cone,
            r"the hypothesis $0\le\kappa\le\gamma$ is kept: every map multiplies a correlation by "
            r"$r_c \in [0,1]$ or averages correlations in $[0,1]$ with positive weights $x, y$",
        ),
        Inequality(
            cone,
            ONE,
            r"and likewise above; forward, the same two facts keep $0 \le c \le 1$ (proposition 3a for the "
            "FFN)",
        ),
    )


def one_block() -> tuple[Step, ...]:
    """Homogeneous FFN (chi = 1): both bounds for one block."""
    factor = FACTOR.subs(chi, 1)
    loss = s_f * s_a / ((1 + s_f) * (1 + s_a))
    return (
        Equality(
            factor - 1,
            s_f * (s_ab - s_a) / ((1 + s_f) * (1 + s_a)),
            r"$\chi = 1$: what one block gains or loses is a product of the two branches' gains",
            "product",
            r"\gamma_l/\gamma_{l+1} - 1",
        ),
        Inequality(
            factor.subs(BOUNDED),
            1 + s_f * B,
            r"upper bound, from $s_{ab} \le B$ and $s_a \ge 0$",
            smaller_label=r"\gamma_l/\gamma_{l+1}",
        ),
        Inequality(1 + z, sp.exp(z), r"with $z = s_f B$", along=z),
        Inequality(
            (1 - loss).subs(BOUNDED),
            factor.subs(BOUNDED),
            r"lower bound, from $s_{ab} \ge 0$: the factor is at least $1 - w$, $w = \frac{s_fs_a}{(1+s_f)(1+s_a)}$",
            larger_label=r"\gamma_l/\gamma_{l+1}",
        ),
        Inequality(-w / (1 - w), sp.log(1 - w), r"for $0 \le w < 1$, that is $1 - w \ge e^{-w/(1-w)}$", along=w),
        Inequality(
            sp.cancel(loss / (1 - loss)).subs(s_a, theta * B),
            s_f * B,
            r"and $w/(1-w) = \frac{s_fs_a}{1+s_f+s_a} \le s_f B$",
            smaller_label=r"\tfrac{w}{1-w}",
        ),
    )


def all_blocks() -> tuple[Step, ...]:
    """The product over the depth, and what it says for k >= 1/4."""
    per_block = a_a * L ** (-2 * k) * (a_f * L ** (-2 * k))
    return (
        Recurrence(
            ell,
            lambda n, p: p * sp.exp(-z),
            ONE,
            sp.exp(-z * ell),
            r"multiply the lower bounds of $l$ blocks (the upper ones with $-z$ for $z$)",
            r"\underline G",
        ),
        Equality(
            L * per_block,
            a_a * a_f * L ** (1 - 4 * k),
            r"with $s_f = a_fL^{-2k}$ and $B = a_aL^{-2k}$ the bounds of $L$ blocks multiply, so exponents add: hence "
            r"$e^{-a_aa_fL^{1-4k}} \le \gamma_0/\gamma_L \le e^{a_aa_fL^{1-4k}}$",
            "exponent",
            r"L\,s_f B",
        ),
        Limit(
            sp.exp(a_a * a_f * L ** (-eps)),
            L,
            sp.oo,
            ONE,
            r"for $k = (1+\varepsilon)/4 > 1/4$ both bounds tend to 1; at $k = 1/4$ they are $e^{\pm a_aa_f}$ at "
            r"every depth",
            "tends",
            r"e^{\pm a_aa_fL^{1-4k}}",
        ),
    )


def other_activations() -> tuple[Step, ...]:
    """chi != 1: k = 1/2 is needed, and the limit."""
    at_depth = FACTOR.subs({s_f: a_f * small, s_a: theta * a_a * small, s_ab: phi * a_a * small})
    lowest, highest = FACTOR.subs({s_a: B, s_ab: 0}), FACTOR.subs({s_a: 0, s_ab: B})
    return (
        Inequality(
            lowest,
            FACTOR.subs(BOUNDED),
            r"for any $\chi$ the factor is least at $s_a = B$, $s_{ab} = 0$",
            larger_label=r"\gamma_l/\gamma_{l+1}",
        ),
        Inequality(
            FACTOR.subs(BOUNDED),
            highest,
            r"and largest at $s_a = 0$, $s_{ab} = B$",
            smaller_label=r"\gamma_l/\gamma_{l+1}",
        ),
        Limit(
            sp.log(at_depth) / small,
            small,
            0,
            (chi - 1) * a_f,
            r"with $u = L^{-2k}$, so for both extremes and everything between (any $\theta, \phi$): "
            r"$\log(\gamma_0/\gamma_L) = L^{1-2k}\,[(\chi-1)a_f + O(L^{-2k})]$, which for $\chi\ne1$ stays bounded "
            r"only for "
            r"$k \ge 1/2$",
            "chi",
            r"\tfrac1u\log\frac{\gamma_l}{\gamma_{l+1}}",
        ),
        Limit(
            (1 + (chi - 1) * a_f / L) ** L,
            L,
            sp.oo,
            sp.exp((chi - 1) * a_f),
            r"at $k = 1/2$, $L$ such blocks",
            "limit",
            r"\frac{\gamma_0}{\gamma_L}\Big|_{k=1/2}",
        ),
    )


def attention_fades() -> tuple[Step, ...]:
    """The price: attention reaches the stream only through the FFN."""
    stream = Moments(ONE, (T * m - 1) / (T - 1))
    heard = blocks.after_attention(stream, B, T)
    span = mean_mode(blocks.spannorm(stream, B, T, s_f, heard.covariance), T)
    post = mean_mode(heard, T)
    return (
        Equality(
            span - m,
            s_f / (1 + s_f) * B * m * (1 - m) / (1 + B * m),
            r"linear FFN: one SpanNorm block moves the token-mean share $m$ by the fraction $s_f/(1+s_f)$ of what "
            r"attention "
            "moves it in PostNorm",
            label="m' - m",
        ),
        Equality(
            post - m,
            B * m * (1 - m) / (1 + B * m),
            "which is of the order of attention's gain",
            label=r"m'_{\text{PostNorm}} - m",
        ),
        Inequality(span - m, s_f * B * m * (1 - m), "at most", smaller_label="m' - m"),
        Inequality(
            s_f * B * m * (1 - m),
            s_f * B / 4,
            r"so over all blocks SpanNorm's attention moves $m$ by at most $\frac14 a_aa_fL^{1-4k}$",
            "attention",
        ),
        Limit(
            a_a * a_f * L ** (-eps) / 4,
            L,
            sp.oo,
            sp.Integer(0),
            r"which vanishes with depth for $k = (1+\varepsilon)/4 > 1/4$ (also at $k = 1/2$): attention no longer "
            r"mixes tokens",
            "fades",
            r"\sum_l |m_{l+1}-m_l|",
        ),
    )


PROPOSITION = Proposition(
    name="scale_init",
    number="10",
    title="SpanNorm with ScaleInit: a two-sided bound",
    quantities=(
        notation.TOKENS,
        notation.FFN_GAIN,
        notation.CHI,
        notation.GRAD_VARIANCE,
        notation.GRAD_CORRELATION,
        notation.DEPTH,
        Quantity(s_a, "forward variance of the attention branch"),
        Quantity(s_ab, "attention's backward gain for the gradient that arrives at it"),
        Quantity(B, r"bound on both: $\sigma^2 = a_aL^{-2k}$"),
        Quantity(theta, r"$s_a/B$", 0, 1),
        Quantity(phi, r"$s_{ab}/B$", 0, 1),
        Quantity(m, "token-mean share of the unit variance, $c+(1-c)/T$", 0, 1),
        Quantity(ratio, r"$\dot K(1,c)/\dot K(1,1)$, in $[0,1]$ for $c \ge 0$", 0, 1),
        Quantity(a_a, r"attention gain at $L = 1$"),
        Quantity(a_f, r"FFN gain at $L = 1$"),
        Quantity(k, "exponent: output matrices have their standard deviation multiplied by $L^{-k}$", 0, 1),
        Quantity(eps, r"$4k - 1$", sp.Rational(1, 4), 3),
        Quantity(small, r"$L^{-2k}$"),
        Quantity(w, "a loss", 0, 1),
        Quantity(x, "a positive weight"),
        Quantity(y, "a positive weight"),
        Quantity(z, "a positive number"),
        Quantity(ell, "number of blocks", 0, sp.oo, integer=True),
    ),
    setting=(
        r"SpanNorm blocks as in proposition 9. ScaleInit of exponent $k$ multiplies the standard deviation of "
        r"attention's output "
        r"matrix and of the FFN's output matrix by $L^{-k}$, so branch variances are $s_a \le B = a_aL^{-2k}$ and "
        r"$s_f = "
        r"a_fL^{-2k}$. (The published formula of ScaleInit is not known to us: the exponent is a parameter here, "
        r"and $k = 1/2$ is "
        r"inferred, not quoted.) $\gamma_0/\gamma_L$ is the gradient variance at the input over that at the top."
    ),
    hypotheses=(
        "wide limit; uniform attention (finite logits are covered by numbers only); normed input",
        r"token correlations $c \ge 0$ at the input, and $0 \le \kappa_L \le \gamma_L$ at the top",
        r"for the two-sided bound: a positively homogeneous FFN, $\chi = 1$",
        r"for the last part: linear FFN",
    ),
    statement=(
        "The stream has variance 1 and the sums before the norms variances in $[1, 1+a_aL^{-2k}]$ and "
        "$1+a_fL^{-2k}$. For "
        "$\\chi = 1$ one block changes the gradient variance only by a product of both "
        "gains,\n\n$$<<product>>$$\n\nhence for "
        "every $k$ and $L$\n\n$$e^{-a_aa_fL^{1-4k}} \\le \\frac{\\gamma_0}{\\gamma_L} \\le e^{a_aa_fL^{1-4k}},\\qquad "
        "<<exponent>>,$$\n\nbounded above and below for every $k \\ge 1/4$. For other activations $k \\ge 1/2$ is "
        "needed:\n\n"
        "$$<<chi>>$$\n\n$$<<limit>>$$\n\nThe price is that attention fades: per "
        "block\n\n$$<<attention>>$$\n\n$$<<fades>>$$"
    ),
    source=(
        "SpanNorm and ScaleInit: arXiv:2601.22580. The bound, its exponent 1/4 and the limit are derived here and "
        "are not claims "
        "of that paper."
    ),
    confronted="tests/test_proofs_against_simulation_depth.py::test_scale_init",
    derivation=lambda: ingredients() + one_block() + all_blocks() + other_activations() + attention_fades(),
    axioms=(axioms.WIDE, axioms.INDEPENDENCE),
)
