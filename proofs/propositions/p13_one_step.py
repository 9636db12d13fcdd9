"""Proposition 13: what the first step of an optimiser does to one matrix, from the Gram matrices it meets."""

from __future__ import annotations

from functools import cache

import sympy as sp

from proofs import axioms, notation, tensors, wick
from proofs.notation import T
from proofs.vocabulary import Equality, Hypothesis, Limit, Named, Proposition, Quantity, Step, resting_on, stated

K_0, K_1, G_0, G_1, n, m = sp.symbols("kappa_0 kappa_1 gamma_0 gamma_1 n m", positive=True)
v, w, lam, lam_0, lam_1, t, y = sp.symbols("v w lambda lambda_0 lambda_1 t y", positive=True)
k, z = sp.symbols("k z", real=True)
x, g = map(sp.IndexedBase, ("x", "g"))
i, j, e, f = wick.indices("i j e f")
a, b, c, d = wick.indices("a b c d")
ROWS = (
    wick.Rows(x, n, wick.exchangeable((K_0 + (T - 1) * K_1) / T, (K_0 - K_1) / T), T),
    wick.Rows(g, m, wick.exchangeable((G_0 + (T - 1) * G_1) / T, (G_0 - G_1) / T), T),
)
SIZES = {T: 2, n: 2, m: 2}
TOKENS = tuple((index, T) for index in (a, b, c, d))
ENTRIES = ((i, n), (j, m))
DENSITY = sp.exp(-(z**2) / 2) / sp.sqrt(2 * sp.pi)
ABSOLUTE = 2 * sp.Integral(y * sp.exp(-(y**2) / (2 * v)) / sp.sqrt(2 * sp.pi * v), (y, 0, sp.oo))
SURVIVING = (1 + 2 * t * lam_0) ** sp.Rational(-1, 2) * (1 + 2 * t * lam_1) ** (-(T - 1) / 2)
SHARE_0 = lam_0 / (1 + 2 * t * lam_0) * SURVIVING
SHARE_1 = lam_1 / (1 + 2 * t * lam_1) * SURVIVING

GRAMS = Hypothesis(
    r"tokens are exchangeable: the Gram matrix of $x$, over $n$, has the eigenvalue $\kappa_0$ along the mean over "
    r"tokens and $\kappa_1$ along the $T - 1$ differences, that of $g$, over $m$, $\gamma_0$ and $\gamma_1$"
)
FEW = Hypothesis(r"$T \le \min(n, m)$")
GAUSSIAN = Hypothesis(
    r"the $n$ coordinates of $x$ are independent and centred Gaussian with these second moments, and independent of $g$"
)
BOTH = Hypothesis(r"so are the $m$ coordinates of $g$")


def of_step(p: sp.Symbol, s: sp.Symbol) -> sp.Expr:
    """Entry (p, s) of the tokens' matrix M in the orthogonal factor S = sum_ps M_ps x_p g_s^T."""
    apart = 1 / sp.sqrt(n * m * K_1 * G_1)
    together = 1 / sp.sqrt(n * m * K_0 * G_0)
    return (together - apart) / T + apart * sp.KroneckerDelta(p, s)


def moment(summand: sp.Expr, *sums: tuple[sp.Symbol, sp.Expr]) -> wick.Moment:
    """Sums over given rows: there is nothing random in them."""
    return wick.Moment(summand, sums, (), ROWS)


def gradient_descent() -> tuple[Step, ...]:
    """S is the gradient, sum_a x_a g_a^T."""
    square = x[a, i] * g[a, j] * x[b, i] * g[b, j]
    moved = x[1, i] * x[a, i] * g[a, j] * x[1, e] * x[b, e] * g[b, j] / m
    return (
        tensors.step(
            moment(square, (i, n), (j, m), (a, T), (b, T)),
            n * m * (K_0 * G_0 + (T - 1) * K_1 * G_1),
            "the gradient against itself: a product of two Gram matrices, mode by mode",
            r"\langle \nabla, S \rangle^{\text{SGD}}",
            SIZES,
            "sgd_fall",
        ),
        tensors.step(
            moment(moved, (i, n), (e, n), (j, m), (a, T), (b, T)),
            n**2 * (K_0**2 * G_0 + (T - 1) * K_1**2 * G_1) / T,
            r"a token's own output, $x_1 S$: the input's Gram matrix stands on both sides of the gradient's",
            r"\tfrac1m \|x_1 S\|^2_{\text{SGD}}",
            SIZES,
            "sgd_change",
        ),
    )


