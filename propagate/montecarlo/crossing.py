"""Cross-attention on arrays, with its reverse pass. The memory is drawn once a network, for all of its blocks.

Every matrix is drawn with gain 1, and its gain applied to what it gives.
"""

from __future__ import annotations

import math

from propagate.crossing import CrossAttention
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.operators import softmax
from propagate.montecarlo.parameter_gradients import Part
from propagate.montecarlo.pulls import Pull, chain
from propagate.montecarlo.starts import gram_root, with_gram
from propagate.montecarlo.sublayers import Call, apply

MEMORY_SITE = 62  # beside the ends of a network, below the sites of its first block


@apply.register(CrossAttention)
def cross_attention(kind: CrossAttention, x: Array, block: Call) -> tuple[Array, Pull]:
    """The sublayer, (draws, tokens, width) -> the same shape; three sites."""
    assert block.normals is not None
    memory = with_gram(gram_root(kind.memory.gram), block.normals, MEMORY_SITE, block.width)
    parts = {
        name: Part(f"cross_{name}", kind.inside, getattr(kind, f"{name}_gain")) for name in ("query", "key", "value")
    }
    asked, pull_asked = block.matrix(x, kind.inside, parts=[parts["query"]])
    told, pull_told = block.matrix(memory, 2 * kind.inside, parts=[parts["key"], parts["value"]])
    made = {"query": asked, "key": told[..., : kind.inside], "value": told[..., kind.inside :]}
    (query, pull_query), (key, pull_key), (value, pull_value) = (
        block.inner_norm(kind, name, part.gain * _split(made[name], kind)) for name, part in parts.items()
    )
    scale = kind.logit_std / math.sqrt(kind.size)
    weights, pull_softmax = softmax(block.backend, scale * (query @ key.swapaxes(-1, -2)))
    mixed, pull_mixed = block.inner_norm(kind, "heads", _merge(weights @ value))
    y, pull_out = block.matrix(mixed, block.width, kind.out_gain, [Part("cross_out", block.width, kind.out_gain)])

    def pull(g: Array) -> Array:
        g = _split(g, kind)
        logits = scale * pull_softmax(g @ value.swapaxes(-1, -2))
        across = logits.swapaxes(-1, -2)
        back = {
            "key": pull_key(across @ query),
            "value": pull_value(weights.swapaxes(-1, -2) @ g),
            "query": pull_query(logits @ key),
        }
        sent = {name: parts[name].gain * _merge(part) for name, part in back.items()}
        pull_told(block.xp.concatenate([sent["key"], sent["value"]], axis=-1))  # to the encoder, which is elsewhere
        return pull_asked(sent["query"])

    return y, chain(pull_out, pull_mixed, pull)


def _split(x: Array, kind: CrossAttention) -> Array:
    """(draws, tokens, all heads) -> (draws, heads, tokens, coordinates of a head)."""
    return x.reshape(*x.shape[:2], kind.heads, kind.size).swapaxes(1, 2)


def _merge(x: Array) -> Array:
    """The inverse of `_split`."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
