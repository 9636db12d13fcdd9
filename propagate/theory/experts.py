"""Moment map of a mixture of experts, forward and backward, in the limit of infinite width.

A token's output is sum_e g_te F_e(x_t) + k_t x_t, with F_e the routed experts and k_t the identity experts' gates
together, and shared experts beside it. The logits come from fresh weights, so gates are independent of every single
coordinate of x and of the experts. Fresh output matrices make the F_e uncorrelated with one another and with x; second
moments of a sum over them are those of one, times sum_e E g_te g_se. The identity part is not uncorrelated with x: its
mean E[k] x is a second skip path, and only the rest, (k_t - E[k]) x_t, is. This module has everything but E[k] x.

Backward a cotangent g_t returns along each expert, along k_t, and through the router: the cotangent of a gate is
g_t . F_e(x_t), or g_t . x_t, a sum over coordinates of independent terms, and it meets the derivative of the gates. The
choice itself has none.

Where the cotangent comes from a norm behind the sum z, it is orthogonal to z, which holds the experts' outputs in few
and known parts: g . F_e lacks E (F_e . z)^2 / |z|^2 of its variance. Without that, gates that are not renormalised
would seem to receive gradients twice too large. What is left out: gates do not average out over coordinates, so that
tokens behind a mixture differ in variance from one another, where `Moments` knows one variance; the same lack in a
cotangent that comes from a later block, and in g . x of identity experts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from propagate.experts import Experts
from propagate.theory.activations import Activation
from propagate.theory.functions import Scalar, sqrt
from propagate.theory.gates import gate_averages, unevenness
from propagate.theory.moments import Atom, Combination, Moments


class Along(NamedTuple):
    """A part of a cotangent that is orthogonal to a sum in which a sublayer's output has its share.

    Attributes:
        energy: moments of that part of the cotangent.
        share: squared coefficient of the output in the sum, over the sum's variance.
        sum: the sum's moments over its variance.
    """

    energy: Moments
    share: Scalar
    sum: Moments


UNEVEN = 0.5


def warn_if_uneven(experts: Experts | None) -> None:
    """A UserWarning where tokens' gates differ so much that their means mislead behind a norm.

    Measured for one sublayer behind a skip, normed after the sum, ReLU, width 384: gradient variances 1 to 5 % above
    prediction for top-1 of 8 with softmax before the choice (unevenness 0.7), gains 2 and 4, and 38 to 45 % over six
    blocks of SpanNorm and PostNorm at gain 4. Top-2 of 8 with softmax after (0.13): within 1 %, and 6 % +- 3 %.
    """
    if experts is None:
        return
    spread = unevenness(experts, experts.router_std**2)
    if spread > UNEVEN:
        warnings.warn(
            f"the sum of a token's squared gates varies by {spread:.0%} between tokens, and predict takes its mean:"
            " behind norms, gradients were measured 1 to 6 % off a block; check with simulate",
            UserWarning,
            stacklevel=3,
        )


Mixture = Callable[[Moments], tuple[Moments, Scalar, Callable[[Moments, Sequence[Along]], Moments]]]
"""From the moments of the input to those of the output less kept x; kept; and the pull."""


def lacking(cotangent: Combination, output: Atom) -> list[Along]:
    """What the cotangent lacks along sums that hold this output."""
    found = []
    for stream, energy in cotangent.lacks:
        if output in stream.terms:
            scale = 1 / stream.moments().variance
            found.append(Along(energy, stream.terms[output] ** 2 * scale, stream.moments().times(sqrt(scale))))
    return found


@lru_cache(maxsize=256)
def mixture(activation: Activation, gain_in: Scalar, gain_out: Scalar, experts: Experts) -> Mixture:
    """A mixture of FFNs, each with the gains of a dense one, and the mean weight of its identity experts apart.

    Example: of two experts one is chosen, so that the mixture is as large as a dense FFN.
        >>> from propagate.theory.activations import ACTIVATIONS
        >>> one_of_two = mixture(ACTIVATIONS["relu"], 1.0, 0.5, Experts(count=2, top_k=1))
        >>> output, kept, pull = one_of_two(Moments(1.0, 0.0))
        >>> round(output.variance, 9), kept
        (0.25, 0.0)
    """
    scale = gain_out / sqrt(activation.value(1.0, 0.0)[0])
    cut, shared = 1 / sqrt(experts.split), sqrt(experts.shared)
    router_variance = experts.router_std**2

    def apply(x: Moments) -> tuple[Moments, Scalar, Callable[[Moments, Sequence[Along]], Moments]]:
        entering = x.times(gain_in)
        value = Moments(*activation.value(entering.variance, entering.deviation)).times(scale)
        slope = Moments(*activation.slope(entering.variance, entering.deviation)).times(scale * gain_in)
        gates = gate_averages(experts, router_variance * x.variance, x.deviation / x.variance)
        routed = value.times(cut)
        output = routed.product(gates.routed).plus(value.times(shared)).plus(x.product(gates.kept_spread))
        router = routed.product(gates.routed_slope).plus(x.product(gates.kept_slope)).times(experts.router_std)
        direct = slope.times(cut).product(gates.routed).plus(slope.times(shared)).plus(gates.kept_spread)
        through = direct.plus(router)

        def pull(g: Moments, along: Sequence[Along]) -> Moments:
            sent = through.product(g)
            for energy, share, total in along:
                # with F the outputs, P = 1 - z z^T / |z|^2 and z' another token's: of F P P' F' all but F F'
                once = routed.product(gates.along_one).times(sqrt(2 * routed.variance))
                twice = gates.along_own.product(total).times(routed.variance)
                lost = Moments(once.variance - twice.variance, once.deviation - twice.deviation)
                lost = lost.product(energy).times(sqrt(router_variance * share))
                sent = Moments(sent.variance - lost.variance, sent.deviation - lost.deviation)
            return sent

        return output, gates.kept, pull

    return apply
