"""Proposition 11: SwiGLU carries back more than it passes forward, so unscaled gradients explode with depth."""

from __future__ import annotations

from functools import cache

import sympy as sp

from proofs import axioms, blocks, gaussian, notation, tensors, wick
from proofs.maps import Moments
from proofs.notation import chi, d, ell, gamma, n, q, rho, s_f, sigma
from proofs.propositions import p09_spannorm
from proofs.vocabulary import (
    PREVIOUS,
    Bounds,
    Equality,
    Hypothesis,
    Inequality,
    Lemma,
    Limit,
    Named,
    Proposition,
    Quantity,
    Step,
    Witness,
    resting_on,
    stated,
)

K, dK, x, z, y, v, w = sp.symbols("K dotK x z y v w", positive=True)
ratio, s_ab = sp.symbols("r_c s_ab", positive=True)
V, U1, U3, S, D, g = map(sp.IndexedBase, ("W2", "W1", "W3", "S", "D", "g"))
a, b, i, k = wick.indices("a b i k")
ONE = sp.Integer(1)
SIZES = {d: 2, n: 2}
WEIGHTS = (wick.Weights(V, s_f / (n * K)), wick.Weights(U1, 1 / d), wick.Weights(U3, 1 / d))
ROWS = (
    wick.Rows(S, n, wick.exchangeable(K, K), 1),  # silu(u_a)
    wick.Rows(D, n, wick.exchangeable(q * dK, q * dK), 1),  # silu'(u_a) w_a, w the other factor, of variance q
    wick.Rows(g, d, wick.exchangeable(gamma, gamma), 1),
)
GRADIENT = Moments(gamma, rho * gamma)

WIDE = Hypothesis("wide limit; weights independent centred Gaussian; gradient independence; uniform attention")
IDENTICAL = Hypothesis("for PostNorm: one token, or identical tokens with identical gradients")


def silu(at: sp.Expr) -> sp.Expr:
    """u / (1 + exp(-u))."""
    return at / (1 + sp.exp(-at))


def backward() -> wick.Moment:
    """E of the square of one coordinate of W3'(S * W2'g) + W1'(D * W2'g)."""

    def term(unit: sp.Symbol, out: sp.Symbol) -> sp.Expr:
        return (U3[unit, 1] * S[1, unit] + U1[unit, 1] * D[1, unit]) * V[out, unit] * g[1, out]

    summand = sp.expand(term(a, i) * term(b, k))
    return wick.Moment(summand, ((i, d), (k, d), (a, n), (b, n)), WEIGHTS, ROWS)


def gain_steps() -> tuple[Step, ...]:
    """chi of SwiGLU, and why it is at least 3/2."""
    odd = silu(x) - silu(-x)
    slope = sp.diff(silu(x), x) + sp.diff(silu(x), x).subs(x, -x)
    density = sp.exp(-(x**2) / 2) / sp.sqrt(2 * sp.pi)
    return (
        tensors.step(
            backward(),
            s_f * gamma * (1 + q * dK / K),
            r"$z = W_2(\phi(W_1x)\odot W_3x)$: the gradient returns by the gate's matrix $W_1$ and by $W_3$, two "
            r"fresh matrices, "
            r"so the two parts add; $W_2$'s variance $s_f/(nK)$ normalises $\mathbb E[\phi(u)^2]\,q = Kq$ forward",
            r"\mathbb E[h_{tj}^2]",
            SIZES,
            "backward",
        ),
        Equality(Named(r"\phi(u) - \phi(-u)", odd), x, r"for $\phi = \mathrm{silu}$", name="odd"),
        Equality(Named(r"\phi'(u) + \phi'(-u)", slope), ONE, "and its derivative", name="odd_slope", uses=("odd",)),
        Equality(
            Named(r"\mathbb E[\phi'(u)]", sp.Integral(sp.simplify(slope) * density, (x, 0, sp.oo))),
            sp.Rational(1, 2),
            r"hence, folding the line in two",
            name="mean_slope",
            uses=("odd_slope",),
            witnesses=(
                Witness(lambda at: gaussian.univariate(gaussian.silu_derivative, at[q]), (q,), digits=20, points=2),
            ),
        ),
        Inequality(
            y**2,
            y,
            r"with $y = 1/(1+e^{-u}) \in [0,1]$: $\phi(u)^2 = u^2y^2 \le u^2 y$, and $\mathbb E[u^2y] = q/2$ by the "
            r"same folding, "
            r"so $K \le q/2$",
            name="square",
            uses=("odd",),
        ),
        Equality(
            Named(r"\mathbb E[u^2 y(u)]", sp.Integral(q * x**2 * density, (x, 0, sp.oo))),
            q / 2,
            r"namely, $y(u) + y(-u) = 1$",
            name="folded",
            witnesses=(
                Witness(
                    lambda at: gaussian.univariate(lambda u: u * gaussian.silu(u), at[q]), (q,), digits=20, points=2
                ),
            ),
        ),
        Inequality(
            sp.Rational(3, 2),
            Named(r"1 + q\dot K/K", 1 + q * (sp.Rational(1, 4) + v) / (y * q / 2)),
            r"$\dot K = \mathbb E[\phi'^2] = \frac14 + v$ with $v = \mathrm{Var}\,\phi'(u) \ge 0$, and $K = yq/2$ "
            r"with $0<y\le1$: so "
            r"at every variance",
            name="chi",
            uses=("backward", "mean_slope", "square", "folded"),
        ),
    )


