"""Moment maps of the sublayers, forward and backward, in the limit of infinite width.

A sublayer is a function of its input's moments. It returns the moments of its output and a pull: the function that
takes the moments of the cotangent at its output to those of the cotangent it sends back to its input.
Assumptions: fresh Gaussian weights, tokens exchangeable, tokens far fewer than the width. All maps are exact as the
width (and the width of an attention head) grows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from propagate.theory.activations import Activation
from propagate.theory.functions import Scalar
from propagate.theory.moments import Moments
from propagate.theory.softmax import softmax_averages

Pull = Callable[[Moments], Moments]
Sublayer = Callable[[Moments], tuple[Moments, Pull]]


@lru_cache(maxsize=256)
def ffn(activation: Activation, gain_in: Scalar, gain_out: Scalar) -> Sublayer:
    """A feed-forward layer W_out phi(W_in x); its output has variance gain_out^2 at gain_in = 1 and unit variance.

    Example:
        >>> from propagate.theory.activations import ACTIVATIONS
        >>> ffn(ACTIVATIONS["relu"], 1.0, 0.5)(Moments(2.0, 0.0))[0]
        Moments(variance=0.5, deviation=0.0)
    """
    scale_in, scale_out = gain_in * gain_in, gain_out * gain_out / activation.value(1.0, 0.0)[0]

    def apply(x: Moments) -> tuple[Moments, Pull]:
        variance, deviation = scale_in * x.variance, scale_in * x.deviation
        value, value_drop = activation.value(variance, deviation)
        slope, slope_drop = activation.slope(variance, deviation)
        scale = scale_in * scale_out

        def pull(g: Moments) -> Moments:
            return Moments(scale * slope * g.variance, scale * (slope * g.deviation + slope_drop * g.covariance))

        return Moments(scale_out * value, scale_out * value_drop), pull

    return apply


@lru_cache(maxsize=256)
def attention(tokens: Scalar, logit_variance: Scalar, gain: Scalar) -> Sublayer:
    """Softmax self-attention over all tokens, with `gain` the product of the value's and the output's.

    `logit_variance` is the variance of a logit between unit-variance, uncorrelated tokens. The logits of one row have a
    common part, which the softmax ignores; what is left has variance logit_variance * variance * deviation, and two
    rows' logits are correlated as the tokens are.

    Backward, the cotangent returns through the values, the queries and the keys. Those three are uncorrelated. The sum
    over tokens of the keys' cotangent vanishes, so that path lives in the token-deviation mode alone.

    Example: uniform attention averages over tokens, so all outputs are alike.
        >>> attention(4, 0.0, 1.0)(Moments(1.0, 1.0))[0]
        Moments(variance=0.25, deviation=0.0)
    """
    power = gain * gain
    if tokens == 1:  # nothing to choose from: attention is a linear layer

        def linear(x: Moments) -> tuple[Moments, Pull]:
            return _scaled(x, power), lambda g: _scaled(g, power)

        return linear

    def apply(x: Moments) -> tuple[Moments, Pull]:
        paths = attention_paths(tokens, logit_variance, x)

        def pull(g: Moments) -> Moments:
            through = paths.pull(g)
            return _scaled(through.value.plus(through.query).plus(through.key), power)

        return _scaled(paths.output, power), pull

    return apply


class Cotangents(NamedTuple):
    """What attention with unit gains sends back to its input, by the projection it comes through."""

    value: Moments
    query: Moments
    key: Moments


class AttentionPaths(NamedTuple):
    """Attention with unit gains at one input: the moments of its output, and what a cotangent there sends back."""

    output: Moments
    pull: Callable[[Moments], Cotangents]


def attention_paths(tokens: Scalar, logit_variance: Scalar, x: Moments) -> AttentionPaths:
    """Attention at an input's moments, its three backward paths kept apart. See `attention`.

    Example: uniform attention has no queries and keys to speak of.
        >>> attention_paths(4, 0.0, Moments(1.0, 1.0)).pull(Moments(1.0, 1.0)).query.variance
        0.0
    """
    others = tokens - 1
    uniform_slope = others / tokens**2
    logit_spread = logit_variance * x.variance * x.deviation
    second, overlap, self_slope, cross_slope = softmax_averages(tokens, logit_spread, x.covariance / x.variance)
    mean_mode = x.covariance + x.deviation / tokens

    def pull(g: Moments) -> Cotangents:
        mean = (g.variance + others * g.covariance) / tokens
        value = mean + g.variance * second + others * g.covariance * overlap
        value_deviation = tokens / others * g.variance * second + tokens * g.covariance * overlap
        own, cross = g.variance * (uniform_slope + self_slope), g.covariance * (uniform_slope + cross_slope)
        per_logit = logit_variance * x.deviation
        query, query_deviation = per_logit * x.deviation * own, per_logit * x.deviation * (own - cross)
        key = per_logit * (x.variance * own + others * x.covariance * cross)
        return Cotangents(
            value=Moments(value, value_deviation),
            query=Moments(query, query_deviation),
            key=Moments(key, key * tokens / others),
        )

    return AttentionPaths(Moments(mean_mode + x.deviation * second, x.deviation * (second - overlap)), pull)


def _scaled(x: Moments, factor: Scalar) -> Moments:
    return Moments(factor * x.variance, factor * x.deviation)