def orthogonal_factor() -> tuple[Step, ...]:
    """Modes of x are orthogonal, and modes of g: their products are the singular vectors of the gradient."""
    own = of_step(a, b) * x[a, i] * g[b, j]
    other = of_step(c, d) * x[c, i] * g[d, j]
    read = of_step(a, b) * x[a, i] * g[b, j] * of_step(c, d) * x[c, e] * g[d, j] / m
    roots = sp.sqrt(K_0 * G_0) + (T - 1) * sp.sqrt(K_1 * G_1)
    return (
        tensors.step(
            moment(own * other, *ENTRIES, *TOKENS),
            T,
            r"$S$ has $T$ singular values, and their squares add up to $T$",
            r"\|S\|^2_{\text{Muon}}",
            SIZES,
            "muon_square",
        ),
        tensors.step(
            moment(x[1, i] * read * x[1, e], (i, n), (e, n), (j, m), *TOKENS),
            n / m * (K_0 + (T - 1) * K_1) / T,
            "a token's own output: the gradient's Gram matrix has cancelled",
            r"\tfrac1m \|x_1 S\|^2_{\text{Muon}}",
            SIZES,
            "muon_change",
        ),
        tensors.step(
            moment(x[1, i] * read * x[2, e], (i, n), (e, n), (j, m), *TOKENS),
            n / m * (K_0 - K_1) / T,
            r"and for two tokens: $x \mapsto x S$ keeps all products between tokens, so each singular value is $1$",
            r"\tfrac1m\, x_1 S \cdot x_2 S_{\text{Muon}}",
            SIZES,
            "muon_products",
        ),
        tensors.step(
            moment(own * x[c, i] * g[c, j], *ENTRIES, (a, T), (b, T), (c, T)),
            sp.sqrt(n * m) * roots,
            "and the gradient against it has the sum of the gradient's singular values",
            r"\langle \nabla, S \rangle^{\text{Muon}}",
            SIZES,
            "muon_fall",
        ),
    )


def signs() -> tuple[Step, ...]:
    """Given g: y = x . g of one coordinate has variance v, and covariance k with the coordinate of one token."""
    absolute = sp.sqrt(2 * v / sp.pi)
    return (
        Equality(
            Named(r"\mathbb E|y|", ABSOLUTE),
            absolute,
            r"$y = \sum_s x_s g_s$ of one row and one column of the gradient is Gaussian, of variance $v = g^\top K g$",
            name="absolute",
            points=2,
        ),
        Equality(
            Named(r"\mathbb E[x_t\,\mathrm{sign}\,y]", k / v * absolute),
            k * sp.sqrt(2 / (sp.pi * v)),
            r"$x_t - (k/v)\,y$ is independent of $y$, where $k = (K g)_t$ is their covariance, and its mean is zero",
            name="regression",
            uses=("absolute",),
            derived=True,
        ),
        Equality(
            Named(
                r"\mathbb E\bigl[(\textstyle\sum_i x_{ti}\,\mathrm{sign}\,y_i)^2\bigr]",
                n * (n - 1) * (k / v * absolute) ** 2 + n * w,
            ),
            sp.Rational(2) / sp.pi * n * (n - 1) * k**2 / v + n * w,
            r"pairs of different rows are independent; of one row with itself $x_{ti}^2$ is left, of mean $w$",
            name="sign_given",
            uses=("regression",),
            derived=True,
        ),
        Equality(
            Named(r"\mathbb E\,\langle \nabla, S \rangle^{\text{sign}}", n * m * absolute),
            n * m * sp.sqrt(2 / sp.pi) * sp.sqrt(v),
            "every entry of the gradient against its sign",
            name="sign_fall_given",
            uses=("absolute",),
            derived=True,
        ),
    )


