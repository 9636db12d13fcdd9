"""Proposition 5: softmax attention to second order in the logits: value, query and key paths."""

from __future__ import annotations

from functools import cache

import sympy as sp

from proofs import axioms, notation, tensors, wick
from proofs.notation import T, c, d, gamma, q, rho
from proofs.propositions import p04_uniform_attention
from proofs.softmax_paths import (
    ROWS,
    WEIGHTS,
    K,
    Q,
    Sums,
    centred_logit,
    h,
    named,
    path_key,
    path_output,
    path_query,
    path_value,
    s_k,
    s_o,
    s_q,
    s_v,
    second_moment,
    times,
    x,
)
from proofs.vocabulary import (
    Equality,
    Hypothesis,
    Lemma,
    Limit,
    Named,
    Proposition,
    Quantity,
    Series,
    Step,
    resting_on,
    stated,
)

SIZES = {T: 2, d: 2, h: 1}
GAIN = s_v**2 * s_o**2
TAU = s_q**2 * s_k**2
ell, m_1, m_2, eps = sp.symbols("ell m_1 m_2 epsilon", real=True)

EXCHANGEABLE = Hypothesis("tokens and gradients are exchangeable in second moments")
GAUSSIAN = Hypothesis("the four matrices have independent centred Gaussian entries")
SECOND = Hypothesis(r"second order in the logits, that is first order in $\tau$: the remainder is $O(\tau^2)$")
ADDING = Hypothesis("for adding the three paths: the wide limit")


def weights_squared(correlation: sp.Expr) -> sp.Expr:
    """sum_s E[a_ts a_rs] to first order in tau; correlation 1 for one row, c for two."""
    return 1 / T + correlation * TAU * q**2 * (1 - c) * (T - 1) / T**2


A_2, B_2 = Named("A_2", weights_squared(sp.Integer(1))), Named("B_2", weights_squared(c))


