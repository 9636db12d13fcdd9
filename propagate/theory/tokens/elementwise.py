"""An elementwise function of a stream of tokens that are not exchangeable; the counterpart of `elementwise`."""

from __future__ import annotations

from propagate.theory.gaussian.activations import mean_slope
from propagate.theory.pairs.elementwise import Split
from propagate.theory.tokens.gram import Entries, Gram
from propagate.theory.tokens.kernels import kernel_of
from propagate.theory.tokens.tanh_pairs import tanh_second_pair, tanh_third_pair


def tanh(x: Gram) -> Split:
    """Hyperbolic tangent, each token with a linear part of its own.

    Example: of a stream of small variance nearly everything is linear.
        >>> found = tanh(Gram.of([[0.01]]))
        >>> found.slope.round(4).tolist(), bool(found.rest.matrix[0, 0] < 1e-6)
        ([0.9902], True)
    """
    slope = mean_slope("tanh", x.variance)
    of_slopes = Gram.exchangeable(1.0, 0.0, x.matrix.shape[-1]).scaled(slope, slope)
    rest = kernel_of("tanh").slope(x).less(of_slopes)
    return Split(slope, kernel_of("tanh").value(x).less(x.times(slope)), rest.product, lambda: curvature(x))


def curvature(x: Gram) -> tuple[Entries, Entries]:
    """E tanh'''(x_t) tanh'(x_s) and E tanh''(x_t) tanh''(x_s).

    Example: of the same token they are the derivative of E tanh'(x)^2 by its variance.
        >>> import numpy as np
        >>> third, second = curvature(Gram.of([[4.0]]))
        >>> [slope] = np.diff([kernel_of("tanh").slope(Gram.of([[q]])).matrix[0, 0] for q in (3.99, 4.01)]) / 0.02
        >>> (third.matrix + second.matrix).round(5).tolist(), slope.round(5).tolist()
        ([[-0.02965]], -0.02965)
    """

    s, t = x.variance[..., :, None], x.variance[..., None, :]
    return Entries(tanh_third_pair(s, t, x.matrix)), Entries(tanh_second_pair(s, t, x.matrix))
