"""Proposition 10: SpanNorm with ScaleInit of exponent k. A two-sided bound on the end-to-end gradient gain."""

from __future__ import annotations

from functools import cache

import sympy as sp

from proofs import axioms, blocks, notation
from proofs.maps import Moments, mean_mode
from proofs.notation import L, T, a_a, a_f, c, chi, ell, gamma, k, rho, s_f
from proofs.vocabulary import (
    PREVIOUS,
    Bounds,
    Chain,
    Conclusion,
    Equality,
    Hypothesis,
    Inequality,
    Instance,
    Limit,
    Named,
    Proposition,
    Quantity,
    Step,
    concluded,
    resting_on,
    stated,
)

B, m, ratio, kernel, z = sp.symbols("B m r_c k_c z", positive=True)
eps, delta, small = sp.symbols("varepsilon delta u", positive=True)
ONE = sp.Integer(1)
GAIN, MOVED = sp.IndexedBase("G"), sp.IndexedBase("M")
GRADIENT = Moments(gamma, rho * gamma)
STREAM = Moments(ONE, c)

WIDE = Hypothesis("wide limit; uniform attention (finite logits are covered by numbers only); normed input")
SIGNS = Hypothesis(r"token correlations $c \ge 0$ at the input, and $0 \le \kappa_L \le \gamma_L$ at the top")
SCALED = Hypothesis(
    "ScaleInit of exponent $k$",
    (sp.Eq(B, a_a * L ** (-2 * k)), sp.Eq(s_f, a_f * L ** (-2 * k))),
)
HOMOGENEOUS = Hypothesis("for the two-sided bound: a positively homogeneous FFN", (sp.Eq(chi, 1),))
LINEAR = Hypothesis("for the last part: linear FFN")

S_A = Named("s_a", blocks.attention_share(STREAM, B, T))
S_AB = Named("s_{ab}", B * (1 + (T - 1) * rho * ratio) / T)
BACK = blocks.spannorm_backward(GRADIENT, S_A, B, T, s_f, chi, ratio)
FACTOR = Named(r"\gamma_l/\gamma_{l+1}", BACK.variance / gamma)
LOWEST, HIGHEST = (1 + chi * s_f / (1 + B)) / (1 + s_f), (1 + chi * s_f * (1 + B)) / (1 + s_f)
BLOCKWISE = (c, rho, ratio)  # what differs from block to block, in its range and otherwise anyhow
EXPONENT = a_a * a_f * L ** (1 - 4 * k)


def ingredients() -> tuple[Step, ...]:
    """The block's factor, and the ranges of what enters it."""
    ahead = blocks.spannorm(STREAM, B, T, s_f, kernel)
    return (
        Equality(
            FACTOR,
            (1 + chi * s_f * (1 + S_AB) / (1 + S_A)) / (1 + s_f),
            r"one block backward (proposition 9), $s_a$ being attention's forward variance, $s_{ab}$ its gain for the "
            r"gradient that arrives at it and $B = \sigma^2$ the gain of its maps",
            name="factor",
        ),
        Inequality(S_A, B, r"forward, attention adds at most $B$", name="share"),
        Inequality(S_AB, B, r"and backward, because $0 \le \rho r_c \le 1$", name="arriving"),
        Inequality(
            sp.Integer(0),
            Named(r"\kappa_l", BACK.covariance),
            r"a block keeps the hypothesis $0\le\kappa\le\gamma$: from below",
            name="kept_low",
        ),
        Inequality(
            Named(r"\kappa_l", BACK.covariance), Named(r"\gamma_l", BACK.variance), "and from above", name="kept_high"
        ),
        Inequality(
            sp.Integer(0),
            Named("c'", ahead.covariance),
            "forward, correlations stay non-negative if the FFN's output has correlation $0 \\le k_c \\le 1$ "
            "(proposition 3a)",
            name="forward_low",
        ),
        Inequality(Named("c'", ahead.covariance), ONE, "and at most 1", name="forward_high"),
    )


