"""Norm, activations and softmax on arrays, each with its hand-written reverse pass.

An operator returns its output and a pull, the function that takes the cotangent of the output to that of the input.
Arrays have shape (draws, tokens, coordinates); the operators act on the last axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, reduce
from itertools import pairwise
from operator import add
from statistics import NormalDist

import numpy as np
from scipy.integrate import quad

from propagate.activations import Activation, as_activation
from propagate.expressions import form
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import Backend, choose_backend
from propagate.montecarlo.expressions import elementwise
from propagate.montecarlo.pulls import Pull

Operator = Callable[[Backend, Array], tuple[Array, Pull]]


def rms_norm(backend: Backend, *parts: Array, eps: float = 0.0) -> tuple[Array, Pull]:
    """The sum of one or two arrays over its root mean square, to which `eps` adds; and the pull, to that sum.

    Example:
        >>> y, pull = rms_norm(choose_backend("numpy"), np.array([[[3.0, 4.0]]]))
        >>> float((y**2).mean()), bool(abs(pull(y)).max() < 1e-15)
        (1.0, True)
    """
    if backend.name == "cupy" and eps == 0:
        return _norm_on_device(*parts, centred=False)
    x = reduce(add, parts)
    scale = 1 / backend.xp.sqrt(backend.xp.mean(x * x, axis=-1, keepdims=True) + eps)
    y = x * scale
    return y, lambda g: scale * (g - y * backend.xp.mean(g * y, axis=-1, keepdims=True))


def layer_norm(backend: Backend, *parts: Array, eps: float = 0.0) -> tuple[Array, Pull]:
    """The sum of one or two arrays less its mean, over its standard deviation; and the pull, to that sum.

    `eps` adds to the variance.

    Example:
        >>> layer_norm(choose_backend("numpy"), np.array([[[1.0, 3.0]]]))[0].tolist()
        [[[-1.0, 1.0]]]
    """
    if backend.name == "cupy" and eps == 0:
        return _norm_on_device(*parts, centred=True)
    y, pull = rms_norm(backend, _centred(backend, reduce(add, parts)), eps=eps)
    return y, lambda g: _centred(backend, pull(g))


def _norm_on_device(*parts: Array, centred: bool) -> tuple[Array, Pull]:
    from propagate.montecarlo.cuda import kernels

    return kernels.norm(*parts, centred=centred)


def _centred(backend: Backend, x: Array) -> Array:
    return x - backend.xp.mean(x, axis=-1, keepdims=True)


NORMS: dict[str, Callable[..., tuple[Array, Pull]]] = {"rms": rms_norm, "layer": layer_norm}


def softmax(backend: Backend, logits: Array) -> tuple[Array, Pull]:
    """Softmax over the last axis; -inf logits get weight 0.

    Example:
        >>> softmax(choose_backend("numpy"), np.zeros((1, 1, 4)))[0].tolist()
        [[[0.25, 0.25, 0.25, 0.25]]]
    """
    weights = backend.xp.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights, lambda g: weights * (g - (g * weights).sum(axis=-1, keepdims=True))


def sigmoid(backend: Backend, logits: Array) -> tuple[Array, Pull]:
    """Logistic function, each logit by itself.

    Example:
        >>> weights, pull = sigmoid(choose_backend("numpy"), np.log([[[1.0, 3.0]]]))
        >>> weights.tolist(), pull(np.ones((1, 1, 2))).round(12).tolist()
        ([[[0.5, 0.75]]], [[[0.25, 0.1875]]])
    """
    xp = backend.xp
    small = xp.exp(-abs(logits))
    weights = xp.where(logits < 0, small, 1) / (1 + small)
    slope = small / (1 + small) ** 2  # no difference from 1, which rounding would take
    return weights, lambda g: g * slope


@lru_cache(maxsize=8)
def rotary(backend: Backend, frequencies: tuple[float, ...], tokens: int) -> Callable[[Array, int], Array]:
    """Rotary positions (arXiv:2104.09864): a function that turns token t's pairs of coordinates by t times frequencies.

    It takes an array (..., tokens, size) and a sense, 1 or -1 (the transpose). Coordinate i is paired with the one
    size / 2 further. Without frequencies it turns nothing.

    Example: a quarter turn a token.
        >>> turn = rotary(choose_backend("numpy"), (math.pi / 2,), tokens=2)
        >>> turn(np.array([[1.0, 0.0], [1.0, 0.0]]), 1).round(12).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if not frequencies:
        return lambda x, sense: x
    xp = backend.xp
    angle = xp.arange(tokens)[:, None] * xp.asarray(frequencies)
    cos, sin = (part.astype(backend.dtype) for part in (xp.cos(angle), xp.sin(angle)))

    def turn(x: Array, sense: int) -> Array:
        first, second = xp.split(x, 2, axis=-1)
        return xp.concatenate([first * cos - sense * second * sin, sense * first * sin + second * cos], axis=-1)

    return turn


def dropout(backend: Backend, x: Array, noise: Array, probability: float) -> tuple[Array, Pull]:
    """x with entries set to 0 with this probability, the others divided by 1 - probability.

    Args:
        noise: independent standard normals of the shape of x, which decide.

    Example:
        >>> x, noise = np.ones((1, 1, 4)), np.array([[[-2.0, -1.0, 1.0, 2.0]]])
        >>> dropout(choose_backend("numpy"), x, noise, 0.5)[0].tolist()
        [[[0.0, 0.0, 2.0, 2.0]]]
    """
    mask = noise > NormalDist().inv_cdf(probability)
    scale = 1 / (1 - probability)
    return x * mask * scale, lambda g: g * mask * scale


