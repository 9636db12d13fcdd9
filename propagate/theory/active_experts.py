"""How many FFN experts a token uses, where some candidates are identity experts: its compute is a random variable.

Router logits of a token are independent Gaussians of one variance, so that without a bias every choice of K among M =
N + Z candidates is as likely as any other: the number A of FFN experts among them is hypergeometric, whatever the
spread of the logits. Two tokens share the router, and their numbers are correlated as far as their choices coincide:
given how many candidates both chose, O, which of them are FFN experts is a matter of chance, and

    Cov(A_t, A_s) = p (1 - p) (O M - K^2) / (M - 1),   p = N / M,

so that the correlation is (E O - K^2 / M) / (K - K^2 / M). The mean over a batch of many tokens keeps that share of the
variance between networks. With a bias the choice is sampled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from propagate.checks import ModelError, integer, number, shown
from propagate.experts import Experts
from propagate.theory.gaussian.routers import largest, scores_of

Array = NDArray[np.float64]
LOGITS = 2**22  # sampled for each token; the sample is this over the number of candidates


@dataclass(frozen=True, eq=False)
class ActiveExperts:
    """What `active_experts` finds.

    Attributes:
        probability: of 0, 1, ... `chosen` active FFN experts.
        shared: correlation of the numbers of two tokens.
        error: largest standard error of a probability; 0 where there is a closed form.
        shared_error: standard error of `shared`.
    """

    probability: Array
    shared: float
    error: float = 0.0
    shared_error: float = 0.0

    @property
    def mean(self) -> float:
        """Expected number."""
        return float(np.arange(len(self.probability)) @ self.probability)

    @property
    def std(self) -> float:
        """Standard deviation over tokens."""
        squares = float(np.arange(len(self.probability)) ** 2 @ self.probability)
        return math.sqrt(max(squares - self.mean**2, 0.0))

    def std_of_mean(self, tokens: int) -> float:
        """Standard deviation between networks of the mean over so many tokens: what a batch's compute varies by."""
        count = integer("tokens", tokens)
        return self.std * math.sqrt(max((1 + (count - 1) * self.shared) / count, 0.0))


def active_experts(experts: Experts, *, correlation: float = 0.0, variance: float = 1.0) -> ActiveExperts:
    """Distribution of the number of FFN experts that a token uses, and how much of it tokens share.

    In the wide limit, at initialisation. Shared experts, which every token uses, are not counted; of a `split` expert
    each part counts as one.

    Args:
        experts: the mixture.
        correlation: of two tokens in the stream that the router reads.
        variance: of that stream, per coordinate; it matters with a bias only.

    Raises:
        ModelError: for a correlation outside [-1, 1] or a variance that is not positive.

    Example: LongCat-Flash, 12 chosen of 512 FFN and 256 identity experts: 8 on average.
        >>> found = active_experts(Experts(512, 12, identity=256, softmax="before", gain=6.0))
        >>> round(found.mean, 6), round(found.std, 2), round(float(found.probability[12]), 4)
        (8.0, 1.62, 0.0074)
    """
    if not isinstance(experts, Experts):
        raise ModelError(f"experts must be propagate.Experts, such as Experts(8), got {shown(experts)}")
    if isinstance(correlation, bool) or not isinstance(correlation, int | float) or not -1 <= correlation <= 1:
        raise ModelError(f"correlation must lie between -1 and 1, got {shown(correlation)}")
    spread = experts.router_std * math.sqrt(number("variance", variance, positive=True))
    if experts.bias is None:
        shared, shared_error = _shared_without_bias(experts, correlation)
        return ActiveExperts(_hypergeometric(experts), shared, 0.0, shared_error)
    tokens = [_chosen(experts, spread * logits) for logits in two_tokens(experts, correlation)]
    counts = np.array([chosen[:, : experts.routed].sum(axis=-1) for chosen in tokens])
    probability = np.bincount(counts.ravel(), minlength=experts.chosen + 1) / counts.size
    error = float(np.sqrt(probability * (1 - probability) / counts.size).max())
    apart = counts - counts.mean()
    products, power = apart[0] * apart[1], float((apart**2).mean())
    if power == 0:
        return ActiveExperts(probability, 0.0, error)
    shared_error = float(products.std()) / math.sqrt(len(products)) / power
    return ActiveExperts(probability, float(products.mean()) / power, error, shared_error)


def two_tokens(experts: Experts, correlation: float) -> tuple[Array, Array]:
    """Standard normal logits, (samples, candidates) each, the same for the same number of candidates."""
    draw = np.random.default_rng(20251130)
    first, second = draw.standard_normal((2, max(LOGITS // experts.candidates, 2**10), experts.candidates))
    return first, correlation * first + math.sqrt(1 - correlation**2) * second


def _hypergeometric(experts: Experts) -> Array:
    chosen, routed, identity = experts.chosen, experts.routed, experts.identity
    ways = math.comb(experts.candidates, chosen)
    return np.array([math.comb(routed, a) * math.comb(identity, chosen - a) / ways for a in range(chosen + 1)])


def _shared_without_bias(experts: Experts, correlation: float) -> tuple[float, float]:
    """By the overlap of two tokens' choices; and its standard error."""
    k, m = experts.chosen, experts.candidates
    if k == m or not experts.identity or correlation == 0:
        return 0.0, 0.0
    if correlation == 1:
        return 1.0, 0.0
    one, other = (_chosen(experts, logits) for logits in two_tokens(experts, correlation))
    overlap = (one & other).sum(axis=-1)
    free = k - k * k / m
    return (float(overlap.mean()) - k * k / m) / free, float(overlap.std()) / math.sqrt(len(overlap)) / free


def _chosen(experts: Experts, logits: Array) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = largest(experts, logits, scores_of(experts, logits))
    return found
