"""Standard normal arrays that are a function of (seed, draw, site), whatever else is drawn and in whatever order.

Every random matrix of a network has a `site`: a whole number that names it. Draw 17 of a run is therefore the same
network whether it is simulated alone, in a batch or on another worker. Sites are below 2**31; the site `BACKWARD`
higher belongs to the same matrix and holds the noise that its transpose needs, if the matrix itself is never made.

Box and Muller's method turns pairs of 32-bit words into pairs of normals, in single precision whatever the precision
of the arrays: so a network is the same network in both, up to rounding. The largest normal it can give is 6.7.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
    flat = out.reshape(len(draws), math.prod(shape))
    size = flat.shape[1]
    together = max(1, CHUNK // max(1, size))  # small matrices of several draws at a time
    for first in range(0, len(draws), together):
        rows = slice(first, first + together)
        words = list(_words(seed, draws[rows], site))
        for start in range(0, size, CHUNK):
            _box_muller(words, flat[rows, start : start + CHUNK])
    return out


def _words(seed: int, draws: range, site: int) -> Iterator[np.random.SFC64]:
    """SFC64([seed, draw, site]) of each draw; a list takes it twice as long to read."""
    parts = [seed >> shift & 0xFFFFFFFF for shift in range(0, max(1, seed.bit_length()), 32)]
    entropy = np.array([*parts, 0, site], dtype=np.uint32)
    for draw in draws:
        entropy[-2] = draw
        yield np.random.SFC64(entropy)


def _box_muller(words: Sequence[np.random.SFC64], out: Array) -> None:
    """Fill rows with normals, each from its words. (Several times faster than NumPy's own, which takes them one by
    one.)"""
    pairs = -(-out.shape[1] // 2)
    raw = [one.random_raw(pairs) for one in words]
    drawn = raw[0] if len(raw) == 1 else np.concatenate(raw)
    uniform, angle = drawn.view(np.uint32).reshape(-1, 2, pairs).swapaxes(0, 1).astype(np.float32, order="C")
    uniform *= np.float32(2**-32)
    uniform += np.float32(2**-33)  # never 0
    np.log(uniform, out=uniform)
    uniform *= np.float32(-2)
    radius = np.sqrt(uniform, out=uniform)
    angle *= np.float32(2 * np.pi * 2**-32)
    np.multiply(np.cos(angle), radius, out=out[:, :pairs])
    rest = out.shape[1] - pairs
    np.multiply(np.sin(angle[:, :rest]), radius[:, :rest], out=out[:, pairs:])


def _on_device(seed: int, draws: range, site: int, shape: tuple[int, ...], dtype: Any) -> Array:
    from propagate.montecarlo.cuda.kernels import Site, normals

    return normals(Site.of(seed, draws, site), len(draws), shape, dtype)
