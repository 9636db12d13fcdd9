"""Proposition 15: what the scale correction of latent attention makes alike, whatever the ranks."""

from __future__ import annotations

from functools import cache

import sympy as sp

from proofs import tensors, wick
from proofs.notation import c, d, sigma
from proofs.vocabulary import Equality, Hypothesis, Limit, Named, Proposition, Quantity, Step, resting_on, stated

d_q, d_kv, n, r = (sp.Symbol(name, positive=True) for name in ("d_q", "d_kv", "n", "r"))
x_0, x_1, theta = sp.symbols("x_0 x_1 theta", real=True)
U, K, R, V, h, u, w = map(sp.IndexedBase, ("U", "K", "R", "V", "h", "u", "w"))
i, a, j, k, m, b = wick.indices("i a j k m b")

VARIANCE = sigma**2
WEIGHTS = tuple(wick.Weights(matrix, VARIANCE) for matrix in (U, K, R, V))
ALIKE = wick.exchangeable(sp.Integer(1), c)
ROWS = (wick.Rows(h, d, ALIKE), wick.Rows(u, d_q, ALIKE), wick.Rows(w, d_kv, ALIKE))
SIZES = {d: 3, d_q: 2, d_kv: 2, n: 2, r: 2}
QUERY, KEY = d / d_q, d / d_kv
"""Squares of the correction's two factors."""

ONE_STD = Hypothesis(
    r"the entries of $U$, $K$, $R$ and $V$ are independent and $N(0, \sigma^2)$, of one $\sigma$, and independent of "
    r"$h$, $u$ and $w$"
)
NORMED = Hypothesis(
    r"tokens have passed a norm where they are read: $h_t\cdot h_t = d$, $u_t \cdot u_t = d_q$, "
    r"$w_t\cdot w_t = d_{kv}$; two different ones have the correlation $c$ in each"
)


def moment(summand: sp.Expr, *sums: tuple[sp.Symbol, sp.Expr]) -> wick.Moment:
    """An expectation over the matrices of the summand."""
    return wick.Moment(summand, sums, WEIGHTS, ROWS)


def square(matrix: sp.IndexedBase, row: sp.IndexedBase, size: sp.Symbol, factor: sp.Expr) -> wick.Moment:
    """Of one coordinate of one token, times a factor."""
    return moment(factor * matrix[1, j] * row[1, j] * matrix[1, k] * row[1, k], (j, size), (k, size))


def products(matrix: sp.IndexedBase, row: sp.IndexedBase, size: sp.Symbol, count: sp.Symbol) -> wick.Moment:
    """The square of the sum over so many coordinates of a token's query times another's key, without the correction."""
    of_query = U[i, j] * u[1, j] * U[a, k] * u[1, k]
    of_key = matrix[i, m] * row[2, m] * matrix[a, b] * row[2, b]
    return moment(of_query * of_key, (j, d_q), (k, d_q), (m, size), (b, size), (i, count), (a, count))


