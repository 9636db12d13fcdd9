"""Random linear maps whose matrix is never made, exact in law at every width, forward and backward together.

A Gaussian W is met twice: y = x W going forward and g W^T coming back. With x = R Q, Q of orthonormal rows,
y = R (Q W), and Q W is a small matrix Z of independent normals. What is left of W is independent of Z: it acts on the
orthogonal complement of the rows of Q, where W^T meets only g. So g W^T = g Z^T Q + (g V^T) (I - Q^T Q) with V a fresh
copy of W, and g V^T has the law of S Z2 with S S^T = g g^T and Z2 of independent normals. This is Gaussian
conditioning, as in Bolthausen's proof of the TAP equations. The cost is that of tokens^2 (fan_in + fan_out)
multiplications in place of tokens fan_in fan_out, and of tokens (fan_in + fan_out) normals in place of fan_in fan_out.
"""

from __future__ import annotations

from propagate.montecarlo.arrays import Array
from propagate.montecarlo.factor import factor, root_of
from propagate.montecarlo.normals import BACKWARD, Normals
from propagate.montecarlo.pulls import Pull
from propagate.montecarlo.samplers import Sampler


def weightless(normals: Normals) -> Sampler:
    """The sampler that conditions on what a Gaussian matrix has done so far, in place of the matrix.

    Only Gaussian entries have this law. The pull may be called once: it draws the same noise again if called again.

    Example: the cotangent of x and x itself agree on what the map did, as for a matrix.
        >>> import numpy as np
        >>> from propagate.montecarlo.backend import choose_backend
        >>> sampler = weightless(Normals(choose_backend("numpy"), seed=0, draws=range(1)))
        >>> x, g = np.eye(2, 8)[None], np.ones((1, 2, 5))
        >>> y, pull = sampler(x, site=64, fan_out=5)
        >>> bool(abs((g * y).sum() - (pull(g) * x).sum()) < 1e-14)
        True
    """
    xp = normals.backend.xp

    def sampler(x: Array, site: int, fan_out: int, gain: float = 1.0) -> tuple[Array, Pull]:
        fan_in = x.shape[-1]
        scale = gain * fan_in**-0.5
        root, change, basis = factor(xp, x)
        seen = normals.rows(site, root.shape[-1], fan_out)

        def pull(g: Array) -> Array:
            cotangent_root = scale * root_of(xp, g)
            noise = normals.rows(site + BACKWARD, cotangent_root.shape[-1], fan_in)
            met = (noise @ basis.swapaxes(-1, -2)) @ change.swapaxes(-1, -2)  # the noise along Q
            along = scale * (g @ seen.swapaxes(-1, -2)) - cotangent_root @ met
            out = cotangent_root.astype(x.dtype) @ noise
            out += (along @ change).astype(x.dtype) @ basis
            return out

        return (scale * root).astype(x.dtype) @ seen, pull

    return sampler
