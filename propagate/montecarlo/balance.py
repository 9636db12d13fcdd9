"""Bias control of a router, run step by step on random tokens until loads are even."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from propagate.checks import ModelError, check_memory, integer, number, shown
from propagate.experts import Experts, checked_control
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.experts import gates

if TYPE_CHECKING:
    import xarray as xr


def simulate_balance(
    experts: Experts,
    expected: float,
    *,
    rate: float = 1e-3,
    steps: int = 1000,
    tokens: int = 256,
    correlation: float = 0.0,
    width: int = 256,
    seed: int = 0,
) -> xr.Dataset:
    """One random router at rest, whose bias LongCat-Flash's control moves (arXiv:2509.01322).

    Each step takes fresh tokens, which all have one random direction in common where they are correlated, and then adds
    rate ((K_e / K) / N - T_i / (K T)) to the bias of FFN expert i, to which T_i of T tokens went. Identity experts
    keep a bias of 0.

    Args:
        experts: the mixture, with another softmax than "after"; the bias it has is where the control begins, None is 0.
        expected: FFN experts for a token that the control aims at, K_e.
        rate: of the control.
        steps: how many.
        tokens: of a step.
        correlation: of two tokens, between 0 and 1.
        width: of the stream that the router reads, whose variance is 1.
        seed: of the router and the tokens.

    Returns:
        Over `step`, 0 ... steps: `active` and `active_std`, mean and standard deviation over tokens of the number of
        FFN experts that a token uses; over `step` and `candidate`, identity experts last: `share`, of the tokens that
        chose it, and the `bias` it had then.

    Raises:
        ModelError: names the argument, the value and what is allowed.

    Example:
        >>> mixture = Experts(16, 6, identity=8, softmax="before")
        >>> found = simulate_balance(mixture, 3.0, rate=0.1, steps=400)
        >>> round(float(found.active[0]), 0), round(float(found.active[-50:].mean()), 1)
        (4.0, 3.0)
    """
    import xarray as xr

    aim, gain, steps = checked_control(experts, expected, rate, steps)
    if number("correlation", correlation, positive=False) > 1:
        raise ModelError(f"correlation must lie between 0 and 1, got {shown(correlation)}")
    tokens, width = integer("tokens", tokens), integer("width", width)
    numbers = 2 * (tokens + experts.candidates) * width + (4 * tokens + 2 * steps) * experts.candidates
    check_memory(f"tokens={tokens} of width={width} and steps={steps}", 8.0 * numbers)
    host, draw = choose_backend("numpy"), np.random.default_rng(integer("seed", seed, at_least=0))
    router = draw.standard_normal((width, experts.candidates)) * (experts.router_std / math.sqrt(width))
    common = math.sqrt(correlation) * draw.standard_normal(width)
    bias = np.zeros(experts.candidates) if experts.bias is None else np.array(experts.bias)
    routed, chosen = experts.routed, experts.chosen
    counts, loads, biases = [], [], []
    for _ in range(steps + 1):
        x = common + math.sqrt(1 - correlation) * draw.standard_normal((1, tokens, width))
        used = gates(host, experts.with_(bias=tuple(bias)), x @ router)[0][0] > 0
        counts.append(used[:, :routed].sum(axis=-1))
        loads.append(used.mean(axis=0))
        biases.append(bias.copy())
        bias[:routed] += gain * (aim / chosen / routed - loads[-1][:routed] / chosen)
    by_candidate = ("step", "candidate")
    return xr.Dataset(
        {
            "active": ("step", np.mean(counts, axis=-1)),
            "active_std": ("step", np.std(counts, axis=-1)),
            "share": (by_candidate, np.array(loads)),
            "bias": (by_candidate, np.array(biases)),
        },
        {"step": np.arange(steps + 1)},
        {"expected": aim, "rate": gain, "tokens": tokens, "correlation": correlation, "width": width, "seed": seed},
    )
