"""Proposition 9: SpanNorm. One norm on the span skip, the total gradient, and the rate of collapse."""

from __future__ import annotations

import sympy as sp

from proofs import axioms, blocks, notation
from proofs.maps import Moments, deviation_mode, mean_mode, norm_backward
from proofs.notation import T, chi, ell, gamma, rho, s_a, s_f, sigma
from proofs.vocabulary import Equality, Inequality, Limit, Proposition, Quantity, Recurrence, Step

m, r, s, L, ratio = sp.symbols("m r_0 s L r_c", positive=True)
ONE = sp.Integer(1)
STREAM = Moments(ONE, (T * m - 1) / (T - 1))
GRADIENT = Moments(gamma, rho * gamma)
GAIN = sigma**2
SHARE = GAIN * m  # attention's branch variance for this stream
DEVIATION_FACTOR = (1 + s_a + s_f) / ((1 + s_a) * (1 + s_f))
RATE = (1 + GAIN + s_f) / ((1 + GAIN) * (1 + s_f))


def skip_steps() -> tuple[Step, ...]:
    """The skip path and the gradient variance."""
    back = blocks.spannorm_backward(GRADIENT, s_a, GAIN, T, s_f, chi, ratio)
    gain_back = GAIN * (1 + (T - 1) * rho * ratio) / T
    return (
        Equality(
            norm_backward(GRADIENT, 1 + s_f).variance / gamma,
            1 / (1 + s_f),
            "along the span skip a gradient meets one norm per block, that of the FFN's sum",
            "skip",
            r"\gamma^{\text{skip}}_l/\gamma^{\text{skip}}_{l+1}",
            derived=True,
        ),
        Recurrence(
            ell,
            lambda n, y: y / (1 + s) ** 2,
            ONE,
            (1 / (1 + s)) ** (2 * ell),
            r"at equal gains $s$ PostNorm loses along its skip in $l$ blocks (proposition 8) what SpanNorm loses in "
            r"$2l$: the "
            "sense in which its skip allows twice the depth",
            r"\gamma^{\text{skip, PostNorm}}",
            "twice",
            solve=True,
        ),
        Equality(
            back.variance / gamma,
            (1 + chi * s_f * (1 + gain_back) / (1 + s_a)) / (1 + s_f),
            r"the whole block: skip, plus the way back through FFN, norm and attention; $s_{ab} = "
            r"\sigma^2(1+(T-1)\rho r_c)/T$ "
            "is attention's gain for the gradient that arrives there",
            "gradient",
            r"\gamma_l/\gamma_{l+1}",
        ),
    )


def mode_steps() -> tuple[Step, ...]:
    """Linear FFN: modes forward and backward, and the comparison with PostNorm."""
    y = blocks.after_attention(STREAM, GAIN, T)
    out = blocks.spannorm(STREAM, GAIN, T, s_f, y.covariance)
    back = blocks.spannorm_backward(GRADIENT, SHARE, GAIN, T, s_f, ONE, ONE)
    factor = DEVIATION_FACTOR.subs(s_a, SHARE)
    mean_factor = (1 + s_f * (1 + GAIN) / (1 + SHARE)) / (1 + s_f)
    return (
        Equality(
            deviation_mode(out) / deviation_mode(STREAM),
            factor,
            r"linear FFN, forward, with $s_a = \sigma^2 m$",
            "collapse",
            r"(1-c')/(1-c)",
        ),
        Equality(mean_mode(out, T) / m, mean_factor, "and the token-mean mode", "mean", "m'/m"),
        Equality(
            deviation_mode(back) / deviation_mode(GRADIENT),
            factor,
            "backward: the same number, so collapse and the loss of token-deviation gradients are one phenomenon "
            "here too",
            "deviation_gradient",
            r"(\gamma'-\kappa')/(\gamma-\kappa)",
        ),
        Equality(
            mean_mode(back, T) / mean_mode(GRADIENT, T),
            mean_factor,
            "and the token-mean mode",
            "mean_gradient",
            r"\bar\gamma'/\bar\gamma",
        ),
        Equality(
            1 - DEVIATION_FACTOR,
            s_f / (1 + s_f) * (1 - 1 / (1 + s_a)),
            r"the loss per block is the fraction $s_f/(1+s_f)$ of PostNorm's loss $1 - 1/(1+s_a)$: at unit FFN "
            r"gain, half",
            "loss",
            r"1 - \frac{1-c'}{1-c}",
        ),
        Inequality(
            1 / (1 + s_a),
            DEVIATION_FACTOR,
            "PostNorm's factor is the smaller one",
            "order",
            strict=True,
        ),
        Equality(
            DEVIATION_FACTOR.subs({s_a: 1, s_f: 1}),
            sp.Rational(3, 4),
            r"unit gains and identical tokens: $3/4$ against PostNorm's $1/2$",
            "unit",
            r"\frac{1-c'}{1-c}\Big|_{1,1}",
            derived=True,
        ),
    )


