"""Moment maps of the sublayers, forward and backward, in the limit of infinite width at a given size of head.

A sublayer is a function of its input's moments, and of the names of its inner projections that are normed. It returns
the moments of its output and a pull: the function that takes the moments of the cotangent at its output to those of the
cotangent it sends back to its input.
Assumptions: fresh Gaussian weights, tokens exchangeable, tokens far fewer than the width. All maps are exact as the
width grows, attention's as the number of its heads does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from propagate.activations import Activation
from propagate.scaling import Gains
from propagate.theory.gaussian.activations import Maps, maps_of
from propagate.theory.gaussian.finite_heads import HeadAverages, head_averages
from propagate.theory.gaussian.functions import Scalar, inverse, is_plain
from propagate.theory.gaussian.normed_heads import NormedHeads, check_normed, normed_averages
from propagate.theory.gaussian.normed_values import similarity_loss, similarity_slope
from propagate.theory.pairs.moments import Moments

Pull = Callable[[Moments], Moments]
Sublayer = Callable[[Moments, frozenset[str]], tuple[Moments, Pull]]
NO_NORMS: frozenset[str] = frozenset()


@lru_cache(maxsize=256)
def ffn(activation: Activation | str, gains: Gains, *, centred: bool = False, eps: float = 0.0) -> Sublayer:
    """A feed-forward layer W_out phi(W_in x); its output has variance ffn_out^2 at unit variance and inner gains 1.

    With "hidden" normed the output has variance ffn_out^2 whatever enters, but for the norm's `eps`. A LayerNorm
    (`centred`) then also removes the mean of phi over the hidden units, so the tokens' correlation falls; an RMSNorm
    keeps it.

    Example: ReLU on uncorrelated tokens leaves them correlated by 1/pi, but for LayerNorm.
        >>> x = Moments(2.0, 2.0)
        >>> ffn("relu", Gains(ffn_out=0.5))(x, NO_NORMS)[0].variance
        0.5
        >>> [round(ffn("relu", Gains(), centred=c)(x, frozenset({"hidden"}))[0].covariance, 4) for c in (False, True)]
        [0.3183, 0.0]
    """
    size = maps_of(activation).value(1.0, 0.0)[0]
    return ffn_of(maps_of(activation, gains.ffn_gate), size, gains, centred=centred, eps=eps)


def ffn_of(maps: Maps, size: Scalar, gains: Gains, *, centred: bool = False, eps: float = 0.0) -> Sublayer:
    """The same from an activation's maps, with the gate's gain in them, and its mean square at unit variance."""
    scale_in, power = gains.ffn_in * gains.ffn_in, gains.ffn_out * gains.ffn_out
    plain_scale = power / size

    def apply(x: Moments, normed: frozenset[str] = NO_NORMS) -> tuple[Moments, Pull]:
        variance, deviation = scale_in * x.variance, scale_in * x.deviation
        value, value_drop = maps.value(variance, deviation)
        slope, slope_drop = maps.slope(variance, deviation)
        if "hidden" in normed:
            if centred:
                value = maps.value(variance, variance)[1]  # less the value at correlation 0, the squared mean
            scale_out = power / (value + eps)
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
def attention(
    tokens: Scalar,
    logit_variance: Scalar,
    gains: Gains,
    head_size: float = math.inf,
    *,
    centred: bool = False,
    eps: float = 0.0,
) -> Sublayer:
    """Softmax self-attention over all tokens, in heads of `head_size` coordinates.

    `logit_variance` is the variance of a logit between unit-variance, uncorrelated tokens at gains 1. The logits of one
    row have a common part, which the softmax ignores; what is left has variance logit_variance * variance * deviation,
    and two rows' logits are correlated as the tokens are. A normed projection has variance 1 in place of its gain
    squared times the input's variance; each head has norms of its own, LayerNorms if `centred` (see `normed_heads`).
    Their `eps` is taken beside the mean square of a head.

    Backward, the cotangent returns through the values, the queries and the keys. Those three are uncorrelated. The sum
    over tokens of the keys' cotangent vanishes unless they are normed: that path then lives in the token-deviation mode
    alone.

    Raises:
        ModelError: of the map, for norms in heads so small that the mean square of the gradient is infinite.

    Example: uniform attention averages over tokens, so all outputs are alike.
        >>> attention(4, 0.0, Gains())(Moments(1.0, 1.0), NO_NORMS)[0]
        Moments(variance=0.25, deviation=0.0)
    """
    out = gains.attention_out * gains.attention_out
    plain = projection_powers(gains, Moments(1.0, 1.0), NO_NORMS)
    without = NormedHeads(tokens, head_size, query=False, key=False, centred=centred)

    def apply(x: Moments, normed: frozenset[str] = NO_NORMS) -> tuple[Moments, Pull]:
        powers = projection_powers(gains, x, normed, eps) if normed else plain
        pull_values: Pull = _same
        values, inner = x, powers.value
        small = normed if head_size != math.inf else NO_NORMS  # what is normed in heads that are not taken for wide
        if "value" in small:
            values, pull_values = normed_values(x, head_size - centred)
            inner = powers.value * x.variance
        if tokens == 1:  # nothing to choose from: attention is a linear layer
            paths = AttentionPaths(values, lambda g: Cotangents(g, NONE, NONE))
        else:
            power = logit_variance * powers.query * powers.key
            norms = replace(without, query="query" in small, key="key" in small) if small else without
            paths = attention_paths(tokens, power, x, norms, values)
        if "heads" in normed:
            inner = inner * inverse(inner * paths.output.variance + eps)
        power = out * inner

        def pull(g: Moments) -> Moments:
            value, query, key = paths.pull(g)
            value = pull_values(value)
            variance = value.variance + query.variance + key.variance
            return Moments(power * variance, power * (value.deviation + query.deviation + key.deviation))

        def by_path(g: Moments) -> dict[str, Moments]:
            value, query, key = paths.pull(g)
            sent = {"value": pull_values(value)} | ({"query": query, "key": key} if tokens > 1 else {})
            return {name: _scaled(one, power) for name, one in sent.items()}

        heads = _scaled(paths.output, inner)
        return _scaled(heads, out), AttentionPull(heads, by_path, pull)

    return apply


NONE = Moments(0.0, 0.0)


class Powers(NamedTuple):
    """Variance of each of attention's projections, for each unit of variance that enters."""

    query: Scalar
    key: Scalar
    value: Scalar


