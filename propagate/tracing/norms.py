"""What a norm does, read off what it makes of random vectors: its kind, its eps, its learned gain."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from propagate.model import ModelError
from propagate.norms import Norm

LARGE = 1e3
"""Size of a vector beside which any eps is nothing."""
SMALL, SMALL_HALF = 1e-6, 1e-3
"""Sizes of vectors that an eps shrinks: of float16 the one that it can hold."""
LEAST = 1e-2
"""Of what a norm makes of a large vector, the least share that it makes of one of size 1."""
OTHERWISE = 0.02
"""Relative difference of what an eps beside the mean square would make of a vector of size 1e-3."""


def norm_of(norm: nn.Module, width: int) -> Norm:
    """The description of a norm of vectors of `width` coordinates, without its learned gain.

    Raises:
        ModelError: for what does not norm the coordinates of one token, as BatchNorm.

    Example:
        >>> norm_of(nn.LayerNorm(64, eps=1e-6), 64), norm_of(nn.RMSNorm(64, eps=1e-20), 64).eps
        (Norm(kind='layer', eps=1e-06), 0.0)
    """
    if not _kept(norm, width, 1.0) > LEAST:
        raise ModelError(f"{type(norm).__name__} does not norm the coordinates of a token, and no Model has it")
    return Norm("layer" if is_centred(norm, width) else "rms", eps_of(norm, width))


def eps_of(norm: nn.Module, width: int) -> float:
    """What a norm adds to the mean square: of a small vector it leaves less than of a large one. Below 1e-15 it is 0.

    The number is the module's own, where that has one of the size that was found.
    """
    size = SMALL_HALF if _like(norm).dtype == torch.float16 else SMALL
    kept = _kept(norm, width, size)
    found = size**2 * (1 / kept - 1) if kept > 0 else math.inf
    for name in ("eps", "variance_epsilon", "epsilon"):
        said = getattr(norm, name, None)
        if isinstance(said, float) and abs(said - found) <= 0.05 * said:
            return said
    return float(f"{found:.3g}") if found > 1e-3 * size**2 and math.isfinite(found) else 0.0


def adds_elsewhere(norm: nn.Module, width: int) -> bool:
    """Whether the eps is added to something else than the mean square, as to its root.

    Example:
        >>> class Rooted(nn.Module):
        ...     def forward(self, x):
        ...         return x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-3)
        >>> adds_elsewhere(Rooted(), 16), adds_elsewhere(nn.LayerNorm(16), 16)
        (True, False)
    """
    size = 1e-3
    expected = size**2 / (size**2 + eps_of(norm, width))
    return abs(_kept(norm, width, size) / expected - 1) > OTHERWISE


def _kept(norm: nn.Module, width: int, size: float) -> float:
    """Mean square of what a norm makes of a vector of this size, over that of a large one."""
    small, large = (_given(norm, width, one).square().mean() for one in (size, LARGE))
    return float(small / large) if large > 0 else 1.0


def learned_gain(norm: nn.Module, width: int) -> Tensor:
    """What a norm multiplies each coordinate by; (width,)."""
    plain = _vector(norm, width, LARGE).double()
    plain = plain - plain.mean() if is_centred(norm, width) else plain
    gain: Tensor = _given(norm, width, LARGE) / (plain / plain.square().mean().sqrt())
    return gain


def is_centred(norm: nn.Module, width: int) -> bool:
    """Whether a norm takes out the mean over coordinates: a shift of all of them then changes nothing."""
    x = torch.randn(width, generator=torch.Generator().manual_seed(2)).to(_like(norm))
    plain, shifted = _called(norm, x), _called(norm, x + 1)
    return bool((plain - shifted).abs().max() < 0.1 * plain.abs().max())


def _given(norm: nn.Module, width: int, size: float) -> Tensor:
    """What a norm makes of a vector, without its bias."""
    bias, found = getattr(norm, "bias", None), _called(norm, _vector(norm, width, size))
    return found - bias.detach().double() if isinstance(bias, Tensor) else found


def _called(norm: nn.Module, x: Tensor) -> Tensor:
    """Of one token by itself."""
    try:
        with torch.no_grad():
            given: Tensor = norm(x[None, None])[0, 0]
            return given.double()
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{type(norm).__name__} is no norm of one token's coordinates: {said}") from None


def _vector(norm: nn.Module, width: int, size: float) -> Tensor:
    x = torch.randn(width, generator=torch.Generator().manual_seed(1))
    x = (x - x.mean()) / x.std(correction=0)
    return (size * x).to(_like(norm))


def _like(norm: nn.Module) -> Tensor:
    return next(iter(norm.parameters()), torch.zeros(1))