def depth_steps() -> tuple[Step, ...]:
    """Many blocks: collapse is geometric, and the total gradient keeps the same floor as PostNorm's."""
    per_block = DEVIATION_FACTOR.subs(s_a, SHARE) / ((1 + s_f * (1 + GAIN) / (1 + SHARE)) / (1 + s_f))
    m_0, m_L = sp.symbols("m_0 m_L", positive=True)
    total = (m_L / m_0 + (T - 1) * (1 - m_L) / (1 - m_0)) / T
    return (
        Equality(
            per_block,
            (1 + s_f + GAIN * m) / (1 + s_f + GAIN * m + GAIN * s_f),
            r"the ratio $r = 1/m - 1$ of deviation to mean is multiplied by",
            "ratio",
            r"r'/r",
        ),
        Inequality(
            per_block,
            RATE,
            r"which grows with $m$: so $r_l \le r_0\,f^l$ with $f$ its value at $m = 1$",
            "rate",
            larger_label="f",
        ),
        Inequality(RATE, ONE, r"and $f < 1$: collapse is geometric", "below_one", strict=True),
        Inequality(
            1 / (1 + GAIN), RATE, r"slower than PostNorm's rate $1/(1+\sigma^2)$", strict=True, larger_label="f"
        ),
        Recurrence(ell, lambda n, y: y * s, r, r * s**ell, r"$l$ blocks at a rate $s$", "r", solve=True),
        Limit(
            sp.log(RATE) / sp.log(1 / (1 + GAIN)),
            sigma,
            0,
            s_f / (1 + s_f),
            r"for small attention gain SpanNorm collapses $s_f/(1+s_f)$ times as fast as PostNorm, half as fast at "
            r"$s_f = 1$",
            "half",
            r"\frac{\log f}{\log\frac1{1+\sigma^2}}",
        ),
        Limit(
            total.subs(m_L, 1 / (1 + (1 / m_0 - 1) * s ** (-L))).subs(s, 1 + s),
            L,
            sp.oo,
            1 / (T * m_0),
            r"total gradient, linear FFN: the modes' factors multiply to $m_L/m_0$ and $(1-m_L)/(1-m_0)$ as in "
            r"proposition 8, and "
            r"$m_L \to 1$ geometrically (rate $1+s$ here): the same floor as PostNorm's, at any depth",
            "floor",
            r"G_L",
        ),
    )


PROPOSITION = Proposition(
    name="spannorm",
    number="9",
    title="SpanNorm",
    quantities=(
        notation.TOKENS,
        notation.SIGMA,
        notation.ATTENTION_GAIN,
        notation.FFN_GAIN,
        notation.CHI,
        notation.GRAD_VARIANCE,
        notation.GRAD_CORRELATION,
        notation.BLOCK,
        Quantity(L, "depth in blocks", 1, sp.oo, integer=True),
        Quantity(m, "token-mean mode of the unit-variance stream, $c + (1-c)/T$", 0, 1),
        Quantity(sp.Symbol("m_0", positive=True), "the same at the input", 0, 1),
        Quantity(ratio, r"$\dot K(1,c)/\dot K(1,1)$", 0, 1),
        Quantity(s, "a gain, or a rate"),
        Quantity(r, "that ratio at the input"),
    ),
    setting=(
        r"A block is $y = \mathrm N(x + \mathrm{Attn}(x))$, $x' = \mathrm N(x + \mathrm{FFN}(y))$: PostNorm with "
        r"the FFN's skip "
        r"taken from the block's input. Attention is uniform with gain $\sigma^2$; $s_a = \sigma^2 m$. The notation "
        r"is that of "
        r"proposition 8."
    ),
    hypotheses=("wide limit; uniform attention; normed input", "for the modes and for many blocks: linear FFN"),
    statement=(
        "Along the span skip there is one norm per block,\n\n$$<<skip>>$$\n\nso the skip's exponent is half of "
        "PostNorm's at "
        "equal gains (amplitude $2^{-L/2}$ against $2^{-L}$ at unit gains). The total gradient "
        "obeys\n\n$$<<gradient>>$$\n\n"
        "For a linear FFN, forward and backward "
        "alike,\n\n$$<<collapse>>$$\n\n$$<<deviation_gradient>>$$\n\n$$<<loss>>$$\n\n"
        "Over many blocks collapse is geometric, with rate at most\n\n"
        "$$<<rate>>, \\qquad f = <<below_one>>$$\n\n$$<<half>>$$"
        "\n\nand the "
        "end-to-end "
        "gradient gain does not vanish:\n\n$$<<floor>>$$"
    ),
    source=(
        "Block: SpanNorm, arXiv:2601.22580, Eqs. 5-8 (as quoted by reviews and an implementation). The paper claims "
        "networks "
        "twice as deep from the skip path; the total gradient and the collapse rate are derived here."
    ),
    confronted="tests/test_proofs_against_simulation_depth.py::test_spannorm",
    derivation=lambda: skip_steps() + mode_steps() + depth_steps(),
    axioms=(axioms.WIDE, axioms.INDEPENDENCE),
    remark=(
        "Unscaled and with ReLU the measured floor of SpanNorm is lower than PostNorm's: the structure slows "
        "collapse, but it "
        "also reduces the token-mean mode's gain. What changes the order of the loss is the scaling of proposition 10."
    ),
)
