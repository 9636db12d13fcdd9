"""The moment map of latent attention, at either resolution.

Queries are made of tokens that have passed a matrix to d_q coordinates and their norm; keys and values of such as have
passed one to d_kv. The norm leaves the tokens' correlations, but for what few coordinates do to the cosine of two
Gaussian vectors, and to what returns: exact averages (`gaussian.normed_values`) of each. What is left out is that the
latents of one network serve all its heads, so that the fluctuation of their Gram matrix, of relative order 1 / rank,
does not average out over heads: an allowance holds it.

The logit of two tokens is the sum of a product over each head's own coordinates and one over those that its key shares
with all heads. Given the second moments these are heads of as many coordinates as both have. Where tokens are
exchangeable such a head is as one whose keys have the mean of both moments; its chance fluctuations, of relative order
1 / size, are those of as many coordinates as weigh alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from propagate.checks import ModelError
from propagate.latent import LatentAttention
from propagate.norms import Norm
from propagate.theory.gaussian.functions import Scalar
from propagate.theory.gaussian.normed_heads import NormedHeads
from propagate.theory.pairs.moments import Moments
from propagate.theory.pairs.sublayers import attention_paths
from propagate.theory.pairs.sublayers import normed_values as normed_pairs
from propagate.theory.tokens import averages
from propagate.theory.tokens.gram import Gram
from propagate.theory.tokens.latent_heads import Keys, draw_latent_heads, to_latent_logits
from propagate.theory.tokens.softmax import Attention, heads
from propagate.theory.tokens.sublayers import normed_values as normed_grams

FEWEST = 3  # free coordinates, with which the mean square of a norm's gradient is finite


@dataclass(frozen=True)
class Latent:
    """Tokens that have passed a matrix to a few coordinates, and their norm.

    Attributes:
        moments: of what leaves.
        share: what the norm's eps leaves of its size.
        unit: what a norm multiplies the input by.
        gain: of the matrix.
        pull: of a norm of tokens of variance 1.
    """

    moments: Any
    share: Any
    unit: Any
    gain: Scalar
    pull: Callable[[Any], Any]

    def to_matrix(self, g: Any) -> Any:
        """The cotangent at what the matrix gives, from that behind the norm; sums over coordinates."""
        return self.pull(g.times(self.share)).times(self.unit / self.gain)

    def to_input(self, g: Any) -> Any:
        """That which it sends back to the input."""
        return self.pull(g.times(self.share)).times(self.unit)


def latent_of(x: Any, rank: float, gain: Scalar, norm: Norm, name: str) -> Latent:
    """Of so many coordinates; of infinitely many the norm takes nothing but sizes away.

    Raises:
        ModelError: for fewer than 3 free coordinates; ZeroDivisionError for tokens that are 0.

    Example: what two uncorrelated tokens send back through 10 coordinates is a bit more.
        >>> found = latent_of(Moments(4.0, 4.0), 10, 0.5, Norm(), "query_rank")
        >>> found.moments.variance, found.to_input(Moments(1.0, 1.0)).variance == 9 / 8 / 4
        (1.0, True)
    """
    unit, free = x.norm_scale(), rank - norm.centred
    share: Any = 1.0
    if norm.eps:
        share = gain / unit * x.times(gain).norm_scale(norm.eps)
    if free == math.inf:
        return Latent(x.times(unit).times(share), share, unit, gain, lambda g: g)
    if free < FEWEST:
        raise ModelError(
            f"{name} must leave {FEWEST} free coordinates or more (of n RMSNorm has n, LayerNorm n - 1), or the mean"
            f" square of the gradient is infinite: got {rank}"
        )
    normed, pull = (normed_grams if isinstance(x, Gram) else normed_pairs)(x.times(unit), free)
    return Latent(normed.times(share), share, unit, gain, pull)


class Cotangents(NamedTuple):
    """At queries, keys of a head's own, shared keys and values: sums over all their coordinates, over the width.

    All but the last are None where nothing is chosen.
    """

    value: Any
    query: Any = None
    key: Any = None
    rotary: Any = None


class Core(NamedTuple):
    """Softmax attention of given queries, keys and values: what leaves, and what a cotangent there sends back."""

    output: Any
    pull: Callable[[Any], Cotangents]


class Projected(NamedTuple):
    """Second moments of queries, keys of a head's own, shared ones before they are turned, and values."""

    query: Any
    key: Any
    rotary: Any
    value: Any


