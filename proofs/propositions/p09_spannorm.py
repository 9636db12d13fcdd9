"""Proposition 9: SpanNorm. One norm on the span skip, the total gradient, and the rate of collapse."""

from __future__ import annotations

from functools import cache

import sympy as sp

from proofs import axioms, blocks, notation
from proofs.maps import Moments, deviation_mode, mean_mode, norm_backward
from proofs.notation import T, chi, ell, gamma, rho, s_a, s_f, sigma
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

m, m_0, r, s, u, z, ratio = sp.symbols("m m_0 r_0 s u z r_c", positive=True)
ONE = sp.Integer(1)
STREAM = Moments(ONE, (T * m - 1) / (T - 1))
GRADIENT = Moments(gamma, rho * gamma)
GAIN = sigma**2
SHARE = GAIN * m  # attention's branch variance for this stream
DEVIATION_FACTOR = (1 + s_a + s_f) / ((1 + s_a) * (1 + s_f))
RATE = (1 + GAIN + s_f) / ((1 + GAIN) * (1 + s_f))

WIDE = Hypothesis("wide limit; uniform attention; normed input")
LINEAR = Hypothesis("for the modes and for many blocks: linear FFN")


def skip_steps() -> tuple[Step, ...]:
    """The skip path and the gradient variance."""
    back = blocks.spannorm_backward(GRADIENT, s_a, GAIN, T, s_f, chi, ratio)
    gain_back = GAIN * (1 + (T - 1) * rho * ratio) / T
    return (
        Equality(
            Named(
                r"\gamma^{\text{skip}}_l/\gamma^{\text{skip}}_{l+1}", norm_backward(GRADIENT, 1 + s_f).variance / gamma
            ),
            1 / (1 + s_f),
            "along the span skip a gradient meets one norm per block, that of the FFN's sum",
            name="skip",
            derived=True,
        ),
        Recurrence(
            ell,
            PREVIOUS / (1 + s) ** 2,
            ONE,
            (1 / (1 + s)) ** (2 * ell),
            r"at equal gains $s$ PostNorm loses along its skip in $l$ blocks (proposition 8) what SpanNorm loses in "
            r"$2l$: the "
            "sense in which its skip allows twice the depth",
            sequence=sp.IndexedBase(r"\gamma^{\text{skip, PostNorm}}"),
            name="twice",
            uses=("skip",),
            solve=True,
        ),
        Equality(
            Named(r"\gamma_l/\gamma_{l+1}", back.variance / gamma),
            (1 + chi * s_f * (1 + gain_back) / (1 + s_a)) / (1 + s_f),
            r"the whole block: skip, plus the way back through FFN, norm and attention; $s_{ab} = "
            r"\sigma^2(1+(T-1)\rho r_c)/T$ "
            "is attention's gain for the gradient that arrives there",
            name="gradient",
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
            Named(r"(1-c')/(1-c)", deviation_mode(out) / deviation_mode(STREAM)),
            factor,
            r"linear FFN, forward, with $s_a = \sigma^2 m$",
            name="collapse",
        ),
        Equality(Named("m'/m", mean_mode(out, T) / m), mean_factor, "and the token-mean mode", name="mean"),
        Equality(
            Named(r"(\gamma'-\kappa')/(\gamma-\kappa)", deviation_mode(back) / deviation_mode(GRADIENT)),
            factor,
            "backward: the same number, so collapse and the loss of token-deviation gradients are one phenomenon "
            "here too",
            name="deviation_gradient",
        ),
        Equality(
            Named(r"\bar\gamma'/\bar\gamma", mean_mode(back, T) / mean_mode(GRADIENT, T)),
            mean_factor,
            "and the token-mean mode",
            name="mean_gradient",
        ),
        Equality(
            Named(r"1 - \frac{1-c'}{1-c}", 1 - DEVIATION_FACTOR),
            s_f / (1 + s_f) * (1 - 1 / (1 + s_a)),
            r"the loss per block is the fraction $s_f/(1+s_f)$ of PostNorm's loss $1 - 1/(1+s_a)$: at unit FFN "
            r"gain, half",
            name="loss",
            uses=("collapse", "deviation_gradient"),
        ),
        Inequality(
            1 / (1 + s_a),
            DEVIATION_FACTOR,
            "PostNorm's factor is the smaller one",
            name="order",
            strict=True,
        ),
        Equality(
            Named(r"\frac{1-c'}{1-c}\Big|_{1,1}", DEVIATION_FACTOR.subs({s_a: 1, s_f: 1})),
            sp.Rational(3, 4),
            r"unit gains and identical tokens: $3/4$ against PostNorm's $1/2$",
            name="unit",
            uses=("loss",),
            derived=True,
        ),
    )


