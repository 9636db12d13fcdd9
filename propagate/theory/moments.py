"""Second moments of exchangeable tokens, and linear combinations of uncorrelated streams that have them.

Why sums close: every branch ends in a fresh zero-mean matrix, so its output is uncorrelated with everything that
entered it. A stream is therefore a linear combination of uncorrelated atoms, and the second moments of the combination
are the sum of the atoms' own, weighted by squared coefficients. Backward the same holds: every branch's cotangent ends
in the transpose of a fresh input matrix.
"""

from __future__ import annotations

from typing import NamedTuple

from propagate.theory.functions import Scalar, sqrt


class Moments(NamedTuple):
    """Second moments per coordinate of a stream whose tokens are exchangeable.

    Attributes:
        variance: E x_t^2.
        deviation: E x_t^2 - E x_t x_s for tokens t != s, kept instead of the covariance because it can become tiny.

    Example:
        >>> Moments(1.0, 0.75).covariance
        0.25
    """

    variance: Scalar
    deviation: Scalar

    @property
    def covariance(self) -> Scalar:
        """E x_t x_s for tokens t != s."""
        return self.variance - self.deviation

    def plus(self, other: Moments) -> Moments:
        """Of the sum with an uncorrelated stream."""
        return Moments(self.variance + other.variance, self.deviation + other.deviation)

    def times(self, coefficient: Scalar) -> Moments:
        """Of the stream times a number."""
        weight = coefficient * coefficient
        return Moments(weight * self.variance, weight * self.deviation)

    def product(self, other: Moments) -> Moments:
        """Of the coordinatewise product with an independent stream: second moments multiply, token by token."""
        deviation = self.variance * other.deviation + self.deviation * other.covariance
        return Moments(self.variance * other.variance, deviation)

    def unshared(self) -> Moments:
        """Of a stream with this variance whose tokens are uncorrelated."""
        return Moments(self.variance, self.variance)

    def norm_scale(self) -> Scalar:
        """What a norm multiplies the stream by."""
        return 1 / sqrt(self.variance)


class Atom:
    """A stream uncorrelated with every other atom. Two atoms are never equal, whatever their moments."""

    __slots__ = ("moments",)

    def __init__(self, moments: Moments) -> None:
        self.moments = moments


class Lack(NamedTuple):
    """That a cotangent has no part along a stream, where one of the same moments in all directions would have.

    No second moment per coordinate shows it. What a branch sends back through a few numbers, such as the gates of
    experts, does.

    Attributes:
        along: the stream.
        energy: moments of the part of the cotangent that was made orthogonal to it.
    """

    along: Combination
    energy: Moments


class Combination:
    """A linear combination of atoms.

    Example:
        >>> x, branch = Atom(Moments(1.0, 0.5)), Atom(Moments(3.0, 1.0))
        >>> ((Combination.of(x) + Combination.of(branch)) * 2.0).moments()
        Moments(variance=16.0, deviation=6.0)
    """

    __slots__ = ("lacks", "terms")

    def __init__(self, terms: dict[Atom, Scalar], lacks: tuple[Lack, ...] = ()) -> None:
        self.terms = terms
        self.lacks = lacks

    @classmethod
    def of(cls, atom: Atom) -> Combination:
        return cls({atom: 1.0})

    def __add__(self, other: Combination) -> Combination:
        terms = dict(self.terms)
        for atom, coefficient in other.terms.items():
            terms[atom] = terms[atom] + coefficient if atom in terms else coefficient
        return Combination(terms, self.lacks + other.lacks)

    def __mul__(self, factor: Scalar) -> Combination:
        terms = {atom: coefficient * factor for atom, coefficient in self.terms.items()}
        return Combination(terms, tuple(Lack(lack.along, lack.energy.times(factor)) for lack in self.lacks))

    def orthogonal_to(self, stream: Combination) -> Combination:
        """A cotangent behind a norm: each token's is orthogonal to what was normed, one of very many directions."""
        return Combination(self.terms, (*self.lacks, Lack(stream, self.moments())))

    def moments(self) -> Moments:
        """Second moments of the combination."""
        total = Moments(0.0, 0.0)
        for atom, coefficient in self.terms.items():
            total = total.plus(atom.moments.times(coefficient))
        return total
