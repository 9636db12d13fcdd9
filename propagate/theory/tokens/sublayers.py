"""Moment maps of the sublayers for tokens that are not exchangeable: forward and backward on Gram matrices.

The counterpart of `sublayers`, with the same assumptions less one: tokens may differ. Gram matrices carry one leading
axis of replicas (see `tokens.softmax`).

Averages over attention weights are in `tokens.averages`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from propagate.activations import Activation
from propagate.theory.gaussian.activations import maps_of
from propagate.theory.gaussian.normed_heads import check_normed
from propagate.theory.gaussian.normed_values import similarity_loss, similarity_slope
from propagate.theory.pairs.sublayers import NO_NORMS, AttentionPull
from propagate.theory.tokens import averages as gram_averages
from propagate.theory.tokens import drawn_heads
from propagate.theory.tokens.averages import Projected
from propagate.theory.tokens.drawn_heads import Norms
from propagate.theory.tokens.gram import Gram
from propagate.theory.tokens.kernels import Kernel, kernel_of
from propagate.theory.tokens.softmax import Attention, heads

Pull: TypeAlias = Callable[[Gram], Gram]
KEPT = 2**19  # numbers, 2 megabytes a sublayer


class Sublayer(Protocol):
    """A map from its input's Gram matrix, and the names of its inner projections that are normed."""

    def __call__(self, x: Gram, normed: frozenset[str] = NO_NORMS) -> tuple[Gram, Pull]: ...


def ffn(
    activation: Activation | str,
    gain_in: float,
    gain_out: float,
    *,
    gate_gain: float = 1.0,
    centred: bool = False,
    eps: float = 0.0,
) -> Sublayer:
    """A feed-forward layer W_out phi(W_in x); its output has variance gain_out^2 at unit variance and inner gains 1.

    With "hidden" normed each token's output has variance gain_out^2 whatever enters. A LayerNorm (`centred`) then also
    removes the mean of phi over the hidden units.

    Example:
        >>> ffn("linear", 1.0, 0.5)(Gram.of([[[4.0]]]))[0].matrix.tolist()
        [[[1.0]]]
    """
    kernel = kernel_of(activation, gate_gain)
    scale_in, power, plain = gain_in * gain_in, gain_out * gain_out, maps_of(activation).value(1.0, 0.0)[0]

    def apply(x: Gram, normed: frozenset[str] = NO_NORMS) -> tuple[Gram, Pull]:
        before = x.weighted(scale_in)
        value, slope = kernel.at(before)
        scale: Any = plain**-0.5
        if "hidden" in normed:
            value = value.less(of_means(kernel, before)) if centred else value
            scale = value.norm_scale(eps)

        def pull(g: Gram) -> Gram:
            return slope().product(g.times(scale)).weighted(scale_in * power)

        return value.times(scale).weighted(power), pull

    return apply


def of_means(kernel: Kernel, u: Gram) -> Gram:
    """Gram matrix of E phi(u_t): that of phi at two copies of the tokens which know nothing of each other."""
    tokens = u.matrix.shape[-1]
    copies = np.zeros((*u.matrix.shape[:-2], 2 * tokens, 2 * tokens))
    both = np.arange(2 * tokens)
    copies[..., both, both] = np.concatenate([u.variance, u.variance], axis=-1)
    apart = kernel.value(Gram.of(copies)).matrix[..., :tokens, tokens:]
    size = np.sqrt(np.maximum(np.diagonal(apart, axis1=-2, axis2=-1), 0.0)) * np.where(apart[..., 0] < 0, -1.0, 1.0)
    return Gram(apart, (size[..., :, None] - size[..., None, :]) ** 2 / 2)


