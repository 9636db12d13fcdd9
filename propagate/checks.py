"""The error that names a bad value, and the checks that raise it."""

from __future__ import annotations

import difflib
import math
import numbers
import operator
from typing import Any

THRESHOLD = 4.0
"""Largest |z| that still agrees, unless another is asked for."""


class ModelError(ValueError):
    """A field that makes no sense: the message, one line, names the field, the value and what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def check_flag(name: str, value: Any) -> None:
    """ModelError unless it is True or False."""
    if not isinstance(value, bool):
        raise ModelError(f"{name} must be True or False, got {value!r}")


def choice(field: str, value: Any, allowed: tuple[str, ...]) -> None:
    """ModelError, with the nearest names, unless the value is one of those allowed."""
    if value in allowed:
        return
    near = difflib.get_close_matches(str(value).lower(), allowed, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ModelError(f"{field} must be one of {', '.join(allowed)}, got {value!r}{hint}")


def integer(field: str, value: Any, *, at_least: int = 1, at_most: int | None = None) -> int:
    """The value as an int; ModelError unless it is a whole number from `at_least` to `at_most`."""
    try:
        whole = operator.index(value)
    except TypeError:
        whole = None
    if whole is None or isinstance(value, bool):
        raise ModelError(f"{field} must be a whole number, got {value!r}")
    if whole < at_least:
        raise ModelError(f"{field} must be at least {at_least}, got {value!r}")
    if at_most is not None and whole > at_most:
        raise ModelError(f"{field} must be at most {at_most}, got {value!r}")
    return whole


def number(field: str, value: Any, *, positive: bool) -> float:
    """The value as a float; ModelError unless it is finite and at least 0, or positive."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ModelError(f"{field} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ModelError(f"{field} must be finite, got {value!r}")
    if value < 0 or (positive and value == 0):
        raise ModelError(f"{field} must be {'positive' if positive else 'at least 0'}, got {value!r}")
    return float(value)


def checked_threshold(threshold: float) -> float:
    """The threshold, if it is one.

    Raises:
        ModelError: unless it is a positive number.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not threshold > 0:
        raise ModelError(f"threshold must be a positive number, got {threshold!r}")
    return float(threshold)
