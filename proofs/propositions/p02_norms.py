"""Proposition 2: RMSNorm and LayerNorm, forward and backward, at finite width and in the wide limit."""

from __future__ import annotations

from functools import cache

import sympy as sp

from proofs import axioms, notation, tensors, wick
from proofs.notation import c, d, gamma, q, rho
from proofs.vocabulary import Equality, Hypothesis, Limit, Named, Proposition, Quantity, Step, resting_on, stated

x_i, x_j, S = sp.symbols("x_i x_j S", real=True)
v, R, z, nu = (sp.Symbol(name, positive=True) for name in ("v", "R", "z", "nu"))
x = sp.IndexedBase("x")
i, k, j = wick.indices("i k j")
Delta = sp.KroneckerDelta
TOKEN, OTHER, ONES = 1, 2, 2

ISOTROPIC = Hypothesis(
    r"the gradient is isotropic: $\mathbb E[g_{ti}g_{tk}] = \gamma\,\delta_{ik}$, "
    r"$\mathbb E[g_{ti}g_{sk}] = \rho\gamma\,\delta_{ik}$"
)
NORMAL = Hypothesis(r"for the averages over the input: $x \sim N(0, vI_d)$")


def rms() -> sp.Expr:
    """r as a function of x_j, R being the sum of squares of the other coordinates."""
    return sp.sqrt((x_j**2 + R) / d)


def mean() -> sp.Expr:
    """The mean over coordinates, S being the sum of the others."""
    return (x_j + S) / d


def spread() -> sp.Expr:
    """The standard deviation over coordinates; by Cauchy-Schwarz the others' squares sum to S^2/(d-1) + R, R >= 0."""
    return sp.sqrt((x_j**2 + S**2 / (d - 1) + R) / d - mean() ** 2)


def rms_entry(row: int, coordinate: sp.Symbol) -> sp.Expr:
    """r J_ij of RMSNorm: identity minus the projection on the token."""
    return Delta(coordinate, j) - x[row, coordinate] * x[row, j] / (d * q)


def layer_entry(coordinate: sp.Symbol) -> sp.Expr:
    """The same for LayerNorm: the direction of ones (a vector of mean square 1) is projected out as well."""
    return rms_entry(TOKEN, coordinate) - x[ONES, coordinate] * x[ONES, j] / d


def gained(left: sp.Expr, right: sp.Expr, covariance: sp.Expr, gram: object) -> wick.Moment:
    """(1/d) sum_j E[(J'g)_j (J'h)_j] when E[g_i h_k] = covariance * delta_ik."""
    summand = sp.expand(left * right) * covariance * Delta(i, k) / (d * q)
    return wick.Moment(summand, ((i, d), (k, d), (j, d)), (), (wick.Rows(x, d, gram),))  # type: ignore[arg-type]


def token_and_ones(t: wick.Index, s: wick.Index) -> sp.Expr:
    """Gram matrix of a centred token and the vector of ones: orthogonal."""
    return sp.Integer(0) if t != s else (q if t == TOKEN else sp.Integer(1))


def inverse_chi_squared() -> sp.Integral:
    """E[1/z^2] for z the root of a chi-squared variable of nu + 2 degrees of freedom."""
    density = z ** (nu + 1) * sp.exp(-(z**2) / 2) / (2 ** (nu / 2) * sp.gamma(nu / 2 + 1))
    return sp.Integral(sp.powsimp(density / z**2), (z, 0, sp.oo))


