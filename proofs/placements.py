"""One block of each placement, composed from the maps of propositions 1-6 with a name for the moments at each place.

These are read from the papers' equations by hand. `propagate.recursion` derives the same from the placement's code;
proposition 12 holds one against the other, definition by definition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import sympy as sp

from proofs.gaussian import relu_derivative_kernel, relu_kernel
from proofs.maps import Moments, norm_backward, normed, uniform_attention

q, gamma, T, g_a, g_f, block, L = sp.symbols("q gamma T g_a g_f l L", positive=True)
p, kappa = sp.symbols("p kappa", real=True)
STREAM, GRADIENT = Moments(q, p), Moments(gamma, kappa)
ONE = sp.Integer(1)
Pair = tuple[str, sp.Expr]


@dataclass
class Notebook:
    """Collects what each place's moments are, and gives them the names they have in a recursion.

    A moment that the recursion does not name (a number, or a symbol already there) stands for itself.
    """

    names: Mapping[str, sp.Symbol]
    entries: list[Pair] = field(default_factory=list)

    def name(self, variance: str, covariance: str, moments: Moments) -> Moments:
        """The moments under these names."""
        values = []
        for label, value in ((variance, moments.variance), (covariance, moments.covariance)):
            if label in self.names:
                self.entries.append((label, value))
            values.append(self.names.get(label, value))
        return Moments(*values)

    def attention(self, x: Moments, gain: sp.Expr) -> Moments:
        """Uniform attention on x (proposition 4)."""
        return self.name("a_1", "b_1", uniform_attention(self.name("q_1", "p_1", x), gain, T))

    def attention_backward(self, g: Moments, gain: sp.Expr) -> Moments:
        """The gradient through it (proposition 4)."""
        return self.name("u_1", "v_1", uniform_attention(self.name("g_1", "h_1", g), gain, T))

    def ffn(self, x: Moments, gain: sp.Expr) -> tuple[Moments, Callable[[Moments], Moments]]:
        """A ReLU FFN on x, of this gain at unit variance, and its way back (propositions 3a and 3c)."""
        x = self.name("q_2", "p_2", x)
        c = x.covariance / x.variance
        out = Moments(gain * x.variance, 2 * gain * relu_kernel(x.variance, c))

        def back(g: Moments) -> Moments:
            g = self.name("g_2", "h_2", g)
            return self.name(
                "u_2", "v_2", Moments(gain * g.variance, 2 * gain * relu_derivative_kernel(c) * g.covariance)
            )

        return self.name("a_2", "b_2", out), back

    def results(self, out: Moments, back: Moments) -> list[Pair]:
        """Everything, the block's own results last."""
        last = (out.variance, out.covariance, back.variance, back.covariance)
        return [*self.entries, *zip(("q'", "p'", "gamma'", "kappa'"), last, strict=True)]


def prenorm(n: Notebook) -> list[Pair]:
    """u = x + Attn(N(x)); u + FFN(N(u))."""
    u = STREAM + n.attention(normed(STREAM), g_a**2)
    f, back = n.ffn(normed(u), g_f**2)
    at_u = GRADIENT + norm_backward(back(GRADIENT), u.variance)
    return n.results(u + f, at_u + norm_backward(n.attention_backward(at_u, g_a**2), q))


def layernormscaling(n: Notebook) -> list[Pair]:
    """u = x + Attn(N(x)/sqrt(l)); u + FFN(N(u)/sqrt(l))."""
    u = STREAM + n.attention(normed(STREAM).scaled(1 / block), g_a**2)
    f, back = n.ffn(normed(u).scaled(1 / block), g_f**2)
    at_u = GRADIENT + norm_backward(back(GRADIENT).scaled(1 / block), u.variance)
    return n.results(u + f, at_u + norm_backward(n.attention_backward(at_u, g_a**2).scaled(1 / block), q))


def periln(n: Notebook) -> list[Pair]:
    """u = x + N(Attn(N(x))); u + N(FFN(N(u)))."""
    a = n.attention(normed(STREAM), g_a**2)
    u = STREAM + normed(a)
    f, back = n.ffn(normed(u), g_f**2)
    at_u = GRADIENT + norm_backward(back(norm_backward(GRADIENT, f.variance)), u.variance)
    at_a = n.attention_backward(norm_backward(at_u, a.variance), g_a**2)
    return n.results(u + normed(f), at_u + norm_backward(at_a, q))


def _post(n: Notebook, skip: sp.Expr, gain_a: sp.Expr, gain_f: sp.Expr) -> list[Pair]:
    """y = N(alpha x + Attn(x)); N(alpha y + FFN(y)), with skip = alpha^2."""
    inner = STREAM.scaled(skip) + n.attention(STREAM, gain_a)
    y = normed(inner)
    f, back = n.ffn(y, gain_f)
    outer = y.scaled(skip) + f
    top = norm_backward(GRADIENT, outer.variance)
    at_inner = norm_backward(top.scaled(skip) + back(top), inner.variance)
    return n.results(normed(outer), at_inner.scaled(skip) + n.attention_backward(at_inner, gain_a))


def postnorm(n: Notebook) -> list[Pair]:
    """y = N(x + Attn(x)); N(y + FFN(y))."""
    return _post(n, ONE, g_a**2, g_f**2)


def deepnorm(n: Notebook) -> list[Pair]:
    """PostNorm with skips times (2L)^(1/4) and each of a branch's two matrices times (8L)^(-1/4)."""
    beta4 = 1 / (8 * L)
    return _post(n, sp.sqrt(2 * L), beta4 * g_a**2, beta4 * g_f**2)


def spannorm(n: Notebook) -> list[Pair]:
    """y = N(x + Attn(x)); N(x + FFN(y))."""
    inner = STREAM + n.attention(STREAM, g_a**2)
    f, back = n.ffn(normed(inner), g_f**2)
    outer = STREAM + f
    top = norm_backward(GRADIENT, outer.variance)
    at_inner = norm_backward(back(top), inner.variance)
    return n.results(normed(outer), top + at_inner + n.attention_backward(at_inner, g_a**2))


BY_HAND: dict[str, Callable[[Notebook], list[Pair]]] = {
    "prenorm": prenorm,
    "postnorm": postnorm,
    "spannorm": spannorm,
    "deepnorm": deepnorm,
    "periln": periln,
    "layernormscaling": layernormscaling,
}
