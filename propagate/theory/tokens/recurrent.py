"""The moment map of linear attention with a decay, for tokens that differ.

Derivation. A head's output is o = A v with A_ts = D_ts (q_t . k_s) / sqrt(n), D_ts = a_(s+1) ... a_t for s <= t, else
0. The decays are made of the token alone, so that given them, with Q, K, V and Gamma the second moments of queries,
keys, values and of the cotangent at o, for keys of any number of coordinates n,

    of the output              Q o (D (K o V) D^T)
    back at the values         K o (D^T (Q o Gamma) D)
    back at the keys           V o (D^T (Q o Gamma) D)
    back at the queries        Gamma o (D (K o V) D^T)
    back at log a              (D^T (Q o Gamma) D) o (L (K o V) L^T)

with o the product entry by entry and L the part of D below its diagonal: log a_r has c_r = sum over t >= r > s of A_ts
(g_t . v_s), and D_ts = D_tr D_rs splits the sum. Where every coordinate of the keys has a decay of its own the same
holds of each. The five end in fresh matrices of their own, and are uncorrelated. What is left is the mean over the
decays: over the heads where they are numbers, else over gates that are drawn, each with its opposite.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from propagate.norms import Norm
from propagate.recurrent import LinearAttention
from propagate.theory.pairs.sublayers import AttentionPull
from propagate.theory.tokens.gram import Array, Gram
from propagate.theory.tokens.kernels import kernel_of
from propagate.theory.tokens.softmax import SEED, factor


@dataclass(frozen=True)
class Decays:
    """Of several heads or draws.

    Attributes:
        between: D, (replicas or 1, samples, tokens, tokens).
        slopes: d log a_t / d u_t, (replicas, samples, tokens), u the gate; None without.
        shares: of each sample.
    """

    between: Array
    slopes: Array | None
    shares: Array

    def mean(self, of_samples: Array) -> Array:
        """Over samples, the second axis."""
        return np.asarray(np.einsum("s,rs...->r...", self.shares, of_samples))


def decays_of(kind: LinearAttention, x: Gram, samples: int, seed: tuple[int, ...]) -> Decays:
    """Those of the heads where they are numbers; else drawn, for gates that read tokens of these second moments.

    Example: half of the state is left at each token.
        >>> decays_of(LinearAttention(2, decay=0.5), Gram.of(np.eye(3)[None]), 0, ()).between[0, 0].round(9).tolist()
        [[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.25, 0.5, 1.0]]
    """
    replicas, tokens = x.matrix.shape[:2]
    if kind.gate is None:
        found = Counter(kind.decays)
        logs = np.log(list(found))[None, :, None] * np.ones(tokens)
        return Decays(_between(logs), None, np.array(list(found.values())) / kind.heads)
    alike = len({*kind.decays}) == len({*kind.powers}) == 1
    heads = range(1 if alike else kind.heads)
    pairs = max(-(-samples // (2 * len(heads))), 1)
    draw = np.random.default_rng([SEED + 5, *seed])
    half = draw.standard_normal((replicas, pairs * len(heads), tokens)) @ factor(x.matrix).swapaxes(-1, -2)
    gates = np.concatenate([half, -half], axis=1) * float(kind.decay_gain)
    of_head = np.tile(np.repeat(np.arange(len(heads)), pairs), 2)
    bias, power = (np.array(values)[of_head][:, None] for values in ([kind.bias(h) for h in heads], kind.powers))
    logs = -power * np.logaddexp(0.0, -(gates + bias))
    slopes = power / (1 + np.exp(gates + bias))
    return Decays(_between(logs), slopes, np.full(len(of_head), 1 / len(of_head)))


def _between(logs: Array) -> Array:
    """D of the logarithms of decays, tokens along the last axis."""
    total = np.cumsum(logs, axis=-1)
    seen = np.tril(np.ones((logs.shape[-1],) * 2, dtype=bool))
    return np.asarray(np.exp(np.where(seen, total[..., :, None] - total[..., None, :], -np.inf)))


def _through(maps: Array, gram: Gram) -> Array:
    """M G M^T of every sample."""
    return np.asarray(maps @ gram.matrix[:, None] @ maps.swapaxes(-1, -2))


def linear_attention(
    kind: LinearAttention, x: Gram, norm: Norm, samples: int, seed: tuple[int, ...]
) -> tuple[Gram, AttentionPull]:
    """Moments of the output, and the pull, by the names of `kind.matrices`.

    Args:
        kind: in force.
        x: of the input, with an axis of replicas.
        norm: of the heads together.
        samples: how often gates are drawn in each replica.
        seed: of those draws, which are made again on the way back rather than kept.

    Example: two uncorrelated tokens, without a decay: the second adds up two.
        >>> kind = LinearAttention(1).fitted(4, 2)
        >>> linear_attention(kind, Gram.of(np.eye(2)[None]), Norm(), 0, ())[0].matrix.tolist()
        [[[1.0, 0.0], [0.0, 2.0]]]
    """
    query, key, value = (x.times(getattr(kind, f"{name}_gain")) for name in ("query", "key", "value"))
    written = key.product(value)
    decays = decays_of(kind, x, samples, seed)
    read = Gram.of(decays.mean(_through(decays.between, written)))
    del decays
    heads = query.product(read)
    inner: Any = heads.norm_scale(norm.eps) if "heads" in kind.normed else 1.0
    normed = heads.times(inner)
    gated, slope = normed, None
    if kind.output_gate is not None:
        opened, slope = kernel_of(kind.output_gate).at(x.times(kind.output_gate_gain))
        gated = normed.product(opened)
    outer: Any = gated.norm_scale(norm.eps) if "gated" in kind.normed else 1.0

    def paths(g: Gram) -> dict[str, Gram]:
        arrived, sent = g.times(kind.out_gain).times(outer), dict[str, Gram]()
        if slope is not None:
            sent["output_gate"] = arrived.product(normed).product(slope()).times(kind.output_gate_gain)
            arrived = arrived.product(opened)
        arrived = arrived.times(inner)
        sent |= _into_heads(kind, arrived, (query, key, value), read, lambda: decays_of(kind, x, samples, seed))
        return sent

    left = gated.times(outer)
    return left.times(kind.out_gain), AttentionPull(left, paths, lambda g: reduce(Gram.plus, paths(g).values()))


def _into_heads(
    kind: LinearAttention, g: Gram, projected: tuple[Gram, Gram, Gram], read: Gram, again: Callable[[], Decays]
) -> dict[str, Gram]:
    """What the cotangent at the heads sends back through each matrix that they read."""
    query, key, value = projected
    decays, answer = again(), query.product(g)
    asked = _through(decays.between.swapaxes(-1, -2), answer)
    of_state = Gram.of(decays.mean(asked))
    sent = {
        "query": read.product(g).times(kind.query_gain),
        "key": of_state.product(value).times(kind.key_gain),
        "value": of_state.product(key).times(kind.value_gain),
    }
    if decays.slopes is not None:
        earlier = _through(np.tril(decays.between, -1), key.product(value))
        slopes = decays.slopes[..., :, None] * decays.slopes[..., None, :]
        sent["decay"] = Gram.of(decays.mean(asked * earlier * slopes)).times(kind.decay_gain)
    return sent
