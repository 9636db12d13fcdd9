"""Exponents: the slope of a logarithm against that of a size, with its uncertainty, and what it is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from propagate.scores import detectable
from propagate.verdicts import AGREES, CANNOT_TELL, DISAGREES

Numbers = Sequence[float] | NDArray[np.float64]
FLOOR = 1e-3  # of a standard error of a logarithm: what hardly varies over draws still has corrections of 1 / size
CONFIDENCE = 1.96  # the normal score of a 95 % interval


@dataclass(frozen=True)
class Slope:
    """A fitted exponent.

    Attributes:
        value: of the size.
        error: its standard error; no smaller than what the points' distance from a straight line says.
        freedom: degrees of freedom from which it was estimated.
    """

    value: float
    error: float
    freedom: int

    def within(self, score: float) -> float:
        """Half the width of the interval whose tails are those of this normal score.

        Example:
            >>> round(Slope(0.5, 0.1, 12).within(1.96), 3)
            0.218
        """
        return float(detectable(np.array(self.error), np.array(0.0), self.freedom + 1, score))

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {max(self.within(CONFIDENCE), 0.005):.2f}"


NOTHING = Slope(math.nan, math.nan, 0)


def slope(sizes: Sequence[float], logarithms: Numbers, errors: Numbers, draws: int) -> Slope:
    """Weighted least squares of logarithms against log size.

    Args:
        sizes: two or more, not all alike.
        logarithms: natural, one a size.
        errors: their standard errors over draws.
        draws: networks a size.

    Returns:
        The exponent; NaN where a logarithm is not finite.

    Example: points of a curve that bends have a wider interval.
        >>> straight = slope([64, 128, 256], [0.0, 0.69, 1.39], [0.01, 0.01, 0.01], draws=5)
        >>> bent = slope([64, 128, 256], [0.0, 0.80, 1.39], [0.01, 0.01, 0.01], draws=5)
        >>> str(straight), str(bent)
        ('1.00 ± 0.02', '1.00 ± 0.19')
    """
    x, y = np.log(np.asarray(sizes, dtype=float)), np.asarray(logarithms, dtype=float)
    if not np.isfinite(y).all():
        return NOTHING
    weights = 1 / np.maximum(np.nan_to_num(np.asarray(errors, dtype=float), nan=np.inf), FLOOR) ** 2
    if not weights.any():  # of one draw nothing is known
        weights = np.ones(len(x))
    centre = (weights * x).sum() / weights.sum()
    spread = (weights * (x - centre) ** 2).sum()
    value = float((weights * (x - centre) * y).sum() / spread)
    residuals = y - value * x
    misfit = float((weights * (residuals - (weights * residuals).sum() / weights.sum()) ** 2).sum())
    ratio = misfit / (len(x) - 2) if len(x) > 2 else 1.0
    freedom = len(x) * (draws - 1)
    if ratio > 1 or draws < 2:
        freedom = max(len(x) - 2, freedom if draws > 1 else 0)
        return Slope(value, math.sqrt(max(ratio, 0.0) / spread), freedom)
    return Slope(value, 1 / math.sqrt(spread), freedom)


def judged(found: Slope, wanted: float, tolerance: float, threshold: float, *, at_most: bool = False) -> str:
    """Whether an exponent is the wanted one, give or take the tolerance: "agrees", "disagrees" or "cannot tell".

    It disagrees if it lies further off than the tolerance and than chance takes it; it agrees if chance would have to
    take it further than the tolerance.

    Args:
        found: as measured.
        wanted: the exponent.
        tolerance: how far from it is no departure.
        threshold: normal score of what may be chance.
        at_most: any smaller exponent is as good.

    Example:
        >>> [judged(Slope(value, 0.02, 16), 0.0, 0.25, 4.0) for value in (0.05, 0.22, 0.49)]
        ['agrees', 'cannot tell', 'disagrees']
    """
    if math.isnan(found.value) or math.isnan(wanted):
        return CANNOT_TELL
    apart, chance = found.value - wanted, found.within(threshold)
    apart = apart if at_most else abs(apart)
    if apart > max(tolerance, chance):
        return DISAGREES
    return AGREES if apart + chance <= tolerance else CANNOT_TELL
