"""`montecarlo.weightless` with its random numbers made where they are used, and no wait for the host."""

from __future__ import annotations

from dataclasses import dataclass

from propagate.montecarlo.backend import Array
from propagate.montecarlo.cuda import kernels
from propagate.montecarlo.cuda.kernels import Site
from propagate.montecarlo.normals import BACKWARD, Normals
from propagate.montecarlo.samplers import Pull
from propagate.montecarlo.weightless import weightless


@dataclass(frozen=True, eq=False)
class Fused:
    """The weightless sampler for arrays on a CUDA device: the algebra of `weightless`, five passes a map.

    Attributes:
        normals: random numbers; the same network as `weightless` gives, up to rounding.
        unsound: (draws,) booleans on the device. Set where a factor failed: that draw's results mean nothing, and it
            must be run again with `weightless`, which looks at every factor and falls back on Householder's.
    """

    normals: Normals
    unsound: Array

    def __call__(self, x: Array, site: int, fan_out: int) -> tuple[Array, Pull]:
        xp = self.normals.backend.xp
        tokens, fan_in = x.shape[-2:]
        if tokens > min(kernels.LARGEST_TOKENS, fan_in, fan_out):
            return weightless(self.normals)(x, site, fan_out)
        x = xp.ascontiguousarray(x)
        seen, fresh = (Site.of(self.normals.seed, self.normals.draws, where) for where in (site, site + BACKWARD))
        scale = fan_in**-0.5
        grams, noises = kernels.gram_and_dot(x, fresh)
        root, change, met = kernels.factors(grams, noises, self.unsound, scale, x.dtype)

        def pull(g: Array) -> Array:
            grams, dots = kernels.gram_and_dot(xp.ascontiguousarray(g), seen)
            cotangent_root, along = kernels.returns(grams, dots, met, change, self.unsound, scale, x.dtype)
            return kernels.backward(cotangent_root, x, along, fresh)

        return kernels.forward(root, fan_out, seen, x.dtype), pull
