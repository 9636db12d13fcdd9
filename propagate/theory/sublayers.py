"""Moment maps of the sublayers, forward and backward, in the limit of infinite width.

Each sublayer is a pair of functions: `forward(x)` gives the moments of its output, `backward(x, g)` those of the
cotangent it sends to its input, from the moments `x` of the input and `g` of the cotangent that arrives at its output.
Assumptions: fresh Gaussian weights, tokens exchangeable, tokens far fewer than the width; token covariance at least 0
for the attention's backward order relations. All of them are exact as the width grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from propagate.theory.activations import Activation
from propagate.theory.functions import Scalar
from propagate.theory.moments import Moments
from propagate.theory.softmax import softmax_averages


@dataclass(frozen=True)
class Sublayer:
    """Forward and backward moment maps of one sublayer.

    Attributes:
        forward: moments of the input -> moments of the output.
        backward: moments of the input, of the output's cotangent -> moments of the input's cotangent.
    """

    forward: Callable[[Moments], Moments]
    backward: Callable[[Moments, Moments], Moments]


def ffn(activation: Activation, gain_in: Scalar, gain_out: Scalar) -> Sublayer:
    """A feed-forward layer W_out phi(W_in x); its output has variance gain_out^2 at gain_in = 1 and unit variance.

    Example:
        >>> from propagate.theory.activations import ACTIVATIONS
        >>> ffn(ACTIVATIONS["relu"], 1.0, 0.5).forward(Moments(2.0, 0.0))
        Moments(variance=0.5, deviation=0.0)
    """
    scale_in, scale_out = gain_in * gain_in, gain_out * gain_out / activation.value(1.0, 0.0)[0]

    def forward(x: Moments) -> Moments:
        value, drop = activation.value(scale_in * x.variance, scale_in * x.deviation)
        return Moments(scale_out * value, scale_out * drop)

    def backward(x: Moments, g: Moments) -> Moments:
        slope, drop = activation.slope(scale_in * x.variance, scale_in * x.deviation)
        scale = scale_in * scale_out
        return Moments(scale * slope * g.variance, scale * (slope * g.deviation + drop * g.covariance))

    return Sublayer(forward, backward)


def attention(tokens: Scalar, logit_variance: Scalar, gain: Scalar) -> Sublayer:
    """Softmax self-attention over all tokens, with `gain` the product of the value's and the output's.

    `logit_variance` is the variance of a logit between unit-variance, uncorrelated tokens. The logits of one row have a
    common part, which the softmax ignores; what is left has variance logit_variance * variance * deviation, and two
    rows' logits are correlated as the tokens are.

    Backward, the cotangent returns through the values, the queries and the keys. Those three are uncorrelated. The sum
    over tokens of the keys' cotangent vanishes, so that path lives in the token-deviation mode alone.

    Example: uniform attention averages over tokens, so all outputs are alike.
        >>> attention(4, 0.0, 1.0).forward(Moments(1.0, 1.0))
        Moments(variance=0.25, deviation=0.0)
    """
    power = gain * gain

    def averages(x: Moments) -> tuple[Scalar, ...]:
        return softmax_averages(tokens, logit_variance * x.variance * x.deviation, x.covariance / x.variance)

    def forward(x: Moments) -> Moments:
        second, overlap, _, _ = averages(x)
        mean_mode = x.covariance + x.deviation / tokens
        return Moments(power * (mean_mode + x.deviation * second), power * x.deviation * (second - overlap))

    def backward(x: Moments, g: Moments) -> Moments:
        second, overlap, self_slope, cross_slope = averages(x)
        others = tokens - 1
        mean = (g.variance + others * g.covariance) / tokens
        value = mean + g.variance * second + others * g.covariance * overlap
        value_deviation = tokens / others * g.variance * second + tokens * g.covariance * overlap
        self_slope, cross_slope = self_slope + others / tokens**2, cross_slope + others / tokens**2
        own, cross = g.variance * self_slope, g.covariance * cross_slope
        per_logit = logit_variance * x.deviation
        query, query_deviation = per_logit * x.deviation * own, per_logit * x.deviation * (own - cross)
        key = per_logit * (x.variance * own + others * x.covariance * cross)
        key_deviation = key * tokens / others
        return Moments(power * (value + query + key), power * (value_deviation + query_deviation + key_deviation))

    def lone_forward(x: Moments) -> Moments:
        return Moments(power * x.variance, power * x.deviation)

    def lone_backward(x: Moments, g: Moments) -> Moments:
        return Moments(power * g.variance, power * g.deviation)

    return Sublayer(lone_forward, lone_backward) if tokens == 1 else Sublayer(forward, backward)
