"""Proposition 3c: the FFN's second-moment maps, from its two weight matrices and the activation's kernels."""

from __future__ import annotations

from functools import cache

import sympy as sp

from proofs import axioms, notation, tensors, wick
from proofs.maps import Moments, ffn, ffn_backward
from proofs.notation import chi, d, gamma, n, rho, s_f
from proofs.propositions import p01_linear_layer
from proofs.vocabulary import Equality, Hypothesis, Lemma, Named, Proposition, Quantity, Step, resting_on, stated

K_1, kernel, ratio, kurtosis = sp.symbols("K_1 k_c r_c kappa_phi", positive=True)
U, V, h, D, g, x = map(sp.IndexedBase, ("W1", "W2", "h", "D", "g", "x"))
i, a, b, j, k = wick.indices("i a b j k")
SIZES = {d: 2, n: 2}

# Wide limit: over the n hidden units, activations and their derivatives have the kernels as Gram matrices.
SETUP = (
    wick.Rows(h, n, wick.exchangeable(K_1, K_1 * kernel)),
    wick.Rows(D, n, wick.exchangeable(chi * K_1, chi * K_1 * ratio)),
    wick.Rows(g, d, wick.exchangeable(gamma, rho * gamma)),
    wick.Rows(x, d, wick.exchangeable(sp.Integer(1), sp.Rational(1, 2))),
)
WEIGHTS = (wick.Weights(U, 1 / d), wick.Weights(V, s_f / (n * K_1)))

GAUSSIAN = Hypothesis("weights independent centred Gaussian")
MANY = Hypothesis(
    r"the number of hidden units is large: averages over them of $\phi(u_t)\phi(u_s)$ and $\phi'(u_t)\phi'(u_s)$ "
    "equal their expectations (not assumed for the fluctuation)"
)


def forward(other: int) -> wick.Moment:
    """E[z_1 z_other] for z_t = W2 h_t."""
    return wick.Moment(V[1, a] * h[1, a] * V[1, b] * h[other, b], ((a, n), (b, n)), WEIGHTS, SETUP)


def backward(other: int) -> wick.Moment:
    """E of the same product for the gradient W1' (D_t * W2' g_t)."""
    summand = U[a, 1] * D[1, a] * V[i, a] * g[1, i] * U[b, 1] * D[other, b] * V[k, b] * g[other, k]
    return wick.Moment(summand, ((i, d), (k, d), (a, n), (b, n)), WEIGHTS, SETUP)


def squared_output() -> wick.Moment:
    """E[(||x + W2 h||^2 / d)^2] given h, for a token x of unit variance."""

    def entry(row: sp.Symbol, hidden: sp.Symbol) -> sp.Expr:
        return V[row, hidden] * h[1, hidden]

    cross = 4 * x[1, i] * entry(i, a) * x[1, k] * entry(k, b)
    return wick.Moment(cross / d**2, ((a, n), (b, n), (i, d), (k, d)), WEIGHTS, SETUP)


