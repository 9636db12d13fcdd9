"""Proposition 10b: with linear FFNs and symmetric attention each token mode gains the same both ways."""

from __future__ import annotations

from functools import cache

import sympy as sp

from proofs import axioms, notation, tensors, wick
from proofs.maps import Moments, deviation_mode, mean_mode
from proofs.notation import T, d, gamma, q
from proofs.propositions import p04_uniform_attention
from proofs.vocabulary import (
    Equality,
    Hypothesis,
    Lemma,
    Named,
    Proposition,
    Quantity,
    Step,
    Witness,
    resting_on,
    stated,
)

g_a, g_f, g_1, g_2, q_0, q_L, c_0, c_L = sp.symbols("g_a g_f g_1 g_2 q_0 q_L c_0 c_L", positive=True)
alpha, beta, phi, psi, lam = sp.symbols("alpha beta phi psi lambda", real=True)
A, F, G1, G2, x, g = map(sp.IndexedBase, ("A", "F", "G1", "G2", "x", "g"))
i, j, k, n, m = wick.indices("i j k n m")
Delta = sp.KroneckerDelta
WEIGHTS = (
    wick.Weights(A, g_a / d),
    wick.Weights(F, g_f / d),
    wick.Weights(G1, g_1 / d),
    wick.Weights(G2, g_2 / d),
)
ROWS = (
    wick.Rows(x, d, wick.exchangeable(q, sp.Integer(0)), 1),
    wick.Rows(g, d, wick.exchangeable(gamma, sp.Integer(0)), 1),
)
SIZES = {d: 2}
BLOCK_GAIN = alpha**2 + beta**2 * lam**2 * g_a + phi**2 * g_f + psi**2 * lam**2 * g_f * g_a

LINEAR = Hypothesis(
    "linear FFN; a fixed symmetric attention matrix; matrices fresh in each block; wide limit for the norms only"
)
COEFFICIENTS = Hypothesis(
    "any placement whose block is a combination of skip, attention, FFN and FFN after attention with deterministic "
    "coefficients"
)


def block(row: sp.Symbol, middle: sp.Symbol, column: sp.Symbol) -> sp.Expr:
    """J = alpha + beta*lambda*A + phi*F + psi*lambda*F A, an entry before summing over the middle index."""
    left, right = Delta(row, middle), Delta(middle, column)
    return (
        alpha * left * right
        + beta * lam * left * A[middle, column]
        + phi * F[row, middle] * right
        + psi * lam * F[row, middle] * A[middle, column]
    )


def forward() -> wick.Moment:
    """(1/d) E||J x||^2."""
    summand = block(i, j, k) * x[1, k] * block(i, n, m) * x[1, m] / d
    return wick.Moment(sp.expand(summand), ((j, d), (n, d), (k, d), (m, d), (i, d)), WEIGHTS, ROWS)


def backward() -> wick.Moment:
    """(1/d) E||J'g||^2."""
    summand = block(k, j, i) * g[1, k] * block(m, n, i) * g[1, m] / d
    return wick.Moment(sp.expand(summand), ((j, d), (n, d), (k, d), (m, d), (i, d)), WEIGHTS, ROWS)


def two(transposed: bool) -> wick.Moment:
    """(1/d) E of ||G2 G1 x||^2, or of ||G1'G2'g||^2."""
    if transposed:
        summand = G2[k, j] * G1[j, i] * g[1, k] * G2[m, n] * G1[n, i] * g[1, m] / d
    else:
        summand = G2[i, j] * G1[j, k] * x[1, k] * G2[i, n] * G1[n, m] * x[1, m] / d
    return wick.Moment(summand, ((j, d), (n, d), (k, d), (m, d), (i, d)), WEIGHTS, ROWS)


def steps() -> tuple[Step, ...]:
    """One block both ways, composition, then the end-to-end gain."""
    start, end = Moments(q_0, c_0 * q_0), Moments(q_L, c_L * q_L)
    mean_gain = mean_mode(end, T) / mean_mode(start, T)
    deviation_gain = deviation_mode(end) / deviation_mode(start)
    top = Moments(sp.Integer(1), sp.Integer(0))
    total = (mean_gain * mean_mode(top, T) * T + (T - 1) * deviation_gain * deviation_mode(top)) / T
    return (
        tensors.step(
            forward(),
            BLOCK_GAIN * q,
            r"forward: distinct words in the fresh matrices are uncorrelated (each has some matrix an odd number of "
            r"times "
            "against the other), so their second moments add",
            r"\tfrac1d\mathbb E\|Jx\|^2",
            SIZES,
            "forward",
        ),
        tensors.step(
            backward(),
            BLOCK_GAIN * gamma,
            r"backward: transposing reverses each word, $FA \to A^\top F^\top$, and a product of independent square "
            r"Gaussian "
            "matrices has the same second moment either way",
            r"\tfrac1d\mathbb E\|J^\top g\|^2",
            SIZES,
            "backward",
        ),
        tensors.step(
            two(False),
            g_1 * g_2 * q,
            "blocks use fresh matrices: gains multiply, forward",
            r"\tfrac1d\mathbb E\|G_2G_1x\|^2",
            SIZES,
            "two_forward",
            uses=("forward",),
        ),
        tensors.step(
            two(True),
            g_1 * g_2 * gamma,
            "and backward; by induction over the blocks each mode's end-to-end gain is the same both ways",
            r"\tfrac1d\mathbb E\|G_1^\top G_2^\top g\|^2",
            SIZES,
            "two_backward",
            uses=("backward",),
        ),
        Equality(
            Named("G", total),
            (q_L * (1 + (T - 1) * c_L) / (q_0 * (1 + (T - 1) * c_0)) + (T - 1) * (1 - c_L) * q_L / ((1 - c_0) * q_0))
            / T,
            "uniform attention: the token-mean mode and the $T-1$ token-deviation modes have the forward gains "
            "below; gradients "
            "uncorrelated between tokens put equal parts in each mode",
            name="total",
            uses=("two_forward", "two_backward"),
            witnesses=(Witness(_by_modes, (T, q_0, q_L, c_0, c_L), points=4),),
        ),
        Equality(
            Named(r"G\big|_{c_0 = 0}", sp.simplify(total.subs(c_0, 0))),
            q_L / q_0,
            "uncorrelated tokens at the input: the modes' shares recombine to the variance (proposition 4)",
            name="uncorrelated",
            uses=("total", Lemma(p04_uniform_attention.PROPOSITION, "split")),
            derived=True,
        ),
    )


