"""Proposition 5: softmax attention to second order in the logits: value, query and key paths."""

from __future__ import annotations

import sympy as sp

from proofs import axioms, notation, wick
from proofs.notation import T, c, d, gamma, q, rho
from proofs.vocabulary import Equality, Limit, Proposition, Quantity, Series, Step

h, s_v, s_o, s_q, s_k = sp.symbols("h sigma_v sigma_o sigma_q sigma_k", positive=True)
V, Out, Q, K, x, g = map(sp.IndexedBase, ("V", "O", "Q", "K", "x", "g"))
Delta = sp.KroneckerDelta
WEIGHTS = (
    wick.Weights(Q, s_q**2 / d),
    wick.Weights(K, s_k**2 / d),
    wick.Weights(V, s_v**2 / d),
    wick.Weights(Out, s_o**2 / h),
)
ROWS = (
    wick.Rows(x, d, wick.exchangeable(q, c * q), T),
    wick.Rows(g, d, wick.exchangeable(gamma, rho * gamma), T),
)
SIZES = {T: 2, d: 2, h: 1}
GAIN = s_v**2 * s_o**2
TAU = s_q**2 * s_k**2
Sums = tuple[tuple[sp.Symbol, sp.Expr], ...]
Piece = tuple[sp.Expr, Sums]
j = sp.Symbol("j", integer=True)  # the coordinate shared by the two factors of a second moment
ell, m_1, m_2, eps = sp.symbols("ell m_1 m_2 epsilon", real=True)


def named(prefix: str, copy: str) -> sp.Symbol:
    """An index private to one factor of a second moment."""
    return sp.Symbol(f"{prefix}_{copy}", integer=True)


def centred_logit(t: wick.Index, s: wick.Index, copy: str) -> Piece:
    """ell_ts minus its mean over s, with ell_ts = (Q x_t).(K x_s)/sqrt(h)."""
    a, k, w, r = (named(p, copy) for p in ("a", "k", "l", "r"))
    logit = Q[a, k] * x[t, k] * K[a, w] * x[r, w] / sp.sqrt(h)
    return (Delta(r, s) - 1 / T) * logit, ((k, d), (w, d), (a, h), (r, T))


def value_forward(s: wick.Index, copy: str) -> Piece:
    """(O V x_s)_j."""
    b, w = named("b", copy), named("w", copy)
    return Out[j, b] * V[b, w] * x[s, w], ((w, d), (b, h))


def value_backward(t: wick.Index, copy: str) -> Piece:
    """(V'O' g_t)_j."""
    b, i = named("b", copy), named("i", copy)
    return V[b, j] * Out[i, b] * g[t, i], ((i, d), (b, h))


def logit_gradient(t: wick.Index, s: wick.Index, copy: str) -> Piece:
    """Gradient with respect to ell_ts at uniform weights: (1/T) times the centred g_t.(O V x_s)."""
    b, i, w, r = (named(p, "g" + copy) for p in ("b", "i", "w", "r"))
    return (Delta(r, s) - 1 / T) / T * g[t, i] * Out[i, b] * V[b, w] * x[r, w], ((i, d), (w, d), (b, h), (r, T))


def times(*pieces: Piece) -> Piece:
    """The product of pieces with their sums (features before tokens)."""
    sums = [pair for _, own in pieces for pair in own]
    return sp.prod(p for p, _ in pieces), tuple(sorted(sums, key=lambda pair: pair[1] == T))


def path_output(t: wick.Index, order: int, copy: str) -> Piece:
    """Forward, token t: (1/T) sum_s (centred logit)^order O V x_s; orders 0 and 1."""
    s = named("s", copy)
    pieces = [value_forward(s, copy), (1 / T, ((s, T),))] + ([centred_logit(t, s, copy)] if order else [])
    return times(*pieces)


def path_value(s: wick.Index, order: int, copy: str) -> Piece:
    """Backward through the values to token s: (1/T) sum_t (centred logit)^order V'O' g_t."""
    t = named("t", copy)
    pieces = [value_backward(t, copy), (1 / T, ((t, T),))] + ([centred_logit(t, s, copy)] if order else [])
    return times(*pieces)


