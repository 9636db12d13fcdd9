"""Elementary functions that take floats, arrays and SymPy expressions alike.

The theory is written once. These few names look at their argument and pass it to `math`, NumPy or SymPy; plain floats
stay plain floats, because a thousand blocks of NumPy scalars are slow.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Scalar = Any
"""A float, a NumPy array or a SymPy expression."""
_PLAIN = (float, int)  # faster to ask than their union


def is_plain(*values: Scalar) -> bool:
    """Whether all values are plain numbers, the case that must be fast.

    Example:
        >>> is_plain(1.0, 2)
        True
    """
    for value in values:  # noqa: SIM110  # `all` takes twice as long
        if not isinstance(value, _PLAIN):
            return False
    return True


def is_symbolic(*values: Scalar) -> bool:
    """Whether any of the values is a SymPy expression, found out without importing SymPy.

    Example:
        >>> is_symbolic(1.0, np.ones(2))
        False
    """
    return any(hasattr(value, "free_symbols") for value in values)


def sqrt(x: Scalar) -> Scalar:
    """Square root."""
    if isinstance(x, _PLAIN):
        return math.sqrt(x)
    if is_symbolic(x):
        import sympy

        return sympy.sqrt(x)
    return np.sqrt(x)


def inverse(x: Scalar) -> Scalar:
    """1 / x of a variance.

    Raises:
        ZeroDivisionError: for a number, or any entry of an array, that is not positive.

    Example:
        >>> inverse(4.0)
        0.25
    """
    if x <= 0 if isinstance(x, _PLAIN) else not is_symbolic(x) and np.any(x <= 0):
        raise ZeroDivisionError("1 / a variance that is 0")
    return 1 / x


def arcsin(x: Scalar) -> Scalar:
    """Inverse sine."""
    if isinstance(x, _PLAIN):
        return math.asin(x)
    if is_symbolic(x):
        import sympy

        return sympy.asin(x)
    return np.arcsin(x)


def arctan(x: Scalar) -> Scalar:
    """Inverse tangent."""
    if isinstance(x, _PLAIN):
        return math.atan(x)
    if is_symbolic(x):
        import sympy

        return sympy.atan(x)
    return np.arctan(x)


def pi_like(x: Scalar) -> Scalar:
    """Pi, exact beside a SymPy expression."""
    if isinstance(x, float) or not is_symbolic(x):
        return math.pi
    import sympy

    return sympy.pi


def angle(variance: Scalar, deviation: Scalar) -> Scalar:
    """Angle between two tokens, arccos(1 - deviation / variance), without cancellation when they nearly coincide.

    Example:
        >>> round(angle(2.0, 2.0), 6), angle(0.0, 0.0)
        (1.570796, 0.0)
    """
    if is_plain(variance, deviation):
        if variance == 0:
            return 0.0
        return 2 * math.asin(math.sqrt(min(max(deviation / (2 * variance), 0.0), 1.0)))
    if is_symbolic(variance, deviation):
        import sympy

        return sympy.acos(1 - deviation / variance)
    return 2 * np.arcsin(np.sqrt(np.clip(deviation / (2 * variance), 0.0, 1.0)))


# sin x - x cos x = (x^3 / 3) sum_k (-x^2 / 2)^k / (k! 5 7 ... (2 k + 3))
_SERIES = (1.0, -1 / 10, 1 / 280, -1 / 15120, 1 / 1330560, -1 / 172972800)


def sine_less_angle_cosine(x: Scalar) -> Scalar:
    """sin x - x cos x, which is x^3 / 3 for small x, to full relative precision.

    Example:
        >>> round(sine_less_angle_cosine(1e-6) * 3e18, 9)
        1.0
    """
    if isinstance(x, float):
        return _small(x) if x < 0.4 else math.sin(x) - x * math.cos(x)
    if is_symbolic(x):
        import sympy

        return sympy.sin(x) - x * sympy.cos(x)
    return np.where(x < 0.4, _small(x), np.sin(x) - x * np.cos(x))


def _small(x: Scalar) -> Scalar:
    square, total = x * x, 0.0
    for coefficient in reversed(_SERIES):
        total = total * square + coefficient
    return x * square * total / 3


def chebyshev_terms(x: float, number: int) -> Array:
    """T_0(x) ... T_(number - 1)(x), of -1 <= x <= 1: for few terms faster than cosines of NumPy.

    Example:
        >>> chebyshev_terms(0.5, 4).tolist()
        [1.0, 0.5, -0.5, -1.0]
    """
    older, newer, twice = 1.0, x, 2 * x
    terms = [older, newer]
    for _ in range(number - 2):
        older, newer = newer, twice * newer - older
        terms.append(newer)
    return np.array(terms)
