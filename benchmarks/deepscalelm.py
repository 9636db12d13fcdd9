"""DeepScaleLM's operator table: its grids, its formulas, its measure of error and the percentiles it published.

arXiv:2403.09635; the scripts linear.py, relu.py, gelu.py, layernorm.py and SHA.py in simulations/ of
akhilkedia/TranformersGetStable at commit f6cf2c7, and their expected_output.txt. The formulas are written out anew here
from those scripts, for the quantities that are second moments about the mean. Left out: means, the softmax alone and
dropout alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Place = dict[str, Any]
STDS = np.logspace(-0.5, 0.5, 3).tolist()  # of inputs and of cotangents, and of attention's value matrix
THIRDS, FIFTHS = ([i / n for i in range(n)] for n in (3, 5))
DIMENSIONS = [100, 316, 1000]
TOKENS = [100, 1000]

ELEMENTWISE = {"tokens": TOKENS, "std": STDS, "correlation": FIFTHS, "grad_std": STDS, "grad_correlation": FIFTHS}
GRIDS: dict[str, dict[str, list[Any]]] = {
    "linear": {
        "tokens": TOKENS,
        "fan_in": DIMENSIONS,
        "fan_out": DIMENSIONS,
        "mean": [0.1, 1.0, 10.0],
        "std": STDS,
        "correlation": THIRDS,
        "weight_std": [0.1, 1.0, 10.0],  # times 1 / sqrt(fan_in)
        "grad_std": STDS,
        "grad_correlation": THIRDS,
    },
    "relu": ELEMENTWISE,
    "gelu": ELEMENTWISE,
    "layer norm": ELEMENTWISE | {"fan_in": DIMENSIONS, "mean": [-10.0, -10 / 3, 10 / 3]},
    "attention": {
        "tokens": [300, 547, 1000],
        "fan_in": DIMENSIONS,
        "fan_out": [32, 64, 128, 256],  # of its one head
        "correlation": THIRDS,
        "logit_std": [0.01, 0.06, 0.36],  # squares of their query and key gains 0.1, 0.245, 0.6
        "value_std": STDS,
        "dropout": THIRDS,
        "grad_std": STDS,
        "grad_correlation": THIRDS,
    },
}

QUANTITIES = ("variance", "covariance", "grad_variance", "grad_covariance")
PUBLISHED: dict[str, dict[str, tuple[float, float, float]]] = {
    "linear": {
        "variance": (0.4, 1.4, 2.8),
        "covariance": (0.4, 1.4, 2.8),
        "grad_variance": (0.2, 1.0, 2.2),
        "grad_covariance": (0.2, 1.0, 2.2),
    },
    "relu": {
        "variance": (0.5, 1.9, 3.4),
        "covariance": (0.3, 1.6, 3.1),
        "grad_variance": (0.6, 1.5, 2.6),
        "grad_covariance": (0.2, 1.1, 2.3),
    },
    "gelu": {
        "variance": (0.2, 0.6, 1.3),
        "covariance": (0.1, 0.5, 1.2),
        "grad_variance": (0.2, 0.6, 1.1),
        "grad_covariance": (0.1, 0.4, 0.9),
    },
    "layer norm": {
        "covariance": (0.1, 0.5, 1.0),
        "grad_variance": (0.4, 1.5, 3.2),
        "grad_covariance": (0.2, 0.9, 2.2),
    },
    "attention": {
        "variance": (1.4, 4.1, 7.8),
        "covariance": (1.3, 3.9, 7.4),
        "grad_variance": (2.2, 13.3, 44.5),
        "grad_covariance": (1.6, 4.5, 8.2),
    },
}


def formulas(operator: str, place: Place) -> dict[str, float]:
    """What the published formulas say of the second moments about the mean, at one place of a grid.

    Example:
        >>> place = {"std": 1.0, "correlation": 0.0, "grad_std": 1.0, "grad_correlation": 0.0}
        >>> {name: round(value, 3) for name, value in formulas("relu", place).items()}
        {'variance': 0.341, 'covariance': 0.0, 'grad_variance': 0.5, 'grad_covariance': 0.0}
    """
    values = {"linear": _linear, "relu": _relu, "gelu": _gelu, "layer norm": _layer_norm, "attention": _attention}
    return dict(zip(QUANTITIES, values[operator](place), strict=True))


def _linear(at: Place) -> tuple[float, ...]:
    square, power = at["mean"] ** 2, at["weight_std"] ** 2
    back = at["fan_out"] / at["fan_in"] * power * at["grad_std"] ** 2
    variance = at["std"] ** 2
    return (
        power * (variance + square),
        power * (at["correlation"] * variance + square),
        back,
        back * at["grad_correlation"],
    )


def _relu(at: Place) -> tuple[float, ...]:
    s, r, g = at["std"] ** 2, at["correlation"], at["grad_std"] ** 2
    covariance = math.pi * r + math.sqrt(1 - r * r) - r * math.acos(r) - 1
    return (
        s * (math.pi - 1) / (2 * math.pi),
        s * covariance / (2 * math.pi),
        g / 2,
        g * at["grad_correlation"] * (0.25 + math.asin(r) / (2 * math.pi)),
    )


def _gelu(at: Place) -> tuple[float, ...]:
    s, r, g = at["std"] ** 2, at["correlation"], at["grad_std"] ** 2
    a = s / (1 + s)
    mean_square = s * a / (2 * math.pi)
    variance = s / (2 * math.pi) * (math.pi - a - math.acos(a) + 2 * a * math.sqrt((1 - a) / (1 + a)))
    square = (s + 1) ** 2 - (r * s) ** 2
    shape = s * (s * (1 - r * r) + 1 + r * r) / ((s + 1) * math.sqrt(square))
    covariance = s / 4 * (r + 2 / math.pi * (r * math.asin(r * a) + shape)) - mean_square
    slope = a * (5 * s + 3) / (1 + 2 * s) ** 1.5 - math.acos(a)
    cross = r * a * ((s + 1) * (2 * s + 3) - 2 * (r * s) ** 2) / square**1.5 - math.acos(r * a)
    return (
        variance,
        covariance,
        g * (0.5 + slope / (2 * math.pi)),
        g * at["grad_correlation"] * (0.5 + cross / (2 * math.pi)),
    )


def _layer_norm(at: Place) -> tuple[float, ...]:
    back = (at["grad_std"] / at["std"]) ** 2
    return 1.0, at["correlation"] * (1 - 1 / at["fan_in"]), back, back * at["grad_correlation"]


def _attention(at: Place) -> tuple[float, ...]:
    """At dropout 0 and unit input variance. The gradient is that of uniform attention, along the values alone."""
    tokens, r, tau = at["tokens"], at["correlation"], at["logit_std"] ** 2
    per, power = tau / at["fan_in"], at["value_std"] ** 2
    chosen = math.exp((1 - r) * tau) * (4 * (1 - r) ** 2 * per + 1 - r)
    variance = r + ((1 - r) ** 2 * (tokens - 1) * per + chosen) / tokens
    covariance = r + (2 * (1 - r) ** 2 * per + 1 - r) / tokens
    back = at["fan_out"] / at["fan_in"] * power * at["grad_std"] ** 2
    back *= (1 + (tokens - 1) * at["grad_correlation"]) / tokens
    return power * variance, power * covariance, back, back


def error(operator: str, quantity: str, seen: float, said: dict[str, float]) -> float:
    """The published measure of a formula's error, a share: |seen - said| / seen.

    Of a covariance the smaller of that and the difference relative to the variance said; where 0 is said, of what is
    seen and its share of the variance said. The covariance of attention's gradient is judged like a variance.
    """
    value = said[quantity]
    if "covariance" not in quantity or (operator, quantity) == ("attention", "grad_covariance"):
        return abs((seen - value) / seen)
    variance = said[quantity.replace("covariance", "variance")]
    if value == 0:
        return min(abs(seen), abs(seen / variance))
    return min(abs((seen - value) / seen), abs((seen - value) / variance))


def percentiles(errors: Any) -> list[float]:
    """[p50, p90, p99] in percent, as the published scripts take them: the entry at total * p / 100 of those sorted."""
    ordered = np.sort(errors) * 100
    return [round(float(ordered[int(len(ordered) * p / 100)]), 3) for p in (50, 90, 99)]
