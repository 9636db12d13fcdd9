"""Softmax attention as products of indexed symbols: logits, values, and the three paths of the gradient."""

from __future__ import annotations

import sympy as sp

from proofs import wick
from proofs.notation import T, c, d, gamma, q, rho

h, s_v, s_o, s_q, s_k = sp.symbols("h sigma_v sigma_o sigma_q sigma_k", positive=True)
V, Out, Q, K, x, g = map(sp.IndexedBase, ("V", "O", "Q", "K", "x", "g"))
Delta = sp.KroneckerDelta
WEIGHTS = (
    wick.Weights(Q, s_q**2 / d),
    wick.Weights(K, s_k**2 / d),
    wick.Weights(V, s_v**2 / d),
    wick.Weights(Out, s_o**2 / h),
)
ROWS = (
    wick.Rows(x, d, wick.exchangeable(q, c * q), T),
    wick.Rows(g, d, wick.exchangeable(gamma, rho * gamma), T),
)
Sums = tuple[tuple[sp.Symbol, sp.Expr], ...]
Piece = tuple[sp.Expr, Sums]
j = sp.Symbol("j", integer=True)  # the coordinate shared by the two factors of a second moment


def named(prefix: str, copy: str) -> sp.Symbol:
    """An index private to one factor of a second moment."""
    return sp.Symbol(f"{prefix}_{copy}", integer=True)


def centred_logit(t: wick.Index, s: wick.Index, copy: str) -> Piece:
    """ell_ts minus its mean over s, with ell_ts = (Q x_t).(K x_s)/sqrt(h)."""
    a, k, w, r = (named(p, copy) for p in ("a", "k", "l", "r"))
    logit = Q[a, k] * x[t, k] * K[a, w] * x[r, w] / sp.sqrt(h)
    return (Delta(r, s) - 1 / T) * logit, ((k, d), (w, d), (a, h), (r, T))


def value_forward(s: wick.Index, copy: str) -> Piece:
    """(O V x_s)_j."""
    b, w = named("b", copy), named("w", copy)
    return Out[j, b] * V[b, w] * x[s, w], ((w, d), (b, h))


def value_backward(t: wick.Index, copy: str) -> Piece:
    """(V'O' g_t)_j."""
    b, i = named("b", copy), named("i", copy)
    return V[b, j] * Out[i, b] * g[t, i], ((i, d), (b, h))


def logit_gradient(t: wick.Index, s: wick.Index, copy: str) -> Piece:
    """Gradient with respect to ell_ts at uniform weights: (1/T) times the centred g_t.(O V x_s)."""
    b, i, w, r = (named(p, "g" + copy) for p in ("b", "i", "w", "r"))
    return (Delta(r, s) - 1 / T) / T * g[t, i] * Out[i, b] * V[b, w] * x[r, w], ((i, d), (w, d), (b, h), (r, T))


def times(*pieces: Piece) -> Piece:
    """The product of pieces with their sums (features before tokens)."""
    sums = [pair for _, own in pieces for pair in own]
    return sp.prod(p for p, _ in pieces), tuple(sorted(sums, key=lambda pair: pair[1] == T))


def path_output(t: wick.Index, order: int, copy: str) -> Piece:
    """Forward, token t: (1/T) sum_s (centred logit)^order O V x_s; orders 0 and 1."""
    s = named("s", copy)
    pieces = [value_forward(s, copy), (1 / T, ((s, T),))] + ([centred_logit(t, s, copy)] if order else [])
    return times(*pieces)


def path_value(s: wick.Index, order: int, copy: str) -> Piece:
    """Backward through the values to token s: (1/T) sum_t (centred logit)^order V'O' g_t."""
    t = named("t", copy)
    pieces = [value_backward(t, copy), (1 / T, ((t, T),))] + ([centred_logit(t, s, copy)] if order else [])
    return times(*pieces)


def path_query(t: wick.Index, copy: str) -> Piece:
    """Backward through the query of token t: sum_s (d loss/d ell_ts) Q'K x_s / sqrt(h)."""
    s, a, k = (named(p, "q" + copy) for p in ("s", "a", "k"))
    return times(logit_gradient(t, s, copy), (Q[a, j] * K[a, k] * x[s, k] / sp.sqrt(h), ((k, d), (a, h), (s, T))))


def path_key(s: wick.Index, copy: str) -> Piece:
    """Backward through the key of token s: sum_t (d loss/d ell_ts) K'Q x_t / sqrt(h)."""
    t, a, k = (named(p, "k" + copy) for p in ("t", "a", "k"))
    return times(logit_gradient(t, s, copy), (K[a, j] * Q[a, k] * x[t, k] / sp.sqrt(h), ((k, d), (a, h), (t, T))))


def second_moment(left: Piece, right: Piece) -> wick.Moment:
    """(1/d) sum_j E[left_j right_j]."""
    product, sums = times(left, right, (1 / d, ((j, d),)))
    return wick.Moment(product, sums, WEIGHTS, ROWS)