def logit_moments() -> tuple[Step, ...]:
    """The logits themselves, and the softmax expanded in them."""
    s = sp.Symbol("s", integer=True)

    def centred(t: int, r: wick.Index, sums: Sums, factor: sp.Expr) -> wick.Moment:
        product, own = times(centred_logit(1, r, "A"), centred_logit(t, r, "B"))
        return wick.Moment(product * factor, tuple(sorted(own + sums, key=lambda z: z[1] == T)), WEIGHTS, ROWS)

    spread = TAU * q**2 * (1 - c) * (T - 1) / T
    softmax = sp.exp(eps * ell) / (T * (1 + eps * m_1 + eps**2 * m_2 / 2))
    second = ((ell - m_1) ** 2 - (m_2 - m_1**2)) / 2
    fourth_sums: Sums = ()
    fourth = sp.Integer(1)
    for copy in "ABCD":
        a, k, w = (named(p, copy) for p in ("a", "k", "l"))
        fourth *= Q[a, k] * x[1, k] * K[a, w] * x[2, w] / sp.sqrt(h)
        fourth_sums += ((k, d), (w, d), (a, h))
    return (
        tensors.step(
            centred(1, 1, (), sp.Integer(1)),
            spread,
            r"pair $Q$ with $Q$ and $K$ with $K$: logits have covariance $\tau C_{tt'}C_{ss'}$ with $C$ the token Gram "
            r"matrix; the part common to a row drops out, leaving $\tau q^2(1-c)$",
            r"\mathbb E[\bar\ell_{tt}^2]",
            SIZES,
            "spread",
        ),
        tensors.step(
            centred(1, 2, (), sp.Integer(1)),
            spread,
            r"the same for $s \ne t$: the centred logits of a row all have one variance",
            r"\mathbb E[\bar\ell_{ts}^2]",
            SIZES,
            "spread_other",
        ),
        tensors.step(
            wick.Moment(fourth, fourth_sums, WEIGHTS, ROWS),
            3 * TAU**2 * q**4 * (1 + 2 / h),
            r"given the tokens a logit is Gaussian only for a large head: its fourth moment exceeds $3\tau^2q^4$ by "
            r"$2/h$",
            r"\mathbb E[\ell_{ts}^4]",
            {**SIZES, h: 2},
            "fourth",
        ),
        Series(
            Named(r"a(\varepsilon\ell)", softmax),
            eps,
            (1 + eps * (ell - m_1) + eps**2 * second) / T,
            3,
            r"softmax of logits $\varepsilon\ell$, with $m_1, m_2$ the means over the row of $\ell, \ell^2$ (all "
            r"that the "
            "denominator shows to this order)",
            name="softmax",
        ),
        Series(
            Named(
                r"T\sum_s a_s(\varepsilon\ell)^2",
                (1 + 2 * eps * m_1 + 2 * eps**2 * m_2) / (1 + eps * m_1 + eps**2 * m_2 / 2) ** 2,
            ),
            eps,
            1 + eps**2 * (m_2 - m_1**2),
            3,
            r"the sum of squared weights: only the row's variance of logits enters. The second-order term of a "
            r"weight sums "
            r"to zero over the row, because weights sum to one, and has expectation zero for each $s$, because all "
            r"centred "
            r"logits have one variance; so second moments to first order in $\tau$ need only products of two first "
            r"orders "
            "(odd orders vanish)",
            name="squares",
            uses=("softmax", "spread", "spread_other"),
        ),
        tensors.step(
            centred(1, s, ((s, T),), 1 / T**2),
            weights_squared(sp.Integer(1)) - 1 / T,
            r"sum over the row: $A_2 = \mathbb E\sum_s a_{ts}^2$ exceeds $1/T$ by",
            r"A_2 - \tfrac1T",
            SIZES,
            "A2",
            uses=("squares",),
        ),
        tensors.step(
            centred(2, s, ((s, T),), 1 / T**2),
            weights_squared(c) - 1 / T,
            r"two rows: $B_2 = \mathbb E\sum_s a_{ts}a_{rs}$, $r \ne t$, exceeds $1/T$ by",
            r"B_2 - \tfrac1T",
            SIZES,
            "B2",
            uses=("squares",),
        ),
    )


def forward_steps() -> tuple[Step, ...]:
    """The output's variance and covariance."""
    a2, b2 = A_2, B_2
    uniform = GAIN * q * (1 + (T - 1) * c) / T
    first = [wick.expectation(second_moment(path_output(1, 1, "A"), path_output(t, 1, "B"))) for t in (1, 2)]
    return (
        tensors.step(
            second_moment(path_output(1, 1, "A"), path_output(1, 1, "B")),
            GAIN * q * (1 - c) * (a2 - 1 / T),
            r"output $y_t = \frac1T\sum_s(1 + \bar\ell_{ts} + \dots)\,OVx_s$: the first orders of one token, squared",
            r"\mathbb E[(y^{(1)}_{ti})^2]",
            SIZES,
            "first",
            uses=("softmax",),
        ),
        tensors.step(
            second_moment(path_output(1, 1, "A"), path_output(2, 1, "B")),
            GAIN * q * (1 - c) * (b2 - 1 / T),
            "and of two tokens",
            r"\mathbb E[y^{(1)}_{ti}y^{(1)}_{ri}]",
            SIZES,
            "first_two",
            uses=("softmax",),
        ),
        Equality(
            Named(r"q' + O(\tau^2)", uniform + first[0]),
            GAIN * q * (c + (1 - c) * a2),
            "add the zeroth order (proposition 4)",
            name="forward",
            uses=("A2", "first", Lemma(p04_uniform_attention.PROPOSITION, "forward")),
        ),
        Equality(
            Named(r"p' + O(\tau^2)", uniform + first[1]),
            GAIN * q * (c + (1 - c) * b2),
            "the same for the covariance",
            name="forward_cov",
            uses=("B2", "first_two", Lemma(p04_uniform_attention.PROPOSITION, "forward")),
        ),
    )


