"""Moment maps of the sublayers, forward and backward, in the limit of infinite width at a given size of head.

A sublayer is a function of its input's moments, and of the names of its inner projections that are normed. It returns
the moments of its output and a pull: the function that takes the moments of the cotangent at its output to those of the
cotangent it sends back to its input.
Assumptions: fresh Gaussian weights, tokens exchangeable, tokens far fewer than the width. All maps are exact as the
width grows, attention's as the number of its heads does; where queries or keys are normed also as their size does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from propagate.scaling import Gains
from propagate.theory.activations import Activation
from propagate.theory.finite_heads import head_averages
from propagate.theory.functions import Scalar, inverse
from propagate.theory.moments import Moments

Pull = Callable[[Moments], Moments]
Sublayer = Callable[[Moments, frozenset[str]], tuple[Moments, Pull]]
NOTHING: frozenset[str] = frozenset()


@lru_cache(maxsize=256)
def ffn(activation: Activation, gains: Gains, *, centred: bool = False) -> Sublayer:
    """A feed-forward layer W_out phi(W_in x); its output has variance ffn_out^2 at ffn_in = 1 and unit variance.

    With "hidden" normed the output has variance ffn_out^2 whatever enters. A LayerNorm (`centred`) then also removes
    the mean of phi over the hidden units, so the tokens' correlation falls; an RMSNorm keeps it.

    Example: ReLU on uncorrelated tokens leaves them correlated by 1/pi, but for LayerNorm.
        >>> from propagate.theory.activations import ACTIVATIONS
        >>> relu, x = ACTIVATIONS["relu"], Moments(2.0, 2.0)
        >>> ffn(relu, Gains(ffn_out=0.5))(x, NOTHING)[0].variance
        0.5
        >>> [round(ffn(relu, Gains(), centred=c)(x, frozenset({"hidden"}))[0].covariance, 4) for c in (False, True)]
        [0.3183, 0.0]
    """
    scale_in, power = gains.ffn_in * gains.ffn_in, gains.ffn_out * gains.ffn_out
    plain_scale = power / activation.value(1.0, 0.0)[0]

    def apply(x: Moments, normed: frozenset[str] = NOTHING) -> tuple[Moments, Pull]:
        variance, deviation = scale_in * x.variance, scale_in * x.deviation
        value, value_drop = activation.value(variance, deviation)
        slope, slope_drop = activation.slope(variance, deviation)
        if "hidden" in normed:
            if centred:
                value = activation.value(variance, variance)[1]  # less the value at correlation 0, the squared mean
            scale_out = power / value
        else:
            scale_out = plain_scale
        scale = scale_in * scale_out

        def pull(g: Moments) -> Moments:
            return Moments(scale * slope * g.variance, scale * (slope * g.deviation + slope_drop * g.covariance))

        return Moments(scale_out * value, scale_out * value_drop), pull

    return apply


@dataclass(frozen=True, slots=True)
class AttentionPull:
    """How a cotangent at attention's output returns to its input. Paths are uncorrelated; moments of any resolution.

    Attributes:
        heads: of what the output matrix reads.
        paths: from the cotangent's to those of what comes back through each projection, by name.
        total: to those of all that comes back.
    """

    heads: Any
    paths: Callable[[Any], dict[str, Any]]
    total: Callable[[Any], Any]

    def __call__(self, g: Any) -> Any:
        return self.total(g)


@lru_cache(maxsize=256)
def attention(tokens: Scalar, logit_variance: Scalar, gains: Gains, head_size: float = math.inf) -> Sublayer:
    """Softmax self-attention over all tokens, in heads of `head_size` coordinates.

    `logit_variance` is the variance of a logit between unit-variance, uncorrelated tokens at gains 1. The logits of one
    row have a common part, which the softmax ignores; what is left has variance logit_variance * variance * deviation,
    and two rows' logits are correlated as the tokens are. A normed projection has variance 1 in place of its gain
    squared times the input's variance, forward and backward; heads with a normed query or key are taken for wide.

    Backward, the cotangent returns through the values, the queries and the keys. Those three are uncorrelated. The sum
    over tokens of the keys' cotangent vanishes, so that path lives in the token-deviation mode alone.

    Example: uniform attention averages over tokens, so all outputs are alike.
        >>> attention(4, 0.0, Gains())(Moments(1.0, 1.0), NOTHING)[0]
        Moments(variance=0.25, deviation=0.0)
    """
    out = gains.attention_out * gains.attention_out
    if tokens == 1:  # nothing to choose from: attention is a linear layer

        def linear(x: Moments, normed: frozenset[str] = NOTHING) -> tuple[Moments, Pull]:
            value = projection_powers(gains, x, normed).value
            inner = value * inverse(value * x.variance) if "heads" in normed else value
            heads, power = _scaled(x, inner), out * inner
            pull = AttentionPull(heads, lambda g: {"value": _scaled(g, power)}, lambda g: _scaled(g, power))
            return _scaled(heads, out), pull

        return linear

    plain = projection_powers(gains, Moments(1.0, 1.0), NOTHING)

    def apply(x: Moments, normed: frozenset[str] = NOTHING) -> tuple[Moments, Pull]:
        powers = projection_powers(gains, x, normed) if normed else plain
        paths = attention_paths(tokens, logit_variance * powers.query * powers.key, x, size_of(normed, head_size))
        value = powers.value
        inner = value * inverse(value * paths.output.variance) if "heads" in normed else value
        power = out * inner

        def pull(g: Moments) -> Moments:
            through = paths.pull(g)
            variance = through.value.variance + through.query.variance + through.key.variance
            deviation = through.value.deviation + through.query.deviation + through.key.deviation
            return Moments(power * variance, power * deviation)

        def by_path(g: Moments) -> dict[str, Moments]:
            return {name: _scaled(sent, power) for name, sent in paths.pull(g)._asdict().items()}

        heads = _scaled(paths.output, inner)
        return _scaled(heads, out), AttentionPull(heads, by_path, pull)

    return apply


def size_of(normed: frozenset[str], head_size: float) -> float:
    """Of heads for `head_averages`: a norm changes how queries and keys fluctuate, and such heads are taken for wide.

    Example:
        >>> size_of(frozenset(), 64), size_of(frozenset({"query"}), 64)
        (64, inf)
    """
    return math.inf if normed & {"query", "key"} else head_size


class Powers(NamedTuple):
    """Variance of each of attention's projections, for each unit of variance that enters."""

    query: Scalar
    key: Scalar
    value: Scalar


