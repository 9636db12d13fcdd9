"""An elementwise function of a stream of tokens that are not exchangeable; the counterpart of `elementwise`."""

from __future__ import annotations

from propagate.theory.activations import mean_slope
from propagate.theory.elementwise import Split
from propagate.theory.gram import Gram
from propagate.theory.gram_kernels import KERNELS


def tanh(x: Gram) -> Split:
    """Hyperbolic tangent, each token with a linear part of its own.

    Example: of a stream of small variance nearly everything is linear.
        >>> found = tanh(Gram.of([[0.01]]))
        >>> found.slope.round(4).tolist(), bool(found.rest.matrix[0, 0] < 1e-6)
        ([0.9902], True)
    """
    slope = mean_slope("tanh", x.variance)
    of_slopes = Gram.exchangeable(1.0, 0.0, x.matrix.shape[-1]).scaled(slope, slope)
    rest = KERNELS["tanh"].slope(x).less(of_slopes)
    return Split(slope, KERNELS["tanh"].value(x).less(x.times(slope)), rest.product)
