"""Softmax attention on arrays, with its reverse pass: masks, rotary positions, grouped heads, inner norms."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from propagate.model import Model
from propagate.montecarlo.backend import Array, Backend
from propagate.montecarlo.operators import NORMS, in_one_pass, one_pass_attention, rotary, softmax
from propagate.montecarlo.pulls import Pull, chain

if TYPE_CHECKING:
    from propagate.montecarlo.blocks import Block


def attention(block: Block, site: int, x: Array, normed: frozenset[str]) -> tuple[Array, Pull]:
    """The sublayer, (draws, tokens, width) -> the same shape; two sites."""
    gains = block.gains
    attended, pull_heads = (_uniform if block.model.logit_std == 0 else _softmax_heads)(block, site, x, normed)
    attended, pull_norm = inner_norm(block, "heads", normed, attended)
    gain = gains.attention_out * (1 if normed & {"value", "heads"} else gains.value)
    y, pull_out = block.sampler(attended, site + 1, block.model.width, gain)
    return y, chain(pull_out, pull_norm, pull_heads)


def inner_norm(block: Block, name: str, normed: frozenset[str], x: Array) -> tuple[Array, Pull]:
    """The model's norm over the last axis, if `name` is among those normed."""
    return NORMS[block.model.at(block.index).norm.kind](block.backend, x) if name in normed else (x, lambda g: g)


@lru_cache(maxsize=8)
def _visible(backend: Backend, model: Model) -> Array:
    """The model's mask on the device, put there once."""
    return backend.xp.asarray(model.visible)


def _split(model: Model, x: Array) -> Array:
    """(draws, tokens, any number of heads together) -> (draws, heads, tokens, width of a head)."""
    return x.reshape(*x.shape[:2], -1, model.width // model.heads).swapaxes(1, 2)


def _merge(x: Array) -> Array:
    """The inverse of `_split`."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _spread(block: Block, x: Array) -> Array:
    """A key or value head to every query head of its group."""
    group = block.model.heads // block.model.kv_heads
    return block.backend.xp.repeat(x, group, axis=1) if group > 1 else x


def _gather(block: Block, x: Array) -> Array:
    """The transpose of `_spread`."""
    group = block.model.heads // block.model.kv_heads
    return x.reshape(x.shape[0], -1, group, *x.shape[2:]).sum(axis=2) if group > 1 else x


def _uniform(block: Block, site: int, x: Array, normed: frozenset[str]) -> tuple[Array, Pull]:
    """Every token averages the values it may see."""
    model = block.model
    visible = _visible(block.backend, model).astype(float)
    weights = (visible / visible.sum(axis=-1, keepdims=True)).astype(x.dtype)
    values, pull = block.sampler(x, site, model.width // model.heads * model.kv_heads)
    heads, pull_norm = inner_norm(block, "value", normed, _split(model, values))
    return (
        _merge(_spread(block, weights @ heads)),
        chain(lambda g: _merge(pull_norm(weights.T @ _gather(block, _split(model, g)))), pull),
    )


def _softmax_heads(block: Block, site: int, x: Array, normed: frozenset[str]) -> tuple[Array, Pull]:
    """Softmax attention of all heads, concatenated: (draws, tokens, width) -> the same shape."""
    model, xp = block.model, block.backend.xp
    tokens, width = x.shape[-2:]
    shared = width // model.heads * model.kv_heads
    projected, pull_projection = block.sampler(x, site, width + 2 * shared)
    gain = math.prod(getattr(block.gains, name) for name in ("query", "key") if name not in normed)
    scale = gain * model.logit_std / math.sqrt(width // model.heads)
    plain = model.window is None and model.mask is None and model.rope is None and shared == width
    if plain and not normed & {"query", "key", "value"} and in_one_pass(block.backend, tokens):
        out, pull_heads = one_pass_attention(projected, model.heads, scale, causal=model.causal)
        return out, chain(pull_heads, pull_projection)
    (query, pull_query), (key, pull_key), (value, pull_value) = (
        inner_norm(block, name, normed, _split(model, part))
        for name, part in zip(
            ("query", "key", "value"), xp.split(projected, (width, width + shared), axis=-1), strict=True
        )
    )
    turn = rotary(block.backend, model.frequencies, tokens)
    query, key, value = turn(query, 1), _spread(block, turn(key, 1)), _spread(block, value)
    logits = scale * (query @ key.swapaxes(-1, -2))
    if not model.visible.all():
        logits = xp.where(_visible(block.backend, model), logits, -xp.inf)
    weights, pull_softmax = softmax(block.backend, logits)

    def pull_softmax_heads(g: Array) -> Array:
        g = _split(model, g)
        logit_cotangent = scale * pull_softmax(g @ value.swapaxes(-1, -2))
        parts = (
            pull_query(turn(logit_cotangent @ key, -1)),
            pull_key(turn(_gather(block, logit_cotangent.swapaxes(-1, -2) @ query), -1)),
            pull_value(_gather(block, weights.swapaxes(-1, -2) @ g)),
        )
        return xp.concatenate([_merge(part) for part in parts], axis=-1)

    return _merge(weights @ value), chain(pull_softmax_heads, pull_projection)
