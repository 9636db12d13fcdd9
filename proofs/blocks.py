"""One block of three placements, forward and backward, composed from the maps of propositions 1-6.

Uniform attention of gain `gain`; an FFN of forward gain `s_f` and backward gain `chi * s_f`, whose output has
correlation `kernel` (for the stream it reads) and whose gradient keeps the fraction `ratio` of the correlation.
"""

from __future__ import annotations

import sympy as sp

from proofs.maps import Moments, ffn, ffn_backward, mean_mode, norm_backward, normed, uniform_attention


def after_attention(x: Moments, gain: sp.Expr, tokens: sp.Expr) -> Moments:
    """N(x + Attn(x))."""
    return normed(x + uniform_attention(x, gain, tokens))


def attention_share(x: Moments, gain: sp.Expr, tokens: sp.Expr) -> sp.Expr:
    """s_a: variance of the attention branch for this stream."""
    return gain * mean_mode(x, tokens)


def postnorm(x: Moments, gain: sp.Expr, tokens: sp.Expr, s_f: sp.Expr, kernel: sp.Expr) -> Moments:
    """y = N(x + Attn(x)); N(y + FFN(y)). `kernel` is at y's correlation."""
    return normed(after_attention(x, gain, tokens) + ffn(s_f, kernel))


def postnorm_backward(
    g: Moments, s_a: sp.Expr, gain: sp.Expr, tokens: sp.Expr, s_f: sp.Expr, chi: sp.Expr, ratio: sp.Expr
) -> Moments:
    """The gradient through a PostNorm block whose attention branch has variance s_a."""
    inside = norm_backward(g, 1 + s_f)
    middle = norm_backward(inside + ffn_backward(inside, s_f, chi, ratio), 1 + s_a)
    return middle + uniform_attention(middle, gain, tokens)


def spannorm(x: Moments, gain: sp.Expr, tokens: sp.Expr, s_f: sp.Expr, kernel: sp.Expr) -> Moments:
    """y = N(x + Attn(x)); N(x + FFN(y)): the FFN's skip is the block's input. `kernel` is at y's correlation."""
    return normed(x + ffn(s_f, kernel))


def spannorm_backward(
    g: Moments, s_a: sp.Expr, gain: sp.Expr, tokens: sp.Expr, s_f: sp.Expr, chi: sp.Expr, ratio: sp.Expr
) -> Moments:
    """The gradient through a SpanNorm block: straight along the span skip, and back through FFN, norm and attention."""
    inside = norm_backward(g, 1 + s_f)
    branch = norm_backward(ffn_backward(inside, s_f, chi, ratio), 1 + s_a)
    return inside + branch + uniform_attention(branch, gain, tokens)


def prenorm(x: Moments, gain: sp.Expr, tokens: sp.Expr, s_f: sp.Expr, kernel: sp.Expr) -> Moments:
    """u = x + Attn(N(x)); u + FFN(N(u)). `kernel` is at u's correlation."""
    return x + uniform_attention(normed(x), gain, tokens) + ffn(s_f, kernel)


def prenorm_backward(
    g: Moments,
    before: sp.Expr,
    middle: sp.Expr,
    gain: sp.Expr,
    tokens: sp.Expr,
    s_f: sp.Expr,
    chi: sp.Expr,
    ratio: sp.Expr,
) -> Moments:
    """The gradient through a PreNorm block whose two norms see variances `before` and `middle`."""
    inside = g + norm_backward(ffn_backward(g, s_f, chi, ratio), middle)
    return inside + norm_backward(uniform_attention(inside, gain, tokens), before)