def path_query(t: wick.Index, copy: str) -> Piece:
    """Backward through the query of token t: sum_s (d loss/d ell_ts) Q'K x_s / sqrt(h)."""
    s, a, k = (named(p, "q" + copy) for p in ("s", "a", "k"))
    return times(logit_gradient(t, s, copy), (Q[a, j] * K[a, k] * x[s, k] / sp.sqrt(h), ((k, d), (a, h), (s, T))))


def path_key(s: wick.Index, copy: str) -> Piece:
    """Backward through the key of token s: sum_t (d loss/d ell_ts) K'Q x_t / sqrt(h)."""
    t, a, k = (named(p, "k" + copy) for p in ("t", "a", "k"))
    return times(logit_gradient(t, s, copy), (K[a, j] * Q[a, k] * x[t, k] / sp.sqrt(h), ((k, d), (a, h), (t, T))))


def second_moment(left: Piece, right: Piece) -> wick.Moment:
    """(1/d) sum_j E[left_j right_j]."""
    product, sums = times(left, right, (1 / d, ((j, d),)))
    return wick.Moment(product, sums, WEIGHTS, ROWS)


def weights_squared(correlation: sp.Expr) -> sp.Expr:
    """sum_s E[a_ts a_rs] to first order in tau; correlation 1 for one row, c for two."""
    return 1 / T + correlation * TAU * q**2 * (1 - c) * (T - 1) / T**2


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
        wick.step(
            centred(1, 1, (), sp.Integer(1)),
            spread,
            r"pair $Q$ with $Q$ and $K$ with $K$: logits have covariance $\tau C_{tt'}C_{ss'}$ with $C$ the token Gram "
            r"matrix; the part common to a row drops out, leaving $\tau q^2(1-c)$",
            r"\mathbb E[\bar\ell_{tt}^2]",
            SIZES,
        ),
        wick.step(
            centred(1, 2, (), sp.Integer(1)),
            spread,
            r"the same for $s \ne t$: the centred logits of a row all have one variance",
            r"\mathbb E[\bar\ell_{ts}^2]",
            SIZES,
        ),
        wick.step(
            wick.Moment(fourth, fourth_sums, WEIGHTS, ROWS),
            3 * TAU**2 * q**4 * (1 + 2 / h),
            r"given the tokens a logit is Gaussian only for a large head: its fourth moment exceeds $3\tau^2q^4$ by "
            r"$2/h$",
            r"\mathbb E[\ell_{ts}^4]",
            {**SIZES, h: 2},
            "fourth",
        ),
        Series(
            softmax,
            eps,
            (1 + eps * (ell - m_1) + eps**2 * second) / T,
            3,
            r"softmax of logits $\varepsilon\ell$, with $m_1, m_2$ the means over the row of $\ell, \ell^2$ (all "
            r"that the "
            "denominator shows to this order)",
            "softmax",
            r"a(\varepsilon\ell)",
        ),
        Series(
            (1 + 2 * eps * m_1 + 2 * eps**2 * m_2) / (1 + eps * m_1 + eps**2 * m_2 / 2) ** 2,
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
            label=r"T\sum_s a_s(\varepsilon\ell)^2",
        ),
        wick.step(
            centred(1, s, ((s, T),), 1 / T**2),
            weights_squared(sp.Integer(1)) - 1 / T,
            r"sum over the row: $A_2 = \mathbb E\sum_s a_{ts}^2$ exceeds $1/T$ by",
            r"A_2 - \tfrac1T",
            SIZES,
            "A2",
        ),
        wick.step(
            centred(2, s, ((s, T),), 1 / T**2),
            weights_squared(c) - 1 / T,
            r"two rows: $B_2 = \mathbb E\sum_s a_{ts}a_{rs}$, $r \ne t$, exceeds $1/T$ by",
            r"B_2 - \tfrac1T",
            SIZES,
            "B2",
        ),
    )