def any_activation() -> tuple[Step, ...]:
    """Both bounds for any chi, and what they say at k = 1/2."""
    lowest = Inequality(
        LOWEST,
        FACTOR,
        r"for any $\chi$ the factor is least at $s_a = B$, $s_{ab} = 0$",
        name="lowest",
        uses=("factor", "share", "arriving"),
    )
    highest = Inequality(
        FACTOR, HIGHEST, r"and largest at $s_a = 0$, $s_{ab} = B$", name="highest", uses=("factor", "share", "arriving")
    )
    at_depth = {s_f: a_f * small, B: a_a * small}
    limits = (
        Limit(
            sp.log(bound.subs(at_depth)) / small,
            small,
            0,
            (chi - 1) * a_f,
            reason,
            name=name,
            uses=("extremes",),
        )
        for name, bound, reason in (
            ("chi_low", LOWEST, r"with $u = L^{-2k}$: the lower bound's logarithm, per block"),
            (
                "chi_high",
                HIGHEST,
                r"and the upper one's, the same: $\log G_L$ is $L^{1-2k}\,[(\chi-1)a_f + O(L^{-2k})]$, which for "
                r"$\chi\ne1$ stays bounded only for $k \ge 1/2$",
            ),
        )
    )
    return (
        lowest,
        highest,
        Bounds(
            ell,
            PREVIOUS * FACTOR,
            ONE,
            LOWEST**ell,
            HIGHEST**ell,
            BLOCKWISE,
            "multiply over $l$ blocks counted from the top, $G_l$ being the gradient variance below them over that at "
            "the top",
            sequence=GAIN,
            name="extremes",
            uses=("kept_low", "kept_high", "forward_low", "forward_high", SIGNS),
            below=lowest,
            above=highest,
        ),
        *limits,
        Limit(
            (1 + (chi - 1) * a_f / L) ** L,
            L,
            sp.oo,
            sp.exp((chi - 1) * a_f),
            r"at $k = 1/2$, where $u = 1/L$, $L$ such blocks",
            name="limit",
            uses=("chi_low", "chi_high"),
        ),
    )


def homogeneous() -> tuple[Step, ...]:
    """Homogeneous FFN (chi = 1): one block, L blocks, and what it says for k >= 1/4."""
    upper = Inequality(
        FACTOR,
        1 + s_f * B,
        r"upper bound, from $s_{ab} \le B$ and $s_a \ge 0$",
        name="upper",
        uses=("factor", "share", "arriving", HOMOGENEOUS),
    )
    lower = Inequality(
        1 / (1 + s_f * B),
        FACTOR,
        r"lower bound, from $s_{ab} \ge 0$ and $s_a \le B$",
        name="lower",
        uses=("factor", "share", "arriving", HOMOGENEOUS),
    )
    over = Inequality(1 + z, sp.exp(z), r"the exponential lies above its tangent", name="tangent", along=z)
    under = Inequality(sp.exp(-z), 1 / (1 + z), "hence", name="reciprocal", along=z)
    above = Chain(FACTOR, sp.exp(s_f * B), "with $z = s_f B$", (upper, over), name="above", at=({}, {z: s_f * B}))
    below = Chain(sp.exp(-s_f * B), FACTOR, "and from below", (under, lower), name="below", at=({z: s_f * B}, {}))
    product = Bounds(
        ell,
        PREVIOUS * FACTOR,
        ONE,
        sp.exp(-s_f * B * ell),
        sp.exp(s_f * B * ell),
        BLOCKWISE,
        "multiply over $l$ blocks",
        sequence=GAIN,
        name="product",
        uses=("kept_low", "kept_high", "forward_low", "forward_high", SIGNS),
        below=below,
        above=above,
    )
    return (
        Equality(
            FACTOR - 1,
            s_f * (S_AB - S_A) / ((1 + s_f) * (1 + S_A)),
            r"$\chi = 1$: what one block gains or loses is a product of the two branches' gains",
            name="gain",
            uses=("factor", HOMOGENEOUS),
        ),
        upper,
        lower,
        over,
        under,
        above,
        below,
        product,
        Equality(
            Named(r"L\,s_f B", L * s_f * B),
            EXPONENT,
            r"with $s_f = a_fL^{-2k}$ and $B = a_aL^{-2k}$",
            name="exponent",
            uses=(SCALED,),
        ),
        Instance(
            (sp.Le(sp.exp(-EXPONENT), GAIN[L]), sp.Le(GAIN[L], sp.exp(EXPONENT))),
            product,
            {ell: L},
            "so over the $L$ blocks",
            name="two_sided",
            uses=("exponent", SCALED),
        ),
        Inequality(
            a_a * a_f * L ** (-delta),
            a_a * a_f,
            r"for $k = (1+\delta)/4 \ge 1/4$ the exponent is at most $a_aa_f$, at every depth",
            name="bounded",
            along=delta,
            uses=("two_sided",),
        ),
        *(
            Limit(
                sp.exp(sign * a_a * a_f * L ** (-eps)),
                L,
                sp.oo,
                ONE,
                reason,
                name=name,
                uses=("two_sided",),
            )
            for sign, name, reason in (
                (1, "tends", r"for $k = (1+\varepsilon)/4 > 1/4$ the upper bound tends to 1"),
                (-1, "tends_low", "and the lower bound"),
            )
        ),
    )


