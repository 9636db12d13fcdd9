"""Averages of a softmax over Gaussian logits, exact for any number of tokens.

Two rows a, a' of attention weights come from logits that are standard normal times `std`, and correlated with
`correlation` between the rows, independent between tokens. With S_k = sum_s a_s^k and B = sum_s a_s a'_s:

    second = E S_2                    overlap = E B
    self_slope = E [S_2 + S_2^2 - 2 S_3]
    cross_slope = E [B + B^2 - sum_s a_s a'_s^2 - sum_s a_s^2 a'_s]

The slopes are E tr(J J) and E tr(J J') with J = diag(a) - a a^T the softmax Jacobian. Writing 1/x^k as an integral over
exp(-lambda x) makes the tokens independent; what is left is a one- or two-dimensional integral over log(lambda), by the
trapezoid rule, of Gaussian means taken at Hermite nodes. Correlation enters through Mehler's formula, which at those
nodes is exact from correlation 0 (a product) to 1 (a diagonal).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import roots_hermitenorm

from propagate.model import ModelError
from propagate.theory.gaussian.functions import Scalar, chebyshev_terms, is_plain, is_symbolic
from propagate.theory.gaussian.softmax_wide import integrate_wide

Array = NDArray[np.float64]

_STEP = 0.35  # of log(rate) up to a spread of 2: integrands are analytic for |Im| < pi/2, which leaves ~ 1e-11
LARGEST_SPREAD = 40.0
"""Standard deviation of the logits that the theory covers; an evaluation there takes seconds."""
WIDE = 4.0  # above it Hermite nodes, whose number grows with the square, cost more than `integrate_wide`

_PATCHES = ((0.5, 10, 10), (1.0, 12, 12), (2.0, 18, 16))  # largest spread; Chebyshev terms in spread and correlation


class SoftmaxAverages(NamedTuple):
    """The four averages of this module's docstring, each in excess of its value for uniform attention.

    Uniform attention over T tokens has second = overlap = 1/T and self_slope = cross_slope = (T - 1)/T^2. Keeping the
    excess apart leaves nothing to cancel when tokens have collapsed onto one another and attention is nearly uniform.
    """

    second: Scalar
    overlap: Scalar
    self_slope: Scalar
    cross_slope: Scalar


UNIFORM = SoftmaxAverages(0.0, 0.0, 0.0, 0.0)


def softmax_averages(tokens: Scalar, variance: Scalar, correlation: Scalar) -> SoftmaxAverages:
    """The averages for logits of variance `variance`, in excess of their uniform values.

    Up to a spread of 2 and for correlations in [0, 1] they are read off a Chebyshev series, made once for each number
    of tokens and good to about 1e-6 of the excess; elsewhere they are integrated afresh (milliseconds).

    Raises:
        ModelError: for a spread above `LARGEST_SPREAD`.

    Example:
        >>> second, overlap, *_ = softmax_averages(16, 1.0, 0.5)
        >>> round(1 / 16 + second, 5), round(1 / 16 + overlap, 5)
        (0.13245, 0.09211)
    """
    if is_plain(variance, correlation):
        return _numeric(tokens, variance, correlation)
    if is_symbolic(tokens, variance, correlation):
        return _symbolic(tokens, variance, correlation)
    columns = np.vectorize(lambda v, c: tuple(_numeric(tokens, v, c)), otypes=[float] * 4)
    return SoftmaxAverages(*columns(variance, correlation))


def _numeric(tokens: int, variance: float, correlation: float) -> SoftmaxAverages:
    if variance <= 0 or tokens == 1:
        return UNIFORM
    std, correlation = math.sqrt(variance), min(max(correlation, -1.0), 1.0)  # rounding apart
    if not std <= LARGEST_SPREAD:
        raise ModelError(
            f"attention's logits reach a standard deviation of {std:.3g}; the theory covers up to {LARGEST_SPREAD:g}"
            " (lower logit_std, or the variance that enters)"
        )
    few = 6 if tokens < 4 else 0  # the fewer the tokens, the nearer the singularities
    for top, *terms in _PATCHES:
        if std <= top * (1 + 1e-9) and 0 <= correlation <= 1:
            terms = [terms[0] + few, terms[1] + few]
            a = chebyshev_terms(min(2 * variance / top**2, 2.0) - 1, terms[0])
            b = chebyshev_terms(2 * correlation - 1, terms[1])
            values = _chebyshev(tokens, top, *terms).dot(a).reshape(4, -1).dot(b)
            return SoftmaxAverages(*[variance * value for value in values.tolist()])
    if std > WIDE:
        return _in_excess(tokens, *integrate_wide(tokens, std, correlation))
    return _integrals(tokens, std, np.array([correlation]))[0]


def _in_excess(tokens: int, second: float, overlap: float, self_slope: float, cross_slope: float) -> SoftmaxAverages:
    level, slope = 1 / tokens, (tokens - 1) / tokens**2
    return SoftmaxAverages(second - level, overlap - level, self_slope - slope, cross_slope - slope)


_INDEX = np.arange(32.0)


@lru_cache(maxsize=64)
def _chebyshev(tokens: int, top: float, spreads: int, correlations: int) -> Array:
    """Coefficients of averages / std^2, even in std / top on [-1, 1], in 2 correlation - 1 on [-1, 1].

    Of shape (averages times correlations, spreads): small arrays are multiplied fastest when they are matrices.
    """
    angle_s = (np.arange(spreads) + 0.5) * np.pi / (2 * spreads)
    angle_c = (np.arange(correlations) + 0.5) * np.pi / correlations
    nodes_s, nodes_c = top * np.cos(angle_s), (1 + np.cos(angle_c)) / 2
    values = np.array([np.array(_integrals(tokens, s, nodes_c)) / s**2 for s in nodes_s])
    to_s = np.cos(2 * np.outer(_INDEX[:spreads], angle_s)) * 2 / spreads
    to_c = np.cos(np.outer(_INDEX[:correlations], angle_c)) * 2 / correlations
    to_s[0] /= 2
    to_c[0] /= 2
    return np.ascontiguousarray(np.einsum("ki,lj,ijm->mlk", to_s, to_c, values).reshape(-1, spreads))


def _symbolic(tokens: Scalar, variance: Scalar, correlation: Scalar) -> SoftmaxAverages:
    """Named functions of (tokens, logit variance, correlation), which `recursion` knows how to evaluate."""
    import sympy

    if variance == 0:
        return UNIFORM
    names = [f"softmax_{name}" for name in SoftmaxAverages._fields]
    return SoftmaxAverages(*(sympy.Function(name)(tokens, variance, correlation) for name in names))


def _integrals(tokens: int, std: float, correlations: Array) -> list[SoftmaxAverages]:
    """Direct quadrature at one spread, of at most `WIDE` or so, and several correlations."""
    nodes, step, margin = _resolution(std)
    x, weight, hermite = hermite_basis(nodes)
    log_rate = np.arange(-math.log(tokens) - margin, 6 * std + 5, step)
    rate = np.exp(log_rate)
    growth = np.exp(std * x)
    # moments[k][i] = E exp(k z - rate_i e^z), one row of Hermite nodes an i
    laplace = [np.exp(-np.outer(rate, growth)) * weight]
    for _ in range(4):
        laplace.append(laplace[-1] * growth)
    mean = [terms @ weight for terms in laplace]
    with np.errstate(divide="ignore"):
        log_survival = np.log(mean[0])
    rest1, rest2 = np.exp((tokens - 1) * log_survival), np.exp((tokens - 2) * log_survival)
    second = tokens * np.sum(rate**2 * mean[2] * rest1) * step
    third = tokens * np.sum(rate**3 / 2 * mean[3] * rest1) * step
    same = tokens * mean[4] * rest1 + tokens * (tokens - 1) * mean[2] ** 2 * rest2
    second_squared = np.sum(rate**4 / 6 * same) * step
    self_slope = second + second_squared - 2 * third

    basis = [terms @ hermite for terms in laplace[:3]]
    measure = np.outer(rate, rate) * step**2
    results = []
    for correlation in correlations:
        powers = correlation ** np.arange(degrees_of(nodes, correlation))
        kept = [terms[:, : len(powers)] for terms in basis]
        joint00, joint11, joint22, joint12 = (
            (kept[a] * powers) @ kept[b].T for a, b in ((0, 0), (1, 1), (2, 2), (1, 2))
        )
        joint00 = np.maximum(joint00, 1e-300)
        others2 = np.exp((tokens - 2) * np.log(joint00))
        others1 = others2 * joint00
        overlap = tokens * np.sum(measure * joint11 * others1)
        mixed = tokens * np.sum(measure * rate * joint12 * others1)
        pairs = joint22 * others1 + (tokens - 1) * joint11**2 * others2
        overlap_squared = tokens * np.sum(measure * np.outer(rate, rate) * pairs)
        cross_slope = overlap + overlap_squared - 2 * mixed
        averages = (float(second), float(overlap), float(self_slope), float(cross_slope))
        results.append(_in_excess(tokens, *averages))
    return results


def _resolution(std: float) -> tuple[int, float, float]:
    """Hermite nodes, the step of log(rate), and how far below the rate of uniform weights that begins.

    Of small spreads, errors are to be small next to their square; at wide ones 2e-7 is enough. Nodes by the dozen, as
    many spreads share theirs.
    """
    if std <= _PATCHES[-1][0]:
        return 32 + int(24 * std**2), _STEP, 24 + 4 * std
    return 48 + 12 * math.ceil(std**2), 0.45, 16 + 4 * std


def degrees_of(nodes: int, correlation: float) -> int:
    """Of so many powers of a correlation, those that are not lost in rounding.

    Example:
        >>> degrees_of(100, 0.5), degrees_of(100, 0.9)
        (61, 100)
    """
    size = abs(correlation)
    return nodes if size >= 1 else min(nodes, 2 + int(math.log(1e-18) / math.log(max(size, 1e-9))))


@lru_cache(maxsize=64)
def hermite_basis(nodes: int) -> tuple[Array, Array, Array]:
    """Hermite nodes, the square roots of their weights (which sum to 1), and orthonormal Hermite values times those."""
    x, weight = roots_hermitenorm(nodes)
    root = np.sqrt(weight / weight.sum())
    table = np.empty((nodes, nodes))
    table[:, 0] = root
    table[:, 1] = x * root
    for n in range(1, nodes - 1):
        table[:, n + 1] = (x * table[:, n] - math.sqrt(n) * table[:, n - 1]) / math.sqrt(n + 1)
    return x, root, table
