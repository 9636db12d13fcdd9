"""Standard normal arrays that are a function of (seed, draw, site), whatever else is drawn and in whatever order.

Every random matrix of a network has a `site`: a whole number that names it. Draw 17 of a run is therefore the same
network whether it is simulated alone, in a batch or on another worker. Sites are below 2**31; the site `BACKWARD`
higher belongs to the same matrix and holds the noise that its transpose needs, if the matrix itself is never made.

Box and Muller's method turns pairs of 32-bit words into pairs of normals, in single precision whatever the precision
of the arrays: so a network is the same network in both, up to rounding. The largest normal it can give is 6.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import Backend

BACKWARD = 2**31


@dataclass(frozen=True)
class Normals:
    """Independent standard normals for a range of draws.

    Example: batches do not matter.
        >>> from propagate.montecarlo.backend import choose_backend
        >>> host = choose_backend("numpy")
        >>> together = Normals(host, seed=0, draws=range(0, 4))(site=5, shape=(2, 3))
        >>> alone = Normals(host, seed=0, draws=range(2, 3))(site=5, shape=(2, 3))
        >>> bool((together[2] == alone[0]).all())
        True
    """

    backend: Backend
    seed: int
    draws: range

    def __call__(self, site: int, shape: tuple[int, ...]) -> Array:
        """Array of shape (draws, *shape)."""
        fill = _on_device if self.backend.name == "cupy" else _on_host
        return fill(self.seed, self.draws, site, shape, self.backend.dtype)

    def rows(self, site: int, count: int, width: int) -> Array:
        """Normals (draws, count, width) of a map whose matrix is never made: on a device, those its kernels make."""
        if self.backend.name == "numpy":
            return self(site, (count, width))
        from propagate.montecarlo.cuda import kernels

        if count > kernels.LARGEST_TOKENS:
            return self(site, (count, width))
        at = kernels.Site.of(self.seed, self.draws, site)
        return kernels.site_normals(at, len(self.draws), count, width, self.backend.dtype)


CHUNK = 2**16  # normals at a time: small enough for a processor's second cache


def _on_host(seed: int, draws: range, site: int, shape: tuple[int, ...], dtype: Any) -> Array:
    out = np.empty((len(draws), *shape), dtype=dtype)
    for row, draw in enumerate(draws):
        words = np.random.SFC64([seed, draw, site])
        flat = out[row].reshape(-1)
        for start in range(0, flat.size, CHUNK):
            _box_muller(words, flat[start : start + CHUNK])
    return out


def _box_muller(words: np.random.SFC64, out: Array) -> None:
    """Fill a flat array with normals. (Several times faster than NumPy's own, which takes them one by one.)"""
    pairs = -(-out.size // 2)
    uniform, angle = words.random_raw(pairs).view(np.uint32).reshape(2, pairs).astype(np.float32)
    uniform *= np.float32(2**-32)
    uniform += np.float32(2**-33)  # never 0
    np.log(uniform, out=uniform)
    uniform *= np.float32(-2)
    radius = np.sqrt(uniform, out=uniform)
    angle *= np.float32(2 * np.pi * 2**-32)
    np.multiply(np.cos(angle), radius, out=out[:pairs])
    rest = out.size - pairs
    np.multiply(np.sin(angle[:rest]), radius[:rest], out=out[pairs:])


def _on_device(seed: int, draws: range, site: int, shape: tuple[int, ...], dtype: Any) -> Array:
    from propagate.montecarlo.cuda.kernels import Site, normals

    return normals(Site.of(seed, draws, site), len(draws), shape, dtype)
