"""Which tokens a token attends to: any boolean matrix, as part of a network's frozen description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from propagate.checks import as_array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Visible: TypeAlias = "NDArray[np.bool_]"


@dataclass(frozen=True, repr=False)
class Mask:
    """A (tokens, tokens) boolean matrix, row t telling which tokens token t attends to; hashable.

    Raises:
        ValueError: unless it is a square matrix of booleans (or of 0 and 1), true somewhere in every row.

    Example:
        >>> mask = Mask.of([[True, False], [True, True]])
        >>> mask
        Mask(2 tokens, 3 visible, sha256 f4f97c88)
        >>> mask.array.tolist()
        [[True, False], [True, True]]
    """

    rows: tuple[tuple[bool, ...], ...]

    @classmethod
    def of(cls, values: Any) -> Mask:
        """From anything NumPy reads as a matrix, or a Mask itself."""
        if isinstance(values, Mask):
            return values
        import numpy as np

        try:
            array = as_array(values)
        except Exception:  # rows of unequal length, or whatever somebody else's conversion raises
            raise ValueError(f"a square boolean matrix, got {type(values).__name__}") from None
        if array.ndim != 2 or array.shape[0] != array.shape[1]:
            raise ValueError(f"a square boolean matrix, got shape {array.shape}")
        if array.dtype != bool and not (array.dtype.kind in "iu" and np.isin(array, (0, 1)).all()):
            raise ValueError(f"a matrix of True and False, got entries of type {array.dtype}")
        empty = np.flatnonzero(~array.astype(bool).any(axis=1))
        if len(empty):
            raise ValueError(f"true somewhere in every row, got none in row {empty[0]}")
        return cls(tuple(tuple(row) for row in array.astype(bool).tolist()))

    @property
    def array(self) -> Visible:
        import numpy as np

        return np.array(self.rows)

    def __repr__(self) -> str:
        import hashlib

        import numpy as np

        array = self.array
        digest = hashlib.sha256(np.packbits(array).tobytes()).hexdigest()[:8]
        return f"Mask({len(array)} tokens, {array.sum()} visible, sha256 {digest})"


def visible(tokens: int, causal: bool, window: int | None, mask: Mask | None) -> Visible:
    """Which token (row) sees which (column).

    Example: a window of 2 tokens, the token itself and the one before.
        >>> visible(3, True, 2, None).astype(int).tolist()
        [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    import numpy as np

    if mask is not None:
        return mask.array
    lag = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    seen = lag >= 0 if causal else np.ones_like(lag, dtype=bool)
    return np.asarray(seen if window is None else seen & (lag < window))


def all_visible(tokens: int, causal: bool, mask: Mask | None) -> bool:
    """Whether every token sees every other, from the description alone: no (tokens, tokens) array is built.

    Example:
        >>> all_visible(20_000, False, None), all_visible(20_000, True, None), all_visible(1, True, None)
        (True, False, True)
    """
    if mask is not None:
        return all(all(row) for row in mask.rows)
    return tokens == 1 or not causal
