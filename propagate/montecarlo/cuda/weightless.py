"""`montecarlo.weightless` with its random numbers made where they are used, and no wait for the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from propagate.montecarlo.arrays import Array
from propagate.montecarlo.cuda import kernels
from propagate.montecarlo.cuda.kernels import Site
from propagate.montecarlo.normals import BACKWARD, Normals
from propagate.montecarlo.pulls import AddingPull, Pull
from propagate.montecarlo.weightless import weightless


@dataclass(frozen=True, eq=False)
class Fused:
    """The weightless sampler for arrays on a CUDA device: the algebra of `weightless`, four passes a map.

    Attributes:
        normals: random numbers; the same network as `weightless` gives, up to rounding.
        unsound: (draws,) booleans on the device. Set where a factor failed: that draw's results mean nothing, and it
            must be run again with `weightless`, which looks at every factor and falls back on Householder's.
    """

    normals: Normals
    unsound: Array

    def __call__(self, x: Array, site: int, fan_out: int, gain: float = 1.0) -> tuple[Array, Pull]:
        if not self.covers(x.shape[-2], x.shape[-1], fan_out):
            return weightless(self.normals)(x, site, fan_out, gain)
        there, back = self._map(x, site, fan_out, gain)
        return there(False), AddingPull(lambda g, onto: back(g, False, onto))

    def covers(self, tokens: int, *widths: int) -> bool:
        """Whether the kernels can do it: not too many tokens, and no more than coordinates."""
        return tokens <= min(kernels.LARGEST_TOKENS, *widths)

    def relu_ffn(
        self, x: Array, sites: tuple[int, int], hidden: int, fan_out: int, gain_in: float, gain_out: float
    ) -> tuple[Array, Pull]:
        """Two maps with a ReLU between them, which needs no pass of its own."""
        there, back = self._map(x, sites[0], hidden, gain_in)
        out_there, out_back = self._map(there(True), sites[1], fan_out, gain_out)
        return out_there(False), AddingPull(lambda g, onto: back(out_back(g, True, None), False, onto))

    def _map(
        self, x: Array, site: int, fan_out: int, gain: float
    ) -> tuple[Callable[[bool], Array], Callable[[Array, bool, Array | None], Array]]:
        """The map and its pull, told whether a ReLU comes next (whose output, on the way back, was x).

        The pull is also told what to add its result to.
        """
        xp = self.normals.backend.xp
        x = xp.ascontiguousarray(x)
        seen, fresh = (Site.of(self.normals.seed, self.normals.draws, where) for where in (site, site + BACKWARD))
        scale = gain * x.shape[-1] ** -0.5
        grams, noises = kernels.gram_and_dot(x, fresh)
        root, change, met = kernels.factors(grams, noises, self.unsound, scale, x.dtype)

        def there(relu: bool) -> Array:
            return kernels.forward(root, fan_out, seen, x.dtype, relu=relu)

        def back(g: Array, relu: bool, onto: Array | None) -> Array:
            grams, dots = kernels.gram_and_dot(xp.ascontiguousarray(g), seen)
            cotangent_root, along = kernels.returns(grams, dots, met, change, self.unsound, scale, x.dtype)
            return kernels.backward(cotangent_root, x, along, fresh, relu=relu, onto=onto)

        return there, back
