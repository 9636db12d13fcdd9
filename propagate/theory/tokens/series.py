"""The Hermite series of a smooth activation at tokens of unequal variance.

K_ts = sum_n a_n(q_t) a_n(q_s) c_ts^n with a_n(q) the Hermite coefficients of phi(sqrt(q) z), and distances as
sum_n (a_n(q_t) - a_n(q_s))^2 / 2 + a_n(q_t) a_n(q_s) (1 - c_ts^n), whose terms do not cancel. The second part is the
loss of correlation times a polynomial whose coefficients are sums of the terms of higher degrees:

    sum_n p_n (1 - c^n) = (1 - c) (sum_odd p_n + (1 + c) (E(c^2) + c O(c^2)))

with E and O of the even and the odd degrees. All activations have hardly any degrees of one parity but the first or the
second. Where correlations are small few terms of E and O count: the least number is taken whose rest is below rounding.
"""

from __future__ import annotations

import numpy as np

from propagate.theory.gaussian import quadrature
from propagate.theory.gaussian.quadrature import Array, Elementwise
from propagate.theory.tokens.gram import Gram

CHUNK = 2**14  # correlations taken together: so many stay in a cache
LEAST = np.finfo(float).eps / 16
"""Share of the whole below which a sum of terms is rounding."""


def unequal_variances(phi: Elementwise, u: Gram) -> Gram:
    """The Gram matrix of phi(u).

    Example: of u itself and of its square.
        >>> two = Gram.of([[[1.0, 0.5], [0.5, 4.0]]])
        >>> [unequal_variances(phi, two).matrix.round(9).tolist() for phi in (np.positive, np.square)]
        [[[[1.0, 0.5], [0.5, 4.0]]], [[[3.0, 4.5], [4.5, 48.0]]]]
    """
    tokens = u.matrix.shape[-1]
    variances, index = np.unique(u.variance, return_inverse=True)
    of_each = quadrature.coefficients_of_many(phi, variances)
    parities = _counting(of_each)
    index, loss = index.reshape(-1, tokens), u.loss_of_correlation().reshape(-1, tokens, tokens)
    matrix, apart = np.empty_like(loss), np.empty_like(loss)
    together = max(CHUNK // tokens**2, 1)
    for start in range(0, len(index), together):
        some = slice(start, start + together)
        even, odd = (of[index[some]] for of in parities)
        lost = loss[some]
        c = 1 - lost
        square = c * c
        largest = float((square * (1 - np.eye(tokens))).max())
        of_odd = odd @ odd.swapaxes(-1, -2)
        falls = _above(odd, square, largest)
        falls *= c
        falls += _above(even, square, largest)
        falls *= 2 - lost
        falls += of_odd
        falls *= lost
        matrix[some] = of_odd + even @ even.swapaxes(-1, -2) - falls
        apart[some] = falls + apart_of(even) + apart_of(odd)
    return Gram(matrix.reshape(u.matrix.shape), apart.reshape(u.matrix.shape))


def _counting(at: Array) -> tuple[Array, Array]:
    """The coefficients of even and of odd degrees, up to the last that counts.

    Distances are made of their derivatives by correlation and by variance, of which degree n has no more than (n + 1)
    times its own part, squared.
    """
    slopes = (at * (np.arange(at.shape[1]) + 1.0)) ** 2
    whole = slopes.sum(axis=1, keepdims=True)
    shares = (slopes / np.where(whole > 0, whole, 1.0)).max(axis=0)
    even, odd = (at[:, k : k + 2 * int((np.cumsum(shares[k::2][::-1]) > LEAST).sum()) : 2] for k in (0, 1))
    return even, odd


def _above(at: Array, x: Array, largest: float) -> Array:
    """sum_k x^k sum_(j > k) a_tj a_sj, for x up to the largest between two tokens.

    Args:
        at: (replicas, tokens, terms) the coefficients a.
        x: (replicas, tokens, tokens).
    """
    squares = (at * at).max(axis=(0, 1))
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)[1:]  # of all beyond each
    left_out = np.cumsum((tails * largest ** np.arange(len(tails)))[::-1])[::-1]
    terms = int((left_out > LEAST * squares.sum()).sum())
    rest = at[..., terms:]
    tail, found, product = rest @ rest.swapaxes(-1, -2), np.zeros_like(x), np.empty_like(x)
    for of_term in _by_term(at[..., :terms])[::-1]:  # Horner
        found *= x
        found += tail
        np.multiply(of_term[:, :, None], of_term[:, None, :], out=product)
        tail += product
    return found


def apart_of(at: Array) -> Array:
    """Half the squared distances between rows of (replicas, tokens, terms).

    Example:
        >>> apart_of(np.array([[[0.0, 1.0], [2.0, 2.0]]])).tolist()
        [[[0.0, 2.5], [2.5, 0.0]]]
    """
    found = np.zeros((*at.shape[:-1], at.shape[-2]))
    apart = np.empty_like(found)
    for of_term in _by_term(at):
        np.subtract(of_term[:, :, None], of_term[:, None, :], out=apart)
        apart *= apart
        found += apart
    return found / 2


def _by_term(at: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(at, -1, 0))
