"""Second moments of exchangeable tokens, and the linear combinations of streams that have them.

Why sums close: every branch ends in a fresh zero-mean matrix, so its output is uncorrelated with everything that
entered it. A stream is therefore a linear combination of atoms, which are uncorrelated but for the streams that entered
a block together, and the second moments of the combination are a quadratic form in its coefficients. Backward the same
holds: every branch's cotangent ends in the transpose of a fresh input matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from propagate.theory.gaussian.functions import Scalar, inverse, is_plain, is_symbolic, sqrt

ROUNDING = 1e-14  # relative, of the difference of two numbers that should cancel


class SecondMoments(Protocol):
    """Second moments of one resolution: `Moments` of exchangeable tokens, a `Gram` matrix, or anything else with these.

    Sums and products are of two of one kind.
    """

    @property
    def variance(self) -> Any: ...
    @property
    def deviation(self) -> Any: ...
    def plus(self, other: Self) -> Self: ...
    def times(self, coefficient: Any) -> Self: ...
    def scaled(self, left: Any, right: Any) -> Self: ...
    def product(self, other: Self) -> Self: ...
    def unshared(self) -> Self: ...
    def entries(self) -> Any: ...
    def norm_scale(self, eps: float = 0.0) -> Any: ...
    def std(self) -> Any: ...


class Moments(NamedTuple):
    """Second moments per coordinate of a stream whose tokens are exchangeable, or of two streams jointly.

    Attributes:
        variance: E x_t^2; of two streams, E x_t y_t.
        deviation: E x_t^2 - E x_t x_s for tokens t != s, kept instead of the covariance because it can become tiny;
            of two streams, E x_t y_t - E x_t y_s.

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

    def mean_mode(self, tokens: Scalar) -> Scalar:
        """Variance of the mean over tokens; 0 where tokens that add up to nothing leave but rounding.

        Example:
            >>> Moments(1.0, 1.5).mean_mode(3), Moments(0.1, 0.1 * 8 / 7).mean_mode(8)
            (0.0, 0.0)
        """
        found, least = self.covariance + self.deviation / tokens, ROUNDING * self.variance
        if is_plain(found, least):
            return found if found > least else 0.0
        return found if is_symbolic(found, least) else np.where(found > least, found, 0.0)

    def plus(self, other: Moments) -> Moments:
        """Of the sum with an uncorrelated stream."""
        return Moments(self.variance + other.variance, self.deviation + other.deviation)

    def times(self, coefficient: Scalar) -> Moments:
        """Of the stream times a number."""
        weight = coefficient * coefficient
        return Moments(weight * self.variance, weight * self.deviation)

    def scaled(self, left: Scalar, right: Scalar) -> Moments:
        """Of one stream times a number and the other times another, jointly."""
        weight = left * right
        return Moments(weight * self.variance, weight * self.deviation)

    def product(self, other: Moments) -> Moments:
        """Of the coordinatewise product with an independent stream: second moments multiply, token by token."""
        deviation = self.variance * other.deviation + self.deviation * other.covariance
        return Moments(self.variance * other.variance, deviation)

    def unshared(self) -> Moments:
        """Of a stream with this variance whose tokens are uncorrelated."""
        return Moments(self.variance, self.variance)

    def entries(self) -> Moments:
        """Themselves; of Gram matrices something less."""
        return self

    def norm_scale(self, eps: float = 0.0) -> Scalar:
        """What a norm multiplies the stream by. ZeroDivisionError for a stream that is 0."""
        return sqrt(inverse(self.variance + eps if eps else self.variance))

    def std(self) -> Scalar:
        """Root mean square over tokens and coordinates."""
        return sqrt(self.variance)


NOTHING = Moments(0.0, 0.0)
"""Of a stream that is zero, known by its identity: it has no resolution."""
Joint = tuple[tuple[SecondMoments, ...], ...]
"""Moments, of one resolution, of several streams: entry (i, j) holds those of streams i and j jointly."""


def of_pairs(moments: SecondMoments) -> Moments:
    """The same, where they are known to be those of exchangeable tokens."""
    assert isinstance(moments, Moments)
    return moments


_NONE: Mapping[Any, Any] = {}


class Atom:
    """A stream uncorrelated with every other atom but those in `joint`. Two atoms are never equal.

    Attributes:
        moments: its own.
        joint: joint moments with each atom it is correlated with.
        products: of a cotangent's atom, the `Products` with atoms and itself, where scalar products with streams know
            more than the moments.
        gaussian: whether its coordinates are jointly Gaussian with those of all such streams.
    """

    __slots__ = ("gaussian", "joint", "moments", "products")

    def __init__(self, moments: SecondMoments, *, gaussian: bool = True) -> None:
        self.moments = moments
        self.gaussian = gaussian
        self.joint: Mapping[Atom, SecondMoments] = _NONE
        self.products: Mapping[Atom, Any] = _NONE


