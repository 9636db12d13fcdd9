"""What enters a network at its two ends: moments, Gram matrices or arrays. Every verb takes one."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from propagate.checks import ModelError, check_flag, choice, shown
from propagate.table import BY_MATRIX, JOINED, STREAM

if TYPE_CHECKING:
    import xarray as xr


IN_PLACE_OF = {
    "gram": ("variance", "covariance"),
    "grad_gram": ("grad_variance", "grad_covariance"),
    "inputs": ("variance", "covariance", "gram"),
}
"""Fields of a Start that say all that others would."""


@dataclass(frozen=True)
class Start:
    """The embedded tokens and the cotangent at the other end. Its values are checked by the verb that it is given to.

    Attributes:
        variance: second moment of the embedded tokens, E x_t^2.
        covariance: that between two of them, E x_t x_s.
        grad_variance: second moment of the gradient at the last block, E g_t^2.
        grad_covariance: that between two tokens, E g_t g_s.
        gram: (tokens, tokens) second moments of the embedded tokens, in place of the two numbers.
        grad_gram: the same of the gradient.
        inputs: (tokens, width) the tokens themselves, in place of `variance` and `covariance`; or those of every
            draw, (draws, tokens, width).

    Example: it is also a mapping, of what is not as by default.
        >>> dict(Start(variance=2.0))
        {'variance': 2.0}
    """

    variance: Any = 1.0
    covariance: Any = 0.0
    grad_variance: Any = 1.0
    grad_covariance: Any = 0.0
    gram: Any = None
    grad_gram: Any = None
    inputs: Any = None

    @classmethod
    def of(cls, start: Any, **given: Any) -> Start:
        """From a Start, a mapping or None, and what was given beside it, which must not say the same twice.

        Where names are given, start may hold these alone; else any field.

        Raises:
            ModelError: for anything else, or a field that both give.

        Example:
            >>> Start.of(None, variance=2.0, covariance=0.0).variance
            2.0
        """
        given = given or {field.name: field.default for field in dataclasses.fields(cls)}
        said = cls(**given)
        if start is None:
            return said._once()
        if not isinstance(start, Start | Mapping):
            raise ModelError(f"start must be a propagate.Start, got {shown(start)}")
        unknown = [name for name in start if name not in given]
        if unknown:
            raise ModelError(f"start must hold {', '.join(given)}, got {shown(unknown[0])}")
        twice = [name for name in start if name in said]
        if twice:
            raise ModelError(f"{twice[0]} must be given in start or beside it, not in both")
        return cls(**{**given, **{name: start[name] for name in start}})._once()

    def _once(self) -> Start:
        """Itself; ModelError where two fields say the same end."""
        for whole, parts in IN_PLACE_OF.items():
            twice = [name for name in self if name in parts]
            if getattr(self, whole) is not None and twice:
                raise ModelError(f"{whole} stands in place of {twice[0]}: give one of them, not both")
        return self

    def keys(self) -> list[str]:
        """Names of the fields that are not as by default."""
        fields = dataclasses.fields(self)
        return [f.name for f in fields if not _same(getattr(self, f.name), f.default)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


def included(include: Collection[str], known: tuple[str, ...], **flags: bool | None) -> frozenset[str]:
    """What else a verb is asked for, by name or by a flag of an older version.

    Raises:
        ModelError: for what is no set of known names.

    Example:
        >>> sorted(included(["calls", "param_grad"], ("calls", "param_grad")))
        ['calls', 'param_grad']
    """
    if isinstance(include, str) or not isinstance(include, Collection):
        raise ModelError(f"include must be a set of names, got {shown(include)}")
    for name in include:
        choice("include", name, known)
    asked = set(include)
    for name, flag in flags.items():
        if flag is not None:
            check_flag(name, flag)
            new = {"parameter_gradients": BY_MATRIX}.get(name, name)
            warnings.warn(f'{name}= is deprecated: include={{"{new}"}} says it', DeprecationWarning, stacklevel=3)
            asked |= {new} if flag else set()
    return frozenset(asked)


def _same(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, int | float) and value is not True and value == default)


UNEVEN = 2.0
"""A token's variance over their mean, or its inverse, from which on tokens are not alike."""
GRAMS = ("gram", "grad_gram")


def start_of(measured: xr.Dataset, *, each_token: bool | None = None) -> Start:
    """The moments at a table's two ends, from which `predict` and `simulate` start there.

    Of several streams, those of what they are made of and of what joins them; of one token, no covariances.

    Args:
        measured: a table of `predict`, `simulate` or `trace`.
        each_token: whether every token has its own moments, by the Gram matrices that `trace` keeps. By default where
            the variance of a token at block 0 is not within a factor of 2 of their mean, beyond what chance makes: the
            class token of a model of images is the same small vector in every image.

    Raises:
        ModelError: for what is no such table, or `each_token` of one without Gram matrices.

    Example: theory from where a measurement began.
        >>> from propagate import Model, predict
        >>> model = Model("postnorm", depth=3)
        >>> first = predict(model, variance=2.0, covariance=0.5, grad_variance=3.0)
        >>> dict(start_of(first))
        {'variance': 2.0, 'covariance': 0.5, 'grad_variance': 3.0}
        >>> bool((predict(model, start_of(first)).grad_variance == first.grad_variance).all())
        True
    """
    if not hasattr(measured, "data_vars") or "block" not in measured.dims:
        raise ModelError(f"start_of needs a table of predict, simulate or trace, got {shown(measured)}")
    if each_token is not None:
        check_flag("each_token", each_token)
    known = all(name in measured for name in GRAMS)
    if each_token and not known:
        raise ModelError(
            f"each_token needs a table with {' and '.join(GRAMS)}, as trace makes of tokens that all count"
        )
    if each_token or (each_token is None and known and _uneven(measured)):
        return Start(**{name: measured[name].to_numpy() for name in GRAMS})
    ends = {"variance": 0, "covariance": 0, "grad_variance": -1, "grad_covariance": -1}
    if STREAM in measured.dims:
        measured = measured.sel({STREAM: JOINED})
    return Start(**{name: float(measured[name].isel(block=end)) for name, end in ends.items() if name in measured})


def _uneven(measured: xr.Dataset) -> bool:
    """Whether tokens differ in variance at block 0 by more than `UNEVEN` and what chance makes."""
    variances = measured["gram"].to_numpy().diagonal()
    mean = variances.mean()
    if not (mean > 0 and math.isfinite(mean)):
        return False
    chance = math.exp(3 * math.sqrt(2 / (measured.attrs["width"] * measured.attrs["draws"])))
    return bool(max(variances.max() / mean, mean / max(variances.min(), 1e-300)) > UNEVEN * chance)