def over_cotangents() -> tuple[Step, ...]:
    """Over g: v is a quadratic form Q = sum lambda xi^2 of independent normals."""
    half = sp.Rational(1, 2)
    chi = y ** (T / 2 - 1) * sp.exp(-y / 2) / (2 ** (T / 2) * sp.gamma(T / 2))
    shares = SHARE_0 + (T - 1) * SHARE_1
    return (
        Equality(
            Named(
                r"\mathbb E\,e^{-t\lambda\xi^2}",
                2 * sp.Integral(sp.exp(-t * lam * z**2) * DENSITY, (z, 0, sp.oo)),
            ),
            1 / sp.sqrt(1 + 2 * t * lam),
            r"in the modes $v = Q = \lambda_0\xi_0^2 + \lambda_1\sum_{k \ge 1}\xi_k^2$ with $\lambda = \kappa\gamma$ "
            r"and independent standard normal $\xi$; and $1/Q = \int_0^\infty e^{-tQ}\,dt$",
            name="laplace",
            points=2,
        ),
        Equality(
            Named(
                r"\mathbb E\,\lambda\xi^2 e^{-t\lambda\xi^2}",
                -sp.Derivative(1 / sp.sqrt(1 + 2 * t * lam), t),
            ),
            lam / (1 + 2 * t * lam) ** sp.Rational(3, 2),
            r"its fall in $t$; so $R_k = \mathbb E[\lambda_k\xi_k^2/Q]$ is the integral over $t$ of "
            r"$\lambda_k/(1+2t\lambda_k)\prod_j(1+2t\lambda_j)^{-1/2}$",
            name="weighted",
            uses=("laplace",),
        ),
        Equality(
            Named(r"-\tfrac{d}{dt}\textstyle\prod_j(1+2t\lambda_j)^{-1/2}", -sp.Derivative(SURVIVING, t)),
            shares,
            r"the integrands of all $R_k$ together are the fall of one product,",
            name="shares",
            uses=("weighted",),
        ),
        Limit(
            SURVIVING.subs(T, 2),
            t,
            sp.oo,
            sp.Integer(0),
            r"which falls from $1$ to $0$ (here for two tokens): $\sum_k R_k = 1$",
            name="vanishes",
            uses=("shares",),
        ),
        Equality(
            Named(
                r"R^{\text{equal}}",
                sp.Integral(lam * (1 + 2 * t * lam) ** (-T / 2 - 1), (t, 0, sp.oo)),
            ),
            1 / T,
            r"modes of equal $\lambda$ have equal shares",
            name="equal",
            points=2,
            uses=("weighted",),
        ),
        Equality(
            Named(
                r"\mathbb E\,\tfrac1m\|x_1 S\|^2_{\text{sign}}",
                2 / sp.pi * n * (n - 1) * K_1 / T + n * K_1,
            ),
            n * K_1 * (1 + 2 * (n - 1) / (sp.pi * T)),
            r"tokens that are uncorrelated, $\kappa_0 = \kappa_1$ and $\gamma_0 = \gamma_1$: by "
            r"$\sum_t k_t^2 = g^\top K^2 g = \kappa_1 v$ a token has the share $1/T$ of $\kappa_1$",
            name="sign_change",
            uses=("sign_given", "equal"),
        ),
        Equality(
            Named(
                r"\tfrac{1}{2\sqrt\pi}\textstyle\int_0^\infty e^{-tv}\,t^{-1/2}\,dt",
                sp.Integral(sp.exp(-t * v) / sp.sqrt(t), (t, 0, sp.oo)) / (2 * sp.sqrt(sp.pi)),
            ),
            1 / (2 * sp.sqrt(v)),
            r"the derivative of $\sqrt v$, so that "
            r"$\mathbb E\sqrt Q = \frac{1}{2\sqrt\pi}\int_0^\infty(1 - \prod_j(1+2t\lambda_j)^{-1/2})\,t^{-3/2}\,dt$",
            name="root",
            points=2,
            uses=("laplace",),
        ),
        Equality(
            Named(r"\mathbb E\,\chi_T", sp.Integral(y**half * chi, (y, 0, sp.oo))),
            sp.sqrt(2) * sp.gamma((T + 1) / 2) / sp.gamma(T / 2),
            r"for equal modes $\sqrt Q = \sqrt\lambda\,\chi_T$",
            name="chi",
            points=2,
            uses=(axioms.CHI_SQUARED,),
        ),
    )


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return (
        *resting_on((GRAMS,), gradient_descent()),
        *resting_on((GRAMS, FEW), orthogonal_factor()),
        *resting_on((GAUSSIAN,), signs()),
        *resting_on((GAUSSIAN, BOTH), over_cotangents()),
    )


