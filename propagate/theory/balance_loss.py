"""Gradient of the load-balance loss at a router at initialisation.

The loss of a batch of T tokens is alpha sum_j f_j P_j over groups of candidates, here every FFN expert by itself and
all identity experts together (LongCat-Flash, arXiv:2509.01322): P_j is the mean over tokens of a group's softmax, and
f_j the group's share of the choices over the one it should have, so that all f_j are 1 at balance. The f_j have no
derivative. By the logit of token t for candidate i in group g the gradient is

    alpha / T p_ti (f_g - sum_j f_j P_tj),

times 1 - s_ti where p are logistic functions s over their sum (DeepSeek-V3, arXiv:2412.19437, Eq. 17 to 20). It is 0 at
balance, where sum_j P_tj = 1 leaves nothing. Chance makes f_j - 1 of order sqrt(N / (K T)) where tokens are
uncorrelated; correlated ones choose together, and more of them do not even it out. Logits are drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from propagate.checks import ModelError, check_memory, integer, number, shown
from propagate.experts import Experts
from propagate.theory.gaussian.routers import largest, scores_of

LOGITS = 2**22  # drawn in all, in batches of which there are
BATCHES = (16, 4096)  # at least and at most so many


@dataclass(frozen=True)
class BalanceGradient:
    """What `balance_gradient` finds, over alpha; each with its standard error.

    Attributes:
        logits: mean square of the gradient by a router logit.
        router: mean square of that by an entry of the router's matrix, whose input has variance 1.
        imbalance: mean square of f_j - 1 over FFN experts.
    """

    logits: float
    logits_se: float
    router: float
    router_se: float
    imbalance: float
    imbalance_se: float


def balance_gradient(
    experts: Experts, tokens: int, *, expected: float | None = None, correlation: float = 0.0
) -> BalanceGradient:
    """Mean squares of the gradient of the load-balance loss, for alpha = 1, in the wide limit at initialisation.

    Args:
        experts: the mixture; its router reads a stream of variance 1.
        tokens: of a batch.
        expected: FFN experts that a token should use, K_e; None is what chance gives.
        correlation: of two tokens, between 0 and 1.

    Raises:
        ModelError: names the argument, the value and what is allowed.

    Example: shares of uncorrelated tokens are off by chance, as N / K - 1 over their number.
        >>> round(100 * balance_gradient(Experts(16, 4, softmax="before"), tokens=100).imbalance, 1)
        3.0
    """
    if not isinstance(experts, Experts):
        raise ModelError(f"experts must be propagate.Experts, such as Experts(8), got {shown(experts)}")
    tokens = integer("tokens", tokens)
    if number("correlation", correlation, positive=False) > 1:
        raise ModelError(f"correlation must lie between 0 and 1, got {shown(correlation)}")
    count, routed, chosen = experts.candidates, experts.routed, experts.chosen
    aim = chosen * routed / count if expected is None else number("expected", expected, positive=True)
    if experts.identity and not aim < chosen:
        raise ModelError(f"expected must be below {chosen}, the candidates chosen, got {shown(expected)}")
    if not experts.identity and aim != chosen:
        raise ModelError(f"expected must be None or {chosen} without identity experts, got {shown(expected)}")
    check_memory(f"tokens={tokens} with {count} candidates", 64.0 * tokens * count)
    draw, found = np.random.default_rng(20251201), []
    for _ in range(min(max(BATCHES[0], LOGITS // (tokens * count)), BATCHES[1])):
        normals = math.sqrt(1 - correlation) * draw.standard_normal((tokens, count))
        logits = experts.router_std * (normals + math.sqrt(correlation) * draw.standard_normal(count))
        scores = scores_of(experts, logits)
        softmax = scores / scores.sum(axis=-1, keepdims=True)
        shares = largest(experts, logits, scores).mean(axis=0)
        weight = shares * (routed / aim)
        if experts.identity:
            weight[routed:] = shares[routed:].sum() / (chosen - aim)
        gradient = softmax * (weight - (softmax @ weight)[:, None]) / tokens
        if experts.logistic:
            gradient *= 1 - scores
        squares, together = (gradient**2).sum(axis=0), gradient.sum(axis=0) ** 2
        by_entry = (1 - correlation) * squares + correlation * together  # x_t . x_s per coordinate
        found.append((squares.mean() / tokens, by_entry.mean(), ((weight[:routed] - 1) ** 2).mean()))
    means, errors = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / math.sqrt(len(found))
    return BalanceGradient(*(float(value) for pair in zip(means, errors, strict=True) for value in pair))
