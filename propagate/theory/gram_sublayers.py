"""Moment maps of the sublayers for tokens that are not exchangeable: forward and backward on Gram matrices.

The counterpart of `sublayers`, with the same assumptions less one: tokens may differ. Gram matrices carry one leading
axis of replicas (see `gram_softmax`).

Attention, derivation. Given the weights A (rows sum to 1), with Gram matrices Q, K, V of queries, keys and values (each
the tokens' own, times what the projection or its norm scales it by), Gamma of the cotangent of A V, D = half mean
squared distances of V, and J_t = diag(a_t) - a_t a_t^T the softmax Jacobian of row t, second moments are

    of the output              E A V A^T
    back at the values         E A^T Gamma A
    back at the queries        tau Gamma_tt' E sum_ss' (J_t V J_t')_ss' K_ss' c
    back at the keys           tau sum_tt' Gamma_tt' E Q_tt' (J_t V J_t')_ss' c

(in heads of finite size Q and K are those of the head, drawn with A)

since the cotangent of a logit's weight is h_t . v_s, with h and v independent of A and of each other, of second moments
Gamma and V. c = mean_i cos(((t - t') - (s - s')) theta_i), 1 without rotary positions. The three cotangents are
uncorrelated, each ending in a fresh matrix of its own. As J_t 1 = 0, J_t V J_t' = -J_t D J_t', and the sum over tokens
of the keys' cotangent vanishes. Written out with J = diag(a) - a a^T, all is a few products of matrices for each draw
of A. For c the cosine of the difference of two angles is expanded; each draw of A serves one frequency.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from propagate.theory import drawn_heads
from propagate.theory.activations import ACTIVATIONS
from propagate.theory.drawn_heads import Norms
from propagate.theory.gram import Array, Gram, distances
from propagate.theory.gram_kernels import KERNELS, Kernel
from propagate.theory.gram_softmax import Attention, Heads, heads, turns
from propagate.theory.normed_heads import check_normed
from propagate.theory.normed_values import similarity_loss, similarity_slope
from propagate.theory.sublayers import AttentionPull

Pull: TypeAlias = Callable[[Gram], Gram]
NOTHING: frozenset[str] = frozenset()


class Sublayer(Protocol):
    """A map from its input's Gram matrix, and the names of its inner projections that are normed."""

    def __call__(self, x: Gram, normed: frozenset[str] = NOTHING) -> tuple[Gram, Pull]: ...


def ffn(activation: str, gain_in: float, gain_out: float, *, centred: bool = False) -> Sublayer:
    """A feed-forward layer W_out phi(W_in x); its output has variance gain_out^2 at gain_in = 1 and unit variance.

    With "hidden" normed each token's output has variance gain_out^2 whatever enters. A LayerNorm (`centred`) then also
    removes the mean of phi over the hidden units.

    Example:
        >>> ffn("linear", 1.0, 0.5)(Gram.of([[[4.0]]]))[0].matrix.tolist()
        [[[1.0]]]
    """
    kernel = KERNELS[activation]
    scale_in, power, plain = gain_in * gain_in, gain_out * gain_out, ACTIVATIONS[activation].value(1.0, 0.0)[0]

    def apply(x: Gram, normed: frozenset[str] = NOTHING) -> tuple[Gram, Pull]:
        before = x.weighted(scale_in)
        value = kernel.value(before)
        scale: Any = plain**-0.5
        if "hidden" in normed:
            value = value.less(of_means(kernel, before)) if centred else value
            scale = value.norm_scale()

        def pull(g: Gram) -> Gram:
            return kernel.slope(before).product(g.times(scale)).weighted(scale_in * power)

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
) -> Sublayer:
    """Softmax self-attention, with the gains of its four projections.

    A normed query, key or value has variance 1 at every token in place of its gain squared times the input's, by a norm
    of each head's own, LayerNorm if `centred`; with "heads" normed, what the heads give together has variance 1 before
    the output projection.

    The weights are drawn again for the pull rather than kept: memory does not grow with depth times samples.

    Example: a causal mask and uniform attention; the first token sees itself alone.
        >>> causal = Attention(((True, False), (True, True)), 0.0, (), 16, (1, 0))
        >>> attention(causal)(Gram.of([np.eye(2)]))[0].matrix.tolist()
        [[[1.0, 0.5], [0.5, 0.5]]]
    """

    def apply(x: Gram, normed: frozenset[str] = NOTHING) -> tuple[Gram, Pull]:
        gains = {"query": query, "key": key, "value": value}
        scales: dict[str, Any] = {
            name: gain * x.times(gain).norm_scale() if name in normed else gain for name, gain in gains.items()
        }
        seen = Projected(*(x.times(scales[name]) for name in gains))
        small = normed if kind.head_size != np.inf else NOTHING  # what is normed in heads that are not taken for wide
        pull_values: Pull = _same
        values = seen.value
        if "value" in small:
            values, pull_values = normed_values(seen.value, kind.head_size - centred)
        if kind.exact or not (kind.frequencies or small & {"query", "key"}) or kind.head_size == np.inf:
            ways = _of_gaussian_logits(kind, seen, values)
        else:
            ways = _of_drawn_heads(kind, seen, values, Norms("query" in small, "key" in small, centred))
        together = ways.output
        inner = together.norm_scale() if "heads" in normed else 1.0

        def paths(g: Gram) -> dict[str, Gram]:
            value, *logits = ways.pull(g.times(out * inner))
            sent = {"value": pull_values(value).times(scales["value"])}
            for name, way in zip(("query", "key"), logits, strict=False):
                sent[name] = way.times(scales[name]).weighted(kind.logit_variance)
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

    def pull(g: Gram) -> tuple[Gram, ...]:
        drawn = heads(seen.query, seen.key, kind)
        value = _values(drawn.weights, g)
        return (value,) if kind.exact else (value, *_logits(drawn, seen._replace(value=values), g, kind))

    return Ways(_output(heads(seen.query, seen.key, kind).weights, values), pull)


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


