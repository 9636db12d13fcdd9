"""A mixture of experts token by token: the moment map given the gates, with the router's logits drawn.

The counterpart of `experts`, for tokens that are not exchangeable, or whose gates are so uneven that norms tell them
apart. A network has one router a sublayer, and its gates do not average out, as the heads of attention do. So every
replica has a router of its own: logits are Gaussian, their covariance over tokens router_std^2 times the tokens' Gram
matrix, and only tokens x candidates of them are drawn; no width appears. Given the gates all is exact: a token's
variance is its own, and so is what a norm divides it by. Quantities are means over replicas, with the spread between
them as the theory's own standard error.

Derivation, given gates w_tj, K the second moments of an expert's output, and a_t the coefficient of the mixture in a
sum z that a norm follows:

    output                     sum_j w_tj w_sj K_ts + k_t k_s x_t x_s     (the second part by the identity experts)
    back along the experts     Gamma_ts sum_j w_tj w_sj S_ts, with S the moments of an expert's slope
    back through the router    router_std^2 sum_ji (J_t J_s^T)_ji U_ji

with J_t the gates' derivative by the logits, d w_tj / d r_te = v_tj (j = e) - w_tj q_te (see `Routing`), and U_ji =
E (g_t . f_tj)(g_s . f_si), where f_tj is F_j(x_t), or x_t for an identity expert. For a cotangent of independent
coordinates U_ji is Gamma_ts E f_tj f_si, and what it is beyond that, with norms behind the mixture above all, is the
sum of terms of `Products`, each of two scalar products, such as

    F_j(x_t) . z_s = a_s w_sj K_ts                with a_t the coefficient of the mixture's output in z

and x_t . z_s, joint moments of x and z. With dropout behind the mixture f_tj is met as far as token t's mask keeps it,
and z_t holds it likewise: scalar products at one token gain the odds of dropping times what the output has of f_tj.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from propagate.activations import Activation
from propagate.experts import Experts
from propagate.theory.gaussian.roots import symmetric_root
from propagate.theory.gaussian.routers import Routing, routing_of
from propagate.theory.pairs.experts import Mixture, MixturePull
from propagate.theory.pairs.moments import NOTHING
from propagate.theory.pairs.products import Part, Seen
from propagate.theory.tokens.gram import Array, Gram
from propagate.theory.tokens.kernels import kernel_of
from propagate.theory.tokens.softmax import SEED
from propagate.theory.tokens.sublayers import of_means

ROUTERS = 64  # replicas, each with a router of its own in every sublayer


def routing(experts: Experts, x: Gram, seed: Sequence[int]) -> Routing:
    """What a random router makes of tokens with these Gram matrices, a router a replica.

    Example: gates of a renormalised softmax sum to 1, over the chosen.
        >>> gates = routing(Experts(count=4, top_k=2), Gram.of(np.eye(3)[None]), seed=[0]).gates
        >>> (gates > 0).sum(axis=-1).tolist(), gates.sum(axis=-1).round(12).tolist()
        ([[2, 2, 2]], [[1.0, 1.0, 1.0]])
    """
    draw = np.random.default_rng([SEED + 2, *seed])
    normals = draw.standard_normal((*x.matrix.shape[:-1], experts.candidates))
    logits = experts.router_std * (symmetric_root(x.matrix) @ normals)
    return routing_of(experts, logits)


def mixture(
    activation: Activation | str,
    gain_in: float,
    gain_out: float,
    experts: Experts,
    seed: Sequence[int],
    *,
    gate_gain: float = 1.0,
    centred: bool = False,
    eps: float = 0.0,
) -> Mixture:
    """A mixture of FFNs, each with the gains of a dense one, and every token's weight of its identity experts apart.

    With "hidden" normed each expert's hidden units are, as in `tokens.sublayers.ffn`.

    Example: of one expert, always chosen, nothing is drawn that matters.
        >>> output, kept, pull = mixture("linear", 1.0, 0.5, Experts(1, 1), seed=[0])(Gram.of(np.eye(2)[None]))
        >>> output.matrix.tolist(), kept
        ([[[0.25, 0.0], [0.0, 0.25]]], 0.0)
    """
    kernel, count = kernel_of(activation, gate_gain), experts.routed
    plain = float(kernel_of(activation).value(Gram.of(np.eye(1))).matrix[0, 0]) ** -0.5
    router_variance = experts.router_std**2

    def apply(x: Gram, normed: frozenset[str] = frozenset()) -> tuple[Gram, Array | float, object]:
        drawn = routing(experts, x, seed)
        gates_of_routed, all_gates = drawn.gates[..., :count], drawn.gates
        entering = x.times(gain_in)
        value = kernel.value(entering)
        if "hidden" in normed and centred:
            value = value.less(of_means(kernel, entering))
        scale = gain_out * (value.norm_scale(eps) if "hidden" in normed else plain)
        value, slope = value.times(scale), kernel.slope(entering).times(scale * gain_in)
        routed, overlap = value.weighted(1 / experts.split), _of_vectors(gates_of_routed)
        output = routed.product(overlap).plus(value.weighted(experts.shared))
        router = routed.product(Gram.of(_slopes(drawn, count)))
        kept: Array | float = 0.0
        if experts.identity:
            together = all_gates[..., count:].sum(axis=-1)
            kept, of_kept = together, -together[..., None] * drawn.others
            of_kept[..., count:] += drawn.own[..., count:]
            router = router.plus(x.product(_of_vectors(of_kept)))
        else:
            of_kept, together = np.zeros_like(all_gates), 0.0
        direct = slope.weighted(1 / experts.split).product(overlap).plus(slope.weighted(experts.shared))

        def gates(seen: Seen) -> _Gates:
            slopes = drawn.own[..., :count]
            return _Gates(gates_of_routed, slopes, drawn.others, of_kept, routed, x.variance * together, seen.odds)

        def through_router(g: Gram, seen: Seen) -> Gram:
            beyond = Gram.of(gates(seen).beyond(seen, g.matrix.shape))
            return router.product(g).plus(beyond).weighted(router_variance)

        def at_logits(g: Gram, seen: Seen) -> Array:
            return gates(seen).by_candidate(g, x if experts.identity else None, seen)

        return output, kept, MixturePull(overlap, direct, through_router, gates_of_routed, at_logits)

    return apply  # type: ignore[return-value]


@dataclass(frozen=True)
class _Gates:
    """What the products of a cotangent with the experts' outputs meet.

    Attributes:
        own, slopes, others: gates w of the routed experts, and of their derivative v of these and q of all candidates.
        of_kept: derivative of the sum k of the identity experts' gates by the logits, J_t^T 1.
        routed: second moments K of an expert's output.
        kept: k_t E x_t^2.
        odds: that dropout drops.
    """

    own: Array
    slopes: Array
    others: Array
    of_kept: Array
    routed: Gram
    kept: Array | float
    odds: float

    def beyond(self, seen: Seen, shape: tuple[int, ...]) -> Array:
        """sum_ji (J_t J_s^T)_ji times what U_ji has beyond the product of moments."""
        found = np.zeros(shape)
        for left, right, weight in seen.own:
            found += weight.matrix * self._own(left, right)
        for left, right, weight in seen.others:
            found += weight.matrix * self._own(right, left).swapaxes(-1, -2)
        for left, right, weight in seen.both:
            found += weight.matrix * (self._at_one(left) @ self._at_one(right).swapaxes(-1, -2))
        for left, right, weight in seen.crossed:
            found += weight.matrix * self._crossed(left, right)
        return found

    def by_candidate(self, g: Gram, x: Gram | None, seen: Seen) -> Array:
        """Second moments of the cotangent at each logit: terms of U_ji as above, before their sum over candidates.

        Args:
            g: moments of the cotangent.
            x: of what identity experts return; None without any.
            seen: the products.

        Returns:
            (replicas, candidates, tokens, tokens).
        """
        w, v = np.zeros_like(self.others), np.zeros_like(self.others)
        w[..., : self.own.shape[-1]], v[..., : self.own.shape[-1]] = self.own, self.slopes
        w, v, q, kept = (np.moveaxis(of, -1, -2) for of in (w, v, self.others, self.of_kept))
        overlap = (self.own @ self.own.swapaxes(-1, -2))[:, None]
        along = w[..., :, None] * v[..., None, :] - q[..., None, :] * overlap  # (J_s^T w_t)_e
        one = (w * q)[..., :, None] * v[..., None, :]
        both = v[..., :, None] * v[..., None, :] - one - one.swapaxes(-1, -2)
        both += q[..., :, None] * q[..., None, :] * overlap
        found = both * (self.routed.matrix * g.matrix)[:, None]
        if x is not None:
            found += kept[..., :, None] * kept[..., None, :] * (x.matrix * g.matrix)[:, None]

        def at_one(part: Part) -> Array:
            return np.moveaxis(self._at_one(part), -1, -2)

        def crossed(part: Part) -> Array:
            """J_s^T of what token s has of each expert's output, times part_t."""
            of_input = self._with_input(part)[:, None] * kept[..., None, :]
            return np.asarray(self._with_routed(part)[:, None] * along + of_input)

        for left, right, weight in seen.own:
            found += weight.matrix[:, None] * at_one(left)[..., :, None] * crossed(right)
        for left, right, weight in seen.others:
            found += weight.matrix[:, None] * (at_one(right)[..., :, None] * crossed(left)).swapaxes(-1, -2)
        for left, right, weight in seen.both:
            found += weight.matrix[:, None] * at_one(left)[..., :, None] * at_one(right)[..., None, :]
        for left, right, weight in seen.crossed:
            found += weight.matrix[:, None] * crossed(left).swapaxes(-1, -2) * crossed(right)
        return np.asarray(found)

    def _at_one(self, part: Part) -> Array:
        """J_t^T times the products f_tj . z_t: (..., tokens, candidates)."""
        size = (self.own * self.own).sum(axis=-1, keepdims=True)
        along = -size * self.others
        along[..., : self.own.shape[-1]] += self.own * self.slopes
        of_routed = (1 + self.odds) * part.coefficient * self.routed.variance
        of_input = np.diagonal(self._with_input(part), axis1=-2, axis2=-1)
        return np.asarray(of_routed[..., None] * along + of_input[..., None] * self.of_kept)

    def _with_input(self, part: Part) -> Array:
        """z_t . x_s as an identity expert's output meets it."""
        zero: Array = np.zeros_like(self.routed.matrix)
        known: Array = zero if part.with_input is NOTHING else part.with_input.matrix
        masked: Any = self.odds * part.coefficient * self.kept
        return np.asarray(known + np.expand_dims(masked, -1) * np.eye(zero.shape[-1]))

    def _with_routed(self, part: Part) -> Array:
        """z_t . F_j(x_s) over w_tj."""
        mask = 1 + self.odds * np.eye(self.own.shape[-2])
        return np.asarray(
            np.asarray(part.coefficient * np.ones(self.own.shape[:-1]))[..., :, None] * self.routed.matrix * mask
        )

    def _own(self, left: Part, right: Part) -> Array:
        """(J_t^T f_t . left_t) . (J_s^T f_s . right_t), the second with the gates of t as weights."""
        v, count = self._at_one(left), self.own.shape[-1]
        met = (v[..., :count] * self.own) @ self.slopes.swapaxes(-1, -2)
        met -= (self.own @ self.own.swapaxes(-1, -2)) * (v @ self.others.swapaxes(-1, -2))
        return np.asarray(
            self._with_routed(right) * met + self._with_input(right) * (v @ self.of_kept.swapaxes(-1, -2))
        )

    def _crossed(self, left: Part, right: Part) -> Array:
        """(J_t^T f_t . left_s) . (J_s^T f_s . right_t)."""
        w, v, q, count = self.own, self.slopes, self.others, self.own.shape[-1]
        overlap = w @ w.swapaxes(-1, -2)
        squares = (w * v) @ (w * v).swapaxes(-1, -2)
        one = (w * q[..., :count]) @ v.swapaxes(-1, -2)
        routed = squares - overlap * (one + one.swapaxes(-1, -2)) + overlap**2 * (q @ q.swapaxes(-1, -2))
        kept_s = v @ (w * self.of_kept[..., :count]).swapaxes(-1, -2) - overlap * (q @ self.of_kept.swapaxes(-1, -2))
        both_kept = self.of_kept @ self.of_kept.swapaxes(-1, -2)
        left_routed, left_input = (a.swapaxes(-1, -2) for a in (self._with_routed(left), self._with_input(left)))
        right_routed, right_input = self._with_routed(right), self._with_input(right)
        return np.asarray(
            left_routed * (right_routed * routed + right_input * kept_s)
            + left_input * (right_routed * kept_s.swapaxes(-1, -2) + right_input * both_kept)
        )


def _of_vectors(a: Array) -> Gram:
    """Scalar products of the tokens' vectors, and half their squared distances."""
    size = (a * a).sum(axis=-1)
    matrix = a @ a.swapaxes(-1, -2)
    tokens, candidates = a.shape[-2:]
    each = a.reshape(-1, tokens, candidates)  # whose differences, of many candidates, would not fit into memory
    apart = np.array([cdist(one, one, "sqeuclidean") / 2 for one in each]).reshape(matrix.shape)
    diagonal = np.arange(a.shape[-2])
    matrix[..., diagonal, diagonal] = size
    return Gram(matrix, apart)


def _slopes(drawn: Routing, count: int) -> Array:
    """Of every pair of tokens sum_j (J_t J_s^T)_jj over the first candidates, the FFN experts."""
    w, v, q = (part[..., :count] for part in drawn)
    overlap = (w @ w.swapaxes(-1, -2)) * (drawn.others @ drawn.others.swapaxes(-1, -2))
    crossed = (w * q) @ v.swapaxes(-1, -2)
    return np.asarray(overlap + v @ v.swapaxes(-1, -2) - crossed - crossed.swapaxes(-1, -2))