def forward_steps() -> tuple[Step, ...]:
    """The output's variance and covariance."""
    a2, b2 = weights_squared(sp.Integer(1)), weights_squared(c)
    uniform = GAIN * q * (1 + (T - 1) * c) / T
    first = [wick.expectation(second_moment(path_output(1, 1, "A"), path_output(t, 1, "B"))) for t in (1, 2)]
    return (
        wick.step(
            second_moment(path_output(1, 1, "A"), path_output(1, 1, "B")),
            GAIN * q * (1 - c) * (a2 - 1 / T),
            r"output $y_t = \frac1T\sum_s(1 + \bar\ell_{ts} + \dots)\,OVx_s$: the first orders of one token, squared",
            r"\mathbb E[(y^{(1)}_{ti})^2]",
            SIZES,
        ),
        wick.step(
            second_moment(path_output(1, 1, "A"), path_output(2, 1, "B")),
            GAIN * q * (1 - c) * (b2 - 1 / T),
            "and of two tokens",
            r"\mathbb E[y^{(1)}_{ti}y^{(1)}_{ri}]",
            SIZES,
        ),
        Equality(
            uniform + first[0],
            GAIN * q * (c + (1 - c) * a2),
            "add the zeroth order (proposition 4)",
            "forward",
            r"q' + O(\tau^2)",
        ),
        Equality(
            uniform + first[1],
            GAIN * q * (c + (1 - c) * b2),
            "the same for the covariance",
            "forward_cov",
            r"p' + O(\tau^2)",
        ),
    )


def backward_steps() -> tuple[Step, ...]:
    """The three paths back, that they do not interfere in the wide limit, and their sum."""
    a2, b2 = weights_squared(sp.Integer(1)), weights_squared(c)
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
            "",
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
            wick.step(second_moment(left, right), claim, reason, label, SIZES, name)
            for left, right, claim, reason, label, name in claims
        ),
        *(
            Limit(
                wick.expectation(second_moment(left, right)),
                d,
                sp.oo,
                sp.Integer(0),
                f"{names} have a covariance of order $1/d$ only: in the wide limit they add as uncorrelated",
            )
            for left, right, names in cross
        ),
        Equality(
            uniform + value,
            GAIN * gamma * (a2 + (T - 1) * rho * b2),
            "value path with its zeroth order (proposition 4)",
            "value",
            r"\gamma_V",
        ),
        Equality(
            uniform + value + query + key,
            GAIN
            * gamma
            * (a2 + (T - 1) * rho * b2 + TAU * q**2 * (1 - c) * (2 - c + (T - 1) * rho * c) * (T - 1) / T**2),
            "all three together",
            "backward",
            r"\gamma' + O(\tau^2)",
        ),
        Equality(
            ((query + key) / value).subs(rho, 0),
            2 - c,
            r"for gradients uncorrelated between tokens, query and key paths together carry $2-c$ times what the "
            r"logits add "
            "to the value path: they may not be dropped",
            "share",
            r"\frac{\gamma_Q + \gamma_K}{\gamma_V^{(1)}}\Big|_{\rho=0}",
        ),
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
        "tokens and gradients are exchangeable in second moments",
        "the four matrices have independent centred Gaussian entries",
        r"second order in the logits, that is first order in $\tau$: the remainder is $O(\tau^2)$",
        "for adding the three paths: the wide limit",
    ),
    statement=(
        "Attention weights, one row and two rows:\n\n$$<<A2>>$$\n\n$$<<B2>>$$\n\nForward:\n\n$$<<forward>>$$\n\n"
        "$$<<forward_cov>>$$\n\nwhich is $q' = \\sigma^2 q\\,[c + (1-c)A_2]$ and $p' = \\sigma^2 q\\,[c + (1-c)B_2]$. "
        "Backward, by value, query and key:\n\n$$<<value>>$$\n\n$$<<query>>$$\n\n$$<<key>>$$\n\n$$<<kappa_query>>$$\n\n"
        "$$<<kappa_key>>$$\n\nThe query and key paths are not smaller in the width:\n\n$$<<share>>$$"
    ),
    source="Derived here. The value path alone is in A. Kedia et al., arXiv:2403.09635, and L. Noci et al., "
    "arXiv:2206.03126.",
    confronted="tests/test_proofs_against_simulation.py::test_small_logits",
    derivation=lambda: logit_moments() + forward_steps() + backward_steps(),
    axioms=(axioms.WICK, axioms.TAYLOR, axioms.INDEPENDENCE, axioms.WIDE),
    remark=(
        r"At logit standard deviation 1 the neglected terms are large for uncorrelated tokens; the package "
        r"integrates the "
        r"softmax numerically there, and this proposition is the small-$\tau$ limit that its numbers must meet."
    ),
)
