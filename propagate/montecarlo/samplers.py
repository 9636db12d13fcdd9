"""Random linear maps. A sampler is a function that applies one and knows its transpose.

`sampler(x, site, fan_out, gain)` gives y = x W and a pull g -> g W^T, where W has independent entries of standard
deviation gain / sqrt(fan_in) and is drawn afresh for every draw and every site. x
has shape (draws, tokens, fan_in), y (draws, tokens, fan_out).
"""

from __future__ import annotations

from typing import Protocol

from propagate.montecarlo.arrays import Array
from propagate.montecarlo.laws import Law, normal
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.pulls import Pull


class Sampler(Protocol):
    """Anything that applies a random linear map."""

    def __call__(self, x: Array, site: int, fan_out: int, gain: float = 1.0) -> tuple[Array, Pull]: ...


def dense(normals: Normals, law: Law = normal) -> Sampler:
    """The sampler that materialises every matrix, of whatever law.

    Example:
        >>> import numpy as np
        >>> from propagate.montecarlo.backend import choose_backend
        >>> sampler = dense(Normals(choose_backend("numpy"), seed=0, draws=range(2)))
        >>> y, pull = sampler(np.ones((2, 3, 8)), site=1, fan_out=5)
        >>> y.shape, pull(y).shape
        ((2, 3, 5), (2, 3, 8))
    """

    def sampler(x: Array, site: int, fan_out: int, gain: float = 1.0) -> tuple[Array, Pull]:
        weight = law(normals, site, x.shape[-1], fan_out)
        return _times(x, gain) @ weight, lambda g: _times(g, gain) @ weight.swapaxes(-1, -2)

    return sampler


def _times(x: Array, gain: float) -> Array:
    """Tokens are fewer than weights, and most gains are 1."""
    return x if gain == 1 else x * gain
