"""Proposition 3a: the second-moment maps of ReLU, and of every positively homogeneous activation."""

from __future__ import annotations

from functools import cache

import mpmath
import sympy as sp

from proofs import notation
from proofs.gaussian import relu_derivative_kernel, relu_kernel
from proofs.notation import c, q
from proofs.vocabulary import (
    Equality,
    Hypothesis,
    Inequality,
    Named,
    Proposition,
    Quantity,
    Step,
    Witness,
    resting_on,
    stated,
)

r, theta, psi = sp.Symbol("r", positive=True), sp.Symbol("theta", real=True), sp.Symbol("psi", positive=True)
a, b = sp.Symbol("a", real=True), sp.Symbol("b", real=True)

FORM = Hypothesis(r"$\phi(u) = \max(u, 0)$, or $\phi(u) = a u^+ - b u^-$ for the homogeneous family")


def angular(integrand: sp.Expr, low: sp.Expr, high: sp.Expr) -> sp.Integral:
    """An integral over the angle."""
    return sp.Integral(integrand, (theta, low, high))


def polar() -> tuple[Step, ...]:
    """The arc-cosine kernels by polar coordinates."""
    both = sp.cos(theta) * sp.cos(theta - psi)
    start, end = psi - sp.pi / 2, sp.pi / 2
    radial = sp.Integral(r**3 * sp.exp(-(r**2) / 2), (r, 0, sp.oo))
    sine, angle = sp.sqrt(1 - c**2), sp.acos(c)
    return (
        Equality(
            Named(r"\int_0^\infty r^2\cdot r e^{-r^2/2}\,dr", radial),
            sp.Integer(2),
            r"write $u = \sqrt q\,r\cos\theta$, $v = \sqrt q\,r\cos(\theta-\psi)$ with density "
            r"$r e^{-r^2/2}/2\pi$; the radius integrates to",
            name="radius",
            points=1,
        ),
        Equality(
            Named(r"\mathbb E[uv]/q", 2 * angular(both, -sp.pi, sp.pi) / (2 * sp.pi)),
            sp.cos(psi),
            r"these two variables have correlation $\cos\psi$, so $\psi = \arccos c$",
            name="angle",
            uses=("radius",),
        ),
        Equality(
            Named(r"\mathbb E[u^+v^+]/q", 2 * angular(both, start, end) / (2 * sp.pi)),
            (sp.sin(psi) + (sp.pi - psi) * sp.cos(psi)) / (2 * sp.pi),
            r"both are positive for $\psi-\frac\pi2 < \theta < \frac\pi2$",
            name="both",
            uses=("radius",),
        ),
        Equality(
            Named(r"\mathbb P(u>0, v>0)", angular(sp.Integer(1), start, end) / (2 * sp.pi)),
            (sp.pi - psi) / (2 * sp.pi),
            "the share of angles at which both are positive",
            name="share",
        ),
        Equality(
            Named("K(q,c)", q * (sp.sin(psi) + (sp.pi - psi) * sp.cos(psi)).subs(psi, angle) / (2 * sp.pi)),
            relu_kernel(q, c).subs(sp.sqrt(1 - c**2), sine) + 0,
            r"put $\psi = \arccos c$",
            name="K",
            uses=("angle", "both"),
            witnesses=(Witness(lambda at: _relu_by_conditioning(at[q], at[c]), digits=20, points=2),),
        ),
        Equality(
            Named(r"\dot K(c)", sp.Rational(1, 4) + sp.asin(c) / (2 * sp.pi)),
            relu_derivative_kernel(c),
            "the same in terms of the arc sine",
            name="dK",
            uses=("angle", "share"),
        ),
    )


def _relu_by_conditioning(variance: mpmath.mpf, correlation: mpmath.mpf) -> mpmath.mpf:
    """E[u+ v+] by one quadrature: given u, v+ has a known mean. Another route than polar coordinates."""
    spread, rest = mpmath.sqrt(variance), mpmath.sqrt(variance) * mpmath.sqrt(1 - correlation**2)

    def given(z: mpmath.mpf) -> mpmath.mpf:
        mean = correlation * spread * z
        density = mpmath.exp(-z * z / 2) / mpmath.sqrt(2 * mpmath.pi)
        tail = mpmath.exp(-((mean / rest) ** 2) / 2) / mpmath.sqrt(2 * mpmath.pi)
        return density * spread * z * (mean * mpmath.ncdf(mean / rest) + rest * tail)

    with mpmath.workdps(30):
        return mpmath.quad(given, [0, 2, 6, 20])


