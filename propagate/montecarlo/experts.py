"""A mixture of experts on arrays. All experts are applied to all tokens, and gates of 0 leave most of them out.

Experts side by side are one FFN: their input matrices are the columns, their output matrices the rows of one large
matrix. A mixture is therefore that FFN with every expert's hidden units multiplied by the expert's gate.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from propagate.experts import Experts
from propagate.montecarlo.attention import inner_norm
from propagate.montecarlo.backend import Array, Backend
from propagate.montecarlo.operators import ACTIVATIONS, GATED, output_rms, softmax
from propagate.montecarlo.pulls import Pull

if TYPE_CHECKING:
    from propagate.montecarlo.blocks import Block


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
    """
    xp = backend.xp
    chosen = logits >= xp.sort(logits, axis=-1)[..., -experts.chosen, None]
    if experts.softmax == "after":
        weights, pull = softmax(backend, xp.where(chosen, logits, -xp.inf))
        return weights * experts.factor, lambda g: pull(g * experts.factor)
    weights, pull = softmax(backend, logits)
    return weights * chosen * experts.factor, lambda g: pull(g * chosen * experts.factor)


def norm_of_parts(block: Block, name: str, normed: frozenset[str], x: Array) -> tuple[Array, Pull]:
    """`inner_norm` of an array (draws, tokens, parts, coordinates), each part by itself."""
    rows = x.reshape(x.shape[0], -1, x.shape[-1])
    y, pull = inner_norm(block, name, normed, rows)
    return y.reshape(x.shape), lambda g: pull(g.reshape(rows.shape)).reshape(x.shape)


def mixture(block: Block, site: int, x: Array, normed: frozenset[str] = frozenset()) -> tuple[Array, Pull]:
    """The routed and the identity experts of a sublayer, (draws, tokens, width) -> the same shape; three sites.

    With "hidden" normed each expert's hidden units pass the norm, before its gate.
    """
    model, experts, xp = block.model, block.model.experts, block.backend.xp
    assert experts is not None
    count, hidden = experts.routed, model.hidden // experts.split
    by_expert, flat = (*x.shape[:2], count, -1), (*x.shape[:2], -1)
    logits, pull_router = block.sampler(x, site, experts.candidates, experts.router_std)
    weights, pull_gates = gates(block.backend, experts, logits)
    routed, kept = weights[..., :count, None], weights[..., count:].sum(axis=-1, keepdims=True)

    width_in = hidden * (2 if model.activation in GATED else 1)
    before, pull_in = block.sampler(x, site + 1, count * width_in, block.gains.ffn_in)
    after, pull_activation = ACTIVATIONS[model.activation](block.backend, before.reshape(by_expert))
    after, pull_norm = norm_of_parts(block, "hidden", normed, after)
    # the sampler's entries have variance 1 / (count hidden); an uncut expert's have 1 / model.hidden
    size = 1 if "hidden" in normed else output_rms(model.activation)
    gain = block.gains.ffn_out / size * math.sqrt(count * hidden / model.hidden)
    y, pull_out = block.sampler((routed * after).reshape(flat), site + 2, model.width, gain)

    def pull(g: Array) -> Array:
        arrived = pull_out(g).reshape(by_expert)
        to_routed = (arrived * after).sum(axis=-1)
        to_kept = xp.broadcast_to((g * x).sum(axis=-1, keepdims=True), (*x.shape[:2], experts.identity))
        to_logits = pull_gates(xp.concatenate([to_routed, to_kept], axis=-1))
        through = pull_activation(pull_norm(arrived * routed)).reshape(flat)
        return pull_in(through) + pull_router(to_logits) + kept * g

    return y + kept * x, pull