def steps() -> tuple[Step, ...]:
    """Forward, backward, and the relative variance of a residual sum's mean square."""
    out = ffn(s_f, kernel)
    back = ffn_backward(Moments(gamma, rho * gamma), s_f, chi, ratio)
    mixed = wick.expectation(squared_output())
    spread = s_f**2 * kurtosis / n
    quadratic = 2 * s_f**2 / d * (1 + kurtosis / n)
    return (
        tensors.step(
            forward(1),
            out.variance,
            r"$W_2$ has variance $s_f/(n K_1)$, which normalises the activation's second moment away",
            r"\mathbb E[z_{ti}^2]",
            SIZES,
            "variance",
            uses=(MANY, axioms.WIDE),
        ),
        tensors.step(
            forward(2),
            out.covariance,
            r"two tokens: the hidden units have correlation $k_c$ after the activation",
            r"\mathbb E[z_{ti}z_{si}]",
            SIZES,
            "covariance",
            uses=(MANY, axioms.WIDE),
        ),
        tensors.step(
            backward(1),
            back.variance,
            r"the gradient is $W_1^\top(\phi'(u_t)\odot W_2^\top g_t)$; pair $W_2$ with itself and $W_1$ with "
            r"itself, and "
            r"the widths $d/n$, $n/d$ of the two layers cancel",
            r"\mathbb E[h_{tj}^2]",
            SIZES,
            "grad_variance",
            uses=(MANY, axioms.WIDE, axioms.INDEPENDENCE),
        ),
        tensors.step(
            backward(2),
            back.covariance,
            "two tokens: the derivatives of one hidden unit at two tokens have the derivative kernel as second moment",
            r"\mathbb E[h_{tj}h_{sj}]",
            SIZES,
            "grad_covariance",
            uses=(MANY, axioms.WIDE, axioms.INDEPENDENCE),
        ),
        tensors.step(
            squared_output(),
            4 * s_f / d,
            r"fluctuation at finite width of $\frac1d\|x+z\|^2$ for a unit-variance token $x$: its cross term, "
            r"given the "
            "hidden units",
            r"\mathrm{Var}\bigl[\tfrac2d\,x\cdot z\bigr]",
            SIZES,
            "cross",
        ),
        Equality(
            Named(
                r"\mathrm{Var}\bigl[\tfrac1d\|x+z\|^2\bigr]\big/\mathbb E\bigl[\tfrac1d\|x+z\|^2\bigr]^2",
                (mixed + quadratic + spread) / (1 + s_f) ** 2,
            ),
            (4 * s_f + s_f**2 * (2 + kurtosis * (d + 2) / n)) / ((1 + s_f) ** 2 * d),
            r"add the branch's own fluctuation, $2/d$ of its squared mean square given the hidden units "
            r"(proposition 1), "
            r"and that of the mean of $n$ independent $\phi(u)^2$, $\kappa_\phi/n$",
            name="fluctuation",
            uses=("cross", Lemma(p01_linear_layer.PROPOSITION, "fluctuation")),
        ),
        Equality(
            Named(r"\kappa_{\mathrm{ReLU}}", _fourth_over_second_squared() - 1),
            sp.Integer(5),
            r"for ReLU, $\mathbb E[u_+^4]/\mathbb E[u_+^2]^2 - 1$",
            name="relu_kurtosis",
            points=1,
        ),
    )


def _fourth_over_second_squared() -> sp.Expr:
    """E[relu^4] / E[relu^2]^2 as integrals over the half-line."""
    z = sp.Symbol("z", positive=True)
    density = sp.exp(-(z**2) / 2) / sp.sqrt(2 * sp.pi)
    return sp.Integral(z**4 * density, (z, 0, sp.oo)) / sp.Integral(z**2 * density, (z, 0, sp.oo)) ** 2


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return resting_on((axioms.WICK, GAUSSIAN), steps())


PROPOSITION = Proposition(
    name="ffn",
    number="3c",
    title="The FFN",
    quantities=(
        notation.GRAD_VARIANCE,
        notation.GRAD_CORRELATION,
        notation.FFN_GAIN,
        notation.CHI,
        Quantity(K_1, r"$K(1,1) = \mathbb E[\phi(u)^2]$ at unit variance"),
        Quantity(kernel, r"$K(1,c)/K(1,1)$: correlation of two tokens after the activation", 0, 1),
        Quantity(ratio, r"$\dot K(1,c)/\dot K(1,1)$: the same for the derivative", 0, 1),
        Quantity(kurtosis, r"$\mathbb E[\phi^4]/\mathbb E[\phi^2]^2 - 1$"),
        Quantity(d, "width of the stream", 2, sp.oo, integer=True),
        Quantity(n, "number of hidden units", 2, sp.oo, integer=True),
    ),
    setting=(
        r"$z_t = W_2\,\phi(W_1 x_t)$ with a unit-variance input of correlation $c$. $W_1$ has entries of variance "
        r"$1/d$, "
        r"so pre-activations have unit variance and correlation $c$; $W_2$ has entries of variance $s_f/(nK_1)$. "
        r"$K$ and "
        r"$\dot K$ are the kernels of propositions 3a and 3b, and $\chi = \dot K(1,1)/K(1,1)$. The gradient with "
        r"respect "
        r"to $z_t$ is $g_t$."
    ),
    hypotheses=(GAUSSIAN, MANY),
    statement=(
        "Forward and backward:\n\n$$<<variance>>, \\qquad <<covariance>>$$\n\n$$<<grad_variance>>, \\qquad "
        "<<grad_covariance>>$$\n\nAt finite width the residual sum of a unit-variance token and its FFN branch has\n\n"
        "$$<<fluctuation>>$$\n\nwith $<<relu_kurtosis>>$."
    ),
    source="Derived here from propositions 1, 3a and 3b; the means go back to He et al. 2015.",
    confronted="tests/test_proofs_against_simulation.py::test_ffn",
    derivation=derivation,
    conclusion=lambda: stated(
        derivation, "variance", "covariance", "grad_variance", "grad_covariance", "fluctuation", "relu_kurtosis"
    ),
)
