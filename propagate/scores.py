"""What a difference between theory and measurement is worth, and what would not have been noticed. Numbers only.

Two uncertainties meet: a standard error, itself estimated from few draws, and an allowance, which is stated and as good
as its word. At a tail of normal score z the first counts t(z) times, Student's quantile with draws - 1 degrees of
freedom, and the second z times; both in quadrature. So few draws make a wide error bar wider, and leave an allowance
what it is. (Welch's effective degrees of freedom reject a right theory 150 times too often at two draws, where the
standard error is now and then small by chance; a test holds both to it.)
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LARGEST = 37.0  # the tail of a normal distribution beyond it is no float
GRID = np.linspace(0.0, LARGEST, 741)
HALVINGS = 50  # of the interval that holds z


def detectable(error: Floats, allowance: Floats, draws: int, z: float) -> Floats:
    """The smallest difference that is rejected where |z| must stay below a threshold.

    Args:
        error: standard errors, estimated from the draws; NaN if they are not known.
        allowance: stated uncertainty of what was predicted, as one standard deviation.
        draws: independent networks. One says nothing of its error.
        z: the threshold.

    Example: 4.3 standard errors of 64 draws, 33 of four, 10 000 of two; and always 4 allowances.
        >>> one, none = np.ones(1), np.zeros(1)
        >>> [round(detectable(one, none, draws, 4.0).item(), 1) for draws in (64, 4, 2, 1)]
        [4.3, 32.6, 10050.4, inf]
        >>> detectable(none, one, 2, 4.0).item()
        4.0
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _together(_student(draws, z), _known(error, draws), z, _known(allowance))


def score(difference: Floats, error: Floats, allowance: Floats, draws: int) -> Floats:
    """The z at which a difference would just be rejected, with its sign; at most 37. No difference scores 0.

    Example:
        >>> error, allowance = np.array([0.0, 1.0, 1.0]), np.array([1.0, 0.0, 1.0])
        >>> score(np.array([4.0, -32.6, np.inf]), error, allowance, draws=4).round(1)
        array([ 4., -4., 37.])
    """
    size, error, allowance = np.abs(difference), _known(error, draws), _known(allowance)
    low, high, quantiles = np.zeros(np.shape(size)), np.full(np.shape(size), LARGEST), _quantiles(draws)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            rejected = _together(np.interp(middle, GRID, quantiles), error, middle, allowance) <= size
            low, high = np.where(rejected, middle, low), np.where(rejected, high, middle)
    return np.asarray(np.where(size > 0, np.sign(difference) * high, 0.0))


def _together(student: Floats | float, error: Floats, normal: Floats | float, allowance: Floats) -> Floats:
    """No times what may be anything is no number, and is never rejected."""
    return np.asarray(np.hypot(student * error, normal * allowance))


def _known(uncertainty: Floats, draws: int = 2) -> Floats:
    """What is not known, or of one draw, may be anything."""
    return np.where(np.isnan(uncertainty) | (draws < 2), np.inf, uncertainty)


def _student(draws: int, z: Floats | float) -> Floats:
    """Student's quantile at the tail of a normal score."""
    from scipy import special  # scipy.stats has the same, and takes a second to load

    return np.asarray(-special.stdtrit(max(draws - 1, 1), special.ndtr(-np.asarray(z))))


@lru_cache(maxsize=64)
def _quantiles(draws: int) -> Floats:
    return _student(draws, GRID)
