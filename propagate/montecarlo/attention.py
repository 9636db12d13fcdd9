"""Softmax attention on arrays, with its reverse pass: masks, rotary positions, grouped heads, inner norms."""

from __future__ import annotations

import math
from functools import lru_cache

from propagate.latent import LatentAttention
from propagate.masks import Mask, visible
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import Backend
from propagate.montecarlo.norms import undoes_scale
from propagate.montecarlo.operators import in_one_pass, one_pass_attention, rotary, softmax
from propagate.montecarlo.parameter_gradients import Part
from propagate.montecarlo.pulls import Pull, chain
from propagate.montecarlo.sublayers import Call, apply
from propagate.sublayers import Attention


@apply.register(Attention)
def attention(kind: Attention, x: Array, block: Call) -> tuple[Array, Pull]:
    """The sublayer, (draws, tokens, width) -> the same shape; two sites."""
    attended, pull_heads = (_uniform if kind.logit_std == 0 else _softmax_heads)(kind, x, block)
    attended, pull_norm = _normed(kind, "heads", 1 if "value" in kind.normed else kind.value_gain, attended, block)
    ahead = 1 if {"value", "heads"} & set(kind.normed) else kind.value_gain
    write = [Part("attention_out", block.width, kind.out_gain, before=ahead)]
    y, pull_out = block.matrix(attended, block.width, kind.out_gain * ahead, write)
    return y, chain(pull_out, pull_norm, pull_heads)


def _normed(kind: Attention, name: str, gain: float, x: Array, block: Call) -> tuple[Array, Pull]:
    """An inner projection, drawn with gain 1, through the norm if it has one.

    Most norms undo the gain, which is then left out; one with an eps, or of a user's own, sees it.
    """
    if name not in kind.normed or gain == 1 or undoes_scale(block.layer.norm):
        return block.inner_norm(kind, name, x)
    y, pull = block.norm(gain * x)
    return y, lambda g: gain * pull(g)


@lru_cache(maxsize=8)
def _visible(backend: Backend, tokens: int, causal: bool, window: int | None, mask: Mask | None) -> Array:
    """A mask on the device, put there once."""
    return backend.xp.asarray(visible(tokens, causal, window, mask))


def seen_by(kind: Attention | LatentAttention, block: Call) -> Array:
    """Which token, the row, attends to which."""
    return _visible(block.backend, block.tokens, kind.causal, kind.window, kind.mask)


def _split(kind: Attention, x: Array) -> Array:
    """(draws, tokens, any number of heads together) -> (draws, heads, tokens, width of a head)."""
    return x.reshape(*x.shape[:2], -1, kind.size).swapaxes(1, 2)


def _merge(x: Array) -> Array:
    """The inverse of `_split`."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _spread(kind: Attention, block: Call, x: Array) -> Array:
    """A key or value head to every query head of its group."""
    group = kind.heads // kind.kv_heads
    return block.xp.repeat(x, group, axis=1) if group > 1 else x


def _gather(kind: Attention, x: Array) -> Array:
    """The transpose of `_spread`."""
    group = kind.heads // kind.kv_heads
    return x.reshape(x.shape[0], -1, group, *x.shape[2:]).sum(axis=2) if group > 1 else x


def _uniform(kind: Attention, x: Array, block: Call) -> tuple[Array, Pull]:
    """Every token averages the values it may see."""
    seen = seen_by(kind, block).astype(float)
    weights = (seen / seen.sum(axis=-1, keepdims=True)).astype(x.dtype)
    shared = kind.size * kind.kv_heads
    values, pull = block.matrix(x, shared, parts=[Part("value", shared, kind.value_gain)])
    heads, pull_norm = _normed(kind, "value", kind.value_gain, _split(kind, values), block)
    return (
        _merge(_spread(kind, block, weights @ heads)),
        chain(lambda g: _merge(pull_norm(weights.T @ _gather(kind, _split(kind, g)))), pull),
    )


def _softmax_heads(kind: Attention, x: Array, block: Call) -> tuple[Array, Pull]:
    """Softmax attention of all heads, concatenated: (draws, tokens, width) -> (draws, tokens, all heads)."""
    xp, tokens = block.xp, block.tokens
    inside, shared = kind.inside, kind.size * kind.kv_heads
    gains = {"query": kind.query_gain, "key": kind.key_gain, "value": kind.value_gain}
    parts = [Part(name, inside if name == "query" else shared, gain) for name, gain in gains.items()]
    projected, pull_projection = block.matrix(x, inside + 2 * shared, parts=parts)
    gain = math.prod(gains[name] for name in ("query", "key") if name not in kind.normed)
    scale = gain * kind.logit_std / math.sqrt(kind.size)
    plain = kind.window is None and kind.mask is None and kind.rope is None and shared == inside
    if plain and not {"query", "key", "value"} & set(kind.normed) and in_one_pass(block.backend, tokens):
        out, pull_heads = one_pass_attention(projected, kind.heads, scale, causal=kind.causal)
        return out, chain(pull_heads, pull_projection)
    (query, pull_query), (key, pull_key), (value, pull_value) = (
        _normed(kind, name, gains[name], _split(kind, part), block)
        for name, part in zip(gains, xp.split(projected, (inside, inside + shared), axis=-1), strict=True)
    )
    turn = rotary(block.backend, kind.frequencies, tokens)
    query, key, value = turn(query, 1), _spread(kind, block, turn(key, 1)), _spread(kind, block, value)
    logits = scale * (query @ key.swapaxes(-1, -2))
    if kind.causal or kind.mask is not None:
        logits = xp.where(seen_by(kind, block), logits, -xp.inf)
    weights, pull_softmax = softmax(block.backend, logits)

    def pull_softmax_heads(g: Array) -> Array:
        g = _split(kind, g)
        logit_cotangent = scale * pull_softmax(g @ value.swapaxes(-1, -2))
        parts = (
            pull_query(turn(logit_cotangent @ key, -1)),
            pull_key(turn(_gather(kind, logit_cotangent.swapaxes(-1, -2) @ query), -1)),
            pull_value(_gather(kind, weights.swapaxes(-1, -2) @ g)),
        )
        return xp.concatenate([_merge(part) for part in parts], axis=-1)

    return _merge(weights @ value), chain(pull_softmax_heads, pull_projection)
