"""Linear attention with a decay on arrays: the recurrence token by token, and its reverse pass.

Every matrix is drawn with gain 1, and its gain applied to what it gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from propagate.montecarlo.arrays import Array
from propagate.montecarlo.operators import operator_of
from propagate.montecarlo.parameter_gradients import Part
from propagate.montecarlo.pulls import Pull, chain
from propagate.montecarlo.sublayers import Call, apply
from propagate.recurrent import LinearAttention


@apply.register(LinearAttention)
def linear_attention(kind: LinearAttention, x: Array, block: Call) -> tuple[Array, Pull]:
    """The sublayer, (draws, tokens, width) -> the same shape; two sites."""
    *first, last = (Part(name, fan_out, gain) for name, _, fan_out, gain in kind.matrices(block.width))
    names, ends = [part.name for part in first], [sum(part.width for part in first[:i]) for i in range(1, len(first))]
    projected, pull_projected = block.matrix(x, sum(part.width for part in first), parts=first)
    of = {
        part.name: part.gain * array
        for part, array in zip(first, block.xp.split(projected, ends, axis=-1), strict=True)
    }
    query, key, value = (_split(of[name], kind.heads) for name in ("query", "key", "value"))
    decay, pull_decay = _decays(kind, of.get("decay"), value, block.xp)
    heads, pull_heads = recurrence(block.xp, query, key, value, decay)
    normed, pull_norm = block.inner_norm(kind, "heads", _merge(heads))
    opened, pull_opened = normed, None
    if kind.output_gate is not None:
        gate, pull_opened = operator_of(kind.output_gate)(block.backend, of["output_gate"])
        opened = normed * gate
    gated, pull_gated = block.inner_norm(kind, "gated", opened)
    y, pull_out = block.matrix(gated, block.width, kind.out_gain, [last])

    def pull(g: Array) -> Array:
        arrived, back = g, dict[str, Array]()
        if pull_opened is not None:
            back["output_gate"] = pull_opened(arrived * normed)
            arrived = arrived * gate
        *parts, of_decay = pull_heads(_split(pull_norm(arrived), kind.heads))
        back |= dict(zip(("query", "key", "value"), map(_merge, parts), strict=True))
        if pull_decay is not None:
            back["decay"] = pull_decay(of_decay)
        gains = {part.name: part.gain for part in first}
        return pull_projected(block.xp.concatenate([gains[name] * back[name] for name in names], axis=-1))

    return y, chain(pull_out, pull_gated, pull)


def _split(x: Array, heads: int) -> Array:
    """(draws, tokens, all heads) -> (draws, heads, tokens, coordinates of a head)."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _merge(x: Array) -> Array:
    """The inverse of `_split`."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _decays(kind: LinearAttention, gate: Array | None, like: Array, xp: Any) -> tuple[Array, Pull | None]:
    """(draws, heads, tokens, 1 or coordinates of a key), and the pull to the gate."""
    if gate is None:
        of_heads = xp.asarray(kind.decays, dtype=like.dtype)[None, :, None, None]
        return of_heads + 0 * like[..., :1], None
    bias, power = (
        xp.asarray(values, dtype=like.dtype)[None, :, None, None]
        for values in ([kind.bias(head) for head in range(kind.heads)], kind.powers)
    )
    opened = 0.5 * (1 + xp.tanh(0.5 * (_split(gate, kind.heads) + bias)))
    decay = opened**power
    return decay, lambda g: _merge(g * decay * power * (1 - opened))


def recurrence(
    xp: Any, query: Array, key: Array, value: Array, decay: Array
) -> tuple[Array, Callable[[Array], tuple[Array, Array, Array, Array]]]:
    """S_t = a_t S_(t-1) + k_t v_t^T and o_t = q_t^T S_t / sqrt(n), tokens along the last axis but one.

    Args:
        query, key: (..., tokens, n).
        value: (..., tokens, m).
        decay: (..., tokens, n), or 1 in place of n.

    Returns:
        o, of the shape of values, and the pull from its cotangent to those of the four.

    Example: half of the state is kept.
        >>> import numpy as np
        >>> one = np.ones((3, 1))
        >>> recurrence(np, one, one, one, 0.5 * one)[0][:, 0].tolist()
        [1.0, 1.5, 1.75]
    """
    scale, tokens = 1 / math.sqrt(query.shape[-1]), range(query.shape[-2])
    states = [xp.zeros((*query.shape[:-2], query.shape[-1], value.shape[-1]), dtype=value.dtype)]
    for t in tokens:
        states.append(decay[..., t, :, None] * states[-1] + key[..., t, :, None] * value[..., t, None, :])
    output = [scale * (query[..., t, None, :] @ states[t + 1])[..., 0, :] for t in tokens]

    def pull(g: Array) -> tuple[Array, Array, Array, Array]:
        g, back, found = scale * g, xp.zeros_like(states[0]), []
        for t in reversed(tokens):
            back = back + query[..., t, :, None] * g[..., t, None, :]
            of_query = (states[t + 1] @ g[..., t, :, None])[..., 0]
            of_key = (back @ value[..., t, :, None])[..., 0]
            of_value = (key[..., t, None, :] @ back)[..., 0, :]
            of_decay = (states[t] * back).sum(axis=-1)
            if decay.shape[-1] == 1:
                of_decay = of_decay.sum(axis=-1, keepdims=True)
            found.append((of_query, of_key, of_value, of_decay))
            back = decay[..., t, :, None] * back
        of_query, of_key, of_value, of_decay = (xp.stack(parts[::-1], axis=-2) for parts in zip(*found, strict=True))
        return of_query, of_key, of_value, of_decay

    return xp.stack(output, axis=-2), pull
