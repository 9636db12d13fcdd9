"""Factors of token arrays: x = root @ rows with orthonormal rows, for nearly equal and exactly equal tokens too.

Cholesky of the Gram matrix of the tokens' successive differences, each scaled to length 1; Householder QR of the same
differences, draw by draw, where that matrix is close to singular or there are more tokens than coordinates. Tokens
that collapse onto one another have small differences, but their directions are those of any other tokens, so collapse
costs neither accuracy nor the fast way. Equal tokens give a difference of zero and a row of zeros. Rounding is relative
to each difference: of a token much shorter than its neighbours less is kept than of theirs.

Why these: `benchmarks/factors.py` times the candidates and measures their errors. At 1 - correlation = 1e-12 the
deviation that plain Cholesky or eigh keep is wrong by 1e-3 to 1, because the Gram matrix holds it squared; here, as
with QR, by 1e-10. The slow way is rare but for causal masks with collapse, where deviations collapse onto one
direction in turn: half of all factors of a causal PostNorm of 64 blocks take it, mostly those of cotangents.
QR costs 1.2 to 4 times as much on a CPU, most with many tokens, and loops over draws in CuPy.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np

from propagate.montecarlo.arrays import Array

COLUMNS = 2**12
SOUND = 1e6  # largest trace of the inverse Gram matrix: the rows are then orthonormal to 1e-16 times it or better


class Factor(NamedTuple):
    """x = root @ change @ basis, with orthonormal rows change @ basis.

    Attributes:
        root: (draws, tokens, rank), float64.
        change: (draws, rank, tokens or rank), float64.
        basis: (draws, tokens or rank, coordinates), of the type of x.
    """

    root: Array
    change: Array
    basis: Array


def factor(xp: ModuleType, x: Array) -> Factor:
    """Factors of token arrays of shape (draws, tokens, coordinates).

    The rows are orthonormal, with zeros where `root` has a column of zeros. rank is the smaller of tokens and
    coordinates, whatever the rank of x. Each draw's factors depend on that draw alone.

    Example: tokens that differ by a millionth.
        >>> x = np.array([[[1.0, 1.0, 1.0], [1.0, 1.0, 1.000001]]])
        >>> root, change, basis = factor(np, x)
        >>> rows = change @ basis
        >>> bool(abs(root @ rows - x).max() < 1e-15), bool(abs(rows @ rows.swapaxes(-1, -2) - np.eye(2)).max() < 1e-9)
        (True, True)
    """
    root, change, basis = factor_of_rows(xp, differences(xp, x))
    return Factor(xp.cumsum(root, axis=-2), change, basis)


def factor_of_rows(xp: ModuleType, rows: Array) -> Factor:
    """The same of rows that are to be kept apart already, as differences of tokens are; it may write over them.

    Example: a row of zeros stays one.
        >>> root, change, basis = factor_of_rows(np, np.array([[[0.0, 0.0], [3.0, 4.0]]]))
        >>> root.tolist(), (change @ basis).round(12).tolist()
        ([[[0.0, 0.0], [0.0, 5.0]]], [[[0.0, 0.0], [0.6, 0.8]]])
    """
    root, inverse, sound = _cholesky_of_rows(xp, rows)
    if inverse is None:
        root, basis = _householder(xp, rows)
        return Factor(root, xp.tile(xp.eye(root.shape[-1]), (len(rows), 1, 1)), basis)
    if not sound.all():
        root[~sound], rows[~sound] = _householder(xp, rows[~sound])
        inverse[~sound] = xp.eye(rows.shape[-2])
    return Factor(root, inverse, rows)


def differences(xp: ModuleType, x: Array) -> Array:
    """The first token and every other less the one before it.

    Example:
        >>> differences(np, np.array([[[1.0], [3.0], [6.0]]])).tolist()
        [[[1.0], [2.0], [3.0]]]
    """
    found = xp.empty(x.shape, dtype=x.dtype)
    found[:, 0] = x[:, 0]
    xp.subtract(x[:, 1:], x[:, :-1], out=found[:, 1:])
    return found


def root_of(xp: ModuleType, x: Array) -> Array:
    """`factor` without the rows: root @ root^T = x @ x^T.

    Example:
        >>> root_of(np, np.array([[[3.0, 4.0], [3.0, 4.0]]])).tolist()
        [[[5.0, 0.0], [5.0, 0.0]]]
    """
    rows = differences(xp, x)
    root, inverse, sound = _cholesky_of_rows(xp, rows)
    if inverse is None:
        root = _householder_root(xp, rows)
    elif not sound.all():
        root[~sound] = _householder_root(xp, rows[~sound])
    return xp.cumsum(root, axis=-2)


def _cholesky_of_rows(xp: ModuleType, rows: Array) -> tuple[Array, Array | None, Array]:
    """Root and inverse root of the rows' Gram matrix, and in which draws that is sound.

    The two roots are None where there are more rows than coordinates.
    """
    draws, tokens, coordinates = rows.shape
    if tokens > coordinates:
        return None, None, xp.zeros(draws, dtype=bool)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # such draws are not sound
        gram = _gram(xp, rows)
        length = xp.sqrt(xp.diagonal(gram, axis1=-2, axis2=-1))
        zero = length == 0
        scale = xp.where(zero, 1.0, length)
        gram /= scale[..., :, None] * scale[..., None, :]
        gram += zero[..., None] * xp.eye(tokens)
        lower, sound = _cholesky(xp, gram)
        inverse = xp.linalg.inv(lower)
        sound &= (inverse * inverse).sum(axis=(-1, -2)) <= SOUND
        return length[..., None] * lower, inverse / scale[..., None, :], sound


def _gram(xp: ModuleType, x: Array) -> Array:
    """x @ x^T in float64, a few columns at a time where that needs a copy."""
    if x.dtype == np.float64:
        return x @ x.swapaxes(-1, -2)
    total = xp.zeros((*x.shape[:-1], x.shape[-2]))
    for start in range(0, x.shape[-1], COLUMNS):
        part = x[..., start : start + COLUMNS].astype(np.float64)
        total += part @ part.swapaxes(-1, -2)
    return total


def _cholesky(xp: ModuleType, gram: Array) -> tuple[Array, Array]:
    """Lower triangular roots, and in which draws there is one; the identity stands in for the others."""
    try:
        lower = xp.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        lower = xp.stack([_cholesky_or_nan(xp, one) for one in gram])
    # LAPACK leaves the pivot that failed on the diagonal
    sound = (xp.diagonal(lower, axis1=-2, axis2=-1) > 0).all(axis=-1) & xp.isfinite(lower).all(axis=(-1, -2))
    return xp.where(sound[:, None, None], lower, xp.eye(gram.shape[-1])), sound


def _cholesky_or_nan(xp: ModuleType, gram: Array) -> Array:
    try:
        return xp.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        return xp.full_like(gram, xp.nan)


def _householder(xp: ModuleType, x: Array) -> tuple[Array, Array]:
    columns, upper = xp.linalg.qr(x.swapaxes(-1, -2))
    sign = _signs(xp, upper)
    return (sign * upper).swapaxes(-1, -2), (columns * sign.swapaxes(-1, -2)).swapaxes(-1, -2)


def _householder_root(xp: ModuleType, x: Array) -> Array:
    upper = xp.linalg.qr(x.swapaxes(-1, -2), mode="r")
    return (_signs(xp, upper) * upper).swapaxes(-1, -2)


def _signs(xp: ModuleType, upper: Array) -> Array:
    """That make the diagonal positive, as Cholesky's is: a fallback must not be another network."""
    diagonal = xp.diagonal(upper, axis1=-2, axis2=-1)
    return xp.where(diagonal < 0, -1.0, 1.0)[..., None]
