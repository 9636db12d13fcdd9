"""How much single heads and hidden units differ: relative variances, of which allowances take shares.

What they are measured or derived from is said in `allowances`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from propagate.activations import Activation
from propagate.latent import LatentAttention
from propagate.recurrent import LinearAttention, Mixer
from propagate.theory.gaussian.activations import CLOSED
from propagate.theory.gaussian.expressions import functions
from propagate.theory.gaussian.panels import mean_square

WILD_UNITS = {"squared_relu": 3.0, "swiglu": 3.0, "geglu": 3.0}  # relative variance of a hidden unit; of others 1


def of_state(kind: Mixer) -> float:
    """Relative variance of what one head of linear attention gives a token: of a product of three Gaussian vectors,
    and of what opens its output.
    """
    if not isinstance(kind, LinearAttention):
        return 0.0
    opened = wildness(kind.output_gate) if kind.output_gate is not None else 0.0
    return (2 + 6 / kind.size) * (1 + 2 / kind.of_value) + 24 * opened / kind.of_value


def of_denominator(kind: Mixer) -> tuple[float, float]:
    """By what a norm that divides by what few heads of linear attention gave one token moves it, and what returns."""
    if not isinstance(kind, LinearAttention):
        return 0.0, 0.0
    if not kind.normed:
        return 1 / kind.heads, 1 / kind.heads
    opened = wildness(kind.output_gate) if "gated" in kind.normed and kind.output_gate is not None else 0.0
    return 0.0, 0.5 / kind.heads + 8 * opened / kind.inside


def of_ranks(kind: Mixer, tokens: int) -> tuple[float, float]:
    """Relative variance of the Gram matrices of a block's latents: of keys and values, and of queries"""
    if not isinstance(kind, LatentAttention):
        return 0.0, 0.0
    ranks = (kind.rank, kind.query_rank)
    both = [0.0 if rank is None else (1 + tokens / rank) / rank for rank in ranks]
    return both[0], both[1]


def of_shared_latents(kind: Mixer, tokens: int) -> float:
    """By what keys and values that read the same latents move what a block adds, at wide logits: see `allowances`."""
    return (tokens - 1) / kind.rank if isinstance(kind, LatentAttention) else 0.0


@lru_cache(maxsize=64)
def wildness(activation: Activation) -> float:
    """How much the squares of hidden units differ, over those of a ReLU. (E phi^4 / (E phi^2)^2 is 6 of a ReLU, 17 and
    23 of those listed as 3.)
    """
    if activation.shipped and activation.name in WILD_UNITS:
        return WILD_UNITS[activation.name]
    if activation.shipped and activation.name in CLOSED:
        return 1.0
    kinked = functions(activation.core).kinked[0]
    fourth = mean_square(replace(kinked, f=lambda z: kinked.f(z) ** 2), 1.0) * (3.0 if activation.gated else 1.0)
    return max(fourth / mean_square(kinked, 1.0) ** 2 / 7, 1.0)