def attention(
    kind: Attention,
    *,
    query: float = 1.0,
    key: float = 1.0,
    value: float = 1.0,
    out: float = 1.0,
    centred: bool = False,
    eps: float = 0.0,
) -> Sublayer:
    """Softmax self-attention, with the gains of its four projections.

    A normed query, key or value has variance 1 at every token in place of its gain squared times the input's, by a norm
    of each head's own, LayerNorm if `centred`; with "heads" normed, what the heads give together has variance 1 before
    the output projection.

    More than `KEPT` weights are drawn again for the pull rather than kept: memory does not grow with depth times
    samples.

    Example: a causal mask and uniform attention; the first token sees itself alone.
        >>> causal = Attention(((True, False), (True, True)), 0.0, (), 2, (1, 0))
        >>> attention(causal)(Gram.of([np.eye(2)]))[0].matrix.tolist()
        [[[1.0, 0.5], [0.5, 0.5]]]
    """

    def apply(x: Gram, normed: frozenset[str] = NO_NORMS) -> tuple[Gram, Pull]:
        gains = {"query": query, "key": key, "value": value}
        scales: dict[str, Any] = {
            name: gain * x.times(gain).norm_scale(eps) if name in normed else gain for name, gain in gains.items()
        }
        seen = Projected(*(x.times(scales[name]) for name in gains))
        small = normed if kind.head_size != np.inf else NO_NORMS  # what is normed in heads that are not taken for wide
        pull_values: Pull = _same
        values, used = seen.value, kind
        if "value" in small:
            values, pull_values = normed_values(seen.value, kind.head_size - centred)
            values = values.times(np.sqrt(seen.value.variance))  # which beside eps is a bit below 1
        if kind.exact or not (kind.frequencies or small & {"query", "key"}) or kind.head_size == np.inf:
            ways = _of_gaussian_logits(kind, seen, values)
        else:
            norms = Norms("query" in small, "key" in small, centred)
            used = _less_logits(kind, seen, norms)
            ways = _of_drawn_heads(used, seen, values, norms)
        together = ways.output
        inner = together.norm_scale(eps) if "heads" in normed else 1.0

        def paths(g: Gram) -> dict[str, Gram]:
            value, *logits = ways.pull(g.times(out * inner))
            sent = {"value": pull_values(value).times(scales["value"])}
            for name, way in zip(("query", "key"), logits, strict=False):
                sent[name] = way.times(scales[name]).weighted(used.logit_variance)
            return sent

        read = together.times(inner)
        return read.times(out), AttentionPull(read, paths, lambda g: reduce(Gram.plus, paths(g).values()))

    return apply


class Ways(NamedTuple):
    """Attention's output before its last matrix, and how a cotangent there returns to values, queries and keys."""

    output: Gram
    pull: Callable[[Gram], tuple[Gram, ...]]


def _of_gaussian_logits(kind: Attention, seen: Projected, values: Gram) -> Ways:
    """Of heads whose logits are Gaussian given the queries' and keys' second moments, or that choose nothing."""
    first = heads(seen.query, seen.key, kind)
    kept = first if first.excess.size <= KEPT else None

    def pull(g: Gram) -> tuple[Gram, ...]:
        drawn = kept or heads(seen.query, seen.key, kind)
        value = gram_averages.values(drawn, g)
        return (value,) if kind.exact else (value, *gram_averages.logits(drawn, seen._replace(value=values), g, kind))

    return Ways(gram_averages.output(first, values), pull)


def _of_drawn_heads(kind: Attention, seen: Projected, values: Gram, norms: Norms) -> Ways:
    """Of heads of the model's own size, with their norms and positions; see `drawn_heads`."""
    for name in ("query", "key"):
        if getattr(norms, name):
            check_normed(name, kind.head_size - norms.centred)

    def pull(g: Gram) -> tuple[Gram, ...]:
        drawn = drawn_heads.draw_heads(seen.query, seen.key, kind, norms)
        return drawn_heads.to_values(drawn, g), *drawn_heads.to_logits(drawn, values, g, kind, norms)

    return Ways(drawn_heads.output(drawn_heads.draw_heads(seen.query, seen.key, kind, norms), values), pull)


def normed_values(x: Gram, free: float) -> tuple[Gram, Pull]:
    """A norm of each token in each head, of so many free coordinates, of projections with the correlations of x.

    Raises:
        ModelError: for two free coordinates or fewer.

    Example: two coordinates fewer than the token has, for x of variance 1.
        >>> values, pull = normed_values(Gram.of(np.eye(2)[None]), 10)
        >>> pull(values)[0].tolist()
        [[[1.125, 0.0], [0.0, 1.125]]]
    """
    check_normed("value", free)
    loss = x.loss_of_correlation()
    drop, slope = similarity_loss(free, loss), similarity_slope(free, loss)
    own = similarity_slope(free, 0.0)
    return Gram(1 - drop, drop), Gram(slope, own - slope).product


def _less_logits(kind: Attention, seen: Projected, norms: Norms) -> Attention:
    """Logits of normed queries and keys, whose size beside eps is a bit below 1: of the mean over tokens."""
    parts = [part for part, wanted in ((seen.query, norms.query), (seen.key, norms.key)) if wanted]
    share = math.prod(float(part.variance.mean()) for part in parts)
    return replace(kind, logit_variance=kind.logit_variance * share)


def _same(x: Gram) -> Gram:
    return x
