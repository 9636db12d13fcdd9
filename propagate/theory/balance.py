"""Where a bias on the choice of experts leads the number of FFN experts that a token uses, and how fast.

The control of LongCat-Flash (arXiv:2509.01322) adds to the bias of every FFN expert, step by step,

    rate ((K_e / K) / N - T_i / (K T))

with T_i of the T tokens sent to expert i. Of uncorrelated tokens in the wide limit all FFN experts are alike, so that
they share one bias b. With A(b) the expected number of them that a token uses, b grows by rate (K_e - A(b)) / (K N) a
step, and rests where A(b) = K_e.

A token uses a FFN experts or more where the a-th largest score of an FFN expert (softmax or logistic function) plus b
exceeds the (K - a + 1)-th of an identity expert. A(b) is thus the number of such thresholds below b: one sample of
scores tells it for every b.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from propagate.checks import number
from propagate.experts import Experts, checked_control
from propagate.theory.active_experts import two_tokens
from propagate.theory.gaussian.routers import scores_of

if TYPE_CHECKING:
    import xarray as xr


def balanced(experts: Experts, expected: float, *, variance: float = 1.0) -> Experts:
    """The mixture with the bias, one for all FFN experts, at which a token uses so many of them on average.

    Where bias control ends on uncorrelated tokens; of correlated ones each expert gets a bias of its own, which
    `simulate_balance` finds.

    Args:
        experts: the mixture, with another softmax than "after"; a bias that it has is replaced.
        expected: FFN experts for a token.
        variance: of the stream that the router reads.

    Raises:
        ModelError: for a number that no bias reaches.

    Example:
        >>> from propagate.theory.active_experts import active_experts
        >>> fewer = balanced(Experts(16, 6, identity=8, softmax="before"), 3.0)
        >>> fewer.bias[0] < 0, round(active_experts(fewer).mean, 1)
        (True, 3.0)
    """
    aim, _, _ = checked_control(experts, expected, 1.0, 1)
    low, thresholds = _thresholds(experts, variance)
    place = (aim - low) * thresholds.samples
    at = min(max(round(place), 1), len(thresholds.sorted) - 1)
    bias = float(thresholds.sorted[at - 1 : at + 1].mean())
    return _biased(experts, bias)


def predict_balance(
    experts: Experts, expected: float, *, rate: float = 1e-3, steps: int = 1000, variance: float = 1.0
) -> xr.Dataset:
    """Bias control from a bias of 0, on uncorrelated tokens in the wide limit and in batches of very many.

    Args:
        experts: the mixture, with another softmax than "after"; a bias that it has is replaced.
        expected: FFN experts for a token that the control aims at, K_e.
        rate: of the control.
        steps: how many.
        variance: of the stream that the router reads.

    Returns:
        Over `step`, 0 ... steps: `active`, expected FFN experts of a token, and the `bias` of every FFN expert.

    Raises:
        ModelError: for a number that no bias reaches, or a rate that is not positive.

    Example:
        >>> found = predict_balance(Experts(16, 6, identity=8, softmax="before"), 3.0, rate=0.1, steps=300)
        >>> found.active.values[[0, -1]].round(1).tolist()
        [4.0, 3.0]
    """
    import xarray as xr

    aim, rate, steps = checked_control(experts, expected, rate, steps)
    low, thresholds = _thresholds(experts, variance)
    gain, bias, path = rate / (experts.chosen * experts.routed), 0.0, []
    for _ in range(steps + 1):
        active = low + float(np.searchsorted(thresholds.sorted, bias)) / thresholds.samples
        path.append((active, bias))
        bias += gain * (aim - active)
    found = np.array(path)
    return xr.Dataset({"active": ("step", found[:, 0]), "bias": ("step", found[:, 1])}, {"step": np.arange(steps + 1)})


@dataclass(frozen=True, eq=False)
class _Thresholds:
    """Of the bias, above each of which a token uses one FFN expert more; of all sampled tokens together."""

    sorted: NDArray[np.float64]
    samples: int


def _thresholds(experts: Experts, variance: Any) -> tuple[int, _Thresholds]:
    """And how many FFN experts a token uses whatever the bias."""
    spread = experts.router_std * math.sqrt(number("variance", variance, positive=True))
    return max(0, experts.chosen - experts.identity), _sampled(_biased(experts, 0.0), spread)


@lru_cache(maxsize=4)
def _sampled(experts: Experts, spread: float) -> _Thresholds:
    least, most = max(0, experts.chosen - experts.identity), min(experts.chosen, experts.routed)
    scores, routed = scores_of(experts, spread * two_tokens(experts, 0.0)[0]), experts.routed
    own, others = (np.sort(part, axis=-1)[:, ::-1] for part in (scores[:, :routed], scores[:, routed:]))
    active = np.arange(least + 1, most + 1)
    return _Thresholds(np.sort((others[:, experts.chosen - active] - own[:, active - 1]).ravel()), len(scores))


def _biased(experts: Experts, bias: float) -> Experts:
    return experts.with_(bias=(bias,) * experts.routed + (0.0,) * experts.identity)
