"""Proposition 3b: the second-moment maps of GELU, by Gaussian integration by parts."""

from __future__ import annotations

from functools import cache

import mpmath
import sympy as sp

from proofs import axioms, gaussian
from proofs.gaussian import Phi, gelu, gelu_derivative, gelu_derivative_kernel, gelu_kernel, phi, u, v
from proofs.propositions import p03a_relu
from proofs.vocabulary import (
    Equality,
    Hypothesis,
    Inequality,
    Lemma,
    Named,
    Point,
    Proposition,
    Quantity,
    Step,
    Use,
    Witness,
    resting_on,
    stated,
)

s, a, r = sp.symbols("s a r", positive=True)
A, B = sp.symbols("A B", positive=True)  # E[phi phi], E[Phi Phi] before they are known
ONE = sp.Integer(1)
D = (1 + s) ** 2 - a**2
ORTHANT = sp.Rational(1, 4) + sp.asin(a / (1 + s)) / (2 * sp.pi)
DENSITIES = 1 / (2 * sp.pi * sp.sqrt(D))
# A covariance below the variance: a = r s with 0 <= r <= 1.
INSIDE = {a: r * s}
x, y = sp.symbols("x y", real=True)
lam, mu = sp.symbols("lambda mu", positive=True)

EXACT = Hypothesis(r"exact GELU (with $\Phi$, not its $\tanh$ approximation)")
ALIKE = Hypothesis(r"$0 \le r \le 1$")


def quadrature(f: gaussian.Real, g: gaussian.Real) -> object:
    """A route to E[f(u) g(v)] that knows nothing of closed forms."""

    def at_point(at: Point) -> mpmath.mpf:
        variance = mpmath.mpmathify(at[s])
        return gaussian.bivariate(f, g, variance, variance * mpmath.mpmathify(at[r]))

    return at_point


def claim(
    left: sp.Expr, right: sp.Expr, reason: str, name: str, label: str, f: object, g: object, *uses: Use
) -> Equality:
    """An expectation with its closed form, checked by two-dimensional quadrature to 12 digits."""
    return Equality(
        Named(label, left.subs(INSIDE)),
        right.subs(INSIDE),
        reason,
        name=name,
        uses=uses,
        witnesses=(Witness(quadrature(f, g), (s, r), digits=12),),  # type: ignore[arg-type]
    )


