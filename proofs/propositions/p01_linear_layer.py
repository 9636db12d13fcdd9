"""Proposition 1: a linear layer with independent Gaussian weights."""

from __future__ import annotations

from functools import cache

import sympy as sp

from proofs import axioms, notation, tensors, wick
from proofs.notation import c, d, gamma, n, q, rho, sigma
from proofs.vocabulary import Equality, Hypothesis, Named, Proposition, Quantity, Step, Witness, resting_on, stated

W, x, g = map(sp.IndexedBase, ("W", "x", "g"))
i, a, j, k, m, b = wick.indices("i a j k m b")

WEIGHTS = (wick.Weights(W, sigma**2 / d),)
ROWS = (
    wick.Rows(x, d, wick.exchangeable(q, c * q)),
    wick.Rows(g, n, wick.exchangeable(gamma, rho * gamma)),
)
SIZES = {d: 3, n: 2}

GAUSSIAN = Hypothesis(
    r"the entries of $W$ are independent, $W_{ij} \sim N(0, \sigma^2/d)$, and independent of $x$ and $g$"
)


def moment(summand: sp.Expr, *sums: tuple[sp.Symbol, sp.Expr]) -> wick.Moment:
    """An expectation over W of the summand."""
    return wick.Moment(summand, sums, WEIGHTS, ROWS)


def output_products(t: int, s: int) -> wick.Moment:
    """E of the product over coordinates i, a of y_ti y_si y_ta y_sa, summed, over n^2."""
    product = W[i, j] * x[t, j] * W[i, k] * x[s, k] * W[a, m] * x[t, m] * W[a, b] * x[s, b] / n**2
    return moment(product, (j, d), (k, d), (m, d), (b, d), (i, n), (a, n))


def forward_and_backward() -> wick.Moment:
    """E of the two mean squares ||W x||^2/n and ||W'g||^2/d, multiplied."""
    product = W[i, j] * x[1, j] * W[i, k] * x[1, k] * W[a, m] * g[1, a] * W[b, m] * g[1, b] / (n * d)
    return moment(product, (j, d), (k, d), (i, n), (a, n), (b, n), (m, d))


