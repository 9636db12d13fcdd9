"""Proposition 8: PostNorm. What decays, what does not, and that it is rank collapse."""

from __future__ import annotations

from functools import cache

import sympy as sp

from proofs import axioms, notation
from proofs.maps import (
    Moments,
    deviation_mode,
    ffn_backward,
    mean_mode,
    norm_backward,
    normed,
    uniform_attention,
)
from proofs.notation import T, c, chi, ell, gamma, rho, s_a, s_f, sigma
from proofs.vocabulary import (
    PREVIOUS,
    Equality,
    Hypothesis,
    Inequality,
    Limit,
    Named,
    Proposition,
    Quantity,
    Recurrence,
    Step,
    Witness,
    resting_on,
    stated,
)

m, m_0, c_0, L, ratio, kernel = sp.symbols("m m_0 c_0 L r_c k_c", positive=True)
ONE = sp.Integer(1)
# A unit-variance stream whose token-mean mode is m: its correlation and its deviation mode follow.
STREAM = Moments(ONE, (T * m - 1) / (T - 1))
DEVIATION = (1 - m) * T / (T - 1)
GRADIENT = Moments(gamma, rho * gamma)

WIDE = Hypothesis("wide limit; uniform attention")
LINEAR = Hypothesis(r"for closed forms in depth: linear FFN")
SIGNS = Hypothesis(r"$0 \le \rho \le 1$ for the bounds")


def mean_share(index: sp.Expr) -> sp.Expr:
    """m after `index` blocks."""
    return 1 / (1 + (1 / m_0 - 1) * (1 + sigma**2) ** (-index))


def attention_sublayer(x: Moments) -> Moments:
    """N(x + Attn(x)) for uniform attention."""
    return normed(x + uniform_attention(x, sigma**2, T))


def attention_sublayer_backward(g: Moments, variance: sp.Expr) -> Moments:
    """The gradient through it."""
    inside = norm_backward(g, variance)
    return inside + uniform_attention(inside, sigma**2, T)


def end_to_end(mean_gain: sp.Expr, deviation_gain: sp.Expr) -> sp.Expr:
    """Gain of the gradient variance when gradients of different tokens are uncorrelated at the top."""
    return (mean_gain + (T - 1) * deviation_gain) / T


def forward_steps() -> tuple[Step, ...]:
    """Variance one, and the token-mean share in closed form."""
    out = attention_sublayer(STREAM)
    share = m * (1 + sigma**2) / (1 + sigma**2 * m)
    return (
        Equality(
            Named(
                r"\mathbb E[(x + \mathrm{Attn}(x))_{ti}^2]", (STREAM + uniform_attention(STREAM, sigma**2, T)).variance
            ),
            1 + sigma**2 * m,
            r"attention's sum has variance $1 + s_a$, $s_a = \sigma^2 m$; the norm returns it to 1",
            name="sum",
            derived=True,
        ),
        Equality(
            Named("m'", mean_mode(out, T)),
            share,
            "the token-mean mode gains from attention and is divided by the norm",
            name="mean",
            uses=("sum",),
        ),
        Equality(
            Named(r"1 - c'", deviation_mode(out)),
            DEVIATION / (1 + sigma**2 * m),
            r"token deviations are only divided: $1-c$ falls by $1/(1+s_a)$",
            name="collapse",
            uses=("sum",),
        ),
        Equality(
            Named(r"m''", mean_mode(normed(STREAM + STREAM.scaled(s_f)), T)),
            m,
            r"a linear FFN and its norm change neither",
            name="neither",
        ),
        Recurrence(
            ell,
            PREVIOUS * (1 + sigma**2) / (1 + sigma**2 * PREVIOUS),
            m_0,
            mean_share(ell),
            r"linear FFN: $1/m - 1$ is divided by $1+\sigma^2$ at each block",
            sequence=sp.IndexedBase("m"),
            name="mean_share",
            uses=("mean", "neither"),
        ),
        Recurrence(
            ell,
            PREVIOUS / (1 + sigma**2),
            1 / m_0 - 1,
            (1 / m_0 - 1) * (1 + sigma**2) ** (-ell),
            r"the same in the ratio of deviation to mean, $r = 1/m - 1$: a geometric sequence",
            sequence=sp.IndexedBase("r"),
            name="ratio",
            uses=("mean_share",),
            solve=True,
        ),
    )


