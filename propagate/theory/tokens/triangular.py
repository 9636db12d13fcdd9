"""Products with matrices whose rows see only the first columns, as attention's weights do under a causal mask.

Half of such a matrix is zeros. It is cut, rows and columns alike, into a few blocks, so that a block of rows sees no
column behind its own; products leave the zeros out, and of symmetric ones the upper half. A full matrix is one block.

Matrices are (..., tokens, tokens), and `ends` says where the blocks of A end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 32  # rows at least: smaller products take longer than the zeros that they leave out

Matrix = NDArray[Any]
Ends = tuple[int, ...]


def ends_of(seen: Matrix, block: int = BLOCK) -> Ends:
    """Ends of blocks of so many rows or more, of a matrix that is nonzero where it is `seen`.

    Example: a causal mask has as many blocks as one likes; the last row of a full one is like the first.
        >>> ends_of(np.tri(6), 2), ends_of(np.ones((6, 6)), 2)
        ((2, 4, 6), (6,))
    """
    tokens = len(seen)
    behind = (seen[:, ::-1] > 0).argmax(axis=1)  # tokens that come after the last that is seen
    possible = np.flatnonzero(np.minimum.accumulate(behind) >= np.arange(tokens)[::-1]) + 1
    ends = [0]
    for end in possible.tolist():
        if end - ends[-1] >= block and tokens - end >= block:
            ends.append(end)
    return (*ends[1:], tokens)


def blocks(ends: Ends) -> Iterator[tuple[int, int]]:
    """Where each begins and ends."""
    return zip((0, *ends), ends, strict=False)


def times(a: Matrix, m: Matrix, ends: Ends) -> Matrix:
    """A M.

    Example:
        >>> a, m = np.tri(2), np.array([[1.0, 2.0], [3.0, 4.0]])
        >>> times(a, m, (1, 2)).tolist(), times_transposed(m, a, (1, 2)).tolist()
        ([[1.0, 2.0], [4.0, 6.0]], [[1.0, 3.0], [3.0, 7.0]])
    """
    found = _room(a, m)
    for start, end in blocks(ends):
        np.matmul(a[..., start:end, :end], m[..., :end, :], out=found[..., start:end, :])
    return found


def times_transposed(m: Matrix, a: Matrix, ends: Ends) -> Matrix:
    """M A^T."""
    found = _room(a, m)
    for start, end in blocks(ends):
        np.matmul(m[..., :end], _turned(a[..., start:end, :end]), out=found[..., start:end])
    return found


def after(m: Matrix, a: Matrix, ends: Ends) -> Matrix:
    """M A.

    Example:
        >>> a, m = np.tri(2), np.array([[1.0, 2.0], [3.0, 4.0]])
        >>> after(m, a, (1, 2)).tolist(), transposed_times(a, m, (1, 2)).tolist()
        ([[3.0, 2.0], [7.0, 4.0]], [[4.0, 6.0], [3.0, 4.0]])
    """
    found = _room(a, m)
    for start, end in blocks(ends):
        np.matmul(m[..., start:], a[..., start:, start:end], out=found[..., start:end])
    return found


def transposed_times(a: Matrix, m: Matrix, ends: Ends) -> Matrix:
    """A^T M."""
    found = _room(a, m)
    for start, end in blocks(ends):
        np.matmul(_turned(a[..., start:, start:end]), m[..., start:, :], out=found[..., start:end, :])
    return found


def rows_met(made: Matrix, a: Matrix, ends: Ends, sign: int = 1) -> Matrix:
    """A M A^T, from `made` = A M; symmetric or, with the sign -1, antisymmetric. Of A M the blocks on and below the
    diagonal are read.

    Example:
        >>> a, m = np.tri(2), np.array([[1.0, 2.0], [2.0, 4.0]])
        >>> rows_met(times(a, m, (1, 2)), a, (1, 2)).tolist(), columns_met(after(m, a, (1, 2)), a, (1, 2)).tolist()
        ([[1.0, 3.0], [3.0, 9.0]], [[9.0, 6.0], [6.0, 4.0]])
    """
    found = _room(made, a)
    for start, end in blocks(ends):
        np.matmul(made[..., start:, :end], _turned(a[..., start:end, :end]), out=found[..., start:, start:end])
        _mirror(found, start, end, sign)
    return found


def columns_met(made: Matrix, a: Matrix, ends: Ends, sign: int = 1) -> Matrix:
    """A^T M A, from `made` = M A; symmetric or antisymmetric. The blocks on and below the diagonal are read."""
    found = _room(made, a)
    for start, end in blocks(ends):
        np.matmul(_turned(a[..., start:, start:end]), made[..., start:, :end], out=found[..., start:end, :end])
    for start, end in blocks(ends):
        _mirror(found, start, end, sign)
    return found


def of_rows(a: Matrix, m: Matrix, ends: Ends) -> Matrix:
    """A M A^T, M symmetric."""
    made = _room(a, m)
    for start, end in blocks(ends):
        np.matmul(a[..., start:end, :end], m[..., :end, :end], out=made[..., start:end, :end])
    return rows_met(made, a, ends)


def of_columns(a: Matrix, m: Matrix, ends: Ends) -> Matrix:
    """A^T M A, M symmetric."""
    made = _room(a, m)
    for start, end in blocks(ends):
        np.matmul(m[..., start:, start:], a[..., start:, start:end], out=made[..., start:, start:end])
    return columns_met(made, a, ends)


def _room(one: Matrix, other: Matrix) -> Matrix:
    """For a product of two square matrices."""
    return np.empty(np.broadcast_shapes(one.shape, other.shape), dtype=np.result_type(one, other))


def _mirror(found: Matrix, start: int, end: int, sign: int) -> None:
    """The block's rows behind the diagonal, from its columns."""
    if end < found.shape[-1]:
        np.multiply(_turned(found[..., end:, start:end]), sign, out=found[..., start:end, end:])


def _turned(matrix: Matrix) -> Matrix:
    return matrix.swapaxes(-1, -2)
