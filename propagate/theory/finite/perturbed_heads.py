"""Drawn heads of softmax attention, run forward and backward on the vectors of a few tokens.

Tokens are rows in an orthonormal frame of as many directions. A head multiplies them by three matrices of its own, of
which it takes the rows over that frame: standard normals, as many columns as the head has coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from propagate.masks import Visible
from propagate.sublayers import Attention
from propagate.theory.finite.perturbation import Array, inner
from propagate.theory.tokens.drawn_heads import turned

PROJECTIONS = ("query", "key", "value")
Normals = dict[str, Array]


class Run(NamedTuple):
    """Heads at given tokens.

    Attributes:
        output: before the output matrix, (samples, tokens, coordinates), those of all heads one after another.
        pull: from a cotangent there to those at the products with the three matrices, by name.
        returned: of the cotangent (samples, tokens, tokens) @ output, what `Heads.with_input` gives of its pull, in
            the mean over values: less noise, whose square would count, than that of the values drawn.
    """

    output: Array
    pull: Callable[[Array], Normals]
    returned: Callable[[Array], Array]


@dataclass(frozen=True)
class Heads:
    """Groups of heads that share keys and values, independent between samples.

    A head's coordinates count by their inner products alone. Where it has many more of them than there are tokens it is
    turned so that keys and values lie along the first ones, and what queries have elsewhere along as many more. Rotary
    positions tell the coordinates of queries and keys apart: those are then drawn as they are.

    Attributes:
        kind: the attention, as in force in the block.
        tokens: their number.
        centred: whether norms inside take a mean out.
        samples, groups: their numbers.
        normals: rows of the three matrices, (samples, tokens, coordinates of all groups' queries, keys or values).
    """

    kind: Attention
    tokens: int
    centred: bool
    samples: int
    groups: int
    normals: Normals

    @classmethod
    def drawn(
        cls, kind: Attention, tokens: int, random: np.random.Generator, samples: int, rows: int, *, centred: bool
    ) -> Heads:
        """With at least so many rows of attention weights in each sample.

        Example: two heads of four coordinates each.
            >>> kind = Attention(heads=4).fitted(width=16, tokens=3)
            >>> heads = Heads.drawn(kind, 3, np.random.default_rng(0), samples=5, rows=6, centred=False)
            >>> heads.run(np.eye(3)[None]).output.shape, heads.count
            ((5, 3, 8), 8)
        """
        groups = math.ceil(rows / (tokens * kind.heads // kind.kv_heads))
        heads = cls(kind, tokens, centred, samples, groups, {})
        choosing, giving = heads._free("query", "key"), heads._free("value")
        for name, draw in (("query", heads._anywhere), ("key", heads._within)):
            heads.normals[name] = draw(random, choosing, turning=kind.rope is None)
        heads.normals["value"] = heads._within(random, giving)
        return heads

    @property
    def shared(self) -> int:
        """Heads of a group."""
        return self.kind.heads // self.kind.kv_heads

    @property
    def count(self) -> int:
        """Coordinates of a sample's heads together."""
        return self.groups * self.shared * self.kind.size

    @property
    def _visible(self) -> Visible:
        return self.kind.visible(self.tokens)

    def cotangents(self, random: np.random.Generator) -> Array:
        """Standard normals of the outputs' shape, that know nothing of them."""
        return self._anywhere(random, self._free("value"))

    def _free(self, *names: str) -> int:
        """Coordinates of a head that a LayerNorm leaves to these projections."""
        return self.kind.size - (self.centred and bool(set(self.kind.normed) & set(names)))

    def _turned(self, free: int) -> bool:
        """Heads that share keys cannot be turned one by one."""
        return self.shared == 1 and free > 2 * self.tokens

    def _anywhere(self, random: np.random.Generator, free: int, *, turning: bool = True) -> Array:
        tokens, heads = self.tokens, self.groups * self.shared
        if not (turning and self._turned(free)):
            return random.standard_normal((self.samples, tokens, heads * free))
        along = random.standard_normal((self.samples, heads, tokens, tokens))
        return _flat(np.concatenate([along, self._lower(random, heads, free - tokens)], axis=-1))

    def _within(self, random: np.random.Generator, free: int, *, turning: bool = True) -> Array:
        """Likewise for every group, along the first directions if any are left out."""
        if not (turning and self._turned(free)):
            return random.standard_normal((self.samples, self.tokens, self.groups * free))
        lower = self._lower(random, self.groups, free)
        return _flat(np.concatenate([lower, np.zeros_like(lower)], axis=-1))

    def _lower(self, random: np.random.Generator, heads: int, size: int) -> Array:
        """Standard normals of so many columns, turned into as many as there are rows (Bartlett)."""
        tokens = np.arange(self.tokens)
        found = np.tril(random.standard_normal((self.samples, heads, len(tokens), len(tokens))), -1)
        found[..., tokens, tokens] = np.sqrt(random.chisquare(size - tokens, (self.samples, heads, len(tokens))))
        return found

    def with_input(self, sent: Normals) -> Array:
        """Inner products of what comes back with the directions of the input, summed over the heads' coordinates."""
        return np.asarray(sum(inner(self.normals[name], g) for name, g in sent.items()))

    def run(self, tokens: Array) -> Run:
        """At tokens (samples or 1, tokens, tokens)."""
        (q, pull_q), (k, pull_k), (v, pull_v) = (self._projected(name, tokens) for name in PROJECTIONS)
        q, k, v = self._by_head(q, self.shared), self._by_head(k, 1), self._by_head(v, 1)
        q, k = (turned(x, self.kind.frequencies, 1) for x in (q, k))
        factor = self.kind.logit_std / math.sqrt(self.kind.size)
        weights = factor * (q @ k.swapaxes(-1, -2))
        if not self.kind.exchangeable(self.tokens):
            weights = np.where(self._visible, weights, -np.inf)
        weights -= weights.max(axis=-1, keepdims=True)
        np.exp(weights, out=weights)
        weights /= weights.sum(axis=-1, keepdims=True)

        def pull(g: Array) -> Normals:
            g = self._by_head(g, self.shared)
            value = (weights.swapaxes(-1, -2) @ g).sum(axis=2, keepdims=True)
            return {"value": pull_v(_joined(value))} | ({} if factor == 0 else chosen(g @ v.swapaxes(-1, -2)))

        def chosen(given: Array) -> Normals:
            given = factor * weights * (given - (given * weights).sum(axis=-1, keepdims=True))
            key = (given.swapaxes(-1, -2) @ q).sum(axis=2, keepdims=True)
            query, key = (turned(g, self.kind.frequencies, -1) for g in (given @ k, key))
            return {"query": pull_q(_joined(query)), "key": pull_k(_joined(key))}

        def returned(mixing: Array) -> Array:
            if "value" in self.kind.normed:
                return self.with_input(pull(mixing @ output))
            mixed = mixing[:, None, None] @ weights
            along = (weights.swapaxes(-1, -2) @ mixed).sum(axis=(1, 2)).swapaxes(1, 2)
            square = self.kind.size * float(self.kind.value_gain) ** 2
            found = square * tokens.swapaxes(1, 2) @ along
            gram = square * tokens @ tokens.swapaxes(1, 2)
            chosen_too = 0.0 if factor == 0 else self.with_input(chosen(mixed @ gram[:, None, None]))
            return np.asarray(found + chosen_too)

        output = _joined(weights @ v)
        return Run(output, pull, returned)

    def _by_head(self, x: Array, heads: int) -> Array:
        """(samples, groups, heads of a group, tokens, coordinates of a head), a view."""
        samples, tokens, width = x.shape
        return x.reshape(samples, tokens, self.groups, heads, width // (self.groups * heads)).transpose(0, 2, 3, 1, 4)

    def _projected(self, name: str, tokens: Array) -> tuple[Array, Callable[[Array], Array]]:
        """Queries, keys or values, normed head by head or times their gain, and the pull."""
        x = tokens @ self.normals[name]
        if name not in self.kind.normed:
            gain = float(getattr(self.kind, f"{name}_gain"))
            return (x, lambda g: g) if gain == 1 else (gain * x, lambda g: gain * g)
        heads, size = self.groups * (self.shared if name == "query" else 1), self.kind.size
        x = x.reshape(*x.shape[:2], heads, -1)
        scale = np.sqrt(size / (x**2).sum(axis=-1, keepdims=True))
        y = scale * x

        def pull(g: Array) -> Array:
            g = g.reshape(*g.shape[:2], heads, -1)
            orthogonal = scale * (g - y * (g * y).sum(axis=-1, keepdims=True) / size)
            return np.asarray(orthogonal.reshape(*g.shape[:2], -1))

        return y.reshape(*y.shape[:2], -1), pull


def _joined(x: Array) -> Array:
    """The inverse of `Heads._by_head`."""
    samples, groups, heads, tokens, size = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(samples, tokens, groups * heads * size)


def _flat(x: Array) -> Array:
    return x.transpose(0, 2, 1, 3).reshape(len(x), x.shape[2], -1)
