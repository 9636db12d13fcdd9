"""Laws of weight matrices, each made of the standard normals of a site, so that (seed, draw, site) names the matrix.

Entries have mean 0 and variance 1 / fan_in under every law. With independent entries (normal, uniform, truncated
normal) the wide limit of the moments is one and the same, and so it is for orthogonal matrices, whose rows are
independent in the limit; laws differ in the corrections of order 1 / width. Sources: `torch.nn.init`; for orthogonal
matrices Saxe et al. 2013 (arXiv:1312.6120).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import Backend
from propagate.montecarlo.normals import Normals

Law = Callable[[Normals, int, int, int], Array]
"""(normals, site, fan_in, fan_out) -> an array of shape (draws, fan_in, fan_out)."""

CUT = 2.0  # standard deviations of the normal that is truncated, as in torch.nn.init.trunc_normal_
_INSIDE = math.erf(CUT / math.sqrt(2))
_DENSITY = math.exp(-CUT * CUT / 2) / math.sqrt(2 * math.pi)
TRUNCATED_STD = math.sqrt(1 - 2 * CUT * _DENSITY / _INSIDE)  # of a standard normal cut at +-CUT


def normal(normals: Normals, site: int, fan_in: int, fan_out: int) -> Array:
    """Independent normal entries.

    Example:
        >>> from propagate.montecarlo.backend import choose_backend
        >>> normal(Normals(choose_backend("numpy"), seed=0, draws=range(2)), site=64, fan_in=3, fan_out=5).shape
        (2, 3, 5)
    """
    weight = normals(site, (fan_in, fan_out))
    weight *= fan_in**-0.5
    return weight


def uniform(normals: Normals, site: int, fan_in: int, fan_out: int) -> Array:
    """Independent entries, uniform between -sqrt(3 / fan_in) and sqrt(3 / fan_in).

    Example:
        >>> from propagate.montecarlo.backend import choose_backend
        >>> weight = uniform(Normals(choose_backend("numpy"), seed=0, draws=range(1)), site=64, fan_in=3, fan_out=500)
        >>> bool(abs(weight).max() < 1), round(3 * float((weight**2).mean()), 1)
        (True, 1.0)
    """
    weight = _symmetric_uniform(normals, site, fan_in, fan_out)
    weight *= math.sqrt(3 / fan_in)
    return weight


def truncated_normal(normals: Normals, site: int, fan_in: int, fan_out: int) -> Array:
    """Independent normal entries, cut at two standard deviations and rescaled to variance 1 / fan_in.

    `torch.nn.init.trunc_normal_(w, std=s, a=-2 * s, b=2 * s)` leaves entries of standard deviation 0.8796 s; here it
    is s = fan_in^-1/2 after the cut.

    Example:
        >>> from propagate.montecarlo.backend import choose_backend
        >>> host = choose_backend("numpy")
        >>> weight = truncated_normal(Normals(host, seed=0, draws=range(1)), site=64, fan_in=4, fan_out=500)
        >>> bool(abs(weight).max() < 1 / TRUNCATED_STD), round(TRUNCATED_STD, 4)
        (True, 0.8796)
    """
    weight = _symmetric_uniform(normals, site, fan_in, fan_out)
    weight *= _INSIDE
    weight = _inverse_erf(normals.backend)(weight)  # the quantile function of the normal law, less a factor sqrt(2)
    weight *= math.sqrt(2 / fan_in) / TRUNCATED_STD
    return weight


def orthogonal(normals: Normals, site: int, fan_in: int, fan_out: int) -> Array:
    """Orthonormal rows or columns, whichever are fewer, uniform among such matrices (Haar), times a number.

    The number makes entries of variance 1 / fan_in: sqrt(fan_out / fan_in) for orthonormal rows, which keep the
    tokens' Gram matrix exactly, and 1 for orthonormal columns. A sublayer's query, key and value projections are one
    matrix, as is a gated FFN's input projection. Needs a QR factorisation a matrix: the slowest law.

    Example:
        >>> from propagate.montecarlo.backend import choose_backend
        >>> weight = orthogonal(Normals(choose_backend("numpy"), seed=0, draws=range(1)), site=64, fan_in=2, fan_out=4)
        >>> (weight[0] @ weight[0].T).round(12).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    xp = normals.backend.xp
    tall = normals(site, (max(fan_in, fan_out), min(fan_in, fan_out)))
    columns, upper = xp.linalg.qr(tall)
    # LAPACK's choice of signs is not uniform; the triangle's diagonal undoes it (Mezzadri 2007, arXiv:math-ph/0609050)
    columns *= xp.where(xp.diagonal(upper, axis1=-2, axis2=-1) < 0, -1.0, 1.0).astype(tall.dtype)[:, None, :]
    if fan_in > fan_out:
        return columns
    return columns.swapaxes(-1, -2) * math.sqrt(fan_out / fan_in)


LAWS: dict[str, Law] = {
    "normal": normal,
    "uniform": uniform,
    "truncated_normal": truncated_normal,
    "orthogonal": orthogonal,
}


def _symmetric_uniform(normals: Normals, site: int, fan_in: int, fan_out: int) -> Array:
    """Uniform between -1 and 1: the distribution function of normals, which is uniform, stretched."""
    weight = normals(site, (fan_in, fan_out))
    weight *= math.sqrt(0.5)
    return normals.backend.erf(weight)


def _inverse_erf(backend: Backend) -> Any:
    special = importlib.import_module("cupyx.scipy.special" if backend.name == "cupy" else "scipy.special")
    return special.erfinv