def attention_fades() -> tuple[Step, ...]:
    """The price: attention reaches the stream only through the FFN."""
    stream = Moments(ONE, (T * m - 1) / (T - 1))
    heard = blocks.after_attention(stream, B, T)
    span = Named("m' - m", mean_mode(blocks.spannorm(stream, B, T, s_f, heard.covariance), T) - m)
    post = Named(r"m'_{\text{PostNorm}} - m", mean_mode(heard, T) - m)
    at_most = Inequality(span, s_f * B * m * (1 - m), "at most", name="at_most")
    quarter = Inequality(s_f * B * m * (1 - m), s_f * B / 4, r"since $m(1-m) \le \frac14$", name="quarter")
    block = Chain(span, s_f * B / 4, "so one block moves it by no more than", (at_most, quarter), name="attention")
    moved = Bounds(
        ell,
        PREVIOUS + span,
        sp.Integer(0),
        None,
        ell * s_f * B / 4,
        (m,),
        r"and $l$ blocks by $M_l = \sum |m'-m|$, whatever $m$ is in each",
        sequence=MOVED,
        name="moved",
        uses=("not_back",),
        above=block,
    )
    return (
        Equality(
            span,
            s_f / (1 + s_f) * B * m * (1 - m) / (1 + B * m),
            r"linear FFN: one SpanNorm block moves the token-mean share $m$ by the fraction $s_f/(1+s_f)$ of what "
            r"attention moves it in PostNorm",
            name="span_moves",
        ),
        Equality(post, B * m * (1 - m) / (1 + B * m), "which is of the order of attention's gain", name="post_moves"),
        Inequality(sp.Integer(0), span, "it never moves back", name="not_back", uses=("span_moves",)),
        at_most,
        quarter,
        block,
        moved,
        Instance(
            (sp.Le(MOVED[L], EXPONENT / 4),),
            moved,
            {ell: L},
            r"over all $L$ blocks",
            name="all_blocks",
            uses=(SCALED,),
        ),
        Limit(
            a_a * a_f * L ** (-eps) / 4,
            L,
            sp.oo,
            sp.Integer(0),
            r"which vanishes with depth for $k = (1+\varepsilon)/4 > 1/4$ (also at $k = 1/2$): attention no longer "
            r"mixes tokens",
            name="fades",
            uses=("all_blocks",),
        ),
    )


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return resting_on(
        (axioms.WIDE, axioms.INDEPENDENCE, WIDE), ingredients() + any_activation() + homogeneous()
    ) + resting_on((axioms.WIDE, WIDE, LINEAR), attention_fades())