PROPOSITION = Proposition(
    name="one_step",
    number="13",
    title="The first step of one matrix",
    quantities=(
        notation.TOKENS,
        Quantity(n, "rows of the matrix: coordinates of its input", 2, sp.oo, integer=True),
        Quantity(m, "columns of the matrix: coordinates of its output", 2, sp.oo, integer=True),
        Quantity(K_0, r"of the input: variance of the mean over tokens, times $T$"),
        Quantity(K_1, "of the input: variance less covariance of two tokens"),
        Quantity(G_0, r"of the gradient at the output: variance of the mean over tokens, times $T$"),
        Quantity(G_1, "of that gradient: variance less covariance of two tokens"),
        Quantity(v, r"variance of an entry of the matrix's gradient, given $g$"),
        Quantity(k, "covariance of the input and such an entry, given $g$", -sp.oo, sp.oo),
        Quantity(w, "variance of the input"),
        Quantity(lam, r"$\kappa\gamma$ of one mode"),
        Quantity(lam_0, r"$\kappa_0\gamma_0$"),
        Quantity(lam_1, r"$\kappa_1\gamma_1$"),
        Quantity(t, "an auxiliary number"),
    ),
    setting=(
        r"A matrix $W \in \mathbb R^{n\times m}$ acts as $y_t = x_t W$ on $T$ tokens, and $g_t$ is the gradient with "
        r"respect to $y_t$; so $\nabla = \sum_t x_t^\top g_t$ is that with respect to $W$. A step is "
        r"$\Delta W = -\eta S$ with $S = \nabla$ (SGD), $S = UV^\top$ for $\nabla = U\Sigma V^\top$ (Muon), or the "
        r"sign of every entry of $\nabla$ (Adam's first step, without its $\epsilon$). To first order the loss falls "
        r"by $\eta\langle\nabla, S\rangle$, and the matrix's own output changes by $\eta\, x_t S$."
    ),
    hypotheses=(GRAMS, FEW, GAUSSIAN, BOTH),
    statement=(
        "SGD:\n\n$$<<sgd_fall>>$$\n\n$$<<sgd_change>>$$\n\nMuon, whose change does not know the gradient's Gram "
        "matrix:\n\n$$<<muon_square>>, \\qquad <<muon_change>>$$\n\n$$<<muon_products>>$$\n\n$$<<muon_fall>>$$\n\n"
        "The sign, given $g$, with $v = g^\\top K g$ and $k = (Kg)_t$:\n\n$$<<sign_given>>$$\n\n$$<<sign_fall_given>>$$"
        "\n\nand over Gaussian $g$, in whose modes $v = \\sum_k \\lambda_k\\xi_k^2$, by\n\n$$<<laplace>>, \\qquad "
        "<<weighted>>, \\qquad <<root>>$$\n\nFor uncorrelated tokens\n\n$$<<sign_change>>, \\qquad <<chi>>$$"
    ),
    remark=(
        "Behind an activation coordinates are not Gaussian, and the sign's law is another; SGD's and Muon's are the "
        "same. Heads that choose have weights of their own, so that attention's coordinates are Gaussian head by head "
        "only."
    ),
    source="Derived here.",
    confronted="tests/test_predict_step.py::test_the_propositions_formulas",
    derivation=derivation,
    conclusion=lambda: stated(
        derivation,
        "sgd_fall",
        "sgd_change",
        "muon_square",
        "muon_change",
        "muon_products",
        "muon_fall",
        "sign_given",
        "sign_fall_given",
        "laplace",
        "weighted",
        "root",
        "sign_change",
        "chi",
    ),
)