def backward_steps() -> tuple[Step, ...]:
    """The three paths back, that they do not interfere in the wide limit, and their sum."""
    a2, b2 = A_2, B_2
    excess = TAU * q**2 * (1 - c) * (T - 1) / T**2
    value = GAIN * gamma * (excess + (T - 1) * rho * c * excess)
    query = GAIN * gamma * TAU * q**2 * (1 - c) ** 2 * (T - 1) / T**2
    key = GAIN * gamma * TAU * q**2 * (1 - c) * (1 + (T - 1) * rho * c) * (T - 1) / T**2
    uniform = GAIN * gamma * (1 + (T - 1) * rho) / T
    other = T - 1
    claims = (
        (
            path_value(1, 1, "A"),
            path_value(1, 1, "B"),
            value,
            "value path, first order in the logits",
            r"\gamma_V^{(1)}",
            "first_value",
        ),
        (
            path_value(1, 1, "A"),
            path_value(2, 1, "B"),
            -value / other,
            "two tokens: the sum over tokens is zero, because weights sum to one",
            r"\kappa_V^{(1)}",
            "kappa_value",
        ),
        (
            path_query(1, "A"),
            path_query(1, "B"),
            query,
            r"query path: the gradient with respect to a logit is "
            r"$\frac1T(w_{ts}-\bar w_t)$, $w_{ts} = g_t\cdot OVx_s$, and multiplies the key of $s$",
            r"\gamma_Q",
            "query",
        ),
        (path_query(1, "A"), path_query(2, "B"), rho * query, "two tokens' queries", r"\kappa_Q", "kappa_query"),
        (path_key(1, "A"), path_key(1, "B"), key, "key path: each key is read by all queries", r"\gamma_K", "key"),
        (
            path_key(1, "A"),
            path_key(2, "B"),
            -key / other,
            "two tokens' keys: their gradients sum to zero over tokens",
            r"\kappa_K",
            "kappa_key",
        ),
    )
    cross = (
        (path_value(1, 1, "A"), path_query(1, "B"), "value and query paths"),
        (path_value(1, 1, "A"), path_key(1, "B"), "value and key paths"),
        (path_query(1, "A"), path_key(1, "B"), "query and key paths"),
    )
    return (
        *(
            tensors.step(second_moment(left, right), claim, reason, label, SIZES, name)
            for left, right, claim, reason, label, name in claims
        ),
        *(
            Limit(
                wick.expectation(second_moment(left, right)),
                d,
                sp.oo,
                sp.Integer(0),
                f"{names} have a covariance of order $1/d$ only: in the wide limit they add as uncorrelated",
                name=names.replace(" and ", "_").removesuffix(" paths"),
            )
            for left, right, names in cross
        ),
        Equality(
            Named(r"\gamma_V", uniform + value),
            GAIN * gamma * (a2 + (T - 1) * rho * b2),
            "value path with its zeroth order (proposition 4)",
            name="value",
            uses=("first_value", "A2", "B2", Lemma(p04_uniform_attention.PROPOSITION, "backward")),
        ),
        Equality(
            Named(r"\gamma' + O(\tau^2)", uniform + value + query + key),
            GAIN
            * gamma
            * (a2 + (T - 1) * rho * b2 + TAU * q**2 * (1 - c) * (2 - c + (T - 1) * rho * c) * (T - 1) / T**2),
            "all three together",
            name="backward",
            uses=("value", "query", "key", "value_query", "value_key", "query_key"),
        ),
        Equality(
            Named(
                r"\frac{\gamma_Q + \gamma_K}{\gamma_V^{(1)}}\Big|_{\rho=0}",
                (query + key).subs(rho, 0) / value.subs(rho, 0),
            ),
            2 - c,
            r"for gradients uncorrelated between tokens, query and key paths together carry $2-c$ times what the "
            r"logits add "
            "to the value path: they may not be dropped",
            name="share",
            uses=("first_value", "query", "key"),
        ),
    )


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return resting_on(
        (axioms.WICK, axioms.TAYLOR, EXCHANGEABLE, GAUSSIAN, SECOND), logit_moments(), forward_steps()
    ) + resting_on(
        (axioms.WICK, axioms.TAYLOR, axioms.INDEPENDENCE, axioms.WIDE, EXCHANGEABLE, GAUSSIAN, SECOND, ADDING),
        backward_steps(),
    )


