"""A mixture of experts token by token: the moment map given the gates, with the router's logits drawn.

The counterpart of `experts`, for tokens that are not exchangeable, or whose gates are so uneven that norms tell them
apart. A network has one router a sublayer, and its gates do not average out, as the heads of attention do. So every
replica has a router of its own: logits are Gaussian, their covariance over tokens router_std^2 times the tokens' Gram
matrix, and only tokens x candidates of them are drawn; no width appears. Given the gates all is exact: a token's
variance is its own, and so is what a norm divides it by. Quantities are means over replicas, with the spread between
them as the theory's own standard error.

Derivation, given gates w_tj, softmax p_t, K the second moments of an expert's output, a_t the coefficient of the
mixture in a sum z that a norm follows, v_t = E z_t^2 and rho the correlations of z:

    output                     sum_j w_tj w_sj K_ts + k_t k_s x_t x_s     (the second part by the identity experts)
    back along the experts     Gamma_ts sum_j w_tj w_sj S_ts, with S the moments of an expert's slope
    back through the router    router_std^2 Gamma_ts sum_ji (J_t J_s^T)_ji U_ji

with J_t the gates' derivative by the logits and U_ji = E (P_t F_j(x_t)) . (P_s F_i(x_s)), where P_t = 1 - z_t z_t^T /
|z_t|^2 if a norm made the cotangent orthogonal to z, else 1. As F_j(x_t) . z_s = a_s w_sj K_ts,

    U_ji = delta_ji K_ts - a_t^2 w_tj w_ti K_tt K_ts / v_t - a_s^2 w_sj w_si K_ss K_ts / v_s
           + a_t a_s w_tj w_si K_tt K_ss rho_ts / sqrt(v_t v_s)

What is left out is what `experts` leaves out: this lack in g . x of identity experts, and between several streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from propagate.experts import Experts
from propagate.theory.experts import Along, Mixture, MixturePull
from propagate.theory.gram import Array, Gram
from propagate.theory.gram_kernels import KERNELS
from propagate.theory.gram_softmax import SEED, root

ROUTERS = 64  # replicas, each with a router of its own in every sublayer


class Routing(NamedTuple):
    """Gates and softmax of every token, (replicas, tokens, candidates)."""

    gates: Array
    softmax: Array


def routing(experts: Experts, x: Gram, seed: Sequence[int]) -> Routing:
    """What a random router makes of tokens with these Gram matrices, a router a replica.

    Example: gates of a renormalised softmax sum to 1, over the chosen.
        >>> gates = routing(Experts(count=4, top_k=2), Gram.of(np.eye(3)[None]), seed=[0]).gates
        >>> (gates > 0).sum(axis=-1).tolist(), gates.sum(axis=-1).round(12).tolist()
        ([[2, 2, 2]], [[1.0, 1.0, 1.0]])
    """
    draw = np.random.default_rng([SEED + 2, *seed])
    normals = draw.standard_normal((*x.matrix.shape[:-1], experts.candidates))
    logits = experts.router_std * (root(x.matrix) @ normals)
    dropped = experts.candidates - experts.chosen
    least = np.partition(logits, dropped, axis=-1)[..., dropped, None]
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    chosen = np.where(logits >= least, weights, 0.0)
    if experts.softmax == "after":
        weights = chosen
    total = weights.sum(axis=-1, keepdims=True)
    return Routing(chosen * (experts.factor / total), weights / total)


def mixture(activation: str, gain_in: float, gain_out: float, experts: Experts, seed: Sequence[int]) -> Mixture:
    """A mixture of FFNs, each with the gains of a dense one, and every token's weight of its identity experts apart.

    Example: of one expert, always chosen, nothing is drawn that matters.
        >>> output, kept, pull = mixture("linear", 1.0, 0.5, Experts(1, 1), seed=[0])(Gram.of(np.eye(2)[None]))
        >>> output.matrix.tolist(), kept
        ([[[0.25, 0.0], [0.0, 0.25]]], 0.0)
    """
    kernel, count = KERNELS[activation], experts.routed
    scale = gain_out / np.sqrt(float(kernel.value(Gram.of(np.eye(1))).matrix[0, 0]))
    router_variance = experts.router_std**2

    def apply(x: Gram) -> tuple[Gram, Array | float, object]:
        drawn = routing(experts, x, seed)
        own, all_gates = drawn.gates[..., :count], drawn.gates
        entering = x.times(gain_in)
        value, slope = kernel.value(entering).times(scale), kernel.slope(entering).times(scale * gain_in)
        routed, overlap = value.weighted(1 / experts.split), _of_vectors(own)
        output = routed.product(overlap).plus(value.weighted(experts.shared))
        router = routed.product(Gram.of(_slopes(own, drawn.softmax)))
        kept: Array | float = 0.0
        if experts.identity:
            together = all_gates[..., count:].sum(axis=-1)
            kept, of_kept = together, -together[..., None] * drawn.softmax
            of_kept[..., count:] += all_gates[..., count:]
            router = router.plus(x.product(_of_vectors(of_kept)))
        direct = slope.weighted(1 / experts.split).product(overlap).plus(slope.weighted(experts.shared))

        def through_router(g: Gram, along: Sequence[Along]) -> Gram:
            sent = router.product(g).weighted(router_variance)
            for lack in along:
                sent = sent.less(Gram.of(router_variance * _quenched(own, drawn.softmax, routed, lack)))
            return sent

        return output, kept, MixturePull(overlap, direct, through_router)

    return apply  # type: ignore[return-value]


def _of_vectors(a: Array) -> Gram:
    """Scalar products of the tokens' vectors, and half their squared distances."""
    size = (a * a).sum(axis=-1)
    matrix = a @ a.swapaxes(-1, -2)
    apart = ((a[..., :, None, :] - a[..., None, :, :]) ** 2).sum(axis=-1) / 2
    diagonal = np.arange(a.shape[-2])
    matrix[..., diagonal, diagonal] = size
    return Gram(matrix, apart)


def _slopes(own: Array, softmax: Array) -> Array:
    """Of every pair of tokens sum_j (J_t J_s^T)_jj, for J_je = w_j ((j = e) - p_e)."""
    met = own * softmax[..., : own.shape[-1]]
    overlap = own @ own.swapaxes(-1, -2)
    crossed = met @ own.swapaxes(-1, -2)
    return np.asarray(overlap * (1 + softmax @ softmax.swapaxes(-1, -2)) - crossed - crossed.swapaxes(-1, -2))


def _quenched(own: Array, softmax: Array, routed: Gram, lack: Along) -> Array:
    """What Gamma_ts sum_ji (J_t J_s^T)_ji U_ji has less than Gamma_ts sum_j (J_t J_s^T)_jj K_ts."""
    count = own.shape[-1]
    size = (own * own).sum(axis=-1, keepdims=True)
    along = -size * softmax  # sum_j w_j J_je
    along[..., :count] += own * own
    # along_t . (sum_i w_ti J_si), with t's weights on both sides
    mixed = (along[..., :count] * own) @ own.swapaxes(-1, -2)
    mixed -= (own @ own.swapaxes(-1, -2)) * (along @ softmax.swapaxes(-1, -2))
    end = np.asarray(lack.coefficient) * routed.variance
    once = (lack.coefficient * end)[..., :, None] * routed.matrix * mixed * lack.energy.matrix
    twice = end[..., :, None] * end[..., None, :] * (along @ along.swapaxes(-1, -2)) * lack.joint.matrix
    return np.asarray(once + once.swapaxes(-1, -2) - twice)