def jacobians() -> tuple[Step, ...]:
    """Entries of both Jacobians, diagonal and off-diagonal, for every d: only x_j varies."""
    r, s, mu = rms(), spread(), mean()
    return (
        Equality(
            Named(r"\partial \hat x^{\mathrm{RMS}}_j/\partial x_j", sp.Derivative(x_j / r, x_j)),
            1 / r - x_j**2 / (d * r**3),
            r"RMSNorm, diagonal entry: differentiate $x_j/r$ with $r^2 = (x_j^2 + R)/d$",
            name="rms_diagonal",
        ),
        Equality(
            Named(r"\partial \hat x^{\mathrm{RMS}}_i/\partial x_j", sp.Derivative(x_i / r, x_j)),
            -x_i * x_j / (d * r**3),
            r"RMSNorm, off-diagonal entry: together $J = \frac1r\bigl(I - \frac{xx^\top}{d r^2}\bigr)$",
            name="rms_off",
        ),
        Equality(
            Named(r"\partial \hat x^{\mathrm{LN}}_j/\partial x_j", sp.Derivative((x_j - mu) / s, x_j)),
            (1 - 1 / d) / s - (x_j - mu) ** 2 / (d * s**3),
            r"LayerNorm, diagonal entry: the mean moves as well",
            name="layer_diagonal",
        ),
        Equality(
            Named(r"\partial \hat x^{\mathrm{LN}}_i/\partial x_j", sp.Derivative((x_i - mu) / s, x_j)),
            -1 / (d * s) - (x_i - mu) * (x_j - mu) / (d * s**3),
            r"LayerNorm, off-diagonal entry: with $\bar x$ the mean over coordinates and $s$ their standard deviation, "
            r"$J = \frac1{s}\bigl(I - \frac{\mathbf 1\mathbf 1^\top}{d} - \frac{(x-\bar x)(x-\bar x)^\top}{d "
            r"s^2}\bigr)$",
            name="layer_off",
        ),
    )


def second_moments() -> tuple[Step, ...]:
    """Gradient second moments: traces of products of projections."""
    tokens = wick.exchangeable(q, c * q)
    same = rms_entry(TOKEN, i) * rms_entry(TOKEN, k)
    return (
        tensors.step(
            gained(rms_entry(TOKEN, i), rms_entry(TOKEN, k), gamma, tokens),
            (d - 1) / d * gamma / q,
            r"RMSNorm: $J$ is $1/r$ times a projection of rank $d-1$ (expand the square, contract the deltas)",
            r"\tfrac1d\,\mathbb E\|J_{\mathrm{RMS}}^\top g_t\|^2",
            {d: 3},
            "rms",
            uses=("rms_diagonal", "rms_off"),
        ),
        tensors.step(
            gained(layer_entry(i), layer_entry(k), gamma, token_and_ones),
            (d - 2) / d * gamma / q,
            r"LayerNorm: two directions are lost (here $q$ is the variance over coordinates)",
            r"\tfrac1d\,\mathbb E\|J_{\mathrm{LN}}^\top g_t\|^2",
            {d: 3},
            "layer",
            uses=("layer_diagonal", "layer_off"),
        ),
        tensors.step(
            gained(rms_entry(TOKEN, i), rms_entry(OTHER, k), rho * gamma, tokens),
            (d - 2 + c**2) / d * rho * gamma / q,
            r"RMSNorm, two tokens of correlation $c$: the two projections share all but the plane they span",
            r"\tfrac1d\,\mathbb E[J_t^\top g_t\cdot J_s^\top g_s]",
            {d: 3},
            "cross",
            uses=("rms_diagonal", "rms_off"),
        ),
        tensors.step(
            wick.Moment(
                sp.expand(same * x[TOKEN, i] * x[TOKEN, k]),
                ((i, d), (k, d), (j, d)),
                (),
                (wick.Rows(x, d, tokens),),
            ),
            sp.Integer(0),
            r"the token's own direction carries no gradient: $J^\top x = 0$",
            r"r^2\,\|J_t^\top x_t\|^2",
            {d: 3},
            "radial",
        ),
    )


def averages() -> tuple[Step, ...]:
    """Averages over a Gaussian input, and the wide limit."""
    fixed_rms, fixed_layer = (d - 1) / d * gamma, (d - 2) / d * gamma
    rms_mean = fixed_rms * d / v * inverse_chi_squared().subs(nu, d - 2)
    layer_mean = fixed_layer * d / v * inverse_chi_squared().subs(nu, d - 3)
    return (
        Equality(
            Named(r"\mathbb E[1/\chi^2_{\nu+2}]", inverse_chi_squared()),
            1 / nu,
            r"the inverse moment of the $\chi^2$ law of $\nu + 2$ degrees of freedom (its root has the density "
            r"written)",
            name="inverse",
            points=2,
        ),
        Equality(
            Named(r"\mathbb E_x\,\tfrac1d\|J_{\mathrm{RMS}}^\top g\|^2", rms_mean),
            (d - 1) / ((d - 2) * v) * gamma,
            r"$d r^2/v \sim \chi^2_d$, so $\mathbb E[1/r^2] = \frac{d}{v(d-2)}$",
            name="rms_average",
            uses=("inverse", "rms"),
        ),
        Equality(
            Named(r"\mathbb E_x\,\tfrac1d\|J_{\mathrm{LN}}^\top g\|^2", layer_mean),
            (d - 2) / ((d - 3) * v) * gamma,
            r"$d s^2/v \sim \chi^2_{d-1}$, so $\mathbb E[1/s^2] = \frac{d}{v(d-3)}$",
            name="layer_average",
            uses=("inverse", "layer"),
        ),
    )