def conclusion() -> tuple[Conclusion, ...]:
    """What is stated, the two-sided bound and its exponent written out once more by hand."""
    bound = a_a * a_f * L ** (1 - 4 * k)
    return (
        *stated(derivation, "factor", "gain"),
        concluded(
            derivation,
            "two_sided",
            sp.Le(sp.exp(-bound), GAIN[L]),
            sp.Le(GAIN[L], sp.exp(bound)),
            uses=("two_sided",),
        ),
        *stated(derivation, "bounded", "tends", "tends_low", "extremes", "chi_low", "chi_high", "limit"),
        *stated(derivation, "span_moves", "post_moves", "all_blocks", "fades"),
    )


PROPOSITION = Proposition(
    name="scale_init",
    number="10",
    title="SpanNorm with ScaleInit: a two-sided bound",
    quantities=(
        notation.TOKENS,
        notation.FFN_GAIN,
        notation.CHI,
        notation.CORRELATION,
        notation.GRAD_VARIANCE,
        notation.GRAD_CORRELATION,
        notation.DEPTH,
        notation.BLOCK,
        Quantity(B, r"gain of attention's maps, $\sigma^2$"),
        Quantity(m, "token-mean share of the unit variance, $c+(1-c)/T$", 0, 1),
        Quantity(kernel, r"$K(1,c)/K(1,1)$, in $[0,1]$ for $c \ge 0$", 0, 1),
        Quantity(ratio, r"$\dot K(1,c)/\dot K(1,1)$, in $[0,1]$ for $c \ge 0$", 0, 1),
        Quantity(a_a, r"attention gain at $L = 1$"),
        Quantity(a_f, r"FFN gain at $L = 1$"),
        Quantity(k, "exponent: output matrices have their standard deviation multiplied by $L^{-k}$", 0, 1),
        Quantity(eps, r"$4k - 1$, away from zero", sp.Rational(1, 4), 3),
        Quantity(delta, r"$4k - 1$", 0, 3),
        Quantity(small, r"$L^{-2k}$"),
        Quantity(z, "a positive number"),
    ),
    setting=(
        r"SpanNorm blocks as in proposition 9. ScaleInit of exponent $k$ multiplies the standard deviation of "
        r"attention's output matrix and of the FFN's output matrix by $L^{-k}$. (The published formula of ScaleInit is "
        r"not known to us: the exponent is a parameter here, and $k = 1/2$ is inferred, not quoted.) $G_l$ is the "
        r"gradient variance below $l$ blocks counted from the top over that at the top, so that "
        r"$G_L = \gamma_0/\gamma_L$; correlations and kernels may differ from block to block. $M_l$ is the sum of what "
        r"$l$ blocks move $m$ by."
    ),
    hypotheses=(WIDE, SIGNS, SCALED, HOMOGENEOUS, LINEAR),
    statement=(
        "One block backward:\n\n$$<<factor>>$$\n\nFor a homogeneous FFN it changes the gradient variance only by a "
        "product of both gains,\n\n$$<<gain>>$$\n\nhence for every $k$ and $L$\n\n$$<<two_sided>>$$\n\nbounded above "
        "and below, at every depth, for every $k \\ge 1/4$ ($\\delta = 4k-1$), and tending to 1 for $k > 1/4$ "
        "($\\varepsilon = 4k-1$):\n\n$$<<bounded>>$$\n\n$$<<tends>>, \\qquad <<tends_low>>$$\n\nFor other activations "
        "$k \\ge 1/2$ is needed, since of the two bounds\n\n$$<<extremes>>$$\n\nthe logarithms per block "
        "are\n\n$$<<chi_low>>$$\n\n$$<<chi_high>>$$\n\nand $L$ such blocks give\n\n$$<<limit>>$$\n\nThe price is that "
        "attention fades: per block\n\n$$<<span_moves>>$$\n\n$$<<post_moves>>$$\n\nand over all of "
        "them\n\n$$<<all_blocks>>$$\n\nwhich vanishes for $k > 1/4$:\n\n$$<<fades>>$$"
    ),
    source=(
        "SpanNorm and ScaleInit: arXiv:2601.22580. The bound, its exponent 1/4 and the limit are derived here and "
        "are not claims of that paper."
    ),
    confronted="tests/test_proofs_against_simulation_depth.py::test_scale_init",
    derivation=derivation,
    conclusion=conclusion,
)
