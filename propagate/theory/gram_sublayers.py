"""Moment maps of the sublayers for tokens that are not exchangeable: forward and backward on Gram matrices.

The counterpart of `sublayers`, with the same assumptions less one: tokens may differ. Gram matrices carry one leading
axis of replicas (see `gram_softmax`).

Attention, derivation. Given the weights A (rows sum to 1), with Gram matrices G of the tokens, Gamma of the cotangent,
D = half mean squared distances of G, J_t = diag(a_t) - a_t a_t^T the softmax Jacobian of row t, and gain^2 the product
of value and output gains squared:

    output     gain^2 E A G A^T
    values     gain^2 E A^T Gamma A
    queries    gain^2 tau Gamma_tt' E sum_ss' (J_t G J_t')_ss' G_ss' c
    keys       gain^2 tau sum_tt' Gamma_tt' G_tt' E (J_t G J_t')_ss' c

since the cotangent of a logit's weight is h_t . v_s, with h and v independent of A and of each other, of second moments
Gamma and G. c = mean_i cos(((t - t') - (s - s')) theta_i), 1 without rotary positions. The three cotangents are
uncorrelated, each ending in a fresh matrix of its own. As J_t 1 = 0, J_t G J_t' = -J_t D J_t', and the sum over tokens
of the keys' cotangent vanishes. Written out with J = diag(a) - a a^T, all is a few products of matrices for each draw
of A. For c the cosine of the difference of two angles is expanded; each draw of A serves one frequency.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from propagate.theory.activations import ACTIVATIONS
from propagate.theory.gram import Array, Gram, distances
from propagate.theory.gram_kernels import KERNELS
from propagate.theory.gram_softmax import Attention, turns, weights

Pull: TypeAlias = Callable[[Gram], Gram]
Sublayer: TypeAlias = Callable[[Gram], tuple[Gram, Pull]]


def ffn(activation: str, gain_in: float, gain_out: float) -> Sublayer:
    """A feed-forward layer W_out phi(W_in x); its output has variance gain_out^2 at gain_in = 1 and unit variance.

    Example:
        >>> ffn("linear", 1.0, 0.5)(Gram.of([[[4.0]]]))[0].matrix.tolist()
        [[[1.0]]]
    """
    kernel = KERNELS[activation]
    scale_in, scale_out = gain_in * gain_in, gain_out * gain_out / ACTIVATIONS[activation].value(1.0, 0.0)[0]

    def apply(x: Gram) -> tuple[Gram, Pull]:
        before = x.weighted(scale_in)

        def pull(g: Gram) -> Gram:
            return kernel.slope(before).product(g).weighted(scale_in * scale_out)

        return kernel.value(before).weighted(scale_out), pull

    return apply


def attention(kind: Attention, gain: float) -> Sublayer:
    """Softmax self-attention, with `gain` the product of the value's and the output's.

    The weights are drawn again for the pull rather than kept: memory does not grow with depth times samples.

    Example: a causal mask and uniform attention; the first token sees itself alone.
        >>> causal = Attention(((True, False), (True, True)), 0.0, (), 16, (1, 0))
        >>> attention(causal, 1.0)(Gram.of([np.eye(2)]))[0].matrix.tolist()
        [[[1.0, 0.5], [0.5, 0.5]]]
    """
    power = gain * gain

    def apply(x: Gram) -> tuple[Gram, Pull]:
        def pull(g: Gram) -> Gram:
            a = weights(x, kind)
            total = _values(a, g)
            if not kind.exact:
                queries, keys = _logits(a, x, g, kind)
                total = total.plus(queries.weighted(kind.logit_variance)).plus(keys.weighted(kind.logit_variance))
            return total.weighted(power)

        return _output(weights(x, kind), x).weighted(power), pull

    return apply


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


def _logits(a: Array, x: Gram, g: Gram, kind: Attention) -> tuple[Gram, Gram]:
    """Cotangents through queries and keys, less the factor gain^2 tau."""
    shared = g.matrix * x.matrix
    if not kind.frequencies:
        queries, keys = _query_average(a, x.deviation, x.deviation), _key_average(a, x.deviation, shared)
        return Gram.of(queries).product(g), Gram.of(keys)
    queries, keys = np.zeros_like(shared), np.zeros_like(shared)
    groups = min(len(kind.frequencies), a.shape[2])
    bounds = np.linspace(0, a.shape[2], groups + 1).astype(int)
    for start, stop, cosine_and_sine in zip(bounds, bounds[1:], turns(kind, groups, len(a)), strict=False):
        some = a[:, :, start:stop]
        for turn in cosine_and_sine:
            queries += turn * _query_average(some, x.deviation, -x.matrix * turn) / groups
            keys += turn * _key_average(some, x.deviation, shared * turn) / groups
    return Gram.of(queries).product(g), Gram.of(keys)


def _query_average(a: Array, d: Array, other: Array) -> Array:
    """E sum_ss' (J_t d J_t')_ss' other_ss', for a symmetric d."""
    e, right, left = a @ d[:, None], a @ other[:, None].swapaxes(-1, -2), a @ other[:, None]
    crossed = _over_columns(a, e * right) + _over_columns(e * left, a)
    rows = a.swapaxes(1, 2)
    both = (rows @ e.transpose(0, 2, 3, 1)) * (rows @ right.transpose(0, 2, 3, 1))
    return np.asarray(_over_columns(a @ (d * other)[:, None], a) - crossed + both.mean(axis=1))


def _key_average(a: Array, d: Array, shared: Array) -> Array:
    """-E sum_tt' shared_tt' (J_t d J_t')_ss', for a symmetric d."""
    e, mixed = a @ d[:, None], _mix(shared, a)
    crossed = _over_rows(_mix(shared.swapaxes(-1, -2), a) * e, a) + _over_rows(a, mixed * e)
    rows = a.swapaxes(1, 2)
    inner = shared[:, None] * (rows @ e.transpose(0, 2, 3, 1))
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
    """M A in every sample."""
    replicas, tokens = a.shape[:2]
    return np.asarray((matrix @ a.reshape(replicas, tokens, -1)).reshape(a.shape))
