"""An elementwise function of a stream of Gaussian coordinates, split into what is linear in the stream and the rest.

For Gaussian x, phi(x) = E phi' x + r with r uncorrelated with x, at every pair of tokens (Stein's lemma). So a stream
and its image stay linear combinations of uncorrelated atoms, however they are added. A cotangent g that is independent
of x returns as phi'(x) g = E phi' g + (phi'(x) - E phi') g, split alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from propagate.theory.gaussian.activations import maps_of, mean_slope
from propagate.theory.gaussian.functions import Scalar
from propagate.theory.pairs.moments import Moments


class Split(NamedTuple):
    """A function of a stream.

    Attributes:
        slope: E phi', the factor of the linear part, forward and backward.
        rest: moments of what is uncorrelated with the stream.
        pull: from the moments of a cotangent to those of the part of its return that is uncorrelated with it.
        curvature: gives E phi'''(x_t) phi'(x_s) and E phi''(x_t) phi''(x_s), which only experts notice; None where
            they are not followed.
    """

    slope: Scalar
    rest: Any
    pull: Callable[[Any], Any]
    curvature: Callable[[], tuple[Any, Any]] | None = None


def tanh(x: Moments) -> Split:
    """Hyperbolic tangent.

    Example: of a stream of small variance nearly everything is linear.
        >>> found = tanh(Moments(0.01, 0.01))
        >>> round(found.slope, 4), found.rest.variance < 1e-6
        (0.9902, True)
    """
    value, value_drop = maps_of("tanh").value(x.variance, x.deviation)
    square_slope, slope_drop = maps_of("tanh").slope(x.variance, x.deviation)
    slope = mean_slope("tanh", x.variance)
    linear = slope * slope

    def pull(g: Moments) -> Moments:
        rest = square_slope - linear
        return Moments(rest * g.variance, rest * g.deviation + slope_drop * g.covariance)

    return Split(slope, Moments(value - linear * x.variance, value_drop - linear * x.deviation), pull)