def consequences() -> tuple[Step, ...]:
    """Price's identity, the homogeneous family, and chi."""
    homogeneous = (a - b) ** 2 * relu_kernel(q, c) + a * b * c * q
    derivative = (a - b) ** 2 * relu_derivative_kernel(c) + a * b
    half = (theta, -sp.pi / 2, sp.pi / 2)
    return (
        Equality(
            Named(r"\frac1q\partial K/\partial c", sp.Derivative(relu_kernel(q, c), c) / q),
            relu_derivative_kernel(c),
            r"Price's theorem holds between the two: one check of the other",
            name="price",
        ),
        Equality(
            Named(r"\mathbb E[u^+ v]/q", 2 * sp.Integral(sp.cos(theta) * sp.cos(theta - psi), half) / (2 * sp.pi)),
            sp.cos(psi) / 2,
            r"for $\phi(u) = a u^+ - b u^- = (a-b)u^+ + bu$ the mixed term is half the covariance",
            name="mixed",
        ),
        Equality(
            Named(r"K_{a,b}(q,c)", (a - b) ** 2 * relu_kernel(q, c) + 2 * b * (a - b) * c * q / 2 + b**2 * c * q),
            homogeneous,
            "expand the product; every positively homogeneous activation has this form",
            name="homogeneous",
            uses=("K", "mixed"),
        ),
        Equality(
            Named(r"\chi", (derivative / (homogeneous / q)).subs(c, 1)),
            sp.Integer(1),
            r"at equal arguments $K_{a,b} = q\,\dot K_{a,b} = q(a^2+b^2)/2$",
            name="chi",
            uses=("homogeneous", "dK"),
        ),
        Inequality(
            sp.Integer(0),
            Named(r"\partial\dot K_{a,b}/\partial c", sp.diff(derivative, c)),
            r"the derivative kernel increases with the correlation",
            name="rises",
            uses=("dK",),
        ),
        Inequality(
            sp.Integer(0),
            Named(r"\dot K_{a,b}(0)", derivative.subs(c, 0)),
            r"and is not negative at zero correlation, so $0 \le \dot K(c) \le \dot K(1)$ for $0 \le c \le 1$",
            name="slope_starts",
        ),
        Inequality(
            sp.Integer(0),
            Named(r"K_{a,b}(q,0)", homogeneous.subs(c, 0)),
            r"the kernel itself is not negative at $c=0$ and its slope is $q\dot K \ge 0$: so $0 \le K(q,c) \le "
            r"K(q,1)$",
            name="starts",
            uses=("price", "slope_starts", "rises"),
        ),
    )


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return resting_on((FORM,), polar(), consequences())


PROPOSITION = Proposition(
    name="relu",
    number="3a",
    title="ReLU and every positively homogeneous activation",
    quantities=(
        notation.VARIANCE,
        notation.CORRELATION,
        Quantity(psi, "angle between the two pre-activations", 0, sp.pi),
        Quantity(a, "slope of the activation above zero", -sp.oo),
        Quantity(b, "slope of the activation below zero", -sp.oo),
    ),
    setting=(
        r"$u, v$ are centred jointly Gaussian with variance $q$ and correlation $c$: the pre-activations of one hidden "
        r"unit at two tokens. $K(q,c) = \mathbb E[\phi(u)\phi(v)]$ and $\dot K(q,c) = \mathbb E[\phi'(u)\phi'(v)]$ "
        r"carry "
        r"second moments through the activation $\phi$, forward and backward; $\chi = q\dot K(q,1)/K(q,1)$."
    ),
    hypotheses=(FORM,),
    statement=(
        "The arc-cosine kernels:\n\n$$<<K>>$$\n\n$$<<dK>>$$\n\nFor every positively homogeneous activation the FFN's "
        "backward gain equals its forward gain, $<<chi>>$, and for $c \\ge 0$ both kernels lie between $0$ and their "
        "value at $c=1$, because both start and grow from above zero:\n\n$$<<rises>>$$\n\n$$<<slope_starts>>$$\n\n"
        "$$<<starts>>$$\n\n$$<<price>>$$"
    ),
    source="Y. Cho and L. Saul, Kernel methods for deep learning, NeurIPS 2009 (the arc-cosine kernels).",
    confronted="tests/test_proofs_against_simulation.py::test_relu",
    derivation=derivation,
    conclusion=lambda: stated(derivation, "K", "dK", "chi", "rises", "slope_starts", "starts", "price"),
)
