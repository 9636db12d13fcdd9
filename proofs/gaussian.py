"""Expectations of activations of Gaussian pre-activations: closed forms, and independent quadrature to check them.

`K` is E[phi(u) phi(v)] and `dK` is E[phi'(u) phi'(v)] for centred Gaussian u, v with common variance and covariance.
Closed forms of GELU are not typed: they are what Gaussian integration by parts leaves, once every factor u or v has
been traded for derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import mpmath
import sympy as sp

u, v = sp.symbols("u v", real=True)
Phi, phi = sp.Function("Phi"), sp.Function("phi")  # the standard normal distribution function and its density
Real = Callable[[mpmath.mpf], mpmath.mpf]


def relu_kernel(variance: sp.Expr, correlation: sp.Expr) -> sp.Expr:
    """E[relu(u) relu(v)] (proved in proposition 3a)."""
    c = correlation
    return variance * (sp.sqrt(1 - c**2) + c * (sp.pi - sp.acos(c))) / (2 * sp.pi)


def relu_derivative_kernel(correlation: sp.Expr) -> sp.Expr:
    """P(u > 0, v > 0) (proved in proposition 3a)."""
    return (sp.pi - sp.acos(correlation)) / (2 * sp.pi)


def gelu_kernel(variance: sp.Expr, covariance: sp.Expr) -> sp.Expr:
    """E[gelu(u) gelu(v)], gelu(u) = u Phi(u) (proved in proposition 3b)."""
    s, a = variance, covariance
    det = (1 + s) ** 2 - a**2
    orthant = sp.Rational(1, 4) + sp.asin(a / (1 + s)) / (2 * sp.pi)
    return a * orthant + (s**2 + a**2 - 2 * s * a**2 / (1 + s)) / (2 * sp.pi * sp.sqrt(det))


def gelu_derivative_kernel(variance: sp.Expr, covariance: sp.Expr) -> sp.Expr:
    """E[gelu'(u) gelu'(v)] (proved in proposition 3b)."""
    s, a = variance, covariance
    det = (1 + s) ** 2 - a**2
    orthant = sp.Rational(1, 4) + sp.asin(a / (1 + s)) / (2 * sp.pi)
    return orthant + a * ((s + 1) * (2 * s + 3) - 2 * a**2) / (2 * sp.pi * (1 + s) * det ** sp.Rational(3, 2))


def derivative(f: sp.Expr, variable: sp.Symbol) -> sp.Expr:
    """d f / d variable, knowing Phi' = phi and phi'(u) = -u phi(u)."""
    rules = {
        sp.Derivative(Phi(variable), variable): phi(variable),
        sp.Derivative(phi(variable), variable): -variable * phi(variable),
    }
    return sp.expand(sp.diff(f, variable).subs(rules))


def _lowered(monomial: sp.Expr, s: sp.Symbol, a: sp.Symbol) -> sp.Expr | None:
    """Gaussian integration by parts applied to one factor u (or v) of the monomial; nothing if it has none."""
    powers = monomial.as_powers_dict()
    for one, other in ((u, v), (v, u)):
        if powers.get(one, 0) > 0:
            f = monomial / one
            return sp.expand(s * derivative(f, one) + a * derivative(f, other))
    return None


def _monomials(expression: sp.Expr) -> list[tuple[sp.Expr, sp.Expr]]:
    """The expression as coefficient * (product of u, v, Phi, phi)."""
    parts = []
    for term in sp.Add.make_args(sp.expand(expression)):
        coefficient, rest = term.as_independent(u, v)
        parts.append((coefficient, rest))
    return parts


def by_parts(expression: sp.Expr, s: sp.Symbol, a: sp.Symbol, known: dict[sp.Expr, sp.Expr]) -> sp.Expr:
    """E[expression], from the expectations in `known`, by solving the linear equations that integration by parts gives.

    Trading a factor u for derivatives brings back monomials already met, because phi'(u) = -u phi(u); the equations
    for all of them close, and are solved together.
    """
    unknown: dict[sp.Expr, sp.Symbol] = {}
    equations: list[sp.Expr] = []
    queue = [m for _, m in _monomials(expression)]

    def expected(e: sp.Expr) -> sp.Expr:
        total = sp.Integer(0)
        for coefficient, monomial in _monomials(e):
            if monomial in known:
                total += coefficient * known[monomial]
            else:
                if monomial not in unknown:
                    unknown[monomial] = sp.Symbol(f"E_{len(unknown)}")
                    queue.append(monomial)
                total += coefficient * unknown[monomial]
        return total

    result = expected(expression)
    done: set[sp.Expr] = set()
    while queue:
        monomial = queue.pop()
        if monomial in known or monomial in done:
            continue
        done.add(monomial)
        lowered = _lowered(monomial, s, a)
        if lowered is None:
            raise ValueError(f"integration by parts does not reach E[{monomial}]")
        equations.append(unknown[monomial] - expected(lowered))
    solution = sp.solve(equations, list(unknown.values()), dict=True)[0]
    return sp.simplify(result.subs(solution))


# --- quadrature: another route to the same numbers -------------------------------------------------------------------


def normal_density(x: mpmath.mpf) -> mpmath.mpf:
    """The standard normal density."""
    return mpmath.exp(-x * x / 2) / mpmath.sqrt(2 * mpmath.pi)


def gelu(x: mpmath.mpf) -> mpmath.mpf:
    """x Phi(x)."""
    return x * mpmath.ncdf(x)


def gelu_derivative(x: mpmath.mpf) -> mpmath.mpf:
    """Phi(x) + x phi(x)."""
    return mpmath.ncdf(x) + x * normal_density(x)


def silu(x: mpmath.mpf) -> mpmath.mpf:
    """x / (1 + exp(-x))."""
    return x / (1 + mpmath.exp(-x))


def silu_derivative(x: mpmath.mpf) -> mpmath.mpf:
    """The derivative of silu."""
    sigmoid = 1 / (1 + mpmath.exp(-x))
    return sigmoid * (1 + x * (1 - sigmoid))


def bivariate(f: Real, g: Real, variance: mpmath.mpf, covariance: mpmath.mpf, digits: int = 14) -> mpmath.mpf:
    """E[f(u) g(v)] for entire f, g by the trapezoidal rule, which converges exponentially against a Gaussian."""
    with mpmath.workdps(digits + 8):
        spread, correlation = mpmath.sqrt(variance), covariance / variance
        rest = mpmath.sqrt(1 - correlation**2)
        step = mpmath.mpf(1) / (2 + int(mpmath.ceil(spread)))
        reach = int(mpmath.ceil(mpmath.sqrt(2 * (digits + 4) * mpmath.log(10)) / step))
        nodes = [step * j for j in range(-reach, reach + 1)]
        weights = [normal_density(z) * step for z in nodes]
        total = mpmath.mpf(0)
        for z, w in zip(nodes, weights, strict=True):
            inner = mpmath.fsum(
                y * g(spread * (correlation * z + rest * x)) for x, y in zip(nodes, weights, strict=True)
            )
            total += w * f(spread * z) * inner
        return total


@cache
def univariate(f: Real, variance: mpmath.mpf) -> mpmath.mpf:
    """E[f(u)] by adaptive quadrature."""
    spread = mpmath.sqrt(variance)
    return mpmath.quad(lambda z: normal_density(z) * f(spread * z), [-30, -8, -3, 0, 3, 8, 30])
