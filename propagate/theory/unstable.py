"""Tokens that add up to nothing, or next to it: what finite networks leave of their mean, and what blocks make of it.

In the limit tokens of covariance -variance / (tokens - 1) keep a mean of 0. Norms of finite width divide each token by
a length of its own, and leave about 1 / width of the variance to the mean, which attention passes on while it averages
the rest away: in twelve blocks of PostNorm with linear FFNs, width 128, what stays at covariance -0.33 in the limit
collapses to 0.56 in networks. Cotangents meet the same. Further walks, from starts with that much of a mean and with
a quarter of it, tell what becomes of it: what they differ by is allowed for, and told in words where it is much.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from propagate.quantities import column_of
from propagate.theory.pairs.moments import Moments
from propagate.theory.tokens.gram import Gram
from propagate.theory.validity import ValidityWarning

MOMENTS = ("variance", "covariance", "grad_variance", "grad_covariance")

LEAKS = (1.0, 2.0)
"""Of the variance, over the width: to the mean of tokens, and to that of cotangents. Measured in one block of PostNorm
and SpanNorm with 4 and 12 tokens: 0.4 and, with attention's doubling, 4."""
SIZES = (0.25, 1.0)  # two, since a quantity may cross what it was on its way
FEW = 20.0  # a mean of so many leaks is not moved by one
MUCH = 0.2

Array = NDArray[Any]
Start = TypeVar("Start", Moments, Gram)


def starts_with_leaks(
    ends: tuple[Start, Start], leak: Callable[[Start, float], Start | None], width: int
) -> Iterator[tuple[Start, Start]]:
    """Both ends again, for every size of a leak at either that has next to no mean."""
    for which in (0, 1):
        for size in SIZES:
            leaking = leak(ends[which], size * LEAKS[which] / width)
            if leaking is not None:
                yield (leaking, ends[1]) if which == 0 else (ends[0], leaking)


def with_leak(moments: Moments, leak: float, tokens: int) -> Moments | None:
    """The same variance with a leak of it in the mean of the tokens; None where that adds next to nothing.

    Args:
        moments: of exchangeable tokens.
        leak: share of the variance.
        tokens: how many.

    Example: three tokens that add up to nothing, and three that do not.
        >>> with_leak(Moments(1.0, 1.5), 0.01, 3).covariance > -0.5, with_leak(Moments(1.0, 1.0), 0.01, 3)
        (True, None)
    """
    variance, mean = np.asarray(moments.variance), tokens * np.asarray(moments.mean_mode(tokens))
    near = (variance > 0) & (mean < FEW * leak * variance)
    if tokens == 1 or not near.any():
        return None
    deviation = np.where(near, moments.deviation / (1 + leak / tokens), moments.deviation)
    return Moments(moments.variance, float(deviation) if deviation.ndim == 0 else deviation)


def gram_with_leak(gram: Gram, leak: float) -> Gram | None:
    """The same of a Gram matrix, whose mean variance is kept.

    Example:
        >>> gram = Gram.of([[1.0, -1.0], [-1.0, 1.0]])
        >>> gram_with_leak(gram, 0.01).matrix.round(3).tolist(), gram_with_leak(Gram.of(np.eye(2)), 0.01)
        ([[1.0, -0.99], [-0.99, 1.0]], None)
    """
    tokens, total = len(gram.matrix), float(gram.variance.sum())
    if tokens == 1 or not (total > 0 and float(gram.matrix.sum()) < FEW * leak * total):
        return None
    return Gram.of((gram.matrix + leak * total / tokens**2) / (1 + leak / tokens))


def allowing(columns: dict[str, Array], leaking: Iterable[dict[str, Array]]) -> dict[str, Array]:
    """The columns, with allowances that also hold what leaks make of them: what was off at a block stays so behind it.

    Args:
        columns: of a table, with `<name>_allowance`.
        leaking: the same from other starts.

    Warns:
        ValidityWarning: where that is much.

    Example: of a covariance it is relative to the variance.
        >>> of = {"variance": np.ones(2), "covariance": -np.ones(2), "covariance_allowance": np.full(2, 0.1)}
        >>> allowing(of, [of | {"covariance": np.array([-1.0, -0.9])}])["covariance_allowance"].round(6).tolist()
        [0.1, 0.2]
    """
    moved = [_moved(columns, other) for other in leaking]
    found, names = dict(columns), dict.fromkeys(name for one in moved for name in one)
    for name in names:
        found[f"{name}_allowance"] = columns[f"{name}_allowance"] + sum(one[name] for one in moved)
    most = max((float(np.max(one[name])) for one in moved for name in one if name in MOMENTS), default=0.0)
    if most > MUCH:
        warnings.warn(
            "tokens, or their cotangents, add up to next to nothing: networks of finite width leave about 1 / width of"
            f" the variance to their mean, which grows on its way and changes what is predicted by {100 * most:.2g} %,"
            " as the allowances say",
            ValidityWarning,
            stacklevel=4,
        )
    return found


def _moved(columns: dict[str, Array], leaking: dict[str, Array]) -> dict[str, Array]:
    """Of every quantity with an allowance the largest change on the way from its end, at every block."""
    found = {}
    for name, values in columns.items():
        quantity, kind = column_of(name)
        if kind != "value" or name not in leaking or f"{name}_allowance" not in columns:
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            if quantity.positive:
                moved = np.abs(np.log(leaking[name] / values))
            else:
                moved = np.abs(leaking[name] - values) / columns[str(quantity.relative_to)]
        way = slice(None, None, -1 if name.startswith("grad_") else 1)
        onwards = np.where(np.isfinite(moved), moved, 0.0)[way]
        onwards[0] = 0.0  # what is given is exact
        found[name] = np.maximum.accumulate(onwards, axis=0)[way]
    return found
