"""The sampler of networks that are trained: it knows every matrix by its site, and what has become of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, NoReturn

from propagate.checks import ModelError
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.parameter_gradients import Part
from propagate.montecarlo.pulls import Pull
from propagate.montecarlo.steps.maps import Map, Stored
from propagate.optimizers import Optimizer
from propagate.transfer import Factors


class Matrix(NamedTuple):
    """One matrix of a map.

    Attributes:
        name: of the matrix.
        width: its columns.
        factor: what is applied, over the matrix that is stored.
        seen: the network's own output of the matrix, over tokens times what is stored.
    """

    name: str
    width: int
    factor: float
    seen: float


@dataclass(eq=False)
class Site:
    """A map and what is measured of it.

    Attributes:
        entered: mean square of what it was given at first.
    """

    map: Map
    matrices: list[Matrix]
    tokens: int
    entered: Array
    first: list[Array] = field(default_factory=list)
    output_changes: list[Array] = field(default_factory=list)
    answered: bool = False


@dataclass(eq=False)
class Trained:
    """In place of a sampler: applies the map of a site, and takes down what its gradients need.

    Attributes:
        xp: the array functions.
        make: makes a map whose first tokens arrive, from its site, fan-in and matrices.
        factors: of transfer, by a matrix's name.
        sites: the maps so far.
    """

    xp: Any
    make: Callable[[int, int, Sequence[Stored]], Map]
    factors: Callable[[str], Factors]
    sites: dict[int, Site] = field(default_factory=dict)

    def __call__(self, x: Array, site: int, fan_out: int, gain: float = 1.0) -> NoReturn:
        raise ModelError("a sublayer that is trained must apply its matrices by block.matrix, not block.sampler")

    def matrix(self, x: Array, site: int, gain: float, parts: Sequence[Part]) -> tuple[Array, Pull]:
        """x times the map of this site, as `Call.matrix` asks for it.

        Raises:
            ModelError: for a gain of 0, whose matrix the simulation never meets.
        """
        if site not in self.sites:
            self.sites[site] = self._site(site, x, gain, parts)
        own, xp = self.sites[site], self.xp
        found = own.map.forward(x)
        own.first = own.first or found
        own.output_changes = [_square(one - first) for one, first in zip(found, own.first, strict=True)]
        own.answered = False
        factors = [matrix.factor for matrix in own.matrices]
        ends = [0, *accumulate(matrix.width for matrix in own.matrices)]

        def pull(g: Array) -> Array:
            own.answered = True
            columns = zip(pairwise(ends), factors, strict=True)
            return own.map.backward([factor * g[..., first:last] for (first, last), factor in columns])

        return xp.concatenate([factor * one for factor, one in zip(factors, found, strict=True)], axis=-1), pull

    def _site(self, site: int, x: Array, gain: float, parts: Sequence[Part]) -> Site:
        stored, matrices = [], []
        for name, width, own, before in parts:
            if own == 0:
                field = {"attention_out": "attention_gain", "ffn_out": "ffn_gain"}.get(name, f"{name}_gain")
                raise ModelError(f"a matrix that is trained needs a gain that is not 0, got {field} 0")
            factors = self.factors(name)
            stored.append(Stored(name, width, own * factors.gain))
            matrices.append(Matrix(name, width, gain / own * factors.multiplier, before * factors.multiplier))
        made = self.make(site, x.shape[-1], stored)
        return Site(made, matrices, x.shape[-2], _square(x) / (x.shape[-2] * x.shape[-1]))

    def settle(self) -> None:
        """After the way back: matrices that no cotangent has reached have met zeros."""
        for own in self.sites.values():
            if not own.answered:
                own.map.backward([0 * one for one in own.first])

    def update(self, optimizer: Callable[[str], Optimizer]) -> Array:
        """A step of every matrix, each with the optimiser of its name; in which draws rounding may have decided."""
        doubtful = [own.map.update([optimizer(matrix.name) for matrix in own.matrices]) for own in self.sites.values()]
        return self.xp.stack(doubtful).any(axis=0)

    def measured(self) -> Iterator[tuple[int, str, dict[str, Array]]]:
        """Of each matrix: its site, its name, and sums over its entries, (draws,) each, with how many there are."""
        for site, own in self.sites.items():
            measured = own.map.gradients(), own.map.moved(), own.output_changes, own.first
            columns = zip(own.matrices, *measured, strict=True)
            for matrix, gradient, moved, output, first in columns:
                count = float(own.tokens * matrix.width)
                sums = {
                    "grad": _overlap(gradient.left, gradient.right),
                    "own": matrix.seen**2 * moved.own,
                    "together": matrix.seen**2 * moved.together,
                    "output": matrix.seen**2 * output,
                    "far": moved.far,
                    "size": moved.size,
                    "heard": own.entered * count,
                    "said": matrix.seen**2 * _square(first),
                    "count": self.xp.full(len(output), count),
                    "pairs": self.xp.full(len(output), count * (own.tokens - 1) or math.nan),
                }
                yield site, matrix.name, sums

    def falls(self) -> Iterator[tuple[int, str, dict[str, Array]]]:
        """Of each matrix, after the first update: how far that lets the loss fall, to first order."""
        for site, own in self.sites.items():
            for matrix, fall in zip(own.matrices, own.map.falls(), strict=True):
                yield site, matrix.name, {"fall": fall}


def _square(x: Array) -> Array:
    return (x * x).sum(axis=(-1, -2), dtype=float)


def _overlap(left: Array, right: Array) -> Array:
    """|left^T right|^2, by the Gram matrices of the rows."""
    grams = (rows @ rows.swapaxes(-1, -2) for rows in (left, right))
    first, second = grams
    return (first * second).sum(axis=(-1, -2), dtype=float)