def depth_steps() -> tuple[Step, ...]:
    """Many blocks: collapse is geometric, and the total gradient keeps the same floor as PostNorm's."""
    per_block = DEVIATION_FACTOR.subs(s_a, SHARE) / ((1 + s_f * (1 + GAIN) / (1 + SHARE)) / (1 + s_f))
    rate = Named("f", RATE)
    ends = 1 / (1 + u)  # the token-mean mode at the top, u being the ratio of deviation to mean there
    total = Named("G_L", (ends / m_0 + (T - 1) * (1 - ends) / (1 - m_0)) / T)
    at_most = Inequality(
        Named(r"r'/r", per_block),
        rate,
        "which grows with $m$, to its value $f$ at $m = 1$",
        name="rate",
        uses=("ratio",),
    )
    return (
        Equality(
            Named(r"r'/r", per_block),
            (1 + s_f + GAIN * m) / (1 + s_f + GAIN * m + GAIN * s_f),
            r"the ratio $r = 1/m - 1$ of deviation to mean is multiplied by",
            name="ratio",
            uses=("collapse", "mean"),
        ),
        at_most,
        Bounds(
            ell,
            PREVIOUS * Named(r"r'/r", per_block),
            r,
            None,
            r * rate**ell,
            (m,),
            "so over $l$ blocks, whatever $m$ is in each",
            sequence=sp.IndexedBase("r"),
            name="collapses",
            above=at_most,
        ),
        Inequality(rate, ONE, r"and $f < 1$: collapse is geometric", name="below_one", strict=True),
        Inequality(1 / (1 + GAIN), rate, r"slower than PostNorm's rate $1/(1+\sigma^2)$", name="slower", strict=True),
        Limit(
            Named(r"\frac{\log f}{\log\frac1{1+\sigma^2}}", sp.log(RATE) / sp.log(1 / (1 + GAIN))),
            sigma,
            0,
            s_f / (1 + s_f),
            r"for small attention gain SpanNorm collapses $s_f/(1+s_f)$ times as fast as PostNorm, half as fast at "
            r"$s_f = 1$",
            name="half",
            uses=("collapses",),
        ),
        Limit(
            r * (1 + z) ** (-ell),
            ell,
            sp.oo,
            sp.Integer(0),
            r"with $f = 1/(1+z)$, the ratio tends to 0",
            name="vanishes",
            uses=("collapses", "below_one"),
        ),
        Limit(
            total,
            u,
            0,
            1 / (T * m_0),
            r"total gradient, gradients uncorrelated between tokens at the top: the modes' factors multiply to "
            r"$m_L/m_0$ and $(1-m_L)/(1-m_0)$ as in proposition 8, with $m_L = 1/(1+u)$ and $u = r_L$: the same floor "
            "as PostNorm's",
            name="floor",
            uses=("vanishes", "mean_gradient", "deviation_gradient"),
        ),
    )


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return resting_on((axioms.WIDE, axioms.INDEPENDENCE, WIDE), skip_steps()) + resting_on(
        (axioms.WIDE, axioms.INDEPENDENCE, WIDE, LINEAR), mode_steps(), depth_steps()
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
        Quantity(m, "token-mean mode of the unit-variance stream, $c + (1-c)/T$", 0, 1),
        Quantity(m_0, "the same at the input", 0, 1),
        Quantity(ratio, r"$\dot K(1,c)/\dot K(1,1)$", 0, 1),
        Quantity(s, "a gain"),
        Quantity(r, "ratio of deviation to mean, $1/m - 1$, at the input"),
        Quantity(u, "that ratio at the top"),
        Quantity(z, "a positive number"),
    ),
    setting=(
        r"A block is $y = \mathrm N(x + \mathrm{Attn}(x))$, $x' = \mathrm N(x + \mathrm{FFN}(y))$: PostNorm with "
        r"the FFN's skip "
        r"taken from the block's input. Attention is uniform with gain $\sigma^2$; $s_a = \sigma^2 m$. The notation "
        r"is that of "
        r"proposition 8."
    ),
    hypotheses=(
        WIDE,
        LINEAR,
    ),
    statement=(
        "Along the span skip there is one norm per block,\n\n$$<<skip>>$$\n\nso the skip's exponent is half of "
        "PostNorm's at "
        "equal gains,\n\n$$<<twice>>$$\n\n(amplitude $2^{-L/2}$ against $2^{-L}$ at unit gains). The total gradient "
        "obeys\n\n$$<<gradient>>$$\n\n"
        "For a linear FFN, forward and backward "
        "alike,\n\n$$<<collapse>>$$\n\n$$<<deviation_gradient>>$$\n\n$$<<loss>>$$\n\n"
        "at unit gains\n\n$$<<unit>>$$\n\nalways more than PostNorm's,\n\n$$<<order>>$$\n\nOver many blocks collapse "
        "is geometric, with rate at most\n\n$$<<rate>>$$\n\n$$<<collapses>>$$\n\n$$<<below_one>>, \\qquad "
        "<<slower>>$$\n\n$$<<half>>$$\n\nand the end-to-end gradient gain does not vanish: as $r_L = u$ "
        "does,\n\n$$<<floor>>$$"
    ),
    source=(
        "Block: SpanNorm, arXiv:2601.22580, Eqs. 5-8 (as quoted by reviews and an implementation). The paper claims "
        "networks "
        "twice as deep from the skip path; the total gradient and the collapse rate are derived here."
    ),
    confronted="tests/test_proofs_against_simulation_depth.py::test_spannorm",
    derivation=derivation,
    conclusion=lambda: stated(
        derivation,
        *("skip", "twice", "gradient", "collapse", "deviation_gradient", "loss", "unit", "order", "rate", "collapses"),
        *("below_one", "slower", "half", "floor"),
    ),
    remark=(
        "Unscaled and with ReLU the measured floor of SpanNorm is lower than PostNorm's: the structure slows "
        "collapse, but it "
        "also reduces the token-mean mode's gain. What changes the order of the loss is the scaling of proposition 10."
    ),
)
