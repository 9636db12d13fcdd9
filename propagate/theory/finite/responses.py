"""Numbers that respond to noise, to first order, and the two energies of a stream's Gram matrix over tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from propagate.theory.pairs.moments import Moments

Array = NDArray[np.float64]
STEP = 1e-4  # relative, of the finite differences
STATE, COTANGENT = (0, 1), (2, 3)  # sources of noise that stand for what enters a block


@dataclass(frozen=True, slots=True)
class Response:
    """A number and its derivative by each source of unit noise.

    Example:
        >>> x = Response(2.0, {0: 0.1})
        >>> (x * x + 1.0).slopes
        {0: 0.4}
    """

    value: float
    slopes: dict[int, float] = field(default_factory=dict)

    def __add__(self, other: Response | float) -> Response:
        if not isinstance(other, Response):
            return Response(self.value + other, self.slopes)
        return combined(self.value + other.value, ((1.0, self), (1.0, other)))

    __radd__ = __add__

    def __mul__(self, other: Response | float) -> Response:
        if not isinstance(other, Response):
            return combined(self.value * other, ((float(other), self),))
        return combined(self.value * other.value, ((other.value, self), (self.value, other)))

    __rmul__ = __mul__

    def power(self, exponent: float) -> Response:
        """The number to a power."""
        value = self.value**exponent
        return combined(value, ((exponent * value / self.value, self),))


def combined(value: float, parts: tuple[tuple[float, Response], ...]) -> Response:
    """A number that depends on others, with its partial derivatives by them."""
    slopes: dict[int, float] = {}
    for factor, part in parts:
        for source, slope in part.slopes.items():
            slopes[source] = slopes.get(source, 0.0) + factor * slope
    return Response(value, slopes)


class Energies(NamedTuple):
    """Energy of the token mean, variance + (T - 1) covariance, and of the deviations from it, variance - covariance."""

    mean: Response
    deviation: Response


class Atom:
    """A stream that is uncorrelated with every other atom in the limit."""

    __slots__ = ("energies",)

    def __init__(self, energies: Energies) -> None:
        self.energies = energies


class Terms(dict[Atom, Response]):
    """A linear combination of atoms: what a stream of fluctuating energies is made of.

    Example: an atom of energies 1 and 2, times 3.
        >>> atom = Atom(Energies(Response(1.0), Response(2.0)))
        >>> (Terms({atom: Response(1.0)}) * 3.0 + Terms({atom: Response(0.5)}))[atom].value
        3.5
    """

    def __add__(self, other: Terms) -> Terms:
        total = Terms(self)
        for atom, coefficient in other.items():
            total[atom] = total[atom] + coefficient if atom in total else coefficient
        return total

    def __mul__(self, factor: Response | float) -> Terms:
        scale = factor if isinstance(factor, Response) else float(factor)
        return Terms({atom: coefficient * scale for atom, coefficient in self.items()})


@dataclass(eq=False)
class Noise:
    """Sources of unit noise in one block, and the sizes that set their strength."""

    width: int
    tokens: int
    sources: Iterator[int] = field(default_factory=lambda: itertools.count(COTANGENT[-1] + 1))
    pairs: dict[tuple[Atom, Atom], tuple[int, int]] = field(default_factory=dict)

    @property
    def others(self) -> int:
        """Multiplicity of the deviation mode."""
        return max(self.tokens - 1, 1)

    def energies(self, terms: Terms) -> Energies:
        """Of a linear combination of atoms: their own, and twice their inner products."""
        found = []
        for mode, multiplicity in ((0, 1), (1, self.others)):
            total = Response(0.0)
            for atom, coefficient in terms.items():
                total = total + coefficient * coefficient * atom.energies[mode]
            for one, other in itertools.combinations(terms, 2):
                size = one.energies[mode].value * other.energies[mode].value
                slope = 2 * terms[one].value * terms[other].value * math.sqrt(size / (multiplicity * self.width))
                total = total + Response(0.0, {self._inner(one, other)[mode]: slope})
            found.append(total)
        return Energies(*found)

    def _inner(self, one: Atom, other: Atom) -> tuple[int, int]:
        known = self.pairs.get((one, other)) or self.pairs.get((other, one))
        if known is None:
            known = self.pairs[one, other] = self.fresh()
        return known

    def fresh(self) -> tuple[int, int]:
        """Two new sources."""
        return next(self.sources), next(self.sources)

    def added(self, energies: Energies, *parts: tuple[Array, tuple[int, int]]) -> Energies:
        """With noise relative to the energies: (2, 2) matrices times pairs of sources."""
        found = []
        for mode, energy in enumerate(energies):
            for matrix, sources in parts:
                slopes = {source: energy.value * matrix[mode, i] for i, source in enumerate(sources)}
                energy = energy + Response(0.0, slopes)
            found.append(energy)
        return Energies(*found)

    def gaussian(self, coordinates: float) -> Array:
        """Relative covariance that a Gaussian matrix of so many coordinates brings."""
        return np.diag([2.0, 2.0 / self.others]) / coordinates


def to_moments(mean: float, deviation: float, tokens: int) -> Moments:
    """Moments of floats from the two energies.

    Example:
        >>> to_moments(2.0, 0.5, 4)
        Moments(variance=0.875, deviation=0.5)
    """
    return Moments((mean + (tokens - 1) * deviation) / tokens, deviation)


def to_energies(x: Moments, tokens: int) -> tuple[float, float]:
    """The two energies of moments of floats."""
    return tokens * x.mean_mode(tokens), x.deviation


def mapped(function: Callable[[Moments], Moments], x: Energies, tokens: int) -> Energies:
    """A map of moments on energies that respond to noise: its value, and its derivative by finite differences.

    The steps go towards more alike tokens, where every map is defined.
    """
    at = (x.mean.value, x.deviation.value)
    here = to_energies(function(to_moments(*at, tokens)), tokens)
    slopes: list[tuple[float, float]] = []
    for mode, sign in ((0, STEP), (1, -STEP)):
        if at[mode] == 0 or (tokens == 1 and mode == 1):
            slopes.append((0.0, 0.0))
            continue
        moved = to_moments(at[0] * (1 + sign * (mode == 0)), at[1] * (1 + sign * (mode == 1)), tokens)
        there, by = to_energies(function(moved), tokens), sign * at[mode]
        slopes.append(((there[0] - here[0]) / by, (there[1] - here[1]) / by))
    return Energies(*(combined(here[i], ((slopes[0][i], x.mean), (slopes[1][i], x.deviation))) for i in (0, 1)))
