"""How much the parallel units of a sublayer differ: the hidden units of an FFN, the heads of attention.

A sublayer's Gram matrix over tokens is the mean of its units' own. Units are independent given what enters, so the
Gram matrix of a finite sublayer fluctuates by the covariance of one unit's, divided by their number. That covariance
takes fourth moments; it is sampled here, with a fixed seed, units and tokens only: no width appears.

Energies are kept by mode: of the token mean (an eigenvalue of the exchangeable Gram matrix, variance + (T - 1)
covariance) and of the deviations from it (variance - covariance, T - 1 times).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit

from propagate.activations import Activation, as_activation
from propagate.theory.gaussian.expressions import functions
from propagate.theory.pairs.moments import Moments

Array = NDArray[np.float64]
Elementwise = Callable[[Array], Array]
SAMPLES = 2**17  # numbers of a sample: the covariance it gives is good to some per cent
SEED = 20260122
ROUNDING = 1e-13  # relative to the other mode, of an energy that is 0
SMALLEST = 1e-9  # share of the deviations, below which their relative statistics no longer change


def _gelu_slope(u: Array) -> Array:
    return np.asarray((1 + erf(u / math.sqrt(2))) / 2 + u * np.exp(-u * u / 2) / math.sqrt(2 * math.pi))


ELEMENTWISE: dict[str, tuple[Elementwise, Elementwise]] = {
    "linear": (lambda u: u, np.ones_like),
    "relu": (lambda u: np.maximum(u, 0), lambda u: (u > 0).astype(float)),
    "squared_relu": (lambda u: np.maximum(u, 0) ** 2, lambda u: 2 * np.maximum(u, 0)),
    "gelu": (lambda u: np.asarray(u * (1 + erf(u / math.sqrt(2))) / 2), _gelu_slope),
    "silu": (lambda u: np.asarray(u * expit(u)), lambda u: np.asarray(expit(u) * (1 + u * expit(-u)))),
    "tanh": (np.tanh, lambda u: np.asarray(1 - np.tanh(u) ** 2)),
}


def pointwise(activation: Activation) -> tuple[Elementwise, Elementwise]:
    """What an activation makes of its argument, or a gated one of its gate's, and the slope.

    Example:
        >>> value, slope = pointwise(as_activation("leaky_relu"))
        >>> value(np.array([-1.0, 2.0])).tolist(), slope(np.array([-1.0, 2.0])).tolist()
        ([-0.01, 2.0], [0.01, 1.0])
    """
    core = activation.core
    if core.shipped and core.name in ELEMENTWISE:
        return ELEMENTWISE[core.name]
    found = functions(core)
    return found.value, found.slope


def rounded(value: float) -> float:
    """Two digits: the statistics below vary slowly, and blocks deep in a network share them.

    Example:
        >>> rounded(0.1234)
        0.12
    """
    return float(f"{value:.1e}")


def distinct_share(x: Moments, tokens: int) -> float:
    """1 - correlation of two tokens, to two digits: up to tokens / (tokens - 1), where they add up to nothing.

    Example:
        >>> distinct_share(Moments(2.0, 3.0), 2), distinct_share(Moments(2.0, 1.0), 2)
        (1.5, 0.5)
    """
    return rounded(_possible(x.deviation / x.variance, tokens)) if x.variance > 0 else 1.0


def _possible(share: float, tokens: int) -> float:
    """Rounding apart, what tokens can have."""
    return min(max(share, 0.0), tokens / max(tokens - 1, 1))


@lru_cache(maxsize=1024)
def hidden_forward(
    activation: Activation | str, tokens: int, variance: float, distinct: float, gate_gain: float = 1.0
) -> Array:
    """Covariance of one hidden unit's two energies, relative to their means, shape (2, 2).

    Args:
        activation: its name, or an `Activation`.
        tokens: of the sequence.
        variance: of a pre-activation.
        distinct: 1 - correlation of two tokens' pre-activations.
        gate_gain: a further gain on a gate's own pre-activation.

    Example: a linear unit is Gaussian: 2 for the mean mode, and 2 / (tokens - 1) for the deviations.
        >>> found = hidden_forward("linear", 5, 1.0, 1.0)
        >>> bool(abs(found - np.diag([2.0, 0.5])).max() < 0.1)
        True
    """
    u, w, _ = (math.sqrt(variance) * z for z in _tokens(tokens, (distinct, distinct, distinct)))
    activation = as_activation(activation)
    value, _ = pointwise(activation)
    return _relative(_energies(value(gate_gain * u) * w if activation.gated else value(u)))


@lru_cache(maxsize=1024)
def hidden_backward(
    activation: Activation | str,
    tokens: int,
    variance: float,
    distinct: float,
    grad_distinct: float,
    gate_gain: float = 1.0,
) -> Array:
    """The same of one hidden unit's two energies and of the two that it sends back, shape (4, 4).

    They are correlated: a unit that answers strongly sends back strongly. `grad_distinct` is 1 - correlation of two
    tokens' cotangents.

    Example: a linear unit's cotangent is Gaussian too, and knows nothing of what went forward.
        >>> found = hidden_backward("linear", 5, 1.0, 1.0, 1.0)
        >>> bool(abs(found - np.diag([2.0, 0.5, 2.0, 0.5])).max() < 0.1)
        True
    """
    u, w, g = _tokens(tokens, (distinct, distinct, grad_distinct))
    u, w = math.sqrt(variance) * u, math.sqrt(variance) * w
    activation = as_activation(activation)
    value, slope = pointwise(activation)
    if activation.gated:
        opened, bent = value(gate_gain * u), gate_gain * slope(gate_gain * u)
        return _relative(_energies(opened * w), _energies(bent * w * g) + _energies(opened * g))
    return _relative(_energies(value(u)), _energies(slope(u) * g))


@lru_cache(maxsize=1024)
def heads_forward(tokens: int, logit_variance: float, distinct: float) -> Array:
    """Covariance of one head's output energies over what its logits may be, relative to their means.

    `logit_variance` is that of unit-variance, uncorrelated tokens, times the squared variance of the tokens.

    Example: uniform attention leaves no choice.
        >>> float(abs(heads_forward(4, 0.0, 0.5)).max())
        0.0
    """
    if logit_variance == 0:
        return np.zeros((2, 2))
    _, weights = _attention(tokens, logit_variance, distinct)
    return _relative(_of_gram(_sandwich(weights, distinct)))


@lru_cache(maxsize=1024)
def heads_backward(tokens: int, logit_variance: float, distinct: float, grad_distinct: float) -> Array:
    """The same of one head's output energies and of those that it sends back, shape (4, 4).

    Example:
        >>> heads_backward(4, 0.0, 0.5, 1.0).shape
        (4, 4)
    """
    if logit_variance == 0:
        return np.zeros((4, 4))
    random, weights = _attention(tokens, logit_variance, distinct)
    products = _rooted(random.standard_normal(weights.shape), grad_distinct, distinct)  # of g_t and v_s
    logits = weights * (products - (products * weights).sum(axis=-1, keepdims=True))
    transposed = logits.swapaxes(-1, -2)
    through = _sandwich(weights.swapaxes(-1, -2), grad_distinct)
    through += logit_variance * (_sandwich(logits, distinct) + _sandwich(transposed, distinct))
    return _relative(_of_gram(_sandwich(weights, distinct)), _of_gram(through))


def _tokens(tokens: int, distinct: tuple[float, ...]) -> list[Array]:
    """Independent samples (units, tokens) of unit variance, each with its own distinctness of tokens."""
    random = np.random.default_rng(SEED)
    units = max(SAMPLES // tokens, 256)
    found = []
    for share in distinct:
        own = max(_possible(share, tokens), SMALLEST)
        shared, apart = random.standard_normal((units, 1)), random.standard_normal((units, tokens))
        if own > 1:  # of tokens that point apart, part of their mean is taken away
            kept = math.sqrt(max(1 - tokens * (own - 1) / own, 0.0))
            apart = apart - (1 - kept) * apart.mean(axis=-1, keepdims=True)
        found.append(math.sqrt(max(1 - own, 0.0)) * shared + math.sqrt(own) * apart)
    return found


def _energies(x: Array) -> Array:
    """Energies of the two modes of each unit, from (units, tokens): shape (units, 2)."""
    tokens = x.shape[-1]
    mean = x.mean(axis=-1)
    spread = x - mean[:, None]
    return np.stack([tokens * mean**2, (spread**2).sum(axis=-1) / max(tokens - 1, 1)], axis=-1)


def _of_gram(gram: Array) -> Array:
    """The same from each unit's Gram matrix (units, tokens, tokens)."""
    tokens = gram.shape[-1]
    mean = gram.sum(axis=(-1, -2)) / tokens
    return np.stack([mean, (np.trace(gram, axis1=-2, axis2=-1) - mean) / (tokens - 1)], axis=-1)


