"""What a router makes of its logits, and how that changes with them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from propagate.experts import Experts

Array = NDArray[np.float64]


class Routing(NamedTuple):
    """Gates of all candidates, on the last axis, and the parts of their derivative by the logits.

    With gates g that is d g_j / d r_e = v_j (j = e) - g_j q_e. Of a softmax p, v is g and q is p, "before" the choice
    over all candidates and "after" it over the chosen ones. Of logistic functions s, v is g (1 - s): they do not
    compete, and q is 0, unless the chosen are divided by their sum, where q is their shares times 1 - s.

    Attributes:
        gates: g, times `factor` already, 0 of those not chosen.
        own: v.
        others: q.
    """

    gates: Array
    own: Array
    others: Array


def routing_of(experts: Experts, logits: Array) -> Routing:
    """Gates and their derivative; the choice itself has none.

    Example: of two alike candidates each has half of a softmax, and half as a logistic function.
        >>> for softmax in ("after", "sigmoid", "sigmoid_after"):
        ...     found = routing_of(Experts(2, 2, softmax=softmax), np.zeros(2))
        ...     print(found.gates.tolist(), found.own.tolist(), found.others.tolist())
        [0.5, 0.5] [0.5, 0.5] [0.5, 0.5]
        [0.5, 0.5] [0.25, 0.25] [0.0, 0.0]
        [0.5, 0.5] [0.25, 0.25] [0.25, 0.25]
    """
    if experts.logistic:
        scores = expit(logits)
        kept, rest = scores * largest(experts, logits, scores), expit(-logits)
        if not experts.renormalised:
            return Routing(kept * experts.factor, kept * rest * experts.factor, np.zeros_like(kept))
        shares = kept / kept.sum(axis=-1, keepdims=True)
        return Routing(shares * experts.factor, shares * rest * experts.factor, shares * rest)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    kept = weights * largest(experts, logits, weights / total)
    if experts.renormalised:
        weights, total = kept, kept.sum(axis=-1, keepdims=True)
    gates = kept * (experts.factor / total)
    return Routing(gates, gates, weights / total)


def scores_of(experts: Experts, logits: Array) -> Array:
    """What a bias on the choice is added to, along the last axis: logistic functions, or the softmax over all.

    Example:
        >>> scores_of(Experts(2), np.log([1.0, 3.0])).round(12).tolist()
        [0.25, 0.75]
        >>> scores_of(Experts(2, softmax="sigmoid"), np.log([1.0, 3.0])).round(12).tolist()
        [0.5, 0.75]
    """
    if experts.logistic:
        return np.asarray(expit(logits))
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def largest(experts: Experts, logits: Array, scores: Array) -> Any:
    """Which candidates, on the last axis, are chosen: those of the largest scores, with the bias if there is one.

    Example: a bias for the last overrules the logits.
        >>> logits = np.log([0.4, 0.3, 0.2, 0.1])
        >>> largest(Experts(4, 2, softmax="before", bias=(0, 0, 0, 0.25)), logits, np.exp(logits)).tolist()
        [True, False, False, True]
    """
    dropped = experts.candidates - experts.chosen
    if experts.bias is None:
        return logits >= np.partition(logits, dropped, axis=-1)[..., dropped, None]
    ranked = np.argsort(scores + np.array(experts.bias), axis=-1)  # scores that round to 1 are equal
    return np.argsort(ranked, axis=-1) >= dropped
