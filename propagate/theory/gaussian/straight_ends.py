"""Second moments of functions with straight ends, such as SiLU, at any variance.

Their slope is a sum of error functions and Gaussians about 0, of a few widths k,

    phi'(x) = line + sum_k (even_k E sign(x + k z) + odd_k 2 N(x; 0, k^2))        z standard normal

which makes phi a line and averages of |x + k z| and of sign(x + k z). For Gaussian u and v of variances s and t and
covariance a, averages over both and over two noises of widths k and l are those of variables of variances S = s + k^2
and T = t + l^2 (arc-cosine kernels, Cho & Saul 2009): with D = S T - a^2 and b = arcsin(a / sqrt(S T))

    E sign sign = 2 b / pi        E |.| |.| = 2 (sqrt(D) + a b) / pi        E N N = 1 / (2 pi sqrt(D))

What is used is how far they fall from correlation 1, where a = c = sqrt(s t), without cancellation: b falls by
2 arctan(h), with h = (c - a) / (sqrt(D) + sqrt(D at c)). At correlation 1 there is but one variable to average over.

A kink at 0, as of ELU, takes widths down to 1e-6 and a sign without noise. Of tokens that are nearer than that their
slope's fall is off by 1e-6 of itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from scipy.special import erf

from propagate.theory.gaussian.quadrature import Array, Elementwise

NUMBERS = (16, 20, 24, 28, 32)
NARROWEST, WIDEST = (0.25, 0.35, 0.5, 0.7, 1.0), (3.0, 6.0, 12.0)
TO_A_KINK = np.geomspace(1e-6, 9.0, 72)
NO_WIDTH = 1e-15
FARTHEST = 8500.0  # pre-activation: what has a straight end has one there
AIM, ENOUGH = 5e-11, 1e-9
"""Relative to the largest slope: an error at which no more widths are tried, and the largest that will do."""
NEAR = 1e-4  # a kink, where an error counts for little
ROUNDING = 1e-13
NO_TERM = 1e-14  # share of the largest product of two coefficients that does not count
EPSILON = float(np.finfo(float).eps)
TOGETHER = 2**16  # entries of an array that stays in a cache
STEP = 0.12  # of a logarithm of a pre-activation
TAIL = 8.6  # standard deviations


@dataclass(frozen=True, eq=False)
class StraightEnds:
    """A function of this kind, but for a constant.

    Attributes:
        line: as above.
        squares, even, odd: of each width its square and its two coefficients, (widths, ).
    """

    line: float
    squares: Array
    even: Array
    odd: Array

    def drop(self, s: Array, t: Array, loss: Array) -> Array:
        """How far E phi(u) phi(v) falls from correlation 1 to 1 - loss.

        Args:
            s, t, loss: (pairs, ) or (1, ), the variances of u and v and 1 less their correlation.

        Example: of a ReLU, hardly smoothed, 1/2 - 1 / (2 pi).
            >>> one = np.ones(1)
            >>> StraightEnds(0.5, 1e-12 * one, one / 2, 0 * one).drop(one, one, one).round(5).tolist()
            [0.34085]
        """

        def of_terms(s: Array, t: Array, loss: Array) -> Array:
            even, odd, c, fall, ends, root1, _, h = self._terms(s, t, loss)
            return even * (fall * np.arctan(c / root1) - ends * h) + (even * (ends - fall) + 2 * odd) * np.arctan(h)

        met = math.sqrt(2 / math.pi) * (self._met(s) + self._met(t))
        of_line = self.line * (self.line + met) * np.sqrt(s * t) * loss
        return of_line + _in_parts(of_terms, len(self._pairs[0]), s, t, loss)

    def slope_drop(self, s: Array, t: Array, loss: Array) -> Array:
        """The same of E phi'(u) phi'(v), the derivative of E phi(u) phi(v) by the covariance.

        Example: of that ReLU 1/4.
            >>> one = np.ones(1)
            >>> StraightEnds(0.5, 1e-12 * one, one / 2, 0 * one).slope_drop(one, one, one).round(5).tolist()
            [0.25]
        """

        def of_terms(s: Array, t: Array, loss: Array) -> Array:
            even, odd, _, _, ends, root1, root, h = self._terms(s, t, loss)
            return 2 * even * np.arctan(h) + odd * h * ends / (root * root1)

        return _in_parts(of_terms, len(self._pairs[0]), s, t, loss)

    def _terms(self, s: Array, t: Array, loss: Array) -> tuple[Array, ...]:
        """Of each pair of terms the products of coefficients; c, c - a, c + a; the roots of D at c and at a, and h."""
        c = np.sqrt(s * t)
        fall, ends = c * loss, c * (2 - loss)
        first, second, even, odd = self._pairs
        square = first * t + second * s + first * second
        root1, root = np.sqrt(square), np.sqrt(square + fall * ends)
        return even, odd, c, fall, ends, root1, root, fall / (root + root1)

    @cached_property
    def _pairs(self) -> tuple[Array, ...]:
        """Squares of both widths, and the products of their coefficients times 2 / pi, (pairs, 1) each."""
        first, second = np.meshgrid(self.squares, self.squares, indexing="ij")
        even, odd = (2 / math.pi * np.outer(each, each) for each in (self.even, self.odd))
        count = np.abs(even) + np.abs(odd) > NO_TERM * (np.abs(even).max() + np.abs(odd).max())
        return first[count][:, None], second[count][:, None], even[count][:, None], odd[count][:, None]

    def _met(self, variance: Array) -> Array:
        """What the signs are, per unit of the line."""
        return np.asarray((self.odd / np.sqrt(variance[:, None] + self.squares)).sum(axis=1))


def _in_parts(of_terms: Callable[[Array, Array, Array], Array], terms: int, *pairs: Array) -> Array:
    """Sums over the first axis, for so many pairs at once that they stay in a cache."""
    found, together = np.empty(np.broadcast_shapes(*(each.shape for each in pairs))), max(TOGETHER // terms, 1)
    for start in range(0, len(found), together):
        some = slice(start, start + together)
        found[some] = of_terms(*(each if len(each) == 1 else each[some] for each in pairs)).sum(axis=0)
    return found


@lru_cache(maxsize=64)
def straight_ends(slope: Elementwise, kinks: tuple[float, ...] = ()) -> StraightEnds | None:
    """A function from its slope; None where that is no such sum, as with kinks elsewhere than at 0.

    Example: a sine has no straight ends.
        >>> found = straight_ends(lambda x: 1 / (1 + np.exp(-np.clip(x, -700, None))))
        >>> round(found.line, 9), round(float(found.even.sum()), 9), straight_ends(np.cos)
        (0.5, 0.5, None)
    """
    if set(kinks) - {0.0}:
        return None
    x = np.concatenate([np.linspace(0.0, 20.0, 801), np.geomspace(20.0, FARTHEST, 101)[1:]])
    if kinks:
        x = np.concatenate([np.geomspace(1e-7, x[1], 250), x[2:]])
    right, left = slope(x), slope(-x)
    largest = max(float(np.abs(right).max()), float(np.abs(left).max()))
    of_signs, of_densities = (right - left) / 2, (right + left) / 2
    line = float(of_densities[-1])
    at_0 = float(slope(np.array(NO_WIDTH)) - slope(np.array(-NO_WIDTH))) / 2
    jump = at_0 if abs(at_0) > ROUNDING * largest else 0.0
    weight, best, least = np.minimum(x / NEAR, 1.0) if kinks else np.ones_like(x), None, ENOUGH
    parts = [
        weight * (part if np.abs(part).max() > ROUNDING * largest else 0.0)
        for part in (of_signs - jump, of_densities - line)
    ]
    for widths in [TO_A_KINK] if kinks else _progressions():
        signs = erf(x[:, None] / (math.sqrt(2) * widths))
        densities = 2 * np.exp(-((x[:, None] / widths) ** 2) / 2) / (math.sqrt(2 * math.pi) * widths)
        (even, wrong), (odd, other) = (
            _fitted(weight[:, None] * c, part) for c, part in zip((signs, densities), parts, strict=True)
        )
        if (error := max(wrong, other) / largest) < least:
            best, least = StraightEnds(line, widths**2, even, odd), error
        if least <= AIM:
            break
    if best is not None and jump:
        return replace(
            best,
            squares=np.append(best.squares, NO_WIDTH**2),
            even=np.append(best.even, jump),
            odd=np.append(best.odd, 0.0),
        )
    return best


def _progressions() -> Iterator[Array]:
    """Of widths, from few to many."""
    for number, narrowest, widest in itertools.product(NUMBERS, NARROWEST, WIDEST):
        yield np.geomspace(narrowest, widest, number)


def _fitted(columns: Array, values: Array) -> tuple[Array, float]:
    """Least squares, and the largest error, with what rounding makes of squares of the coefficients."""
    scale = np.abs(columns).max(axis=0)
    found = np.linalg.lstsq(columns / scale, values, rcond=1e-13)[0]
    wrong = float(np.abs(columns / scale @ found - values).max())
    return np.asarray(found / scale), wrong + EPSILON * float(np.abs(found).sum()) ** 2


def at_correlation_1(f: Elementwise, variances: Array) -> Array:
    """f(sqrt(variance) z) sqrt(weight) at nodes z of a normal average, (variances, nodes); products are its moments.

    f is analytic near each half of the real line and has straight ends.

    Example:
        >>> rows = at_correlation_1(np.abs, np.array([4.0, 9.0]))
        >>> (rows @ rows.T).round(12).tolist()
        [[4.0, 6.0], [6.0, 9.0]]
    """
    size = max(math.sqrt(float(variances.max())), 1.0)
    t = np.arange(-3.7, math.log(TAIL * size) + 2 * STEP, STEP)
    half = np.exp(t - np.exp(-t)) / size
    z = np.concatenate([-half, half])
    weight = np.tile(half * (1 + np.exp(-t)), 2) * np.exp(-z * z / 2)
    return np.asarray(f(np.sqrt(variances)[:, None] * z) * np.sqrt(weight / weight.sum()))
