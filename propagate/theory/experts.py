"""Moment map of a mixture of experts, forward and backward, in the limit of infinite width.

A token's output is sum_e g_te F_e(x_t) + k_t x_t, with F_e the routed experts and k_t the identity experts' gates
together, and shared experts beside it. The logits come from fresh weights, so gates are independent of every single
coordinate of x and of the experts. Fresh output matrices make the F_e uncorrelated with one another and with x; second
moments of a sum over them are those of one, times sum_e E g_te g_se. The identity part is not uncorrelated with x: its
mean E[k] x is a second skip path, and only the rest, (k_t - E[k]) x_t, is. This module has everything but E[k] x.

Backward a cotangent g_t returns along each expert, along k_t, and through the router: the cotangent of a gate is
g_t . F_e(x_t), or g_t . x_t, a sum over coordinates of independent terms, and it meets the derivative of the gates. The
choice itself has none.

Exact for one sublayer whose cotangent does not depend on its output. Two things are left out of the rest of a network:
gates do not average out over coordinates, so that tokens behind a mixture differ in variance from one another, where
`Moments` knows one variance; and a norm right behind the sum returns a cotangent orthogonal to it, which makes the
part of the router's cotangent along the sum smaller than said.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from propagate.experts import Experts
from propagate.theory.activations import Activation
from propagate.theory.functions import Scalar, sqrt
from propagate.theory.gates import gate_averages
from propagate.theory.moments import Moments
from propagate.theory.sublayers import Pull, Sublayer


@lru_cache(maxsize=256)
def mixture(activation: Activation, gain_in: Scalar, gain_out: Scalar, experts: Experts) -> Sublayer:
    """A mixture of FFNs, each with the gains of a dense one, less the mean part of the identity experts.

    Example: of two experts one is chosen, so that the mixture is as large as a dense FFN.
        >>> from propagate.theory.activations import ACTIVATIONS
        >>> one_of_two = mixture(ACTIVATIONS["relu"], 1.0, 0.5, Experts(count=2, top_k=1))
        >>> round(one_of_two(Moments(1.0, 0.0))[0].variance, 9)
        0.25
    """
    scale = gain_out / sqrt(activation.value(1.0, 0.0)[0])
    cut, shared = 1 / sqrt(experts.split), sqrt(experts.shared)
    router_variance = experts.router_std**2

    def apply(x: Moments) -> tuple[Moments, Pull]:
        entering = x.times(gain_in)
        value = Moments(*activation.value(entering.variance, entering.deviation)).times(scale)
        slope = Moments(*activation.slope(entering.variance, entering.deviation)).times(scale * gain_in)
        gates = gate_averages(experts, router_variance * x.variance, x.deviation / x.variance)
        routed = value.times(cut)
        output = routed.product(gates.routed).plus(value.times(shared)).plus(x.product(gates.kept_spread))
        router = routed.product(gates.routed_slope).plus(x.product(gates.kept_slope)).times(experts.router_std)
        direct = slope.times(cut).product(gates.routed).plus(slope.times(shared)).plus(gates.kept_spread)
        return output, direct.plus(router).product

    return apply


def kept_by(experts: Experts | None) -> Callable[[Moments], Scalar] | None:
    """The mean weight with which identity experts return their input, from its moments; None without such experts.

    Example:
        >>> share = kept_by(Experts(count=6, top_k=2, identity=2))
        >>> share(Moments(1.0, 0.5)) if share else None
        0.25
    """
    if experts is None or not experts.identity:
        return None
    return lambda x: gate_averages(experts, experts.router_std**2 * x.variance, x.deviation / x.variance).kept