def projection_powers(gains: Gains, x: Moments, normed: frozenset[str], eps: float = 0.0) -> Powers:
    """Of a normed projection so much that its variance is 1; of the others the gain's square.

    Raises:
        ZeroDivisionError: for a normed projection that is 0.

    Example:
        >>> projection_powers(Gains(query=3.0), Moments(4.0, 4.0), frozenset({"key"}))
        Powers(query=9.0, key=0.25, value=1.0)
    """
    squares = {name: getattr(gains, name) * getattr(gains, name) for name in Powers._fields}
    return Powers(*(s * inverse(s * x.variance + eps) if name in normed else s for name, s in squares.items()))


class Cotangents(NamedTuple):
    """What attention with unit gains sends back: to the values, and to its input through queries and keys."""

    value: Moments
    query: Moments
    key: Moments


class AttentionPaths(NamedTuple):
    """Attention with unit gains at one input: the moments of its output, and what a cotangent there sends back."""

    output: Moments
    pull: Callable[[Moments], Cotangents]


def attention_paths(
    tokens: Scalar,
    logit_variance: Scalar,
    x: Moments,
    heads: NormedHeads | None = None,
    values: Moments | None = None,
    keys: Moments | None = None,
) -> AttentionPaths:
    """Attention at an input's moments, its three backward paths kept apart. See `attention`.

    Args:
        tokens: two or more.
        logit_variance: of a logit between tokens of x of variance 1, uncorrelated, with the gains of queries and keys.
        x: what queries and keys are made of.
        heads: None are wide.
        values: if they are not x itself.
        keys: likewise, of heads without norms.

    Example: uniform attention has no queries and keys to speak of.
        >>> attention_paths(4, 0.0, Moments(1.0, 1.0)).pull(Moments(1.0, 1.0)).query.variance
        0.0
    """
    others, values, keys = tokens - 1, values or x, keys or x
    uniform_slope = others / tokens**2
    normed = heads is not None and (heads.query or heads.key)
    mean_own, mean_cross = 0.0, 0.0
    if heads is not None and normed:
        of_unit = logit_variance * x.variance * x.variance
        *averages, mean_own, mean_cross = normed_averages(heads, of_unit, x.deviation * inverse(x.variance))
        found = HeadAverages(*averages)
    else:
        of_logits = logit_variance * x.variance * keys.deviation
        found = head_averages(tokens, heads.size if heads else math.inf, of_logits, x.covariance / x.variance)
    second, overlap = found.second, found.overlap
    mean_mode = values.mean_mode(tokens)

    def pull(g: Moments) -> Cotangents:
        variance, covariance = g.variance, g.covariance
        mean = (variance + others * covariance) / tokens
        value = mean + variance * second + others * covariance * overlap
        value_deviation = tokens / others * variance * second + tokens * covariance * overlap
        own = variance * (uniform_slope + found.query_own)
        cross = covariance * (uniform_slope + found.query_cross)
        per_logit = logit_variance * values.deviation
        per_query = per_logit * keys.deviation
        query, query_deviation = per_query * own, per_query * (own - cross)
        key_own = x.variance * (uniform_slope + found.key_own)
        key_cross = x.covariance * uniform_slope + x.variance * found.key_cross
        key = per_logit * (variance * key_own + others * covariance * key_cross)
        mean_key = per_logit * x.variance * (variance * mean_own + others * covariance * mean_cross) if normed else 0
        return Cotangents(
            Moments(value, value_deviation),
            Moments(query, query_deviation),
            Moments(key, (key * tokens - mean_key) / others),
        )

    output = Moments(mean_mode + values.deviation * second, values.deviation * (second - overlap))
    return AttentionPaths(output, pull)


def normed_values(x: Moments, free: float) -> tuple[Moments, Pull]:
    """A norm of each token in each head, of so many free coordinates, of projections with the moments of x.

    Raises:
        ModelError: for two free coordinates or fewer.

    Example: two coordinates fewer than the token has.
        >>> values, pull = normed_values(Moments(4.0, 4.0), 10)
        >>> values.variance, pull(Moments(1.0, 1.0)).variance == 9 / 8 / 4
        (1.0, True)
    """
    check_normed("value", free)
    power = inverse(x.variance)
    loss = x.deviation * power
    own, pair = similarity_slope(free, 0.0) * power, similarity_slope(free, loss) * power
    drop = similarity_loss(free, loss)
    if is_plain(x.variance, x.deviation):
        pair, drop = float(pair), float(drop)

    def pull(g: Moments) -> Moments:
        return Moments(own * g.variance, own * g.deviation + (own - pair) * g.covariance)

    return Moments(1.0, drop), pull


def _same(x: Moments) -> Moments:
    return x


def _scaled(x: Moments, factor: Scalar) -> Moments:
    return Moments(factor * x.variance, factor * x.deviation)