def _same(x: Gram) -> Gram:
    return x


class Projected(NamedTuple):
    """Gram matrices of what attention makes of its input."""

    query: Gram
    key: Gram
    value: Gram


def _output(a: Array, x: Gram) -> Gram:
    """E A G A^T; its distances, of sums whose coefficients' difference adds up to 0, from the distances of G alone."""
    inner = _over_columns(a, a @ x.deviation[:, None])
    diagonal = np.diagonal(inner, axis1=-2, axis2=-1)
    apart = np.maximum(inner - (diagonal[..., :, None] + diagonal[..., None, :]) / 2, 0.0)
    return Gram(_over_columns(a, a @ x.matrix[:, None]), apart)


def _values(a: Array, g: Gram) -> Gram:
    """E A^T Gamma A; its distances from columns less the average column, 1 / tokens everywhere."""
    centred = a - 1 / a.shape[-1]
    return Gram(_over_rows(a, _mix(g.matrix, a)), distances(_over_rows(centred, _mix(g.matrix, centred))))


def _logits(drawn: Heads, x: Projected, g: Gram, kind: Attention) -> tuple[Gram, Gram]:
    """Cotangents at queries and keys, less the factor tau."""
    a, d = drawn.weights, x.value.deviation
    shared = g.matrix[:, None] * drawn.query
    if not kind.frequencies:
        queries, keys = _query_average(a, d, drawn.key), _key_average(a, d, shared)
        return Gram.of(queries).product(g), Gram.of(keys)
    queries, keys = np.zeros_like(d), np.zeros_like(d)
    groups = min(len(kind.frequencies), a.shape[2])
    bounds = np.linspace(0, a.shape[2], groups + 1).astype(int)
    for start, stop, cosine_and_sine in zip(bounds, bounds[1:], turns(kind, groups, len(a)), strict=False):
        some = a[:, :, start:stop]
        for turn in cosine_and_sine:
            queries += turn * _query_average(some, d, -(x.key.matrix * turn)[:, None]) / groups
            keys += turn * _key_average(some, d, shared * turn[:, None]) / groups
    return Gram.of(queries).product(g), Gram.of(keys)


def _query_average(a: Array, d: Array, other: Array) -> Array:
    """E sum_ss' (J_t d J_t')_ss' other_ss', d symmetric, `other` with an axis of samples before the last two."""
    e, right, left = a @ d[:, None], _in_rows(a, other.swapaxes(-1, -2)), _in_rows(a, other)
    crossed = _over_columns(a, e * right) + _over_columns(e * left, a)
    rows = a.swapaxes(1, 2)
    both = (rows @ e.transpose(0, 2, 3, 1)) * (rows @ right.transpose(0, 2, 3, 1))
    return np.asarray(_over_columns(_in_rows(a, d[:, None] * other), a) - crossed + both.mean(axis=1))


def _key_average(a: Array, d: Array, shared: Array) -> Array:
    """-E sum_tt' shared_tt' (J_t d J_t')_ss', for a symmetric d, and `shared` with an axis of samples likewise."""
    e, mixed = a @ d[:, None], _mix(shared, a)
    crossed = _over_rows(_mix(shared.swapaxes(-1, -2), a) * e, a) + _over_rows(a, mixed * e)
    rows = a.swapaxes(1, 2)
    inner = shared * (rows @ e.transpose(0, 2, 3, 1))
    outer = _over_rows(a, (inner @ rows).swapaxes(1, 2))
    return np.asarray(crossed - d * _over_rows(a, mixed) - outer)


def _over_columns(left: Array, right: Array) -> Array:
    """Mean over samples of L R^T, for (replicas, tokens, samples, tokens)."""
    replicas, tokens, samples = left.shape[:3]
    flat = (replicas, tokens, -1)
    return np.asarray(left.reshape(flat) @ right.reshape(flat).swapaxes(-1, -2) / samples)


def _over_rows(left: Array, right: Array) -> Array:
    """Mean over samples of L^T R."""
    replicas, tokens, samples = left.shape[:3]
    flat = (replicas, -1, tokens)
    return np.asarray(left.reshape(flat).swapaxes(-1, -2) @ right.reshape(flat) / samples)


def _mix(matrix: Array, a: Array) -> Array:
    """M A in every sample, M one matrix a replica or one a sample."""
    if matrix.ndim == a.ndim:
        return np.asarray((matrix @ a.swapaxes(1, 2)).swapaxes(1, 2))
    replicas, tokens = a.shape[:2]
    return np.asarray((matrix @ a.reshape(replicas, tokens, -1)).reshape(a.shape))


def _in_rows(a: Array, matrix: Array) -> Array:
    """A M in every sample."""
    return np.asarray((a.swapaxes(1, 2) @ matrix).swapaxes(1, 2))
