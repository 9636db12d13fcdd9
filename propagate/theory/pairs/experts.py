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
the experts' outputs in few and known parts: g . F_e lacks E (F_e . z)^2 / |z|^2 of its variance (`products`). Without
that, gates that are not renormalised would seem to receive gradients twice too large. Left out here, where gates are at
their means, are g . x of identity experts, and what a tanh makes of g . F_e.

Gates do not average out over coordinates: tokens behind a mixture differ in variance, which norms see and `Moments`
does not hold, and so do networks, each with a router of its own in every sublayer. `tokens.experts` has all that;
`predict` uses the means only for arrays of starts, and `recursion` to print them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from propagate.activations import Activation
from propagate.experts import Experts
from propagate.theory.gaussian.activations import maps_of
from propagate.theory.gaussian.functions import Scalar
from propagate.theory.pairs.gates import gate_averages
from propagate.theory.pairs.moments import Moments
from propagate.theory.pairs.products import Seen

Pull = Callable[[Any, Seen], Any]
Mixture = Callable[[Any, frozenset[str]], tuple[Any, Scalar, Pull]]
"""From moments of the input, of any resolution, and the names of what is normed inside, to those of the output less
kept x; kept; and the pull, from the cotangent's moments and what its products with this output and input know beyond
them."""


@dataclass(frozen=True, slots=True)
class MixturePull:
    """How a cotangent at the output of a mixture, less kept x, returns to its input. Moments of any resolution.

    Attributes:
        overlap: of the routed experts' gates: sum_j w_tj w_sj of two tokens.
        direct: by what those of the cotangent are multiplied along the experts.
        router: from those of the cotangent, and from its products, to those of what comes back through the router.
        gates: of the routed experts themselves, (replicas, tokens, experts), where they are drawn.
        logits: the like of `router`, to second moments of the cotangent at each candidate's logit, (replicas,
            candidates, tokens, tokens), where gates are drawn.
    """

    overlap: Any
    direct: Any
    router: Pull
    gates: Any = None
    logits: Pull | None = None

    def __call__(self, g: Any, seen: Seen) -> Any:
        return self.direct.product(g).plus(self.router(g, seen))


@lru_cache(maxsize=256)
def mixture(
    activation: Activation | str,
    gain_in: Scalar,
    gain_out: Scalar,
    experts: Experts,
    *,
    gate_gain: Scalar = 1.0,
    centred: bool = False,
    eps: float = 0.0,
) -> Mixture:
    """A mixture of FFNs, each with the gains of a dense one, and the mean weight of its identity experts apart.

    With "hidden" normed each expert's hidden units are, as in `sublayers.ffn`.

    Example: of two experts one is chosen, so that the mixture is as large as a dense FFN.
        >>> one_of_two = mixture("relu", 1.0, 0.5, Experts(count=2, top_k=1))
        >>> output, kept, pull = one_of_two(Moments(1.0, 0.0))
        >>> round(output.variance, 9), kept
        (0.25, 0.0)
    """
    maps, size = maps_of(activation, gate_gain), maps_of(activation).value(1.0, 0.0)[0]
    cut, shared = 1 / experts.split, experts.shared
    router_variance = experts.router_std**2

    def apply(x: Moments, normed: frozenset[str] = frozenset()) -> tuple[Moments, Scalar, Pull]:
        entering = x.times(gain_in)
        value = Moments(*maps.value(entering.variance, entering.deviation))
        if "hidden" in normed and centred:
            value = Moments(maps.value(entering.variance, entering.variance)[1], value.deviation)
        power = gain_out * gain_out / (value.variance + eps if "hidden" in normed else size)
        value = _weighted(value, power)
        slope = Moments(*maps.slope(entering.variance, entering.deviation))
        slope = _weighted(slope, power * gain_in * gain_in)
        gates = gate_averages(experts, router_variance * x.variance, x.deviation / x.variance)
        routed = _weighted(value, cut)
        output = routed.product(gates.routed).plus(_weighted(value, shared)).plus(x.product(gates.kept_spread))
        router = _weighted(routed.product(gates.routed_slope).plus(x.product(gates.kept_slope)), router_variance)
        direct = _weighted(slope, cut).product(gates.routed).plus(_weighted(slope, shared)).plus(gates.kept_spread)

        def through_router(g: Moments, seen: Seen) -> Moments:
            sent, kept_on = router.product(g), 1 + seen.odds  # a token meets its own mask twice
            own = kept_on * routed.variance  # F_e(x_t) . w_te F_e(x_t), as often as dropout keeps it
            once = Moments(own, routed.deviation + seen.odds * routed.variance).product(gates.along_one)
            for terms, averages in (
                (seen.own + seen.others, _weighted(once, own)),
                (seen.both, _weighted(gates.along_own, own * own)),
            ):
                for left, right, weight in terms:
                    part = averages.product(weight)
                    sent = sent.plus(_weighted(part, router_variance * left.coefficient * right.coefficient))
            return sent

        return output, gates.kept, MixturePull(gates.routed, direct, through_router)

    return apply


def _weighted(x: Moments, weight: Scalar) -> Moments:
    """All second moments times a number, which stays the one it is: a root would not be exact in SymPy."""
    return Moments(weight * x.variance, weight * x.deviation)
