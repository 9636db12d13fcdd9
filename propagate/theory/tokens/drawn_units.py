"""The law of coordinates that are not Gaussian: hidden units behind an activation, and coordinates of heads.

Second moments do not tell what an optimiser that looks at single entries of a gradient makes of it. So units are drawn:
of an FFN a unit's pre-activations over the tokens, Gaussian, and the cotangent that comes to it; of attention a whole
head of the model's own size, its queries, keys, values and cotangent. No width enters: only what one unit or one head
has is drawn. Differences between tokens are drawn apart from what they share, so that rank collapse costs no digits
where differences alone count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from propagate.norms import Norm
from propagate.sublayers import FFN, Attention
from propagate.theory.gaussian.expressions import functions
from propagate.theory.tokens.drawn_heads import Normals, gaussian_tokens, norm_pull, normed, turned
from propagate.theory.tokens.gram import Array, Gram

PROJECTIONS = ("query", "key", "value")
Draw = Callable[[Sequence[int], int, Any], Array]
"""From a seed, about how many coordinates to draw in each replica, and the precision, to (replicas, units, coordinates,
tokens); units are independent, the coordinates of one are not."""
REPLICAS = 8  # independent sets of draws, whose spread is the standard error
PIECES = 2**16  # of the normal law, one for each number of two bytes
RANGE = 1e12  # second moments from one over it to it have squares, and squares of products, in single precision


def resolved(x: Any, tokens: int) -> Gram:
    """Second moments of either resolution as Gram matrices with an axis of replicas, of one where all are alike.

    Example:
        >>> from propagate.theory.pairs.moments import Moments
        >>> resolved(Moments(1.0, 0.5), 4).matrix.shape
        (1, 4, 4)
    """
    gram = x if isinstance(x, Gram) else Gram.exchangeable(float(x.variance), float(x.deviation), tokens)
    return Gram(gram.matrix[None], gram.deviation[None]) if gram.matrix.ndim == 2 else gram


def precision(*sizes: Array) -> Any:
    """Single where no power of these second moments that is met leaves its range, since draws have errors far larger
    than its rounding; else double. What is 0 stays 0 in either.

    Example:
        >>> precision(np.array([1.0, 0.0])).__name__, precision(np.array([1.0, 1e-24])).__name__
        ('float32', 'float64')
    """
    fit = all(((size > 1 / RANGE) & (size < RANGE) | (size == 0)).all() for size in sizes)
    return np.float32 if fit else np.float64


def normals(seed: Sequence[int], kept: Any) -> Normals:
    """What draws standard normals: in single precision the mean of one of `PIECES` pieces of the normal law that are
    equally likely, a table look-up, which takes a fifth of the time and is told from the law by none of its draws.

    Example: moments of order 2 and 4 are 1 and 3.
        >>> z = normals([1], np.float32)((10, 50_000)).astype(float)
        >>> z.shape, bool(abs((z**2).mean() - 1) < 0.01), bool(abs((z**4).mean() - 3) < 0.1)
        ((10, 50000), True, True)
        >>> [round(float((_table() ** power).mean()), 3) for power in (1, 2, 4, 6)]
        [0.0, 1.0, 3.0, 14.991]
    """
    bits = np.random.SFC64(np.random.SeedSequence(seed))
    if kept is not np.float32:
        return np.random.Generator(bits).standard_normal

    def draw(shape: tuple[int, ...]) -> Array:
        size = math.prod(shape)
        places = bits.random_raw(-(-size // 4)).view(np.uint16)[:size]
        return np.asarray(_table().take(places).reshape(shape))

    return draw


@lru_cache(maxsize=1)
def _table() -> Array:
    """Means of the normal law over pieces of one probability, to a variance of 1."""
    density = np.exp(-(ndtri(np.arange(PIECES + 1) / PIECES) ** 2) / 2) / math.sqrt(2 * math.pi)
    means = PIECES * (density[:-1] - density[1:])
    return np.asarray(means / math.sqrt((means * means).mean()), dtype=np.float32)


def drawn_tokens(gram: Gram, samples: int, count: int, draw: Normals) -> tuple[Array, Array]:
    """`gaussian_tokens` of every replica; where there is but one, of `REPLICAS` like it."""
    replicas, tokens = gram.variance.shape
    shape = (replicas if replicas > 1 else REPLICAS, samples, tokens, count)
    return gaussian_tokens(gram, shape, draw)


@dataclass(frozen=True)
class HiddenUnits:
    """Of an FFN.

    Attributes:
        ffn: its description, in force.
        before: moments of the input of its activation, without the gate's own gain.
        arriving: moments of the cotangent that the output matrix sends to each unit.
        tokens: their number.
        scale: of the norm before the output matrix, a number or one a token; None without.
        norm: of the model.
        drawn: the last sample, which all matrices of a call share.
    """

    ffn: FFN
    before: Any
    arriving: Any
    tokens: int
    scale: Any
    norm: Norm
    drawn: dict[Any, tuple[Array, Array, Any, Array]] = field(default_factory=dict, repr=False, compare=False)

    def values(self, seed: Sequence[int], count: int, kept: Any) -> Array:
        """What the output matrix reads."""
        _, value, linear, _ = self._sample(seed, count, kept)
        found = value * linear
        if self.scale is not None:
            if self.norm.centred:
                found = found - found.mean(axis=(0, 1), keepdims=True)
            found = found * np.asarray(self.scale[:, None] if np.ndim(self.scale) else self.scale, dtype=kept)
        return np.asarray(found[:, :, None])

    def cotangents(self, name: str, seed: Sequence[int], count: int, kept: Any) -> Array:
        """At the output of an input matrix: "ffn_in" or "ffn_gate"."""
        gate, factor, linear, arriving = self._sample(seed, count, kept)
        if not self.ffn.activation.gated or name == "ffn_gate":
            factor = functions(self.ffn.activation.core).slope(gate).astype(kept, copy=False) * linear
        return np.asarray((factor * arriving)[:, :, None])

    def _sample(self, seed: Sequence[int], count: int, kept: Any) -> tuple[Array, Array, Any, Array]:
        """Input of the activation, its output, what multiplies that, and the cotangent: (replicas, units, tokens)."""
        of = (tuple(seed), count, kept)
        if of not in self.drawn:
            self.drawn.clear()
            draw, ffn = normals(seed, kept), self.ffn
            before, cotangents = (resolved(x, self.tokens) for x in (self.before, self.arriving))
            apart, shared = drawn_tokens(before, 1 + ffn.activation.gated, count, draw)
            inputs = (apart + shared).swapaxes(-1, -2)
            apart, shared = drawn_tokens(cotangents, 1, count, draw)
            linear = inputs[:, 1] if ffn.activation.gated else 1.0
            gate, arriving = float(ffn.gate_gain) * inputs[:, 0], (apart + shared)[:, 0].swapaxes(-1, -2)
            value = functions(ffn.activation.core).value(gate).astype(kept, copy=False)
            self.drawn[of] = gate, value, linear, arriving
        return self.drawn[of]


class _Sample(NamedTuple):
    """Drawn heads; arrays (replicas, heads, tokens, coordinates), of keys and values as every query head sees them;
    the cotangent that arrives before a norm of all heads, and what that multiplies by.
    """

    query: _Projected
    key: _Projected
    value: _Projected
    keys: Array
    values: Array
    weights: Array
    arriving: Array
    inner: Any


@dataclass(frozen=True)
class Heads:
    """Of an attention.

    Attributes:
        kind: its description, in force.
        x: moments of its input.
        arriving: moments of the cotangent at what the heads give, before any norm of all of them.
        tokens: their number.
        norm: of inner projections.
        drawn: the last sample, which all matrices of a call share.
    """

    kind: Attention
    x: Any
    arriving: Any
    tokens: int
    norm: Norm
    drawn: dict[Any, _Sample] = field(default_factory=dict, repr=False, compare=False)

    def draw(self, name: str, seed: Sequence[int], count: int, kept: Any) -> Array:
        """Of "out", what the output matrix reads; of "query", "key" or "value", its cotangent."""
        of = (tuple(seed), count, kept)
        if of not in self.drawn:
            self.drawn.clear()
            self.drawn[of] = self._sample(seed, count, kept)
        query, key, value, keys, values, weights, arriving, inner = self.drawn[of]
        group = self._group
        if name == "out":
            found = weights @ values + np.repeat(value.shared, group, axis=1)
            return _of_units(found * inner, group)
        if name == "value":
            return _of_units(value.pull(_gathered(weights.swapaxes(-1, -2) @ arriving, group)), 1)
        scale = self.kind.logit_std / math.sqrt(self.kind.size)
        slope = arriving @ values.swapaxes(-1, -2)
        slope = scale * weights * (slope - (weights * slope).sum(axis=-1, keepdims=True))
        if name == "query":
            return _of_units(query.pull(slope @ keys), group)
        return _of_units(key.pull(_gathered(slope.swapaxes(-1, -2) @ query.whole, group)), 1)

    @property
    def _group(self) -> int:
        return self.kind.heads // self.kind.kv_heads

    def _sample(self, seed: Sequence[int], count: int, kept: Any) -> _Sample:
        kind, size, group, draw = self.kind, self.kind.size, self._group, normals(seed, kept)
        units = max(round(count / (size * group)), 2)

        def drawn(moments: Any, heads: int) -> tuple[Array, Array]:
            return drawn_tokens(resolved(moments, self.tokens), heads, size, draw)

        ends = [units * group, units * group + units]
        entered = (np.split(part, ends, axis=1) for part in drawn(self.x, ends[-1] + units))
        gains = (float(gain) for gain in (kind.query_gain, kind.key_gain, kind.value_gain))
        query, key, value = (
            self._projected(name, (gain * one, gain * other))
            for name, gain, one, other in zip(PROJECTIONS, gains, *entered, strict=True)
        )
        keys, values = (np.repeat(part.apart, group, axis=1) if group > 1 else part.apart for part in (key, value))
        apart, shared = drawn(self.arriving, units * group)
        # what all keys share the softmax ignores
        logits = kind.logit_std / math.sqrt(size) * (query.whole @ keys.swapaxes(-1, -2))
        logits = np.where(np.asarray(kind.visible(self.tokens)), logits, -np.inf)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        inner: Any = 1.0
        if "heads" in kind.normed:  # of all heads together, of which the drawn ones are a sample
            given = weights @ values + np.repeat(value.shared, group, axis=1)
            inner = 1 / np.sqrt((given * given).mean(axis=(0, 1, 3), keepdims=True) + self.norm.eps)
        return _Sample(query, key, value, keys, values, weights, (apart + shared) * inner, inner)

    def _projected(self, name: str, parts: tuple[Array, Array]) -> _Projected:
        """As it enters, behind its norm and its turn."""
        apart, shared = parts
        raw, pull = apart + shared, _same
        if name in self.kind.normed:
            size = ((raw - raw.mean(axis=-1, keepdims=True) if self.norm.centred else raw) ** 2).mean(axis=-1)
            eps = (size / (size + self.norm.eps))[..., None] ** 0.5
            apart, shared = eps * normed(raw, self.norm.centred), np.zeros_like(shared)

            def pull(g: Array) -> Array:
                return norm_pull(raw, eps * g, self.norm.centred)

        if name == "value" or not self.kind.frequencies:
            return _Projected(apart, shared, pull)
        whole, before = turned(apart + shared, self.kind.frequencies, 1), pull
        return _Projected(whole, np.zeros_like(shared), lambda g: before(turned(g, self.kind.frequencies, -1)))


@dataclass(frozen=True)
class _Projected:
    """Queries, keys or values of drawn heads, (replicas, heads, tokens, coordinates): what differs between tokens, what
    they share, and the pull from a cotangent to the one before norm and turn.
    """

    apart: Array
    shared: Array
    pull: Callable[[Array], Array]

    @property
    def whole(self) -> Array:
        return np.asarray(self.apart + self.shared)


def _gathered(g: Array, group: int) -> Array:
    """Sums over the query heads of each group."""
    return np.asarray(g.reshape(len(g), -1, group, *g.shape[2:]).sum(axis=2)) if group > 1 else g


def _of_units(x: Array, group: int) -> Array:
    """(replicas, heads, tokens, size) as units of so many heads: (replicas, units, coordinates, tokens)."""
    replicas, heads, tokens, size = x.shape
    by_unit = x.reshape(replicas, heads // group, group, tokens, size).swapaxes(-1, -2)
    return np.asarray(by_unit.reshape(replicas, heads // group, group * size, tokens))


def _same(g: Array) -> Array:
    return g