def steps() -> tuple[Step, ...]:
    """Two base expectations, then integration by parts, then Price's identity as a check."""
    known = {phi(u) * phi(v): DENSITIES, Phi(u) * Phi(v): ORTHANT}
    kernel = gaussian.by_parts(u * v * Phi(u) * Phi(v), s, a, {phi(u) * phi(v): A, Phi(u) * Phi(v): B})
    value = {A: DENSITIES, B: ORTHANT}
    derivative = gaussian.by_parts((Phi(u) + u * phi(u)) * (Phi(v) + v * phi(v)), s, a, known)
    inverse = (lam * x**2 - 2 * mu * x * y) / 2
    at_one = {s: ONE, a: ONE}
    return (
        Equality(
            Named(r"\int e^{-(\lambda x^2 - 2\mu x y)/2}\,dx", sp.Integral(sp.exp(-inverse), (x, -sp.oo, sp.oo))),
            sp.sqrt(2 * sp.pi / lam) * sp.exp(mu**2 * y**2 / (2 * lam)),
            r"complete the square: integrating out one variable of a quadratic form leaves the Schur complement, so "
            r"$\int\!\!\int e^{-z^\top M z/2} = 2\pi/\sqrt{\det M}$",
            name="square",
            points=1,
        ),
        claim(
            1 / sp.sqrt(sp.Matrix([[1 + s, a], [a, 1 + s]]).det()) / (2 * sp.pi),
            DENSITIES,
            r"with $\Sigma$ the covariance matrix of $(u,v)$, $\mathbb E[e^{-(u^2+v^2)/2}] = \det(I+\Sigma)^{-1/2}$",
            "densities",
            r"\mathbb E[\varphi(u)\varphi(v)]",
            gaussian.normal_density,
            gaussian.normal_density,
            "square",
        ),
        claim(
            (sp.pi - sp.acos(a / (1 + s))) / (2 * sp.pi),
            ORTHANT,
            r"$\Phi(u) = \mathbb P(z < u)$ for a fresh standard normal $z$: so this is the probability that two "
            r"Gaussians "
            r"of variance $1+s$ and covariance $a$ are both negative (proposition 3a)",
            "orthant",
            r"\mathbb E[\Phi(u)\Phi(v)]",
            mpmath.ncdf,
            mpmath.ncdf,
            Lemma(p03a_relu.PROPOSITION, "dK"),
        ),
        claim(
            kernel.subs(value),
            gelu_kernel(s, a),
            r"trade each factor $u$ or $v$ for derivatives by parts, using $\Phi' = \varphi$ and "
            r"$\varphi'(u) = -u\varphi(u)$; the equations for the expectations that appear close and are solved",
            "K",
            r"K(s,a)",
            gelu,
            gelu,
            "densities",
            "orthant",
            axioms.PARTS,
        ),
        claim(
            derivative,
            gelu_derivative_kernel(s, a),
            r"the same for $\phi'(u) = \Phi(u) + u\varphi(u)$",
            "dK",
            r"\dot K(s,a)",
            gelu_derivative,
            gelu_derivative,
            "densities",
            "orthant",
            axioms.PARTS,
        ),
        Equality(
            Named(r"\partial K/\partial a", sp.Derivative(gelu_kernel(s, a), a).subs(a, a)),
            gelu_derivative_kernel(s, a),
            "Price's theorem ties the two results, which were derived separately",
            name="price",
            uses=("K", "dK", axioms.PARTS),
        ),
        Equality(
            Named(r"\chi", gelu_derivative_kernel(s, a).subs(at_one) / gelu_kernel(s, a).subs(at_one)),
            1 + 1 / (3 + 2 * sp.sqrt(3) * sp.pi),
            r"at $s = a = 1$ the arc sine is $\pi/6$, so $K = \frac13 + \frac1{2\sqrt3\pi}$, $\dot K = \frac13 + "
            r"\frac2{3\sqrt3\pi}$",
            name="chi",
            uses=("K", "dK"),
        ),
        Inequality(
            sp.Rational(107, 100),
            Named(r"\chi", gelu_derivative_kernel(ONE, ONE) / gelu_kernel(ONE, ONE)),
            "its value is 1.0720",
            name="chi_low",
            uses=("chi",),
            strict=True,
        ),
        Inequality(
            Named(r"\chi", gelu_derivative_kernel(ONE, ONE) / gelu_kernel(ONE, ONE)),
            sp.Rational(1073, 1000),
            "and from above",
            name="chi_high",
            uses=("chi",),
            strict=True,
        ),
    )


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return resting_on((EXACT, ALIKE), steps())


PROPOSITION = Proposition(
    name="gelu",
    number="3b",
    title="GELU",
    quantities=(
        Quantity(s, "variance of the two pre-activations $u, v$"),
        Quantity(a, r"their covariance, $a = rs$", 0, sp.Rational(1, 2)),
        Quantity(r, "their correlation", 0, 1),
        Quantity(lam, r"a positive coefficient", 1),
        Quantity(mu, "another coefficient", 0, 1),
        Quantity(y, "a real variable", -sp.oo),
    ),
    setting=(
        r"$\phi(u) = u\,\Phi(u)$ with $\Phi$ and $\varphi$ the standard normal distribution function and density. "
        r"$u, v$ are centred jointly Gaussian, $\mathrm{Var}\,u = \mathrm{Var}\,v = s$, $\mathrm{Cov}(u,v) = a = rs$; "
        r"$K = \mathbb E[\phi(u)\phi(v)]$, $\dot K = \mathbb E[\phi'(u)\phi'(v)]$, $\chi = \dot K(1,1)/K(1,1)$."
    ),
    hypotheses=(
        EXACT,
        ALIKE,
    ),
    statement=(
        "$$<<K>>$$\n\n$$<<dK>>$$\n\nFor unit variance\n\n$$<<chi>>$$\n\n$$<<chi_low>>, \\qquad "
        "<<chi_high>>:$$\n\nGELU carries back a little more than it passes forward."
    ),
    source="Derived here; the same kernels are in A. Kedia et al., Transformers get stable (DeepScaleLM), "
    "arXiv:2403.09635.",
    confronted="tests/test_proofs_against_simulation.py::test_gelu",
    derivation=derivation,
    conclusion=lambda: stated(derivation, "K", "dK", "chi", "chi_low", "chi_high"),
)