@dataclass(frozen=True)
class LatentPull:
    """How a cotangent at the output returns.

    Attributes:
        kind: the description.
        width: of the stream.
        queries, keys_values: the latents; None where queries are made of the input at once.
        core: attention.
    """

    kind: LatentAttention
    width: int
    queries: Latent | None
    keys_values: Latent
    core: Core

    def inside(self, g: Any) -> Cotangents:
        """Cotangents at queries, keys and values, from that at the output."""
        return self.core.pull(g.times(self.kind.out_gain))

    def latents(self, g: Cotangents) -> tuple[Any, Any]:
        """At what queries are made of (None where nothing is chosen), and keys and values; from those at them."""
        of_values = g.value.times(gain_of(self.kind, "value", self.width))
        if g.query is None:
            return None, of_values
        of_keys = g.key.times(gain_of(self.kind, "key", self.width))
        return g.query.times(gain_of(self.kind, "query", self.width)), of_values.plus(of_keys)

    def __call__(self, g: Any) -> Any:
        """The cotangent at the input."""
        arrived = self.inside(g)
        query, key_value = self.latents(arrived)
        found = self.keys_values.to_input(key_value)
        if query is None:
            return found
        found = found.plus(self.queries.to_input(query) if self.queries else query)
        return found.plus(arrived.rotary.times(self.kind.rotary_gain))


def gain_of(kind: LatentAttention, name: str, width: int) -> Scalar:
    """Of the map to a "query", "key" or "value" behind the norm: of its matrix, times the scale correction."""
    return getattr(kind, f"{name}_gain") * kind.scale_of(name, width)


def latent_attention(
    kind: LatentAttention, x: Any, width: int, norm: Norm, core: Callable[[Projected], Core], *, wide: bool
) -> tuple[Any, LatentPull]:
    """Moments of the output, and the pull.

    Args:
        kind: in force.
        x: moments of the input.
        width: of the stream.
        norm: of the latents.
        core: attention, at the resolution of x.
        wide: whether ranks are taken for infinite.
    """
    down, chooses = kind.key_value_down_gain, bool(kind.logit_std != 0)
    keys_values = latent_of(x, math.inf if wide else kind.rank, down, norm, "key_value_rank")
    queries = None
    if kind.query_rank and chooses:
        rank = math.inf if wide else kind.query_rank
        queries = latent_of(x, rank, kind.query_down_gain, norm, "query_rank")
    of_queries = queries.moments if queries else x
    found = core(
        Projected(
            query=of_queries.times(gain_of(kind, "query", width)),
            key=keys_values.moments.times(gain_of(kind, "key", width)),
            rotary=x.times(kind.rotary_gain),
            value=keys_values.moments.times(gain_of(kind, "value", width)),
        )
    )
    return found.output.times(kind.out_gain), LatentPull(kind, width, queries, keys_values, found)


def of_pairs(kind: LatentAttention, seen: Projected, tokens: Scalar, *, wide: bool) -> Core:
    """Of exchangeable tokens, without positions."""
    if tokens == 1 or kind.logit_std == 0:
        uniform = attention_paths(tokens, 0.0, seen.value) if tokens != 1 else None
        output = uniform.output if uniform else seen.value
        return Core(output, lambda g: Cotangents(uniform.pull(g).value if uniform else g))
    plain, turned = kind.plain_size / kind.size, kind.turned_size / kind.size
    key, rotary = seen.key, seen.rotary
    both = Moments(*(plain * one + turned * other for one, other in zip(key, rotary, strict=True)))
    size = math.inf if wide else _alike(kind, key.deviation, rotary.deviation)
    of_size = NormedHeads(tokens, size, query=False, key=False, centred=False)
    power = kind.logit_std * kind.logit_std
    paths = attention_paths(tokens, power, seen.query, of_size, seen.value, both)

    def pull(g: Moments) -> Cotangents:
        value, query, keys = paths.pull(g)
        parts = (Moments(share * keys.variance, share * keys.deviation) for share in (plain, turned))
        return Cotangents(value, query, *parts)

    return Core(paths.output, pull)


def _alike(kind: LatentAttention, key: Any, rotary: Any) -> int:
    """Of a sum over coordinates of two sizes, as many of one size as fluctuate like it."""
    plain, turned = kind.plain_size, kind.turned_size
    square = plain * key * key + turned * rotary * rotary
    total = plain * key + turned * rotary
    found = np.divide(total * total, square, out=np.full(np.shape(square), float(kind.size)), where=square > 0)
    return max(round(float(np.mean(found))), 1)


def of_grams(kind: LatentAttention, seen: Projected, attention: Attention) -> Core:
    """Of any tokens, in heads that are drawn at their own size."""
    if attention.exact:
        uniform = heads(seen.query, seen.key, attention)
        return Core(averages.output(uniform, seen.value), lambda g: Cotangents(averages.values(uniform, g)))
    keys = Keys(seen.key, seen.rotary, kind.plain_size)

    def pull(g: Gram) -> Cotangents:
        drawn = draw_latent_heads(seen.query, keys, attention)
        sent = to_latent_logits(drawn, seen.value, g, attention)
        return Cotangents(averages.values(drawn.heads, g), *(way.weighted(attention.logit_variance) for way in sent))

    return Core(averages.output(draw_latent_heads(seen.query, keys, attention).heads, seen.value), pull)
