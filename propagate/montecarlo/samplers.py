"""Random linear maps. A sampler is a function that applies one and knows its transpose.

`sampler(x, site, fan_out, gain)` gives y = x W and a pull g -> g W^T, where W has independent entries of standard
deviation gain / sqrt(fan_in) and is drawn afresh for every draw and every site.
x has shape (draws, tokens, fan_in), y (draws, tokens, fan_out).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from propagate.montecarlo.backend import Array
from propagate.montecarlo.normals import Normals

Pull = Callable[[Array], Array]


class Sampler(Protocol):
    """Anything that applies a random linear map."""

    def __call__(self, x: Array, site: int, fan_out: int, gain: float = 1.0) -> tuple[Array, Pull]: ...


def dense(normals: Normals) -> Sampler:
    """The sampler that materialises every Gaussian matrix.

    Example:
        >>> import numpy as np
        >>> from propagate.montecarlo.backend import choose_backend
        >>> sampler = dense(Normals(choose_backend("numpy"), seed=0, draws=range(2)))
        >>> y, pull = sampler(np.ones((2, 3, 8)), site=1, fan_out=5)
        >>> y.shape, pull(y).shape
        ((2, 3, 5), (2, 3, 8))
    """

    def sampler(x: Array, site: int, fan_out: int, gain: float = 1.0) -> tuple[Array, Pull]:
        fan_in = x.shape[-1]
        weight = normals(site, (fan_in, fan_out))
        weight *= gain * fan_in**-0.5
        return x @ weight, lambda g: g @ weight.swapaxes(-1, -2)

    return sampler
