"""What a loss makes of a network's two ends: the moments of what enters, and of the cotangent that is sent back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from propagate.checks import number
from propagate.losses import CrossEntropy, Linear
from propagate.model import Model, ModelError
from propagate.start import Start
from propagate.theory.embedding import cross_entropy_moments
from propagate.theory.gaussian.softmax import LARGEST_SPREAD
from propagate.theory.pairs.moments import Moments
from propagate.theory.predict import MOMENTS
from propagate.theory.tokens.gram import Gram
from propagate.theory.walks import walk, walk_grams
from propagate.transfer import Factors, Kind

UNEVEN = 1e-3  # relative differences of tokens' variances that a norm with an eps leaves: nothing in what is sent


class Leaving(NamedTuple):
    """What a cross-entropy makes of the logits.

    Attributes:
        vocabulary: entries.
        gain: of the map from what the readout gives to the logits.
        shares: (tokens, tokens), E p_tv p_sv of an entry v, p the softmax.
        residuals: (tokens, tokens), E sum_v (p_tv - [target of t]) (p_sv - [target of s]).
    """

    vocabulary: int
    gain: float
    shares: NDArray[np.float64]
    residuals: NDArray[np.float64]


class Ends(NamedTuple):
    """Moments at both ends of a network.

    Attributes:
        start: plain numbers or Gram matrices.
        through_readout: the cotangent enters behind the readout.
        repeated: how far, relative, a step may lie from that of tokens and targets as they are on average: of few
            tokens some are the same entry, and the step depends on which.
        leaving: of a cross-entropy.
    """

    start: Start
    through_readout: bool = False
    repeated: float = 0.0
    leaving: Leaving | None = None


@singledispatch
def ends_met(loss: Any, start: Any, network: Model, factors: Mapping[Kind, Factors]) -> Ends:
    """The ends of a network under a loss, from what a user says of its start.

    Args:
        loss: its description.
        start: a Start, or None.
        network: as the rule of transfer makes it.
        factors: of that rule, by a matrix's kind.

    Raises:
        ModelError: for a start, or a network, for which the loss is not derived.
    """
    raise ModelError(f"predict_step does not cover the loss {type(loss).__name__}")


@ends_met.register
def linear(loss: Linear, start: Any, network: Model, factors: Mapping[Kind, Factors]) -> Ends:
    """The start's own."""
    given = Start.of(start, **{name: getattr(Start(), name) for name in (*MOMENTS, "gram", "grad_gram")})
    arrays = [name for name in MOMENTS if getattr(given[name], "dims", ())]
    if arrays:
        raise ModelError(f"predict_step needs a start of plain numbers, got an array of {arrays[0]}")
    return Ends(given)


@ends_met.register
def cross_entropy(loss: CrossEntropy, start: Any, network: Model, factors: Mapping[Kind, Factors]) -> Ends:
    """Tokens share what they have in common where they are the same entry, which any two are once in `vocabulary`.

    Logits are Gaussian, of the readout's variance times the unembedding's gain, and as correlated as what it reads.
    The cotangent is sum_v (p_v - [v is the target]) U_v / tokens, U the unembedding's columns.

    Example: a target's own column is nearly all there is.
        >>> from propagate.transfer import factors_by_kind
        >>> model = Model("prenorm", depth=2, width=64, tokens=4)
        >>> found = cross_entropy(CrossEntropy(1000, gain=0.1), None, model, factors_by_kind(model, None, None))
        >>> round(found.start.grad_variance * 64 * 4**2 / 0.1**2, 2), found.through_readout
        (1.0, True)
    """
    given = Start.of(start)
    said = [name for name in given if name != "variance"]
    if said:
        raise ModelError(f"start must hold only variance with loss=CrossEntropy(...), got {said[0]}")
    entering, leaving = (_applied(factors[kind]) for kind in ("embedding", "unembedding"))
    variance, alike = number("variance", given.variance, positive=True) * entering**2, 1 / loss.vocabulary
    tokens, std = network.tokens, loss.gain * leaving / math.sqrt(network.width)
    unit = Moments(1.0, 1.0)
    repeated = (tokens - 1) * alike

    def sent(size: float, correlation: float) -> tuple[float, float]:
        """Second moments of the cotangents of tokens of this size at the readout."""
        spread = std * math.sqrt(network.width * size)
        if not spread <= LARGEST_SPREAD:
            raise ModelError(
                f"predict_step with CrossEntropy covers logits up to a standard deviation of {LARGEST_SPREAD:g}, got"
                f" {spread:.3g}: lower CrossEntropy.gain, or norm what the readout gives"
            )
        found = cross_entropy_moments(
            loss.vocabulary,
            std * math.sqrt(size),
            width=network.width,
            correlation=min(max(correlation, 0.0), 1.0),
            same_target=alike,
        )
        return found["grad_variance"] / size / tokens**2, found["grad_covariance"] / size / tokens**2

    if network.exchangeable and not network.uneven:
        read: Any = walk(network, Moments(variance, variance * (1 - alike)), unit, through_readout=True).readout
        together = read.covariance / read.variance if tokens > 1 else 0.0
        own, crossed = sent(float(read.variance), float(together))
        ends = Start(
            variance=variance,
            covariance=variance * alike,
            grad_variance=own,
            grad_covariance=crossed if tokens > 1 else 0.0,
        )
        alone = np.eye(tokens, dtype=bool)
        return Ends(ends, True, repeated, _leaving(loss, leaving, np.where(alone, own, crossed), width=network.width))
    first, last = (Gram.exchangeable(1.0, 1.0 - common, tokens) for common in (alike, 0.0))
    resolved: Any = walk_grams(network, first.times(math.sqrt(variance)), last, through_readout=True).readout
    gram = resolved.matrix.mean(axis=0)
    sizes = np.diagonal(gram)
    if np.ptp(sizes) > UNEVEN * sizes.max():
        raise ModelError(
            "predict_step with CrossEntropy needs a readout that gives all tokens one size, where tokens are not alike:"
            f" a norm, got variances from {sizes.min():.3g} to {sizes.max():.3g} from {network.placement!r}"
        )
    size = float(sizes.mean())
    grad = np.array([[sent(size, float(c) / size)[i != j] for j, c in enumerate(row)] for i, row in enumerate(gram)])
    ends = Start(variance=variance, covariance=variance * alike, grad_gram=grad)
    return Ends(ends, True, repeated, _leaving(loss, leaving, grad, width=network.width))


def _leaving(loss: CrossEntropy, applied: float, grad: NDArray[np.float64], *, width: int) -> Leaving:
    """From the second moments of the cotangent at the readout."""
    gain, tokens, alike = loss.gain * applied, len(grad), 1 / loss.vocabulary
    residuals = grad * tokens**2 * width / gain**2
    met = residuals + 2 * alike - np.where(np.eye(tokens, dtype=bool), 1.0, alike)
    return Leaving(loss.vocabulary, gain, np.maximum(met, 0.0) / loss.vocabulary, residuals)


def _applied(factors: Factors) -> float:
    return float(factors.gain * factors.multiplier)