def in_one_pass(backend: Backend, tokens: int) -> bool:
    """Whether `one_pass_attention` can be used: float32 on a CUDA device, and not too many tokens."""
    if backend.name == "numpy" or backend.precision != "float32":
        return False
    from propagate.montecarlo.cuda import kernels

    return tokens <= kernels.LARGEST_TOKENS


def one_pass_attention(projected: Array, heads: int, scale: float, *, causal: bool) -> tuple[Array, Pull]:
    """Softmax attention of all heads, from queries, keys and values side by side."""
    from propagate.montecarlo.cuda import kernels

    return kernels.attention(projected, heads, scale, causal=causal)


def linear(backend: Backend, x: Array) -> tuple[Array, Pull]:
    """The identity."""
    return x, lambda g: g


def relu(backend: Backend, x: Array) -> tuple[Array, Pull]:
    """max(x, 0)."""
    positive = x > 0
    return x * positive, lambda g: g * positive


def squared_relu(backend: Backend, x: Array) -> tuple[Array, Pull]:
    """max(x, 0)^2 (arXiv:2109.08668)."""
    positive = x * (x > 0)
    return positive * positive, lambda g: 2 * g * positive


def gelu(backend: Backend, x: Array) -> tuple[Array, Pull]:
    """x Phi(x), with the exact normal distribution function."""
    cumulative = 0.5 * (1 + backend.erf(x / math.sqrt(2)))
    return x * cumulative, lambda g: g * (cumulative + x * backend.xp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))


def silu(backend: Backend, x: Array) -> tuple[Array, Pull]:
    """x times its logistic function."""
    logistic = 0.5 * (1 + backend.xp.tanh(0.5 * x))
    return x * logistic, lambda g: g * logistic * (1 + x * (1 - logistic))


def tanh(backend: Backend, x: Array) -> tuple[Array, Pull]:
    """Hyperbolic tangent."""
    y = backend.xp.tanh(x)
    return y, lambda g: g * (1 - y * y)


def gated(activation: Operator) -> Operator:
    """The activation of the first half of x, times the second half; the last axis halves (arXiv:2002.05202)."""

    def operator(backend: Backend, x: Array) -> tuple[Array, Pull]:
        gate, value = backend.xp.split(x, 2, axis=-1)
        opened, pull_gate = activation(backend, gate)

        def pull(g: Array) -> Array:
            return backend.xp.concatenate([pull_gate(g * value), g * opened], axis=-1)

        return opened * value, pull

    return operator


def _on_any(host: Operator, device: str, name: str) -> Operator:
    """The operator, in one pass where the arrays are on a CUDA device."""

    def operator(backend: Backend, x: Array) -> tuple[Array, Pull]:
        if backend.name == "numpy":
            return host(backend, x)
        from propagate.montecarlo.cuda import activations

        found: tuple[Array, Pull] = getattr(activations, device)(name, x)
        return found

    return operator


OPERATORS: dict[str, Operator] = {
    "linear": linear,
    "relu": _on_any(relu, "activation", "relu"),
    "squared_relu": _on_any(squared_relu, "activation", "squared_relu"),
    "gelu": _on_any(gelu, "activation", "gelu"),
    "silu": _on_any(silu, "activation", "silu"),
    "tanh": _on_any(tanh, "activation", "tanh"),
    "swiglu": _on_any(gated(silu), "gated", "silu"),
    "geglu": _on_any(gated(gelu), "gated", "gelu"),
    "reglu": _on_any(gated(relu), "gated", "relu"),
    "gated_squared_relu": _on_any(gated(squared_relu), "gated", "squared_relu"),
}
"""Forms that stand in for those made from the expression; tests tie them to it."""


@lru_cache(maxsize=64)
def operator_of(activation: Activation | str) -> Operator:
    """The operator of an activation; of a gated one, on gates and values side by side.

    Example:
        >>> elu = operator_of("elu")
        >>> elu(choose_backend("numpy"), np.array([-100.0, 2.0]))[0].round(12).tolist()
        [-1.0, 2.0]
    """
    activation = as_activation(activation)
    if activation.shipped and activation.name in OPERATORS:
        return OPERATORS[activation.name]
    return gated(operator_of(activation.core)) if activation.gated else elementwise(activation)


@lru_cache(maxsize=64)
def output_rms(activation: Activation | str) -> float:
    """Root mean square of an activation's output at independent standard normal inputs.

    Example:
        >>> round(output_rms("relu") ** 2, 12)
        0.5
    """
    host = choose_backend("numpy")
    kind = as_activation(activation).core  # E (silu(u) w)^2 = E silu(u)^2
    core = operator_of(kind)
    kinks = () if kind.shipped and kind.name in OPERATORS else form(kind).kinks

    def integrand(z: float) -> float:
        return float(core(host, np.array([z]))[0][0] ** 2) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    ends = sorted({-12.0, 0.0, 12.0, *(kink for kink in kinks if abs(kink) < 12)})
    return math.sqrt(sum(quad(integrand, *pair, epsabs=1e-13, epsrel=1e-13)[0] for pair in pairwise(ends)))
