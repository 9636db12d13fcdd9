"""What a sublayer makes of a small change of its input, and the first step of its matrices: drawn, as units and heads.

Of a hidden unit its pre-activations over the tokens and the cotangent behind the activation are drawn, of attention a
whole head; no width enters. The change before an activation, of queries, keys and values, has a part along the
cotangent there, which the draw holds, and a Gaussian rest. See `tangents`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np

from propagate.model import ModelError
from propagate.optimizers import SGD, Muon, Optimizer
from propagate.sublayers import FFN, Attention
from propagate.theory.gaussian.expressions import functions
from propagate.theory.gaussian.roots import symmetric_root
from propagate.theory.tangents import Met, Sent, gram_of
from propagate.theory.tokens.drawn_heads import norm_pull, normed, turned
from propagate.theory.tokens.gram import Array
from propagate.theory.tokens.modes import without_mean
from propagate.theory.uses import Use
from propagate.transfer import Factors, Kind, kind_of, trained_with

SMALL = 1e-12  # of the largest eigenvalue: below it lies its rounding


@dataclass(frozen=True)
class Change:
    """A `tangents.Map`: by these draws.

    Attributes:
        optimizer, factors: which trains the matrices, and of a rule of transfer.
        units: hidden units, or coordinates of heads.
        random: what draws.
    """

    optimizer: Optimizer
    factors: dict[Kind, Factors]
    units: int
    random: np.random.Generator

    def __call__(self, sent: Sent, met: Met, arriving: Array) -> Met:
        """The change of what the sublayer gives: its beta, and its second moments."""
        drawn = of_sublayer(sent.call.description, sent, met, arriving, self)
        name = "attention_out" if isinstance(sent.call.description, Attention) else "ffn_out"
        out = sent.uses[name]
        power = float(out.gain) ** 2
        inside, along, arrived = (_moments(*pair) for pair in ((drawn.d, drawn.d), (drawn.d, drawn.g), (drawn.g,) * 2))
        beta = power * along @ np.linalg.pinv(arrived, rcond=SMALL, hermitian=True)
        beta = beta + self.own_part(name, out, len(arriving))
        return Met(beta, power * inside + beta @ arriving @ beta.T)

    def own_part(self, name: str, use: Use, tokens: int) -> Array:
        """M of the step of a matrix: what it makes of its own input is M times the cotangent of its output.

        With K and Gamma per coordinate: fan_in K of SGD, and of Muon, whose direction is x^T R g with R such that all
        singular values are 1, sqrt(fan_in / fan_out) K^(1/2) C^(-1/2) K^(1/2), C = K^(1/2) Gamma K^(1/2).
        """
        factors = self.factors[kind_of(name)]
        optimizer, multiplier = trained_with(self.optimizer, factors), float(factors.multiplier)
        x, g = gram_of(use.x, tokens), gram_of(use.g, tokens)
        if isinstance(optimizer, SGD):
            return np.asarray(-optimizer.lr * multiplier**2 * use.fan_in * x)
        assert isinstance(optimizer, Muon)
        root = symmetric_root(x)
        values, vectors = np.linalg.eigh(root @ (without_mean(g) if use.balanced else g) @ root)
        kept = values > SMALL * values[-1]
        inverse = np.divide(1.0, np.sqrt(np.where(kept, values, 1.0)), out=np.zeros_like(values), where=kept)
        rate = optimizer.lr * multiplier * optimizer.size(use.fan_in, use.fan_out)
        return np.asarray(-rate * math.sqrt(use.fan_in / use.fan_out) * root @ (vectors * inverse) @ vectors.T @ root)

    def normals(self, gram: Array, *shape: int) -> Array:
        """(shape[0], tokens, shape[1]) of these second moments over tokens."""
        first, last = shape
        return np.asarray(symmetric_root(gram) @ self.random.standard_normal((first, len(gram), last)))

    def before(self, name: str, sent: Sent, met: Met, g: Array) -> Array:
        """The change of the output of an input matrix, from its drawn cotangent g."""
        use = sent.uses[name]
        power = float(use.gain) ** 2
        along = power * met.beta + self.own_part(name, use, g.shape[1])
        return np.asarray(along @ g + self.normals(power * met.moments, g.shape[0], g.shape[2]))


@dataclass(frozen=True)
class _Drawn:
    """At what the output matrix reads: the change and the cotangent, (draws, tokens, coordinates)."""

    d: Array
    g: Array


def _moments(one: Array, other: Array) -> Array:
    return np.asarray(np.tensordot(one, other, axes=((0, 2), (0, 2))) / (one.shape[0] * one.shape[2]))


@singledispatch
def of_sublayer(description: Any, sent: Sent, met: Met, arriving: Array, change: Change) -> _Drawn:
    """Draws of what the output matrix reads."""
    raise ModelError(f"predict_change does not cover {type(description).__name__}, got {description!r}")


@of_sublayer.register
def _(ffn: FFN, sent: Sent, met: Met, arriving: Array, change: Change) -> _Drawn:
    tokens, count, out = len(arriving), change.units, sent.uses["ffn_out"]
    f, x = functions(ffn.activation.core), float(ffn.in_gain) ** 2 * gram_of(sent.call.entered, tokens)
    g = change.normals(float(out.gain) ** 2 * out.fan_out / out.fan_in * arriving, count, 1)
    u = change.normals(x, count, 1) * float(ffn.gate_gain)
    if not ffn.activation.gated:
        scale = _scale(f.value(u), sent, "hidden" in ffn.normed)
        slope = scale * f.slope(u)
        return _Drawn(slope * change.before("ffn_in", sent, met, slope * g), g)
    v, value = change.normals(x, count, 1), f.value(u)
    scale = _scale(value * v, sent, "hidden" in ffn.normed)
    slope, value = scale * f.slope(u) * v, scale * value
    d = slope * change.before("ffn_gate", sent, met, slope * g) + value * change.before("ffn_in", sent, met, value * g)
    return _Drawn(d, g)


def _scale(of: Array, sent: Sent, is_normed: bool) -> Any:
    """Of a norm of all hidden units, or of all heads, by their draws: (1, tokens, 1)."""
    if not is_normed:
        return 1.0
    norm = sent.layer.norm
    centred = of - of.mean(axis=(0, 2), keepdims=True) if norm.centred else of
    return 1 / np.sqrt((centred * centred).mean(axis=(0, 2), keepdims=True) + norm.eps)


@of_sublayer.register
def _(kind: Attention, sent: Sent, met: Met, arriving: Array, change: Change) -> _Drawn:
    tokens, size, group, out = len(arriving), kind.size, kind.heads // kind.kv_heads, sent.uses["attention_out"]
    x, units, norm = gram_of(sent.call.entered, tokens), max(change.units // (size * group), 16), sent.layer.norm

    def repeated(of: Array) -> Array:
        return np.repeat(of, group, axis=0)

    def gathered(of: Array) -> Array:
        return np.asarray(of.reshape(units, group, *of.shape[1:]).sum(axis=1))

    def drawn(name: str, gain: Any, count: int) -> tuple[Array, Callable[[Array], Array], Callable[[Array], Array]]:
        """Queries, keys or values behind norm and turn; how a change passes these, and how a cotangent returns."""
        raw = change.normals(float(gain) ** 2 * x, count, size)
        value, inner = raw, _same
        if name in kind.normed:
            power = ((raw - raw.mean(axis=-1, keepdims=True) if norm.centred else raw) ** 2).mean(
                axis=-1, keepdims=True
            )
            shrunk = np.sqrt(power / (power + norm.eps))
            value, inner = shrunk * normed(raw, norm.centred), lambda of: norm_pull(raw, shrunk * of, norm.centred)
        if name == "value" or not kind.frequencies:
            return value, inner, inner
        turns = kind.frequencies
        return turned(value, turns, 1), lambda d: turned(inner(d), turns, 1), lambda g: inner(turned(g, turns, -1))

    g = change.normals(float(out.gain) ** 2 * out.fan_out / out.fan_in * arriving, units * group, size)
    value, through_value, from_value = drawn("value", kind.value_gain, units)
    values = repeated(value)
    if kind.logit_std:
        query, through_query, from_query = drawn("query", kind.query_gain, units * group)
        key, through_key, from_key = drawn("key", kind.key_gain, units)
        keys, scale = repeated(key), kind.logit_std / math.sqrt(size)
        logits = np.where(np.asarray(kind.visible(tokens)), scale * query @ keys.swapaxes(-1, -2), -np.inf)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
    else:
        visible = np.asarray(kind.visible(tokens), dtype=float)
        weights = np.broadcast_to(visible / visible.sum(axis=-1, keepdims=True), (len(g), tokens, tokens))
    inner = _scale(weights @ values, sent, "heads" in kind.normed)
    sent_on = inner * g
    to_value = from_value(gathered(weights.swapaxes(-1, -2) @ sent_on))
    d = weights @ repeated(through_value(change.before("value", sent, met, to_value)))
    if kind.logit_std:

        def softmax(of: Array) -> Array:
            """The derivative, which is its own transpose."""
            return np.asarray(weights * (of - (weights * of).sum(axis=-1, keepdims=True)))

        at_logits = scale * softmax(sent_on @ values.swapaxes(-1, -2))
        to_query, to_key = from_query(at_logits @ keys), from_key(gathered(at_logits.swapaxes(-1, -2) @ query))
        of_query = through_query(change.before("query", sent, met, to_query))
        of_key = repeated(through_key(change.before("key", sent, met, to_key)))
        d = d + softmax(scale * (of_query @ keys.swapaxes(-1, -2) + query @ of_key.swapaxes(-1, -2))) @ values
    return _Drawn(inner * d, g)


def _same(of: Array) -> Array:
    return of
