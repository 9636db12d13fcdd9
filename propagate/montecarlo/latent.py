"""Multi-head latent attention on arrays, with its reverse pass.

Every matrix is drawn with gain 1, and its gain applied to what it gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from propagate.latent import LatentAttention
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.attention import seen_by
from propagate.montecarlo.norms import undoes_scale
from propagate.montecarlo.operators import rotary, softmax
from propagate.montecarlo.parameter_gradients import Part
from propagate.montecarlo.pulls import Pull, chain
from propagate.montecarlo.sublayers import Call, apply


@apply.register(LatentAttention)
def latent_attention(kind: LatentAttention, x: Array, block: Call) -> tuple[Array, Pull]:
    """The sublayer, (draws, tokens, width) -> the same shape; four sites."""
    attended, pull_heads = (_uniform if kind.logit_std == 0 else _softmax_heads)(kind, x, block)
    write = [Part("attention_out", block.width, kind.out_gain)]
    y, pull_out = block.matrix(attended, block.width, kind.out_gain, write)
    return y, chain(pull_out, pull_heads)


def _parts(kind: LatentAttention, block: Call, *names: str) -> list[Part]:
    known = {name: Part(name, fan_out, gain) for name, _, fan_out, gain in kind.matrices(block.width)}
    return [known[name] for name in names if name in known]


def _read(x: Array, parts: list[Part], block: Call) -> tuple[list[Array], Callable[[list[Array]], Array]]:
    """Matrices of gain 1 side by side: what each gives, and the pull from all their cotangents."""
    widths = [part.width for part in parts]
    ends = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
    y, pull = block.matrix(x, sum(widths), parts=parts)
    return block.xp.split(y, ends, axis=-1), lambda cotangents: pull(block.xp.concatenate(cotangents, axis=-1))


def _latent(x: Array, gain: float, block: Call) -> tuple[Array, Pull]:
    """What a down-projection of gain 1 gave, times its gain, normed."""
    if undoes_scale(block.layer.norm):
        return block.norm(x)
    y, pull = block.norm(gain * x)
    return y, lambda g: gain * pull(g)


def _split(x: Array, heads: int) -> Array:
    """(draws, tokens, all heads) -> (draws, heads, tokens, coordinates of a head)."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _merge(x: Array) -> Array:
    """The inverse of `_split`."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _uniform(kind: LatentAttention, x: Array, block: Call) -> tuple[Array, Pull]:
    """Every token averages the values it may see."""
    seen = seen_by(kind, block).astype(float)
    weights = (seen / seen.sum(axis=-1, keepdims=True)).astype(x.dtype)
    (down,), pull_down = _read(x, _parts(kind, block, "key_value_down"), block)
    latent, pull_norm = _latent(down, kind.key_value_down_gain, block)
    (values,), pull_up = _read(latent, _parts(kind, block, "value"), block)
    scale = kind.value_gain * kind.scale_of("value", block.width)
    return weights @ (scale * values), lambda g: pull_down([pull_norm(pull_up([scale * (weights.T @ g)]))])


def _softmax_heads(kind: LatentAttention, x: Array, block: Call) -> tuple[Array, Pull]:
    """Softmax attention of all heads, concatenated: (draws, tokens, width) -> (draws, tokens, all heads)."""
    xp, heads, first = block.xp, kind.heads, _parts(kind, block, "query_down", "key_value_down", "key_rotary")
    if not kind.query_rank:
        first = [*_parts(kind, block, "query"), *first]
    found, pull_first = _read(x, first, block)
    of_x = {part.name: array for part, array in zip(first, found, strict=True)}
    if kind.query_rank:
        latent, pull_latent = _latent(of_x["query_down"], kind.query_down_gain, block)
        (query,), pull_query = _read(latent, _parts(kind, block, "query"), block)
    else:
        query = of_x["query"]
    latents, pull_latents = _latent(of_x["key_value_down"], kind.key_value_down_gain, block)
    (key, value), pull_up = _read(latents, _parts(kind, block, "key", "value"), block)
    by = {name: getattr(kind, f"{name}_gain") * kind.scale_of(name, block.width) for name in ("query", "key", "value")}
    turn = rotary(block.backend, kind.frequencies, block.tokens)
    query, key, value = (
        by[name] * _split(part, heads) for name, part in (("query", query), ("key", key), ("value", value))
    )
    plain, turned = query[..., : kind.plain_size], turn(query[..., kind.plain_size :], 1)
    scale = kind.logit_std / math.sqrt(kind.size)
    logits = scale * (plain @ key.swapaxes(-1, -2))
    shared = None
    if kind.turned_size:
        shared = turn(kind.rotary_gain * of_x["key_rotary"], 1)[:, None]
        logits = logits + scale * (turned @ shared.swapaxes(-1, -2))
    if kind.causal or kind.mask is not None:
        logits = xp.where(seen_by(kind, block), logits, -xp.inf)
    weights, pull_softmax = softmax(block.backend, logits)

    def pull(g: Array) -> Array:
        g = _split(g, heads)
        of_logits = scale * pull_softmax(g @ value.swapaxes(-1, -2))
        across = of_logits.swapaxes(-1, -2)
        to_value = by["value"] * _merge(weights.swapaxes(-1, -2) @ g)
        to_latents = pull_up([by["key"] * _merge(across @ plain), to_value])
        back, to_query = {"key_value_down": pull_latents(to_latents)}, of_logits @ key
        if shared is not None:
            to_query = xp.concatenate([to_query, turn(of_logits @ shared, -1)], axis=-1)
            back["key_rotary"] = kind.rotary_gain * turn((across @ turned).sum(axis=1), -1)
        to_query = by["query"] * _merge(to_query)
        if kind.query_rank:
            back["query_down"] = pull_latent(pull_query([to_query]))
        else:
            back["query"] = to_query
        return pull_first([back[part.name] for part in first])

    return _merge(weights @ value), pull
