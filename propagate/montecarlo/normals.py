"""Standard normal arrays that are a function of (seed, draw, site), whatever else is drawn and in whatever order.

Every random matrix of a network has a `site`: a whole number that names it. Draw 17 of a run is therefore the same
network whether it is simulated alone, in a batch or on another worker. Sites are below 2**31; the site `BACKWARD`
higher belongs to the same matrix and holds the noise that its transpose needs, if the matrix itself is never made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from propagate.montecarlo.backend import Array, Backend

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
        return fill(self.seed, self.draws, site, shape)


def _on_host(seed: int, draws: range, site: int, shape: tuple[int, ...]) -> Array:
    out = np.empty((len(draws), *shape))
    for row, draw in enumerate(draws):
        np.random.default_rng([seed, draw, site]).standard_normal(out=out[row])
    return out


# Philox4x32-10 (Salmon et al. 2011) keyed by the seed; the counter is (pair of elements, site, draw). Four words make
# two 53-bit uniforms, and those by Box-Muller two normals.
_PHILOX = r"""
extern "C" __global__ void normals(double* out, const unsigned long long per_draw, const unsigned long long first_draw,
                                   const unsigned int site, const unsigned int key0, const unsigned int key1) {
    const unsigned long long pairs = (per_draw + 1) / 2;
    const unsigned long long row = blockIdx.y;
    const unsigned long long draw = first_draw + row;
    for (unsigned long long pair = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; pair < pairs;
         pair += (unsigned long long)blockDim.x * gridDim.x) {
        unsigned int c0 = (unsigned int)pair, c1 = site, c2 = (unsigned int)draw,
                     c3 = (unsigned int)(draw >> 32) ^ ((unsigned int)(pair >> 32) << 16);
        unsigned int k0 = key0, k1 = key1;
        for (int round = 0; round < 10; ++round) {
            const unsigned int lo0 = 0xD2511F53u * c0, hi0 = __umulhi(0xD2511F53u, c0);
            const unsigned int lo1 = 0xCD9E8D57u * c2, hi1 = __umulhi(0xCD9E8D57u, c2);
            c0 = hi1 ^ c1 ^ k0;
            c2 = hi0 ^ c3 ^ k1;
            c1 = lo1;
            c3 = lo0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        const double unit = 1.0 / 9007199254740992.0;
        const double u = ((((unsigned long long)c0 << 32 | c1) >> 11) + 0.5) * unit;
        const double v = (((unsigned long long)c2 << 32 | c3) >> 11) * unit;
        double sine, cosine;
        sincospi(2.0 * v, &sine, &cosine);
        const double radius = sqrt(-2.0 * log(u));
        double* target = out + row * per_draw + 2 * pair;
        target[0] = radius * cosine;
        if (2 * pair + 1 < per_draw) target[1] = radius * sine;
    }
}
"""


@lru_cache(maxsize=1)
def _kernel() -> Callable[..., Any]:
    import cupy

    kernel: Callable[..., Any] = cupy.RawKernel(_PHILOX, "normals")
    return kernel


def _on_device(seed: int, draws: range, site: int, shape: tuple[int, ...]) -> Array:
    import cupy

    out = cupy.empty((len(draws), *shape))
    per_draw = int(np.prod(shape))
    key = np.random.SeedSequence(seed).generate_state(2)
    threads = 256
    blocks = min(1024, -(-per_draw // (2 * threads)))
    arguments = (out, np.uint64(per_draw), np.uint64(draws.start), np.uint32(site), key[0], key[1])
    _kernel()((blocks, len(draws)), (threads,), arguments)
    return out
