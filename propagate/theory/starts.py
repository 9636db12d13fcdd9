"""What enters a prediction, checked: pairs of moments or Gram matrices."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from propagate.arrays import check_size, second_moments
from propagate.checks import shown
from propagate.model import ModelError
from propagate.start import Start
from propagate.theory.gaussian.functions import Scalar
from propagate.theory.pairs.moments import Moments
from propagate.theory.tokens.gram import Gram


def aligned(**starts: Any) -> tuple[list[Scalar], tuple[str, ...], dict[str, Any]]:
    """Numbers as floats; DataArrays broadcast by dimension name."""
    for name, start in starts.items():
        kind = getattr(getattr(start, "dtype", None), "kind", None)
        if isinstance(start, bool) or not (isinstance(start, numbers.Real) or kind in ("i", "u", "f")):
            raise ModelError(f"{name} must be a number or a DataArray of numbers, got {shown(start)}")
    if not any(hasattr(start, "dims") for start in starts.values()):
        return [_float(name, start) for name, start in starts.items()], (), {}
    import xarray as xr

    arrays = xr.broadcast(*(xr.DataArray(start) for start in starts.values()))
    coords = {str(name): array for array in arrays for name, array in array.coords.items()}
    return [array.to_numpy().astype(float) for array in arrays], tuple(map(str, arrays[0].dims)), coords


def _float(name: str, value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ModelError(f"{name} must be finite, got {shown(value)}") from None
    except (TypeError, ValueError):
        raise ModelError(f"{name} must be a number or a DataArray, with named dimensions, got {shown(value)}") from None


def moments_of(variance_name: str, covariance_name: str, variance: Scalar, covariance: Scalar, tokens: int) -> Moments:
    """Checked: finite, and the covariance one that `tokens` tokens of this variance can have."""
    for name, value in ((variance_name, variance), (covariance_name, covariance)):
        if not np.all(np.isfinite(value)):
            raise ModelError(f"{name} must be finite, got {value!r}")
    check_size(variance_name, variance)  # a covariance may be as small as it likes beside it
    if np.any(np.asarray(variance) < 0) or (variance_name == "variance" and np.any(np.asarray(variance) == 0)):
        raise ModelError(f"{variance_name} must be positive, got {variance!r}")
    bad = np.asarray(covariance) > variance
    if tokens > 1:
        bad |= np.asarray(covariance) < -np.asarray(variance) / (tokens - 1) * (1 + 1e-12)
    if np.any(bad):
        allowed = f"between -{variance_name} / (tokens - 1) and {variance_name}"
        raise ModelError(f"{covariance_name} must lie {allowed}, got {covariance!r} with {variance_name}={variance!r}")
    return Moments(variance, variance - covariance)


def both_moments(given: Start, tokens: int) -> tuple[Moments, Moments]:
    """Of the stream and of its cotangent, checked; see `moments_of`.

    Example:
        >>> both_moments(Start(covariance=0.25), 2)
        (Moments(variance=1.0, deviation=0.75), Moments(variance=1.0, deviation=1.0))
    """
    stream = moments_of("variance", "covariance", given.variance, given.covariance, tokens)
    names = ("grad_variance", "grad_covariance")
    return stream, moments_of(*names, given.grad_variance, given.grad_covariance, tokens)


def gram_of(name: str, matrix: Any, moments: Moments, tokens: int) -> Gram:
    """The Gram matrix that was given, checked, or that of exchangeable tokens with these moments.

    Raises:
        ModelError: unless it is a finite, symmetric, positive semi-definite (tokens, tokens) matrix, for the stream
            (`name` "gram") with a positive diagonal.

    Example:
        >>> gram_of("gram", None, Moments(1.0, 0.25), 2).matrix.tolist()
        [[1.0, 0.75], [0.75, 1.0]]
    """
    if matrix is None:
        return Gram.exchangeable(moments.variance, moments.deviation, tokens)
    return Gram.of(second_moments(name, matrix, tokens, positive=name == "gram"))


def both_grams(given: Start, tokens: int) -> tuple[Gram, Gram]:
    """Of the stream and of its cotangent; see `gram_of`."""
    stream, cotangent = both_moments(given, tokens)
    return gram_of("gram", given.gram, stream, tokens), gram_of("grad_gram", given.grad_gram, cotangent, tokens)