PROPOSITION = Proposition(
    name="small_logits",
    number="5",
    title="Softmax attention with small logits",
    quantities=(
        notation.VARIANCE,
        notation.CORRELATION,
        notation.GRAD_VARIANCE,
        notation.GRAD_CORRELATION,
        notation.TOKENS,
        Quantity(d, "width", 2, sp.oo, integer=True),
        Quantity(h, "rows of each head's query, key and value matrices", 1, sp.oo, integer=True),
        Quantity(s_q, r"the query matrix has variance $\sigma_q^2/d$"),
        Quantity(s_k, r"the key matrix has variance $\sigma_k^2/d$"),
        Quantity(s_v, r"the value matrix has variance $\sigma_v^2/d$"),
        Quantity(s_o, r"the output matrix has variance $\sigma_o^2/h$"),
        Quantity(ell, "a logit", -sp.oo),
        Quantity(m_1, "mean of the logits over a row", -sp.oo),
        Quantity(m_2, "mean of their squares", 1),
        Quantity(eps, "scale of the logits", 0, 1),
    ),
    setting=(
        r"Token $t$ receives $y_t = \sum_s a_{ts}\,OVx_s$ with $a_{ts} = \mathrm{softmax}_s\,\ell_{ts}$ and logits "
        r"$\ell_{ts} "
        r"= (Qx_t)\cdot(Kx_s)/\sqrt h$. Write $\tau = \sigma_q^2\sigma_k^2$, so that $\tau q^2$ is the variance of "
        r"a logit, "
        r"$\bar\ell_{ts}$ for a logit less the mean of its row, and $\sigma^2 = \sigma_v^2\sigma_o^2$. A gradient "
        r"$g_t$ "
        r"arrives at $y_t$ and leaves $x_s$ by three paths: through its value, its query and its key."
    ),
    hypotheses=(
        EXCHANGEABLE,
        GAUSSIAN,
        SECOND,
        ADDING,
    ),
    statement=(
        "Attention weights, one row and two rows:\n\n$$<<A2>>$$\n\n$$<<B2>>$$\n\nForward:\n\n$$<<forward>>$$\n\n"
        "$$<<forward_cov>>$$\n\nBackward, by value, query and key:\n\n$$<<value>>$$\n\n$$<<query>>$$\n\n"
        "$$<<key>>$$\n\n$$<<kappa_query>>$$\n\n"
        "$$<<kappa_key>>$$\n\nand all three together:\n\n$$<<backward>>$$\n\nThe query and key paths are not smaller "
        "in the width:\n\n$$<<share>>$$"
    ),
    source="Derived here. The value path alone is in A. Kedia et al., arXiv:2403.09635, and L. Noci et al., "
    "arXiv:2206.03126.",
    confronted="tests/test_proofs_against_simulation.py::test_small_logits",
    derivation=derivation,
    conclusion=lambda: stated(
        derivation,
        "A2",
        "B2",
        "forward",
        "forward_cov",
        "value",
        "query",
        "key",
        "kappa_query",
        "kappa_key",
        "backward",
        "share",
    ),
    remark=(
        r"At logit standard deviation 1 the neglected terms are large for uncorrelated tokens; the package "
        r"integrates the "
        r"softmax numerically there, and this proposition is the small-$\tau$ limit that its numbers must meet."
    ),
)