def sublayers_back() -> tuple[Step, ...]:
    """Gradient modes through one sublayer."""
    back = attention_sublayer_backward(GRADIENT, 1 + sigma**2 * m)
    through_ffn = norm_backward(GRADIENT, 1 + s_f) + ffn_backward(norm_backward(GRADIENT, 1 + s_f), s_f, chi, ratio)
    return (
        Equality(
            Named(
                r"\gamma^{\text{skip}}_{l}/\gamma^{\text{skip}}_{l+1}",
                norm_backward(norm_backward(GRADIENT, 1 + s_f), 1 + s_a).variance / gamma,
            ),
            1 / ((1 + s_a) * (1 + s_f)),
            r"along the skips alone each norm divides the gradient variance by its input's variance: per block",
            name="skip",
            derived=True,
        ),
        Equality(
            Named(r"\gamma' - \kappa'", deviation_mode(back)),
            deviation_mode(GRADIENT) / (1 + sigma**2 * m),
            "backward through attention's sublayer, token deviations of the gradient are divided by the same number "
            "as the "
            "forward deviations",
            name="deviation_gradient",
        ),
        Equality(
            Named(r"\bar\gamma'", mean_mode(back, T)),
            mean_mode(GRADIENT, T) * (1 + sigma**2) / (1 + sigma**2 * m),
            "the token-mean mode of the gradient is fed by attention's way back",
            name="mean_gradient",
        ),
        Equality(
            Named(r"\gamma'", through_ffn.variance),
            gamma * (1 + chi * s_f) / (1 + s_f),
            r"an FFN sublayer multiplies the gradient variance by this, whatever the correlations: exactly 1 for ReLU",
            name="ffn_factor",
        ),
    )


def depth_back() -> tuple[Step, ...]:
    """The total over the depth."""
    mean_gain = mean_share(L) / m_0
    deviation_gain = (1 - mean_share(L)) / (1 - m_0)
    total = end_to_end(mean_gain, deviation_gain)
    start = (1 + (T - 1) * c_0) / T
    return (
        Recurrence(
            ell,
            PREVIOUS / (1 + sigma**2 * mean_share(ell)),
            ONE,
            (1 - mean_share(ell)) / (1 - m_0),
            r"linear FFN: the deviation modes' factors, each that of the forward pass at its block, multiply to",
            sequence=sp.IndexedBase(r"D"),
            name="deviation_product",
            uses=("deviation_gradient", "mean_share", "ffn_factor"),
        ),
        Recurrence(
            ell,
            PREVIOUS * (1 + sigma**2) / (1 + sigma**2 * mean_share(ell)),
            ONE,
            mean_share(ell) / m_0,
            "and the token-mean mode's",
            sequence=sp.IndexedBase(r"\bar D"),
            name="mean_product",
            uses=("mean_gradient", "mean_share", "ffn_factor"),
        ),
        Equality(
            Named(r"G_L", total),
            mean_share(L) / (T * m_0) + (T - 1) / T * (1 - mean_share(L)) / (1 - m_0),
            "for gradients that are uncorrelated between tokens at the top, which put equal parts in each mode",
            name="total",
            uses=("deviation_product", "mean_product"),
            witnesses=(
                Witness(lambda at: _iterated_gain(at[T], at[m_0], at[sigma], int(at[L])), (T, m_0, sigma, L), points=4),  # type: ignore[call-overload]
            ),
        ),
        Limit(
            Named(r"G_L", total),
            L,
            sp.oo,
            1 / (T * m_0),
            "the deviation modes vanish, the mean mode stays: the gradient does not vanish with depth",
            name="floor",
            uses=("total",),
        ),
        Equality(
            Named(r"G_\infty", (1 / (T * m_0)).subs(m_0, start)),
            1 / (1 + (T - 1) * c_0),
            r"in terms of the correlation at the input, $m_0 = c_0 + (1-c_0)/T$",
            name="floor_c",
            uses=("floor",),
            derived=True,
        ),
        Equality(
            Named(r"G_L\big|_{c_0=0}", total.subs(m_0, 1 / T)),
            sp.Integer(1),
            r"uncorrelated tokens at the input: nothing vanishes at any depth",
            name="uncorrelated",
            uses=("total",),
            derived=True,
        ),
        Inequality(
            Named(r"\frac{1-c_l}{1-c_0}", deviation_gain.subs(L, ell)),
            (1 / m_0) * (1 + sigma**2) ** (-ell),
            r"the deviation modes, and with them $1 - c_l$, decay geometrically, at rate $1+\sigma^2$ per block",
            name="decay",
            uses=("deviation_product",),
        ),
    )


def bounds() -> tuple[Step, ...]:
    """The attention sublayer's factor on the gradient variance, for any FFN before or after."""
    factor = (1 + sigma**2 * (1 + (T - 1) * rho) / T) / (1 + s_a)
    return (
        Equality(
            Named(r"\gamma'/\gamma", attention_sublayer_backward(GRADIENT, 1 + s_a).variance / gamma),
            factor,
            r"attention's factor on the gradient variance, for gradients of correlation $\rho$",
            name="attention_factor",
        ),
        Inequality(1 / (1 + s_a), factor, r"at least the skip's share", name="least", uses=("attention_factor",)),
        Inequality(
            factor,
            (1 + sigma**2) / (1 + s_a),
            r"at most that of identical gradients",
            name="most",
            uses=("attention_factor",),
        ),
        Equality(
            (Named(r"\gamma_l/\gamma_{l+1}", (1 + chi * s_f) / (1 + s_f) * factor.subs(rho, 1).subs(s_a, sigma**2))),
            (1 + chi * s_f) / (1 + s_f),
            r"identical tokens and gradients (one token is such a case): the block's factor, 1 for $\chi = 1$",
            name="single",
            uses=("attention_factor", "ffn_factor"),
            derived=True,
        ),
    )


