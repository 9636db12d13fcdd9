"""A mixture of experts on arrays. All experts are applied to all tokens, and gates of 0 leave most of them out.

Experts side by side are one FFN: their input matrices are the columns, their output matrices the rows of one large
matrix. A mixture is therefore that FFN with every expert's hidden units multiplied by the expert's gate.
"""

from __future__ import annotations

import math
from typing import Any

from propagate.experts import Experts
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import Backend
from propagate.montecarlo.ffn import activated, input_parts, norm_of_parts, output_gain, side_by_side
from propagate.montecarlo.operators import sigmoid, softmax
from propagate.montecarlo.parameter_gradients import Part
from propagate.montecarlo.pulls import Pull
from propagate.montecarlo.sublayers import Call, apply
from propagate.montecarlo.sums import summed


def gates(backend: Backend, experts: Experts, logits: Array) -> tuple[Array, Pull]:
    """Weights of all candidates for each token, 0 for those not chosen, from logits on the last axis.

    The choice itself has no derivative.

    Example:
        >>> import numpy as np
        >>> from propagate.montecarlo.backend import choose_backend
        >>> host, logits = choose_backend("numpy"), np.log([[[1.0, 2.0, 3.0, 4.0]]])
        >>> gates(host, Experts(4, 2), logits)[0].round(4).tolist()
        [[[0.0, 0.0, 0.4286, 0.5714]]]
        >>> gates(host, Experts(4, 2, softmax="before"), logits)[0].round(4).tolist()
        [[[0.0, 0.0, 0.3, 0.4]]]
        >>> gates(host, Experts(4, 2, softmax="before", bias=(0.25, 0, 0, 0)), logits)[0].round(4).tolist()
        [[[0.1, 0.0, 0.0, 0.4]]]
        >>> gates(host, Experts(4, 2, softmax="sigmoid_after"), logits)[0].round(4).tolist()
        [[[0.0, 0.0, 0.4839, 0.5161]]]
    """
    xp = backend.xp
    if experts.softmax == "after":
        weights, pull = softmax(backend, xp.where(_largest(xp, logits, experts.chosen), logits, -xp.inf))
        return weights * experts.factor, lambda g: pull(g * experts.factor)
    weights, pull = (sigmoid if experts.logistic else softmax)(backend, logits)
    if experts.bias is None:
        chosen = _largest(xp, logits, experts.chosen)
    else:
        chosen = _ranked(xp, weights + xp.asarray(experts.bias, dtype=weights.dtype), experts.chosen)
    kept = weights * chosen
    if experts.softmax != "sigmoid_after":
        return kept * experts.factor, lambda g: pull(g * chosen * experts.factor)
    total = kept.sum(axis=-1, keepdims=True)
    shares = kept / total

    def pull_shares(g: Array) -> Array:
        return pull((g - (g * shares).sum(axis=-1, keepdims=True)) * chosen * (experts.factor / total))

    return shares * experts.factor, pull_shares


def _largest(xp: Any, scores: Array, count: int) -> Array:
    """Which of the last axis are the largest."""
    found: Array = scores >= xp.sort(scores, axis=-1)[..., -count, None]
    return found


def _ranked(xp: Any, scores: Array, count: int) -> Array:
    """The same where scores may be equal, as logistic functions are when they round to 1: never more than `count`."""
    found: Array = xp.argsort(xp.argsort(scores, axis=-1), axis=-1) >= scores.shape[-1] - count
    return found


@apply.register(Experts)
def mixture(kind: Experts, x: Array, block: Call) -> tuple[Array, Pull]:
    """The sublayer, (draws, tokens, width) -> the same shape; three sites, and two more for shared experts."""
    routed, pull_routed = _routed(kind, x, block)
    if not kind.shared:
        return routed, pull_routed
    shared, pull_shared = side_by_side(kind.expert, x, block.apart(), kind.shared, "shared")
    return block.backend.add(routed, shared), summed(block.backend, pull_shared, pull_routed)


def _routed(kind: Experts, x: Array, block: Call) -> tuple[Array, Pull]:
    """The routed and the identity experts.

    With "hidden" normed each expert's hidden units pass the norm, before its gate.
    """
    expert, xp, count = kind.expert, block.xp, kind.routed
    hidden = expert.units // kind.split
    by_expert, flat = (*x.shape[:2], count, -1), (*x.shape[:2], -1)
    logits, pull_router = block.matrix(
        x, kind.candidates, kind.router_std, [Part("router", kind.candidates, kind.router_std)]
    )
    weights, pull_gates = gates(block.backend, kind, logits)
    routed, kept = weights[..., :count, None], weights[..., count:].sum(axis=-1, keepdims=True)

    # one after another, the gate's columns of an expert beside its other ones
    read = (
        input_parts(expert, hidden, "ffn") * count
        if expert.activation.gated
        else [Part("ffn_in", hidden * count, expert.in_gain)]
    )
    before, pull_in = block.matrix(x, sum(part.width for part in read), expert.in_gain, read)
    after, pull_activation = activated(expert, before.reshape(by_expert), block)
    after, pull_norm = norm_of_parts(expert, after, block)
    # the sampler's entries have variance 1 / (count hidden); an uncut expert's have 1 / its hidden width
    gain = output_gain(expert) * math.sqrt(count * hidden / expert.units)
    y, pull_out = block.matrix((routed * after).reshape(flat), block.width, gain, [Part("ffn_out", block.width, gain)])

    def pull(g: Array) -> Array:
        arrived = pull_out(g).reshape(by_expert)
        to_routed = (arrived * after).sum(axis=-1)
        to_kept = xp.broadcast_to((g * x).sum(axis=-1, keepdims=True), (*x.shape[:2], kind.identity))
        to_logits = pull_gates(xp.concatenate([to_routed, to_kept], axis=-1))
        through = pull_activation(pull_norm(arrived * routed)).reshape(flat)
        return pull_in(through) + pull_router(to_logits) + kept * g

    return y + kept * x, pull
