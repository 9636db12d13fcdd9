"""Proposition 6: residual sums of uncorrelated streams, and the norm that follows one."""

from __future__ import annotations

from functools import cache

import sympy as sp

from proofs import axioms, notation, tensors, wick
from proofs.maps import Moments, norm_backward
from proofs.notation import alpha, c, d, gamma, q, rho, s_b, s_f
from proofs.propositions import p02_norms
from proofs.vocabulary import Equality, Hypothesis, Lemma, Named, Proposition, Quantity, Step, resting_on, stated

r_f, r_b = sp.symbols("r_f r_b", positive=True)
W, U, x, h, g, y = map(sp.IndexedBase, ("W", "U", "x", "h", "g", "y"))
i, j, k = wick.indices("i j k")
Delta = sp.KroneckerDelta
WEIGHTS = (wick.Weights(W, 1 / d), wick.Weights(U, 1 / d))
ROWS = (
    wick.Rows(x, d, wick.exchangeable(q, c * q)),
    wick.Rows(h, d, wick.exchangeable(s_f, s_f * r_f)),
    wick.Rows(g, d, wick.exchangeable(gamma, rho * gamma)),
    wick.Rows(y, d, wick.exchangeable(s_b * gamma, s_b * gamma * r_b)),
)
SIZES = {d: 3}

FRESH = Hypothesis("the branch's first and last matrices have independent centred Gaussian entries")


def forward(other: int) -> wick.Moment:
    """(1/d) sum_i E[z_1i z_other,i] for z_i = sum_j (alpha delta_ij x_j + W_ij h_j)."""

    def term(t: int, index: sp.Symbol) -> sp.Expr:
        return alpha * Delta(i, index) * x[t, index] + W[i, index] * h[t, index]

    return wick.Moment(term(1, j) * term(other, k) / d, ((j, d), (k, d), (i, d)), WEIGHTS, ROWS)


def backward(other: int) -> wick.Moment:
    """The same for alpha g + U'y: on the way back the branch ends in its first matrix."""

    def term(t: int, index: sp.Symbol) -> sp.Expr:
        return alpha * Delta(i, index) * g[t, index] + U[index, i] * y[t, index]

    return wick.Moment(term(1, j) * term(other, k) / d, ((j, d), (k, d), (i, d)), WEIGHTS, ROWS)


def cross() -> wick.Moment:
    """(1/d) E[x . W h]."""
    return wick.Moment(x[1, i] * W[i, j] * h[1, j] / d, ((j, d), (i, d)), WEIGHTS, ROWS)


def steps() -> tuple[Step, ...]:
    """Sums forward, sums backward, and one norm after a sum."""
    out = Moments(q, c * q).scaled(alpha**2) + Moments(s_f, s_f * r_f)
    back = Moments(gamma, rho * gamma).scaled(alpha**2) + Moments(s_b * gamma, s_b * r_b * gamma)
    unit = Moments(sp.Integer(1), c).scaled(alpha**2) + Moments(s_f, s_f * r_f)
    through = norm_backward(Moments(gamma, rho * gamma), unit.variance)
    return (
        tensors.step(
            cross(),
            sp.Integer(0),
            "the branch ends in a fresh centred matrix, met once: no partner to pair with",
            r"\mathbb E[x_{ti}f_{ti}]",
            SIZES,
            "uncorrelated",
        ),
        tensors.step(
            forward(1),
            out.variance,
            "so variances add",
            r"\mathbb E[z_{ti}^2]",
            SIZES,
            "variance",
            uses=("uncorrelated",),
        ),
        tensors.step(
            forward(2),
            out.covariance,
            "and covariances",
            r"\mathbb E[z_{ti}z_{si}]",
            SIZES,
            "covariance",
            uses=("uncorrelated",),
        ),
        tensors.step(
            backward(1),
            back.variance,
            "on the way back skip and branch add; the branch's gradient ends in its own first matrix, centred and, by "
            "gradient independence, fresh",
            r"\mathbb E[h_{ti}^2]",
            SIZES,
            "grad_variance",
            uses=(axioms.INDEPENDENCE,),
        ),
        tensors.step(
            backward(2),
            back.covariance,
            "the same for two tokens",
            r"\mathbb E[h_{ti}h_{si}]",
            SIZES,
            "grad_covariance",
            uses=(axioms.INDEPENDENCE,),
        ),
        Equality(
            Named(r"\gamma_x", through.scaled(alpha**2).variance + through.scaled(s_b).variance),
            gamma * (alpha**2 + s_b) / (alpha**2 + s_f),
            r"if a norm follows a sum of a unit-variance stream and its branch, the gradient is first divided by "
            r"the sum's "
            r"variance (proposition 2), then goes back through skip and branch",
            name="norm_after_sum",
            uses=("grad_variance", Lemma(p02_norms.PROPOSITION, "wide"), axioms.WIDE),
        ),
    )


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return resting_on((axioms.WICK, FRESH), steps())


PROPOSITION = Proposition(
    name="residual",
    number="6",
    title="Residual sums",
    quantities=(
        notation.VARIANCE,
        notation.CORRELATION,
        notation.GRAD_VARIANCE,
        notation.GRAD_CORRELATION,
        Quantity(d, "width", 2, sp.oo, integer=True),
        Quantity(alpha, "multiplier of the skip"),
        Quantity(s_f, "variance of the branch's output"),
        Quantity(r_f, "correlation of the branch's output between two tokens", 0, 1),
        Quantity(s_b, "gain of the branch backward, for the gradient variance at hand"),
        Quantity(r_b, "correlation between two tokens of the gradient that the branch returns", 0, 1),
    ),
    setting=(
        r"$z_t = \alpha x_t + f_t$, where the branch ends in a fresh matrix, $f_t = W h_t$, and $h$ is any function "
        r"of what "
        r"came before. Backward, a gradient $g_t$ at $z_t$ returns $\alpha g_t + U^\top y_t$, where $U$ is the "
        r"branch's "
        r"first matrix and $y_t$ the gradient before it. (Both matrices are written square; by proposition 1 only "
        r"their "
        r"gains matter.)"
    ),
    hypotheses=(FRESH,),
    statement=(
        "Streams and their branches are uncorrelated, $<<uncorrelated>>$, and second moments add:\n\n"
        "$$<<variance>>, \\qquad <<covariance>>$$\n\n$$<<grad_variance>>$$\n\n$$<<grad_covariance>>$$\n\nFor a norm "
        "after the sum, with a unit-variance stream:\n\n$$<<norm_after_sum>>$$\n\nSo the norm is neutral exactly "
        "when the "
        "branch's gain is the same in both directions."
    ),
    source="Derived here.",
    confronted="tests/test_proofs_against_simulation.py::test_residual",
    derivation=derivation,
    conclusion=lambda: stated(
        derivation, "uncorrelated", "variance", "covariance", "grad_variance", "grad_covariance", "norm_after_sum"
    ),
)