def coordinates() -> tuple[Step, ...]:
    """Mean squares of single coordinates."""
    return (
        tensors.step(
            square(R, h, d, sp.Integer(1)),
            sigma**2 * d,
            "the shared key reads the stream at once: its fan-in is the width",
            r"\mathbb E[k^{\mathrm R}_{ti}{}^2]",
            SIZES,
            "rotary",
        ),
        tensors.step(
            square(U, u, d_q, sp.Integer(1)),
            sigma**2 * d_q,
            "a query without the correction: with entries of one size its fan-in, the rank, is its size",
            r"\mathbb E[q_{ti}^2]_{\text{plain}}",
            SIZES,
            "plain_query",
        ),
        tensors.step(
            square(U, u, d_q, QUERY),
            sigma**2 * d,
            r"with it, $a_q^2 = d/d_q$",
            r"\mathbb E[q_{ti}^2]",
            SIZES,
            "query",
        ),
        tensors.step(
            square(K, w, d_kv, KEY),
            sigma**2 * d,
            r"a key of a head's own with it, $a_{kv}^2 = d/d_{kv}$",
            r"\mathbb E[k_{ti}^2]",
            SIZES,
            "key",
        ),
        tensors.step(
            square(V, w, d_kv, sp.Integer(1)),
            sigma**2 * d_kv,
            "a value without it,",
            r"\mathbb E[v_{ti}^2]_{\text{plain}}",
            SIZES,
            "plain_value",
        ),
        tensors.step(
            square(V, w, d_kv, KEY),
            sigma**2 * d,
            "and with it: the value is made of the same latent, and is scaled too",
            r"\mathbb E[v_{ti}^2]",
            SIZES,
            "value",
        ),
        tensors.step(
            moment(KEY * V[1, j] * w[1, j] * V[1, k] * w[2, k], (j, d_kv), (k, d_kv)),
            sigma**2 * d * c,
            r"two tokens' values: the correction leaves their correlation as it is",
            r"\mathbb E[v_{ti}v_{si}]",
            SIZES,
            "values",
        ),
    )


def logits() -> tuple[Step, ...]:
    """The logit of one token's query and another's key."""
    total = (QUERY * KEY * sigma**4 * d_q * d_kv * n + QUERY * sigma**4 * d_q * d * r) / (n + r)
    plain = (sigma**4 * d_q * d_kv * n + sigma**4 * d_q * d * r) / (n + r)
    crossed = U[1, j] * u[1, j] * K[1, m] * w[2, m] * U[2, k] * u[1, k] * R[1, b] * h[2, b]
    turned = (sp.cos(theta) * x_0 - sp.sin(theta) * x_1) ** 2 + (sp.sin(theta) * x_0 + sp.cos(theta) * x_1) ** 2
    return (
        Equality(
            Named(r"\|\text{turned pair}\|^2", turned),
            x_0**2 + x_1**2,
            r"positions turn pairs of coordinates, and turns keep their size",
            name="turns",
        ),
        tensors.step(
            products(K, w, d_kv, n),
            sigma**4 * d_q * d_kv * n,
            r"a head's own $n$ coordinates: queries and keys are independent, and so are different coordinates",
            r"\mathbb E\bigl[(\textstyle\sum_{i\le n} q_{ti}k_{si})^2\bigr]_{\text{plain}}",
            SIZES,
            "own_product",
        ),
        tensors.step(
            products(R, h, d, r),
            sigma**4 * d_q * d * r,
            r"and the $r$ that are turned",
            r"\mathbb E\bigl[(\textstyle\sum_{i\le r} q_{ti}k^{\mathrm R}_{si})^2\bigr]_{\text{plain}}",
            SIZES,
            "turned_product",
        ),
        tensors.step(
            moment(crossed, (j, d_q), (k, d_q), (m, d_kv), (b, d)),
            sp.Integer(0),
            "the two are uncorrelated: neither key's matrix has a partner to pair with",
            r"\mathbb E[q_{ti}k_{si}\,q_{ta}k^{\mathrm R}_{sa}]",
            SIZES,
            "crossed",
        ),
        Equality(
            Named(r"\mathrm{Var}\,\ell_{ts}\,_{\text{plain}}", plain),
            sigma**4 * d_q * (n * d_kv + r * d) / (n + r),
            r"the logit is their sum over $\sqrt{n+r}$: without the correction it falls with both ranks",
            name="plain_logit",
            uses=("own_product", "turned_product", "crossed", "turns"),
        ),
        Equality(
            Named(r"\mathrm{Var}\,\ell_{ts}", total),
            (sigma**2 * d) ** 2,
            r"with it, the first part times $a_q^2 a_{kv}^2$ and the second times $a_q^2$, no rank is left",
            name="logit",
            uses=("own_product", "turned_product", "crossed", "turns"),
        ),
        Equality(
            Named(r"\text{share of the turned part, plain}", sigma**4 * d_q * d * r / (n + r) / plain),
            r * d / (n * d_kv + r * d),
            r"without it the shared keys, of which each head has the same, weigh more than their $r$ coordinates of "
            r"$n + r$",
            name="plain_share",
            uses=("plain_logit",),
        ),
        Limit(
            r * d / (n * d_kv + r * d),
            d,
            sp.oo,
            sp.Integer(1),
            r"and alone remain in a wide network of fixed rank",
            name="alone",
            uses=("plain_share",),
        ),
    )


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return resting_on((ONE_STD, NORMED), coordinates(), logits())