def steps() -> tuple[Step, ...]:
    """Second moments first, then the fourth moments that give the fluctuations at finite width."""
    forward = W[1, j] * x[1, j] * W[1, k]
    backward = W[i, 1] * g[1, i] * W[a, 1]
    second = wick.expectation(moment(output_products(1, 1).summand, *output_products(1, 1).sums))
    joint = wick.expectation(forward_and_backward())
    mean_forward, mean_backward = sigma**2 * q, sigma**2 * n / d * gamma
    return (
        tensors.step(
            moment(forward * x[1, k], (j, d), (k, d)),
            sigma**2 * q,
            r"pair the two weights: $\mathbb E[W_{ij}W_{ik}] = \frac{\sigma^2}{d}\delta_{jk}$, and "
            r"$\sum_j x_{tj}^2 = d\,q$",
            r"\mathbb E[y_{ti}^2]",
            SIZES,
            "variance",
        ),
        tensors.step(
            moment(forward * x[2, k], (j, d), (k, d)),
            sigma**2 * c * q,
            r"the same pairing with two tokens $t \ne s$: $\sum_j x_{tj}x_{sj} = d\,cq$",
            r"\mathbb E[y_{ti}y_{si}]",
            SIZES,
            "covariance",
        ),
        tensors.step(
            moment(backward * g[1, a], (i, n), (a, n)),
            sigma**2 * n / d * gamma,
            r"the gradient is $h_t = W^\top g_t$; now the sum runs over the $n$ outputs",
            r"\mathbb E[h_{tj}^2]",
            SIZES,
            "grad_variance",
        ),
        tensors.step(
            moment(backward * g[2, a], (i, n), (a, n)),
            sigma**2 * n / d * rho * gamma,
            r"the same for two tokens $t \ne s$",
            r"\mathbb E[h_{tj}h_{sj}]",
            SIZES,
            "grad_covariance",
        ),
        tensors.step(
            moment(W[1, j] * x[1, j] * x[1, 1], (j, d)),
            sp.Integer(0),
            "a single weight has no partner to pair with: the output is uncorrelated with anything known before",
            r"\mathbb E[y_{ti}x_{t1}]",
            SIZES,
            "uncorrelated",
        ),
        tensors.step(
            output_products(1, 1),
            sigma**4 * q**2 * (1 + 2 / n),
            r"three pairings of four weights; two of them tie the coordinates $i$ and $a$ and so count only $n$ times",
            r"\mathbb E\bigl[(\tfrac1n\|y_t\|^2)^2\bigr]",
            SIZES,
            "squared",
        ),
        Equality(
            Named(
                r"\mathrm{Var}\bigl[\tfrac1n\|y_t\|^2\bigr] \big/ \mathbb E\bigl[\tfrac1n\|y_t\|^2\bigr]^2",
                second / mean_forward**2 - 1,
            ),
            2 / n,
            "divide by the squared mean: the finite-width fluctuation is exactly $2/n$, whatever the input",
            name="fluctuation",
            uses=("variance", "squared"),
        ),
        tensors.step(
            output_products(1, 2),
            sigma**4 * q**2 * (c**2 + (1 + c**2) / n),
            "the same three pairings for two tokens",
            r"\mathbb E\bigl[(\tfrac1n\,y_t\cdot y_s)^2\bigr]",
            SIZES,
            "covariance_fluctuation",
        ),
        Equality(
            Named(
                r"\frac{\mathbb E[\frac1n\|Wx\|^2\,\frac1d\|W^\top g\|^2]}"
                r"{\mathbb E[\frac1n\|Wx\|^2]\,\mathbb E[\frac1d\|W^\top g\|^2]}",
                joint / (mean_forward * mean_backward),
            ),
            1 + 2 / (n * d),
            "forward and backward mean squares use the same $W$, yet their correlation is only of order one over the "
            "number of weights: the exact one-layer form of gradient independence",
            name="decoupling",
            uses=("variance", "grad_variance"),
            witnesses=(
                Witness(
                    lambda at: (
                        wick.brute_force(forward_and_backward(), at)
                        / (at[sigma] ** 4 * at[q] * at[gamma] * at[n] / at[d])  # type: ignore[operator]
                    ),
                    (sigma, q, gamma, c, rho),
                    SIZES,
                    points=2,
                ),
            ),
        ),
    )


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return resting_on((axioms.WICK, GAUSSIAN), steps())


PROPOSITION = Proposition(
    name="linear_layer",
    number="1",
    title="A linear layer",
    quantities=(
        notation.VARIANCE,
        notation.CORRELATION,
        notation.GRAD_VARIANCE,
        notation.GRAD_CORRELATION,
        Quantity(sigma, r"the weights have variance $\sigma^2/d$"),
        Quantity(d, "fan-in: length of the input", 3, sp.oo, integer=True),
        Quantity(n, "fan-out: length of the output", 2, sp.oo, integer=True),
    ),
    setting=(
        r"Tokens $x_t \in \mathbb R^d$ are given, with $\frac1d x_t\cdot x_t = q$ and $\frac1d x_t\cdot x_s = cq$ for "
        r"$t \ne s$. The layer is $y_t = W x_t \in \mathbb R^n$. A gradient $g_t \in \mathbb R^n$ with respect to "
        r"$y_t$ "
        r"is given, with $\frac1n g_t\cdot g_t = \gamma$ and $\frac1n g_t\cdot g_s = \rho\gamma$; the gradient with "
        r"respect to $x_t$ is $h_t = W^\top g_t$."
    ),
    hypotheses=(GAUSSIAN,),
    statement=(
        "Exactly, at every width:\n\n$$<<variance>>, \\qquad <<covariance>>$$\n\n$$<<grad_variance>>, \\qquad "
        "<<grad_covariance>>$$\n\nCorrelations pass unchanged in both directions. The mean square of one output "
        "fluctuates by\n\n$$<<fluctuation>>$$\n\nand forward and backward mean squares decouple:\n\n$$<<decoupling>>$$"
    ),
    source="LeCun et al. 1998 and Glorot and Bengio 2010 for the means; the finite-width terms are derived here.",
    confronted="tests/test_proofs_against_simulation.py::test_linear_layer",
    derivation=derivation,
    conclusion=lambda: stated(
        derivation, "variance", "covariance", "grad_variance", "grad_covariance", "fluctuation", "decoupling"
    ),
)
