"""The second-moment maps of the parts of a Transformer, as propositions 1-6 prove them.

A stream of exchangeable tokens is known by its variance and its covariance between two tokens. The same pair describes
a gradient. Later propositions compose these maps and never retype them.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp


@dataclass(frozen=True)
class Moments:
    """Variance and token-token covariance, of a stream or of a gradient."""

    variance: sp.Expr
    covariance: sp.Expr

    def __add__(self, other: Moments) -> Moments:
        """The sum of two uncorrelated streams (proposition 6)."""
        return Moments(self.variance + other.variance, self.covariance + other.covariance)

    def scaled(self, factor: sp.Expr) -> Moments:
        """The stream multiplied by sqrt(factor)."""
        return Moments(factor * self.variance, factor * self.covariance)


def mean_mode(x: Moments, tokens: sp.Expr) -> sp.Expr:
    """Variance of the average over tokens: what the token-mean mode holds."""
    return (x.variance + (tokens - 1) * x.covariance) / tokens


def deviation_mode(x: Moments) -> sp.Expr:
    """Half the mean square difference of two tokens: what each token-deviation mode holds."""
    return x.variance - x.covariance


def normed(x: Moments) -> Moments:
    """RMSNorm or LayerNorm in the wide limit (proposition 2)."""
    return x.scaled(1 / x.variance)


def norm_backward(g: Moments, variance: sp.Expr) -> Moments:
    """The gradient through a norm whose input has this variance (proposition 2)."""
    return g.scaled(1 / variance)


def uniform_attention(x: Moments, gain: sp.Expr, tokens: sp.Expr) -> Moments:
    """Uniform attention, forward, and backward as well, since its averaging matrix is symmetric (proposition 4)."""
    return Moments(gain * mean_mode(x, tokens), gain * mean_mode(x, tokens))


def ffn(gain: sp.Expr, kernel: sp.Expr) -> Moments:
    """FFN on a unit-variance stream; `kernel` is K(1, c)/K(1, 1), the correlation of its output (proposition 3)."""
    return Moments(gain, gain * kernel)


def ffn_backward(g: Moments, gain: sp.Expr, chi: sp.Expr, ratio: sp.Expr) -> Moments:
    """The gradient through that FFN; `ratio` is K'(1, c)/K'(1, 1) (proposition 3)."""
    return Moments(chi * gain * g.variance, chi * gain * ratio * g.covariance)