PROPOSITION = Proposition(
    name="latent_attention",
    number="15",
    title="The scale correction of latent attention",
    quantities=(
        Quantity(c, "correlation of two different tokens", 0, 1),
        Quantity(sigma, "standard deviation of every entry of every matrix"),
        Quantity(d, "width of the stream", 3, sp.oo, integer=True),
        Quantity(d_q, "rank of the queries", 2, sp.oo, integer=True),
        Quantity(d_kv, "rank of keys and values", 2, sp.oo, integer=True),
        Quantity(n, "coordinates of a key that are a head's own", 1, sp.oo, integer=True),
        Quantity(r, "coordinates of a key that are shared, and turned by positions", 1, sp.oo, integer=True),
        Quantity(theta, "angle of a turn", -sp.oo, sp.oo),
        Quantity(x_0, "first of a pair of coordinates", -sp.oo, sp.oo),
        Quantity(x_1, "second of a pair of coordinates", -sp.oo, sp.oo),
    ),
    setting=(
        r"A token $h_t \in \mathbb R^d$ is read by latent attention (DeepSeek-V2, LongCat-Flash). Two further matrices "
        r"and norms make of it the latents $u_t \in \mathbb R^{d_q}$ and $w_t \in \mathbb R^{d_{kv}}$. A head's query "
        r"is $q_t = a_q U u_t$, of $n + r$ coordinates; its key has $n$ of its own, $k_t = a_{kv} K w_t$, and $r$ that "
        r"all heads share, $k^{\mathrm R}_t = R h_t$; its value is $v_t = a_{kv} V w_t$. Positions turn the last $r$ "
        r"of query and key; the logit is $\ell_{ts} = q_t \cdot [k_s; k^{\mathrm R}_s] / \sqrt{n + r}$. Plain is "
        r"$a_q = a_{kv} = 1$; the scale correction is $a_q = \sqrt{d/d_q}$, $a_{kv} = \sqrt{d/d_{kv}}$."
    ),
    hypotheses=(ONE_STD, NORMED),
    statement=(
        "With the correction, a coordinate of the query, of either part of the key and of the value have one mean "
        "square, whatever the ranks:\n\n$$<<query>>, \\qquad <<rotary>>$$\n\n$$<<key>>, \\qquad <<value>>$$\n\n"
        "and so has the logit:\n\n$$<<logit>>$$\n\nWithout it\n\n$$<<plain_query>>, \\qquad <<plain_value>>$$\n\n"
        "$$<<plain_logit>>$$\n\nand the keys that all heads share take more than their part:\n\n$$<<plain_share>>$$\n\n"
        "Correlations of tokens are left alone:\n\n$$<<values>>$$"
    ),
    remark=(
        "The mean squares are exact at every rank, for the norm gives each latent exactly its size; the correlations "
        "of the latents are those of the tokens up to order one over the rank. The value is scaled by $a_{kv}$ "
        "although no sum of differently sized parts asks for it: attention's output grows with it."
    ),
    source="The correction: LongCat-Flash (arXiv:2509.01322); the variances are derived here.",
    confronted="tests/test_torch_latent.py::test_the_propositions_formulas",
    derivation=derivation,
    conclusion=lambda: stated(
        derivation,
        "query",
        "rotary",
        "key",
        "value",
        "logit",
        "plain_query",
        "plain_value",
        "plain_logit",
        "plain_share",
        "values",
    ),
)