def correlated(joint: Joint) -> list[Atom]:
    """Atoms with these joint moments.

    Example:
        >>> one, other = correlated(((Moments(1.0, 1.0), Moments(0.5, 0.5)), (Moments(0.5, 0.5), Moments(2.0, 2.0))))
        >>> (Combination.of(one) + Combination.of(other)).moments()
        Moments(variance=4.0, deviation=4.0)
    """
    atoms = [Atom(row[i]) for i, row in enumerate(joint)]
    if len(atoms) == 1:
        return atoms
    for i, atom in enumerate(atoms):
        atom.joint = {other: joint[i][j] for j, other in enumerate(atoms) if j != i and joint[i][j] is not NOTHING}
    return atoms


class Lack(NamedTuple):
    """What a cotangent lacks of one of its atoms: at every token along_t times (origin_t . atom_t), both streams.

    No second moment per coordinate shows it, being one direction of very many. What a branch sends back through a few
    numbers, such as the gates of experts, does: see `products`.
    """

    atom: Atom
    along: Combination
    origin: Combination


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
        return Combination(terms, self.lacks and tuple(k._replace(along=k.along * factor) for k in self.lacks))

    @property
    def gaussian(self) -> bool:
        """Whether its coordinates are."""
        return all([atom.gaussian for atom in self.terms])  # noqa: C419  # a list is faster

    def orthogonal_to(self, stream: Combination) -> Combination:
        """A cotangent behind a norm: each token's is orthogonal to what was normed, one of very many directions."""
        unit = stream * stream.moments().norm_scale()
        older = (lack._replace(along=_less_its_part(lack.along, unit)) for lack in self.lacks)
        newer = (Lack(atom, unit * coefficient, unit) for atom, coefficient in self.terms.items())
        return Combination(self.terms, (*older, *newer))

    def moments(self) -> SecondMoments:
        """Second moments of the combination."""
        variance, deviation, found = 0, 0, False
        for atom, coefficient in self.terms.items():  # written out: half of the time of a prediction was spent here
            own = atom.moments
            if atom.joint or type(own) is not Moments:
                return _sum(part for atom in self.terms for part in _parts(atom, self))
            if own is not NOTHING:
                weight = coefficient * coefficient
                variance, deviation = variance + weight * own.variance, deviation + weight * own.deviation
                found = True
        return Moments(variance, deviation) if found else NOTHING

    def joint(self, other: Combination) -> SecondMoments:
        """Second moments of this and another combination jointly."""
        parts: list[SecondMoments] = []
        for atom, coefficient in self.terms.items():
            if atom in other.terms:
                parts.append(_times(atom.moments, coefficient, other.terms[atom]))
            parts += _with_others(atom, coefficient, other)
        return _sum(parts)


def _less_its_part(along: Combination, unit: Combination) -> Combination:
    """What is left of a stream, token by token, without its part along another of variance 1."""
    joint = along.joint(unit)
    return along if joint is NOTHING else along + unit * -joint.variance


def _times(moments: SecondMoments, left: Scalar, right: Scalar) -> SecondMoments:
    return moments if moments is NOTHING else moments.scaled(left, right)


def _sum(parts: Iterable[SecondMoments]) -> SecondMoments:
    """Moments of any one resolution; those of nothing, which has none, if there are no parts."""
    found = [part for part in parts if part is not NOTHING]
    return reduce(lambda total, part: total.plus(part), found) if found else NOTHING


def _parts(atom: Atom, combination: Combination) -> list[SecondMoments]:
    """Of an atom's own moments and of those with the others."""
    coefficient = combination.terms[atom]
    return [_times(atom.moments, coefficient, coefficient), *_with_others(atom, coefficient, combination)]


def _with_others(atom: Atom, coefficient: Scalar, combination: Combination) -> list[SecondMoments]:
    """Joint moments of an atom with the other atoms in a combination that it is correlated with."""
    terms = combination.terms
    return [_times(joint, coefficient, terms[other]) for other, joint in atom.joint.items() if other in terms]


def joint_moments(combinations: Sequence[Combination]) -> Joint:
    """Joint moments of several combinations."""
    if len(combinations) == 1:  # the common case, which must be fast
        return ((combinations[0].moments(),),)
    return tuple(
        tuple(one.moments() if one is other else one.joint(other) for other in combinations) for one in combinations
    )
