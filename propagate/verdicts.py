"""The three verdicts: theory and measurement agree, they disagree, or the measurement cannot tell."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

AGREES, DISAGREES, CANNOT_TELL = "agrees", "disagrees", "cannot tell"
RESOLUTION = 0.2
"""Relative error that a measurement must be able to reject before it may agree, unless another is asked for."""

Floats = NDArray[np.float64]


def of_quantity(z: Floats, unresolved: Floats, threshold: float, resolution: float) -> str:
    """The verdict on one quantity.

    Args:
        z: its scores; NaN where there is nothing to compare.
        unresolved: at each of them, the relative error beyond which every other theory would have been rejected too:
            how far theory and measurement lie apart, and the smallest difference that is rejected. NaN where nothing
            need be compared.
        threshold: largest |z| that still agrees.
        resolution: largest `unresolved` with which it does.

    Example: two right theories, one measured well and one badly; a wrong one; and nothing at all.
        >>> z = np.array([1.0, -2.0])
        >>> of_quantity(z, np.array([0.1, 0.1]), 4.0, 0.2), of_quantity(z, np.array([0.1, 0.9]), 4.0, 0.2)
        ('agrees', 'cannot tell')
        >>> of_quantity(5 * z, np.array([0.1, 0.9]), 4.0, 0.2), of_quantity(np.nan * z, np.nan * z, 4.0, 0.2)
        ('disagrees', 'cannot tell')
    """
    if (np.abs(z) >= threshold).any():
        return DISAGREES
    told = not np.isnan(z).all() and not (unresolved > resolution).any()
    return AGREES if told else CANNOT_TELL


def together(verdicts: Iterable[str]) -> str:
    """The verdict on all quantities: the worst.

    Example:
        >>> together(["agrees", "cannot tell"]), together(["cannot tell", "disagrees"]), together(["agrees"])
        ('cannot tell', 'disagrees', 'agrees')
    """
    found = set(verdicts)
    return next((verdict for verdict in (DISAGREES, CANNOT_TELL) if verdict in found), AGREES)