def identical_steps() -> tuple[Step, ...]:
    """Growth with depth, of PostNorm and of SpanNorm, for identical tokens."""
    post = blocks.postnorm_backward(GRADIENT, sigma**2, sigma**2, ONE, s_f, chi, ratio).variance / gamma
    span = blocks.spannorm_backward(GRADIENT, sigma**2, sigma**2, ONE, s_f, chi, ratio).variance / gamma
    single = (1 + chi * s_f) / (1 + s_f)
    at_least = single.subs(chi, sp.Rational(3, 2) + v)
    grows = Inequality(
        1 + s_f / (2 * (1 + s_f)),
        at_least,
        r"with $\chi = \frac32 + v$, $v \ge 0$, this exceeds one by",
        name="grows",
        uses=("chi", "post", "span"),
    )
    return (
        Equality(
            Named(r"(\gamma_l/\gamma_{l+1})_{\text{PostNorm}}", post),
            single,
            r"PostNorm, one token (or identical tokens with identical gradients)",
            name="post",
        ),
        Equality(Named(r"(\gamma_l/\gamma_{l+1})_{\text{SpanNorm}}", span), single, "SpanNorm: the same", name="span"),
        grows,
        Bounds(
            ell,
            PREVIOUS * at_least,
            ONE,
            (1 + s_f / (2 * (1 + s_f))) ** ell,
            None,
            (v,),
            r"multiply over $l$ blocks, whatever $\chi \ge \frac32$ is in each",
            sequence=sp.IndexedBase("G"),
            name="growth",
            below=grows,
        ),
        Limit((1 + z) ** ell, ell, sp.oo, sp.oo, "explosion, geometric in the depth", name="explosion"),
        Limit(
            Named(r"\tfrac1{s_f}\log\frac{\gamma_l}{\gamma_{l+1}}", sp.log((1 + (1 + z) * s_f) / (1 + s_f)) / s_f),
            s_f,
            0,
            z,
            r"with $\chi = 1+z$ and small gains the growth per block is $e^{z s_f}$: it takes $s_f \propto 1/L$, "
            r"that is $k \ge 1/2$ (proposition 10), to stop it",
            name="cure",
            uses=("post", "span"),
        ),
    )