def _by_modes(at: object) -> object:
    """The same by splitting variances of concrete tokens into modes, each gain a ratio of mode variances."""
    tokens = at[T]  # type: ignore[index]

    def modes(variance: object, correlation: object) -> tuple[object, object]:
        mean = variance * (correlation + (1 - correlation) / tokens)  # type: ignore[operator]
        return mean, (variance - mean) / (tokens - 1) * tokens

    before, after = modes(at[q_0], at[c_0]), modes(at[q_L], at[c_L])  # type: ignore[index]
    return (after[0] / before[0] + (tokens - 1) * after[1] / before[1]) / tokens  # type: ignore[operator]


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return resting_on((axioms.WICK, axioms.WIDE, axioms.INDEPENDENCE, LINEAR, COEFFICIENTS), steps())


PROPOSITION = Proposition(
    name="duality",
    number="10b",
    title="Duality of collapse and gradient",
    quantities=(
        notation.TOKENS,
        Quantity(d, "width", 2, sp.oo, integer=True),
        Quantity(q, "mean square of the mode's vector"),
        Quantity(gamma, "mean square of the gradient's mode"),
        Quantity(g_a, "gain of attention's maps"),
        Quantity(g_f, "gain of the linear FFN"),
        Quantity(g_1, "gain of a first block"),
        Quantity(g_2, "gain of a second block"),
        Quantity(
            lam, "eigenvalue of the attention matrix for the mode (uniform: 1 for the mean, 0 for deviations)", -1, 1
        ),
        Quantity(alpha, "coefficient of the skip", -sp.oo),
        Quantity(beta, "coefficient of attention", -sp.oo),
        Quantity(phi, "coefficient of the FFN", -sp.oo),
        Quantity(psi, "coefficient of the FFN after attention", -sp.oo),
        Quantity(q_0, "variance at the input"),
        Quantity(q_L, "variance at the output"),
        Quantity(c_0, "correlation at the input", 0, 1),
        Quantity(c_L, "correlation at the output", 0, 1),
    ),
    setting=(
        r"Take one mode of the tokens, an eigenvector of the attention matrix with eigenvalue $\lambda$; the "
        r"stream's part in it "
        r"is one vector $x \in \mathbb R^d$. In the wide limit each norm multiplies by a number, so a block acts on "
        r"$x$ as $J = "
        r"\alpha I + \beta\lambda A + \phi F + \psi\lambda FA$ with $A$ attention's value and output maps, $F$ the "
        r"linear FFN, and "
        r"numbers that depend on the placement: PreNorm, PostNorm and SpanNorm are the cases "
        r"$(\alpha,\beta,\phi,\psi) = $ $(1, "
        r"r_1, r_2, r_1r_2)$, $(r_1r_2)(1,1,1,1)$ and $r_2(1, 0, r_1, r_1)$, $r_i$ being one over the root of the "
        r"variance at norm "
        r"$i$. $G$ is the gradient variance at the input over that at the top, $\|\partial x_L/\partial "
        r"x_0\|_F^2/(Td)$, for "
        r"gradients uncorrelated between tokens at the top."
    ),
    hypotheses=(
        LINEAR,
        COEFFICIENTS,
    ),
    statement=(
        "Forward and backward every mode has the same gain:\n\n$$<<forward>>$$\n\n$$<<backward>>$$\n\nHence, for "
        "uniform "
        "attention, collapse and gradient are tied at any depth:\n\n$$<<total>>$$\n\nand for uncorrelated tokens at "
        "the input "
        "$<<uncorrelated>>$: no norm-terminated placement has a vanishing end-to-end gradient then."
    ),
    source="Derived here.",
    confronted="tests/test_proofs_against_simulation_depth.py::test_duality",
    derivation=derivation,
    conclusion=lambda: stated(derivation, "forward", "backward", "total", "uncorrelated"),
)
