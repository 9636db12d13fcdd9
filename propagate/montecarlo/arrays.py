"""The type of arrays, wherever they live."""

from __future__ import annotations

from typing import Any, TypeAlias

Array: TypeAlias = Any
"""A numpy.ndarray or a cupy.ndarray: the code does not care which."""