def _iterated_gain(tokens: object, share: object, spread: object, depth: int) -> object:
    """The same gain by stepping variances and covariances through `depth` blocks, forward then backward."""
    t, gain = tokens, spread**2  # type: ignore[operator]
    shares = [share]
    for _ in range(depth):
        shares.append(shares[-1] * (1 + gain) / (1 + gain * shares[-1]))
    variance, covariance = 1, 0
    for before in reversed(shares[:-1]):
        averaged = gain * (variance + (t - 1) * covariance) / t  # type: ignore[operator]
        variance, covariance = ((g + averaged) / (1 + gain * before) for g in (variance, covariance))
    return variance


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return (
        resting_on((axioms.WIDE, WIDE, LINEAR), forward_steps())
        + resting_on((axioms.WIDE, axioms.INDEPENDENCE, WIDE), sublayers_back())
        + resting_on((axioms.WIDE, axioms.INDEPENDENCE, WIDE, LINEAR), depth_back())
        + resting_on((axioms.WIDE, axioms.INDEPENDENCE, WIDE, SIGNS), bounds())
    )


PROPOSITION = Proposition(
    name="postnorm",
    number="8",
    title="PostNorm",
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
        Quantity(m, "token-mean mode of a unit-variance stream, $c + (1-c)/T$", 0, 1),
        Quantity(m_0, "the same at the input", 0, 1),
        Quantity(c_0, "correlation at the input", 0, 1),
        Quantity(c, "correlation", 0, 1),
        Quantity(ratio, r"$\dot K(1,c)/\dot K(1,1)$", 0, 1),
    ),
    setting=(
        r"A block is $y = \mathrm N(x + \mathrm{Attn}(x))$, $x' = \mathrm N(y + \mathrm{FFN}(y))$, with a normed "
        r"input. "
        r"Attention is uniform with gain $\sigma^2$. The stream has variance 1 after each norm, so its state is one "
        r"number, "
        r"$m = c + (1-c)/T$, with $1 - c = (1-m)T/(T-1)$. $\bar\gamma = (\gamma + (T-1)\kappa)/T$ is the token-mean "
        r"mode of "
        r"the gradient and $\gamma - \kappa$ a token-deviation mode. $G_L$ is the gradient variance at the input "
        r"over that at "
        r"the top, for gradients uncorrelated between tokens at the top."
    ),
    hypotheses=(
        WIDE,
        LINEAR,
        SIGNS,
    ),
    statement=(
        "The skip path alone carries\n\n$$<<skip>>$$\n\nper block, an amplitude factor $((1+s_a)(1+s_f))^{-1/2}$: "
        "$2^{-1}$ at "
        "unit gains. The gradient is not the skip path. Per attention sublayer\n\n"
        "$$<<deviation_gradient>>$$\n\n$$<<mean_gradient>>$$\n\nand per FFN sublayer $<<ffn_factor>>$. Forward, the "
        "deviations are divided by the same number, $<<collapse>>$: the vanishing of the gradient's token-deviation "
        "mode and "
        "rank collapse are one phenomenon. For a linear FFN\n\n$$<<mean_share>>$$\n\n$$<<total>>$$\n\n$$<<floor>>$$\n\n"
        "so the gradient falls to\n\n$$<<floor_c>>$$\n\nand stays there at any depth, and for $c_0 = 0$ it does not "
        "fall at all:\n\n$$<<uncorrelated>>$$\n\nWhat decays geometrically is the deviation "
        "mode:\n\n$$<<decay>>$$\n\nWith any FFN an attention sublayer's factor on the gradient variance lies "
        "between\n\n$$<<least>>$$\n\n$$<<most>>$$\n\nand for identical tokens and gradients a block's "
        "is\n\n$$<<single>>$$"
    ),
    source="The skip-path factor is the textbook argument (Xiong et al. 2020, arXiv:2002.04745); the total is "
    "derived here.",
    confronted="tests/test_proofs_against_simulation_depth.py::test_postnorm",
    derivation=derivation,
    conclusion=lambda: stated(
        derivation,
        "skip",
        "deviation_gradient",
        "mean_gradient",
        "ffn_factor",
        "collapse",
        "mean_share",
        "total",
        "floor",
        "floor_c",
        "uncorrelated",
        "decay",
        "least",
        "most",
        "single",
    ),
)