def projection_powers(gains: Gains, x: Moments, normed: frozenset[str]) -> Powers:
    """Of a normed projection so much that its variance is 1; of the others the gain's square.

    Raises:
        ZeroDivisionError: for a normed projection that is 0.

    Example:
        >>> projection_powers(Gains(query=3.0), Moments(4.0, 4.0), frozenset({"key"}))
        Powers(query=9.0, key=0.25, value=1.0)
    """
    squares = {name: getattr(gains, name) * getattr(gains, name) for name in Powers._fields}
    return Powers(*(s * inverse(s * x.variance) if name in normed else s for name, s in squares.items()))


class Cotangents(NamedTuple):
    """What attention with unit gains sends back to its input, by the projection it comes through."""

    value: Moments
    query: Moments
    key: Moments


class AttentionPaths(NamedTuple):
    """Attention with unit gains at one input: the moments of its output, and what a cotangent there sends back."""

    output: Moments
    pull: Callable[[Moments], Cotangents]


def attention_paths(tokens: Scalar, logit_variance: Scalar, x: Moments, head_size: float = math.inf) -> AttentionPaths:
    """Attention at an input's moments, its three backward paths kept apart. See `attention`.

    Example: uniform attention has no queries and keys to speak of.
        >>> attention_paths(4, 0.0, Moments(1.0, 1.0)).pull(Moments(1.0, 1.0)).query.variance
        0.0
    """
    others = tokens - 1
    uniform_slope = others / tokens**2
    logit_spread = logit_variance * x.variance * x.deviation
    found = head_averages(tokens, head_size, logit_spread, x.covariance / x.variance)
    second, overlap = found.second, found.overlap
    mean_mode = x.mean_mode(tokens)

    def pull(g: Moments) -> Cotangents:
        mean = (g.variance + others * g.covariance) / tokens
        value = mean + g.variance * second + others * g.covariance * overlap
        value_deviation = tokens / others * g.variance * second + tokens * g.covariance * overlap
        own = g.variance * (uniform_slope + found.query_own)
        cross = g.covariance * (uniform_slope + found.query_cross)
        per_logit = logit_variance * x.deviation
        query, query_deviation = per_logit * x.deviation * own, per_logit * x.deviation * (own - cross)
        key_own = x.variance * (uniform_slope + found.key_own)
        key_cross = x.covariance * uniform_slope + x.variance * found.key_cross
        key = per_logit * (g.variance * key_own + others * g.covariance * key_cross)
        return Cotangents(
            value=Moments(value, value_deviation),
            query=Moments(query, query_deviation),
            key=Moments(key, key * tokens / others),
        )

    return AttentionPaths(Moments(mean_mode + x.deviation * second, x.deviation * (second - overlap)), pull)


def _scaled(x: Moments, factor: Scalar) -> Moments:
    return Moments(factor * x.variance, factor * x.deviation)
