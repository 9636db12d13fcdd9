"""Proposition 4: the value path of attention when all weights are 1/T."""

from __future__ import annotations

from functools import cache

import sympy as sp

from proofs import axioms, notation, tensors, wick
from proofs.maps import Moments, deviation_mode, mean_mode, uniform_attention
from proofs.notation import T, c, d, gamma, q, rho
from proofs.vocabulary import Equality, Hypothesis, Named, Proposition, Quantity, Step, Witness, resting_on, stated

h, s_v, s_o = sp.symbols("h sigma_v sigma_o", positive=True)
V, Out, x, g = map(sp.IndexedBase, ("V", "O", "x", "g"))
s, t, i, m = wick.indices("s t i m")
j, k, w, f = wick.indices("j k w f")
a, b, e, r = wick.indices("a b e r")
WEIGHTS = (wick.Weights(V, s_v**2 / d), wick.Weights(Out, s_o**2 / h))
ROWS = (
    wick.Rows(x, d, wick.exchangeable(q, c * q), T),
    wick.Rows(g, d, wick.exchangeable(gamma, rho * gamma), T),
)
SIZES = {T: 2, d: 2, h: 2}
GAIN = s_v**2 * s_o**2

EXCHANGEABLE = Hypothesis("tokens are exchangeable in second moments")
UNIFORM = Hypothesis(
    r"$V$ and $O$ have independent centred Gaussian entries; logits are zero, so all attention weights are $1/T$"
)


def forward() -> wick.Moment:
    """E of the square of a coordinate of (1/T) sum_s O V x_s; all tokens receive this same vector."""
    summand = Out[1, a] * V[a, j] * x[s, j] * Out[1, b] * V[b, k] * x[t, k] / T**2
    return wick.Moment(summand, ((j, d), (k, d), (a, h), (b, h), (s, T), (t, T)), WEIGHTS, ROWS)


def backward() -> wick.Moment:
    """E of the square of a coordinate of (1/T) sum_t V'O' g_t; all tokens receive this same vector."""
    summand = V[a, 1] * Out[i, a] * g[s, i] * V[b, 1] * Out[m, b] * g[t, m] / T**2
    return wick.Moment(summand, ((i, d), (m, d), (a, h), (b, h), (s, T), (t, T)), WEIGHTS, ROWS)


def squared() -> wick.Moment:
    """E[(||O V x||^2/d)^2] for a given vector x."""
    pairs = ((i, a, j), (i, b, k), (m, e, w), (m, r, f))
    summand = sp.prod(Out[row, mid] * V[mid, col] * x[1, col] for row, mid, col in pairs) / d**2
    sums = tuple((z, d) for z in (j, k, w, f)) + tuple((z, h) for z in (a, b, e, r)) + ((i, d), (m, d))
    return wick.Moment(summand, sums, WEIGHTS, ROWS)


def steps() -> tuple[Step, ...]:
    """Forward, backward, modes, and the fluctuation of two linear maps in a row."""
    stream, gradient = Moments(q, c * q), Moments(gamma, rho * gamma)
    out, back = uniform_attention(stream, GAIN, T), uniform_attention(gradient, GAIN, T)
    mean_square = GAIN * q
    return (
        tensors.step(
            forward(),
            out.variance,
            r"pair $V$ with $V$ and $O$ with $O$; then $\sum_{s,t} x_s\cdot x_t = d\,(Tq + T(T-1)cq)$",
            r"\mathbb E[y_{ti}^2] = \mathbb E[y_{ti}y_{si}]",
            SIZES,
            "forward",
        ),
        tensors.step(
            backward(),
            back.variance,
            r"the averaging matrix is symmetric, so the gradient is averaged in the same way",
            r"\mathbb E[h_{ti}^2] = \mathbb E[h_{ti}h_{si}]",
            SIZES,
            "backward",
            uses=(axioms.INDEPENDENCE,),
        ),
        Equality(
            Named(r"\bar q'", mean_mode(out, T)),
            GAIN * mean_mode(stream, T),
            "the token-mean mode is multiplied by the gain; the token-deviation mode is annihilated, because all "
            "tokens "
            "receive the same vector",
            name="mean",
            uses=("forward", "backward"),
        ),
        Equality(
            Named(r"\bar q + \tfrac{T-1}{T}\,q(1-c)", mean_mode(stream, T) + (T - 1) / T * deviation_mode(stream)),
            q,
            r"variance splits over one token-mean mode and $T-1$ token-deviation modes",
            name="split",
        ),
        Equality(
            Named(
                r"\mathrm{Var}\bigl[\tfrac1d\|OVx\|^2\bigr]\big/\mathbb E\bigl[\tfrac1d\|OVx\|^2\bigr]^2",
                wick.expectation(squared()) / mean_square**2 - 1,
            ),
            (1 + 2 / h) * (1 + 2 / d) - 1,
            "nine pairings of four and four weights: the two maps' fluctuations multiply",
            name="fluctuation",
            witnesses=(
                Witness(
                    lambda at: wick.brute_force(squared(), at) / (at[s_v] * at[s_o]) ** 4 / at[q] ** 2 - 1,  # type: ignore[operator]
                    (s_v, s_o, q, c),
                    SIZES,
                ),
            ),
        ),
    )


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return resting_on((axioms.WICK, EXCHANGEABLE, UNIFORM), steps())


PROPOSITION = Proposition(
    name="uniform_attention",
    number="4",
    title="Uniform attention: the value path",
    quantities=(
        notation.VARIANCE,
        notation.CORRELATION,
        notation.GRAD_VARIANCE,
        notation.GRAD_CORRELATION,
        notation.TOKENS,
        Quantity(d, "width", 2, sp.oo, integer=True),
        Quantity(h, "rows of the value matrix (all heads together, or one)", 2, sp.oo, integer=True),
        Quantity(s_v, r"the value matrix has variance $\sigma_v^2/d$"),
        Quantity(s_o, r"the output matrix has variance $\sigma_o^2/h$"),
    ),
    setting=(
        r"Every token receives $y_t = \frac1T\sum_s O V x_s$, with $V \in \mathbb R^{h\times d}$ and $O \in \mathbb "
        r"R^{d\times h}$. Backward, token $s$ receives $h_s = \frac1T\sum_t V^\top O^\top g_t$. The token-mean mode "
        r"of a "
        r"stream holds $\bar q = (q + (T-1)cq)/T$, the variance of the average over tokens; each of the $T-1$ "
        r"token-deviation modes holds $q(1-c)$. The same words are used for gradients."
    ),
    hypotheses=(
        EXCHANGEABLE,
        UNIFORM,
    ),
    statement=(
        r"With $\sigma^2 = \sigma_v^2\sigma_o^2$, exactly at every width:"
        + "\n\n$$<<forward>>$$\n\n$$<<backward>>$$\n\n"
        "The token-mean mode is multiplied by $\\sigma^2$ and the token-deviation modes vanish; these modes share the "
        "variance as\n\n$$<<mean>>$$\n\n$$<<split>>$$\n\nThe mean square of two linear maps in a row fluctuates "
        "by\n\n$$<<fluctuation>>$$"
    ),
    source="Derived here; compare L. Noci et al. 2022, arXiv:2206.03126, for rank collapse under uniform attention.",
    confronted="tests/test_proofs_against_simulation.py::test_uniform_attention",
    derivation=derivation,
    conclusion=lambda: stated(derivation, "forward", "backward", "mean", "split", "fluctuation"),
)
