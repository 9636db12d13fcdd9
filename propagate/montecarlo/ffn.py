"""The feed-forward layer on arrays, with its reverse pass: gated or not, one or several side by side."""

from __future__ import annotations

import math

from propagate.montecarlo.arrays import Array
from propagate.montecarlo.cuda.weightless import Fused
from propagate.montecarlo.operators import operator_of, output_rms
from propagate.montecarlo.parameter_gradients import Part
from propagate.montecarlo.pulls import Pull, chain
from propagate.montecarlo.sublayers import Call, apply
from propagate.sublayers import FFN


@apply.register(FFN)
def ffn(kind: FFN, x: Array, block: Call) -> tuple[Array, Pull]:
    """The sublayer, (draws, tokens, width) -> the same shape; two sites."""
    return side_by_side(kind, x, block, 1, "ffn")


def side_by_side(kind: FFN, x: Array, block: Call, count: int, name: str) -> tuple[Array, Pull]:
    """The sum of so many FFNs, each with hidden units that pass a norm of their own.

    Together they are one FFN, as many times as wide, times the square root of their number.
    """
    y, pull = _one(kind, x, block, count, name)
    root = math.sqrt(count)
    return (y, pull) if count == 1 else (y * root, chain(lambda g: g * root, pull))


def _one(kind: FFN, x: Array, block: Call, count: int, name: str) -> tuple[Array, Pull]:
    """So many FFNs as one, without the root."""
    hidden, gain, sampler = count * kind.units, output_gain(kind), block.sampler
    plain_relu = kind.activation == "relu" and not kind.normed and block.norms is None
    if plain_relu and isinstance(sampler, Fused) and sampler.covers(block.tokens, block.width, hidden):
        return sampler.relu_ffn(x, (block.site(), block.site()), hidden, block.width, kind.in_gain, gain)
    read = input_parts(kind, hidden, name)
    before, pull_in = block.matrix(x, sum(part.width for part in read), kind.in_gain, read)
    after, pull_activation = activated(kind, before, block)
    inner, pull_norm = norm_of_parts(kind, after.reshape(*after.shape[:2], count, -1), block)
    write = [Part(f"{name}_out", block.width, gain * math.sqrt(count))]
    y, pull_out = block.matrix(inner.reshape(after.shape), block.width, gain, write)
    back = chain(pull_out, lambda g: pull_norm(g.reshape(inner.shape)).reshape(after.shape), pull_activation, pull_in)
    return y, back


def input_parts(kind: FFN, hidden: int, name: str) -> list[Part]:
    """The input matrices, the gate's first where there is one."""
    parts = [Part(f"{name}_in", hidden, kind.in_gain)]
    return [Part(f"{name}_gate", hidden, kind.in_gain * kind.gate_gain), *parts] if kind.activation.gated else parts


def output_gain(kind: FFN) -> float:
    """Of the output matrix: the constant that gives the output its size is in it, unless its input is normed."""
    gain: float = kind.out_gain
    return gain if "hidden" in kind.normed else gain / output_rms(kind.activation)


def activated(kind: FFN, before: Array, block: Call) -> tuple[Array, Pull]:
    """The activation of what the input matrices gave, drawn with one gain: the gate's own comes in here."""
    operator = operator_of(kind.activation)
    if not kind.activation.gated or kind.gate_gain == 1:
        return operator(block.backend, before)
    gains = block.xp.asarray([kind.gate_gain, 1.0], dtype=before.dtype)
    factors = block.xp.repeat(gains, before.shape[-1] // 2)
    after, pull = operator(block.backend, before * factors)
    return after, lambda g: pull(g) * factors


def norm_of_parts(kind: FFN, x: Array, block: Call) -> tuple[Array, Pull]:
    """The norm of hidden units (draws, tokens, parts, coordinates), each part by itself, if they are normed."""
    rows = x.reshape(x.shape[0], -1, x.shape[-1])
    y, pull = block.inner_norm(kind, "hidden", rows)
    return y.reshape(x.shape), lambda g: pull(g.reshape(rows.shape)).reshape(x.shape)