def _relative(*energies: Array) -> Array:
    """Covariance over units of energies (units, 2) side by side, relative to their means; 0 where there are none."""
    columns = np.concatenate(energies, axis=-1)
    mean = columns.mean(axis=0)
    present = mean > np.repeat([ROUNDING * pair.mean(axis=0).max() for pair in energies], 2)
    scaled = np.where(present, columns / np.where(present, mean, 1.0), 0.0)
    return np.asarray(np.cov(scaled.T))


def _attention(tokens: int, logit_variance: float, distinct: float) -> tuple[np.random.Generator, Array]:
    """Attention weights of independent heads, (heads, tokens, tokens), and where their numbers came from."""
    random = np.random.default_rng(SEED)
    heads = max(SAMPLES // tokens**2, 32)
    logits = math.sqrt(logit_variance) * _rooted(random.standard_normal((heads, tokens, tokens)), distinct, distinct)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return random, weights / weights.sum(axis=-1, keepdims=True)


def _rooted(noise: Array, rows: float, columns: float) -> Array:
    """Normals with covariance X_tt' Y_ss', X and Y exchangeable of unit variance."""
    for axis, share in ((-2, rows), (-1, columns)):
        tokens = noise.shape[axis]
        own = max(_possible(share, tokens), SMALLEST)
        mean = noise.mean(axis=axis, keepdims=True)
        noise = math.sqrt(own) * (noise - mean) + math.sqrt(max(own + tokens * (1 - own), 0.0)) * mean
    return np.asarray(noise)


def _sandwich(a: Array, distinct: float) -> Array:
    """a X a^T for exchangeable X of unit variance."""
    own = max(_possible(distinct, a.shape[-1]), SMALLEST)
    total = a.sum(axis=-1)
    return np.asarray((1 - own) * total[..., :, None] * total[..., None, :] + own * (a @ a.swapaxes(-1, -2)))