def widening() -> tuple[Step, ...]:
    """The wide limit."""
    norms = (("rms", "RMS", d - 1, "wide limit, RMSNorm"), ("layer", "LN", d - 2, "wide limit, LayerNorm: the same"))
    return (
        *(
            Limit(
                Named(rf"\tfrac1d\,\mathbb E\|J_{{\mathrm{{{label}}}}}^\top g_t\|^2", rank / d * gamma / q),
                d,
                sp.oo,
                gamma / q,
                reason,
                name="wide" if name == "rms" else f"wide_{name}",
                uses=(name,),
            )
            for name, label, rank, reason in norms
        ),
        Limit(
            Named(r"\tfrac1d\,\mathbb E[J_t^\top g_t\cdot J_s^\top g_s]", (d - 2 + c**2) / d * rho * gamma / q),
            d,
            sp.oo,
            rho * gamma / q,
            "wide limit, two tokens: gradient variance and covariance are both divided by the variance of the input",
            name="wide_cross",
            uses=("cross",),
        ),
    )


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return (
        jacobians()
        + resting_on((ISOTROPIC,), second_moments(), widening())
        + resting_on((axioms.CHI_SQUARED, ISOTROPIC, NORMAL), averages())
    )


PROPOSITION = Proposition(
    name="norms",
    number="2",
    title="RMSNorm and LayerNorm",
    quantities=(
        notation.VARIANCE,
        notation.CORRELATION,
        notation.GRAD_VARIANCE,
        notation.GRAD_CORRELATION,
        Quantity(d, "width", 4, sp.oo, integer=True),
        Quantity(v, "variance of a coordinate of a Gaussian input"),
        Quantity(x_i, "a coordinate of the input", -sp.oo),
        Quantity(x_j, "another coordinate of the input", -sp.oo),
        Quantity(
            R, "RMSNorm: sum of squares of the coordinates other than $x_j$; LayerNorm: its excess over $S^2/(d-1)$"
        ),
        Quantity(S, "sum of the coordinates other than $x_j$", -sp.oo),
        Quantity(nu, "degrees of freedom less two", 1, sp.oo, integer=True),
    ),
    setting=(
        r"RMSNorm maps a token $x \in \mathbb R^d$ to $\hat x = x/r$, $r^2 = \|x\|^2/d$; LayerNorm maps it to "
        r"$\hat x = (x - \bar x)/s$, with $\bar x$ and $s$ the mean and standard deviation over coordinates. Forward "
        r"there is nothing to prove: the output's variance is $1$ and the correlation of two tokens of equal norm does "
        r"not change. Backward, a gradient $g$ with respect to $\hat x$ becomes $J^\top g$, with $J = \partial \hat x"
        r"/\partial x$. In the second moments below, $q$ is $r^2$ (RMSNorm) or $s^2$ (LayerNorm)."
    ),
    hypotheses=(
        ISOTROPIC,
        NORMAL,
    ),
    statement=(
        "RMSNorm, then LayerNorm, for a given token:\n\n$$<<rms>>$$\n\n$$<<layer>>$$\n\nRMSNorm, two tokens:\n\n"
        "$$<<cross>>$$\n\nAveraged over a Gaussian input, RMSNorm then LayerNorm:\n\n$$<<rms_average>>$$\n\n"
        "$$<<layer_average>>$$\n\nIn the wide limit both norms divide gradient variance and covariance by the variance "
        "of their input:\n\n$$<<wide>>, \\qquad <<wide_layer>>$$\n\n$$<<wide_cross>>$$"
    ),
    source="Zhang and Sennrich 2019 (RMSNorm), Ba et al. 2016 (LayerNorm); the second moments are derived here.",
    confronted="tests/test_proofs_against_simulation.py::test_norms",
    derivation=derivation,
    conclusion=lambda: stated(
        derivation, "rms", "layer", "cross", "rms_average", "layer_average", "wide", "wide_layer", "wide_cross"
    ),
)
