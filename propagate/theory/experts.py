"""Moment map of a mixture of experts, forward and backward, in the limit of infinite width.

A token's output is sum_e g_te F_e(x_t) + k_t x_t, with F_e the routed experts and k_t the identity experts' gates
together, and shared experts beside it. The logits come from fresh weights, so gates are independent of every single
coordinate of x and of the experts. Fresh output matrices make the F_e uncorrelated with one another and with x; second
moments of a sum over them are those of one, times sum_e E g_te g_se. The identity part is not uncorrelated with x: its
mean E[k] x is a second skip path, and only the rest, (k_t - E[k]) x_t, is. This module has everything but E[k] x.

Backward a cotangent g_t returns along each expert, along k_t, and through the router: the cotangent of a gate is
g_t . F_e(x_t), or g_t . x_t, a sum over coordinates of independent terms, and it meets the derivative of the gates. The
choice itself has none.

Where the cotangent comes from a norm behind a sum z, in this block or a later one, it is orthogonal to z, which holds
the experts' outputs in few and known parts: g . F_e lacks E (F_e . z)^2 / |z|^2 of its variance. Without that, gates
that are not renormalised would seem to receive gradients twice too large. The lack is followed down a single stream;
between several streams, and for g . x of identity experts, it is left out.

Gates do not average out over coordinates: tokens behind a mixture differ in variance, which norms see and `Moments`
does not hold. `gram_experts` does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from propagate.experts import Experts
from propagate.theory.activations import Activation
from propagate.theory.functions import Scalar
from propagate.theory.gates import gate_averages, unevenness
from propagate.theory.moments import Atom, Combination, Moments


class Along(NamedTuple):
    """A part of a cotangent that is orthogonal to a sum in which a sublayer's output has its share.

    Attributes:
        coefficient: of the output in the sum, over the root of the sum's variance.
        energy, joint: of the `Lack`.
    """

    coefficient: Scalar
    energy: Any
    joint: Any


UNEVEN = 0.25


def uneven(experts: Experts | None) -> bool:
    """Whether tokens' gates differ so much that behind norms their means mislead, and tokens must be resolved.

    Measured for ReLU at width 256, where the gradient variance of a mixture behind a skip, normed after the sum, is 3
    to 6 % above that of the means for top-1 and top-2 of 8 with softmax before the choice (unevenness 0.7 and 0.5; gain
    4), and 1.4 to 1.8 times as large behind six blocks of SpanNorm and PostNorm. Top-2 of 8 with softmax after (0.13):
    within 1 %, and 6 % +- 3 %.

    Example:
        >>> uneven(Experts(8, 2)), uneven(Experts(8, 2, softmax="before"))
        (False, True)
    """
    return experts is not None and unevenness(experts, experts.router_std**2) > UNEVEN


def warn_of_means(experts: Experts | None) -> None:
    """A UserWarning that uneven gates are taken at their means."""
    if experts is not None and uneven(experts):
        spread = unevenness(experts, experts.router_std**2)
        warnings.warn(
            f"the sum of a token's squared gates varies by {spread:.0%} between tokens, and for an array of starts"
            " predict takes its mean: behind norms it is off; take plain numbers, where tokens are resolved",
            UserWarning,
            stacklevel=3,
        )


Mixture = Callable[[Any], tuple[Any, Scalar, Callable[[Any, Sequence[Along]], Any]]]
"""From moments of the input, of any resolution, to those of the output less kept x; kept; and the pull."""


@dataclass(frozen=True, slots=True)
class MixturePull:
    """How a cotangent at the output of a mixture, less kept x, returns to its input. Moments of any resolution.

    Attributes:
        overlap: of the routed experts' gates: sum_j w_tj w_sj of two tokens.
        direct: by what those of the cotangent are multiplied along the experts.
        router: from those of the cotangent, and from what it lacks, to those of what comes back through the router.
    """

    overlap: Any
    direct: Any
    router: Callable[[Any, Sequence[Along]], Any]

    def __call__(self, g: Any, along: Sequence[Along]) -> Any:
        return self.direct.product(g).plus(self.router(g, along))


def lacking(cotangent: Combination, output: Atom) -> list[Along]:
    """What the cotangent lacks along sums that hold this output."""
    return [
        Along(lack.along.terms[output], lack.energy, lack.joint)
        for lack in cotangent.lacks
        if output in lack.along.terms
    ]


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
    power = gain_out * gain_out / activation.value(1.0, 0.0)[0]
    cut, shared = 1 / experts.split, experts.shared
    router_variance = experts.router_std**2

    def apply(x: Moments) -> tuple[Moments, Scalar, Callable[[Moments, Sequence[Along]], Moments]]:
        entering = x.times(gain_in)
        value = _weighted(Moments(*activation.value(entering.variance, entering.deviation)), power)
        slope = Moments(*activation.slope(entering.variance, entering.deviation))
        slope = _weighted(slope, power * gain_in * gain_in)
        gates = gate_averages(experts, router_variance * x.variance, x.deviation / x.variance)
        routed = _weighted(value, cut)
        output = routed.product(gates.routed).plus(_weighted(value, shared)).plus(x.product(gates.kept_spread))
        router = _weighted(routed.product(gates.routed_slope).plus(x.product(gates.kept_slope)), router_variance)
        direct = _weighted(slope, cut).product(gates.routed).plus(_weighted(slope, shared)).plus(gates.kept_spread)

        def through_router(g: Moments, along: Sequence[Along]) -> Moments:
            sent = router.product(g)
            for coefficient, energy, joint in along:
                # with F the outputs, P = 1 - z z^T / |z|^2 and z' another token's: of F P P' F' all but F F'
                once = _weighted(routed.product(gates.along_one), 2 * routed.variance).product(energy)
                twice = gates.along_own.times(routed.variance).product(joint)
                lost = Moments(once.variance - twice.variance, once.deviation - twice.deviation)
                lost = _weighted(lost, router_variance * coefficient * coefficient)
                sent = Moments(sent.variance - lost.variance, sent.deviation - lost.deviation)
            return sent

        return output, gates.kept, MixturePull(gates.routed, direct, through_router)

    return apply


def _weighted(x: Moments, weight: Scalar) -> Moments:
    """All second moments times a number, which stays the one it is: a root would not be exact in SymPy."""
    return Moments(weight * x.variance, weight * x.deviation)
