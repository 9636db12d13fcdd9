"""The error that names a bad value, and the checks that raise it."""

from __future__ import annotations

import difflib
import math
import numbers
import operator
import os
import sys
from typing import Any

THRESHOLD = 4.0
"""Largest |z| that still agrees, unless another is asked for."""
WHOLE = 2**53  # whole numbers up to here are exact as floats
SMALLEST, LARGEST = 1e-100, 1e100  # of numbers: products and squares of those between stay far from a float's ends
LONGEST = 1000  # letters of a message


class ModelError(ValueError):
    """A field that makes no sense: the message, one line, names the field, the value and what is allowed."""

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}")


def shown(value: Any) -> str:
    """A value for a message, whatever it is: whole numbers too long to print by their digits, the rest by its repr.

    Example:
        >>> shown("relu"), shown(10**5000)
        ("'relu'", 'a whole number of about 5001 digits')
    """
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"a whole number of about {int(value.bit_length() * math.log10(2)) + 1} digits"
    try:
        return repr(value)
    except Exception:  # of a class of somebody else's
        return f"a {type(value).__name__}"


def check_flag(name: str, value: Any) -> None:
    """ModelError unless it is True or False."""
    if not isinstance(value, bool):
        raise ModelError(f"{name} must be True or False, got {shown(value)}")


def choice(field: str, value: Any, allowed: tuple[str, ...]) -> None:
    """ModelError, with the nearest names, unless the value is one of those allowed."""
    if isinstance(value, str) and value in allowed:
        return
    given = shown(value)
    near = difflib.get_close_matches(given.strip("'")[:100].lower(), allowed, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ModelError(f"{field} must be one of {', '.join(allowed)}, got {given}{hint}")


def integer(field: str, value: Any, *, at_least: int = 1, at_most: int = WHOLE) -> int:
    """The value as an int; ModelError unless it is a whole number from `at_least` to `at_most`."""
    try:
        whole = operator.index(value)
    except Exception:  # TypeError, or whatever an array of them raises
        whole = None
    if whole is None or isinstance(value, bool):
        raise ModelError(f"{field} must be a whole number, got {shown(value)}")
    if whole < at_least:
        raise ModelError(f"{field} must be at least {at_least}, got {shown(value)}")
    if whole > at_most:
        raise ModelError(f"{field} must be at most {at_most}, got {shown(value)}")
    return whole


def number(field: str, value: Any, *, positive: bool) -> float:
    """The value as a float; ModelError unless it is finite, at least 0 or positive, and of a size that can be squared.

    Example:
        >>> number("logit_std", 1e300, positive=False)
        Traceback (most recent call last):
        propagate.checks.ModelError: logit_std must be at most 1e+100, got 1e+300
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ModelError(f"{field} must be a number, got {shown(value)}")
    try:
        plain = float(value)
    except OverflowError:
        plain = math.copysign(sys.float_info.max, _sign(value))
    if not math.isfinite(plain):
        raise ModelError(f"{field} must be finite, got {shown(value)}")
    if plain < 0 or (positive and value == 0):
        raise ModelError(f"{field} must be {'positive' if positive else 'at least 0'}, got {shown(value)}")
    if plain > LARGEST:
        raise ModelError(f"{field} must be at most {LARGEST:g}, got {shown(value)}")
    if plain < SMALLEST and value != 0:
        raise ModelError(f"{field} must be {'' if positive else '0 or '}at least {SMALLEST:g}, got {shown(value)}")
    return plain


def _sign(value: Any) -> int:
    return -1 if value < 0 else 1


def checked_threshold(threshold: float) -> float:
    """The threshold, if it is one.

    Raises:
        ModelError: unless it is a positive number.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < LARGEST:
        raise ModelError(f"threshold must be a positive number, got {shown(threshold)}")
    return float(threshold)


def memory_of_host() -> int:
    """Bytes of memory of this machine; where it does not say, as many as any has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**50


def check_memory(what: str, needed: float, most: int | None = None) -> None:
    """Before any work: ModelError if something needs more bytes than there are.

    Args:
        what: names the fields and values that it grows with.
        needed: bytes.
        most: bytes that there are; by default all that this machine has.

    Example:
        >>> check_memory("tokens=1000000 under a mask", 8e12, most=2**34)
        Traceback (most recent call last):
        propagate.checks.ModelError: tokens=1000000 under a mask needs 7.45e+03 GiB of memory, at most 16 GiB are there
    """
    there = memory_of_host() if most is None else most
    if needed > there:
        raise ModelError(f"{what} needs {needed / 2**30:.3g} GiB of memory, at most {there / 2**30:.3g} GiB are there")


def as_array(value: Any) -> Any:
    """What is an array already, or lists of numbers, as NumPy's; masks stay. Nothing else is counted out into one.

    Raises:
        TypeError: for anything else.

    Example:
        >>> as_array([[1, 2]]).shape
        (1, 2)
    """
    import numpy as np

    if not (isinstance(value, list | tuple) or hasattr(value, "__array__")):
        raise TypeError(f"got {type(value).__name__}")
    return np.asanyarray(value)