def span_steps() -> tuple[Step, ...]:
    """SpanNorm with any tokens: growth as soon as chi exceeds 1 + sigma^2."""
    general = Named(r"\gamma_l/\gamma_{l+1}", (1 + chi * s_f * (1 + s_ab) / (1 + sigma**2 * y)) / (1 + s_f))
    least = (1 + chi * s_f / (1 + sigma**2)) / (1 + s_f)
    at_least = Inequality(
        least,
        general,
        r"SpanNorm with any number of tokens and any gradient correlation $0\le\rho\le1$ (proposition 9): from "
        r"$s_a = y\sigma^2 \le \sigma^2$ and $s_{ab} \ge 0$",
        name="span_any",
        uses=(Lemma(p09_spannorm.PROPOSITION, "gradient"),),
    )
    return (
        at_least,
        Bounds(
            ell,
            PREVIOUS * general,
            ONE,
            least**ell,
            None,
            (y, s_ab),
            "over $l$ blocks",
            sequence=sp.IndexedBase("S"),
            name="span_growth",
            below=at_least,
        ),
        Inequality(
            ONE,
            least.subs(chi, 1 + sigma**2 + w),
            r"which exceeds one as soon as $\chi = 1+\sigma^2+w$ with $w > 0$: at unit gains as soon as $\chi > 2$",
            name="span_condition",
            strict=True,
            uses=("span_any",),
        ),
    )


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return (
        resting_on((axioms.WICK, axioms.WIDE, axioms.INDEPENDENCE, WIDE), gain_steps())
        + resting_on((axioms.WIDE, axioms.INDEPENDENCE, WIDE, IDENTICAL), identical_steps())
        + resting_on((axioms.WIDE, axioms.INDEPENDENCE, WIDE), span_steps())
    )


PROPOSITION = Proposition(
    name="swiglu",
    number="11",
    title="SwiGLU: gradients explode",
    quantities=(
        notation.VARIANCE,
        notation.GRAD_VARIANCE,
        notation.GRAD_CORRELATION,
        notation.TOKENS,
        notation.SIGMA,
        notation.FFN_GAIN,
        notation.CHI,
        notation.BLOCK,
        Quantity(d, "width", 2, sp.oo, integer=True),
        Quantity(n, "number of hidden units", 2, sp.oo, integer=True),
        Quantity(K, r"$K = \mathbb E[\mathrm{silu}(u)^2]$, $u \sim N(0,q)$: a one-dimensional integral"),
        Quantity(dK, r"$\dot K = \mathbb E[\mathrm{silu}'(u)^2]$"),
        Quantity(ratio, "factor on the gradient correlation", 0, 1),
        Quantity(s_ab, "attention's backward gain"),
        Quantity(x, "a positive number"),
        Quantity(y, "a number between 0 and 1", 0, 1),
        Quantity(z, "growth per block", sp.Rational(1, 10)),
        Quantity(v, "a variance"),
        Quantity(w, "an excess"),
    ),
    setting=(
        r"The FFN is $z_t = W_2(\mathrm{silu}(W_1x_t)\odot W_3x_t)$, $\mathrm{silu}(u) = u/(1+e^{-u})$, with $W_1, "
        r"W_3$ of "
        r"variance $1/d$: for an input of variance $q$ both factors' pre-activations are independent $N(0,q)$. "
        r"Placements as in "
        r"propositions 8 and 9."
    ),
    hypotheses=(
        WIDE,
        IDENTICAL,
    ),
    statement=(
        "One FFN returns\n\n$$<<backward>>$$\n\nwhile its forward variance is $s_fq$: so $\\chi = 1 + q\\dot K/K$, "
        "and\n\n"
        "$$<<chi>>$$\n\nHence unscaled PostNorm and SpanNorm gradients explode:\n\n$$<<post>>$$\n\n$$<<span>>$$\n\n"
        "so that over $l$ blocks, for every $\\chi \\ge \\frac32$,\n\n$$<<growth>>$$\n\n$$<<explosion>>$$\n\nunless "
        "gains are small:\n\n$$<<cure>>$$\n\nFor SpanNorm this holds for any tokens once $\\chi > 1 + "
        "\\sigma^2$:\n\n$$<<span_any>>$$\n\n$$<<span_growth>>$$\n\n$$<<span_condition>>$$"
    ),
    source="SwiGLU: N. Shazeer 2020, arXiv:2002.05202. The bound on $\\chi$ and the explosion are derived here.",
    confronted="tests/test_proofs_against_simulation_depth.py::test_swiglu",
    derivation=derivation,
    conclusion=lambda: stated(
        derivation,
        "backward",
        "chi",
        *("post", "span", "growth", "explosion", "cure", "span_any", "span_growth", "span_condition"),
    ),
    remark=(
        r"Quadrature gives $\chi = 2.0666$ at $q = 1$ (so $\chi > 1+\sigma^2$ at unit gains), against $1.0720$ for "
        r"GELU and $1$ for "
        "ReLU. PostNorm with many uncorrelated tokens first loses what proposition 8 says and then grows; that case "
        "is left to "
        "the simulation."
    ),
)
