"""What the first step of an optimiser does to a matrix, from how the network uses it.

For y = x W with T tokens, K and Gamma the Gram matrices of x and of the cotangent g of y per coordinate, n rows and m
columns, C = K^(1/2) Gamma K^(1/2) with eigenvalues lambda and eigenvectors v, and a step dW = -eta S:

- SGD, S = x^T g: mean square of x S per token and coordinate n^2 tr K Gamma K / T, and <gradient, S> n m tr K Gamma;
- Muon, S = U V^T of it: n / (m T) tr of K on the span of the v with lambda > 0, and sqrt(n m) sum sqrt(lambda);
- f of every entry: (n (n - 1) E |E_x x f(x . g)|^2 + n E |x|^2 f(x . g)^2) / T, and n m E (x . g) f(x . g).

The first two are exact in the wide limit whatever the law of coordinates, if T <= min(n, m). The third is for the sign,
and for Adam's first step, f(y) = y / (|y| + eps), eps being felt where it nears an entry. Given g, x . g is Gaussian
where the coordinates of x are, and the averages over x are integrals of one variable; so are those over g for the sign,
where g is Gaussian too. Else they are taken over drawn units (`tokens.drawn_units`), in independent replicas, whose
spread is the standard error. E_x of two different coordinates makes n (n - 1); coordinates of one head count as one.

Momentum, which the first step has not yet, changes nothing. Decoupled decay adds -eta decay W, uncorrelated with S: a
linear loss is odd in its own direction, and so is S.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np

from propagate.model import ModelError
from propagate.optimizers import SGD, Adam, Muon, Optimizer, Sign
from propagate.table import BY_MATRIX
from propagate.theory.gaussian.signs import mean_root, mean_shares, soft_sign, soft_sign_averages
from propagate.theory.tokens.drawn_units import drawn_tokens, resolved
from propagate.theory.tokens.gram import Array, Gram
from propagate.theory.tokens.modes import modes, uneven
from propagate.theory.uses import Use

CROWDING, SOFTNESS = "crowding", "softness"  # see `finite.step_allowances`
UNITS = 512  # coordinates drawn in each replica
MET = 64  # of the other side, where both are drawn


class Step(NamedTuple):
    """S, before the learning rate; numbers, or one a replica.

    Attributes:
        change: mean square per token and coordinate of x S.
        fall: <gradient, S>.
        square: |S|^2.
        largest: its largest singular value; NaN where that is not derived.
        crowding: of SGD tr K tr (K Gamma) / tr (K Gamma K); of single entries the share of the change that one
            coordinate has of itself.
        softness: 1 - |S|^2 over the number of entries, where eps softens the sign.
    """

    change: Any
    fall: Any
    square: Any
    largest: Any
    crowding: Any = 0.0
    softness: Any = 0.0


@dataclass(frozen=True)
class Met:
    """A use of a matrix, as an optimiser meets it.

    Attributes:
        use: what is known of it.
        tokens: their number.
        multiplier: of the map that the network applies, beside the matrix.
        seed: of what is drawn.
        units: how many coordinates are drawn in each replica.
    """

    use: Use
    tokens: int
    multiplier: float = 1.0
    seed: Sequence[int] = ()
    units: int = UNITS

    @property
    def entries(self) -> int:
        """Of the matrix."""
        return self.use.fan_in * self.use.fan_out

    @property
    def length(self) -> Any:
        """The trace of K."""
        x = self.use.x
        return x.variance.sum(axis=-1) if isinstance(x, Gram) else self.tokens * x.variance


def update(met: Met, optimizer: Optimizer) -> dict[str, Any]:
    """Of one matrix's first step by its own optimiser: the columns of `predict_step`, numbers or one a replica.

    Example: SGD on a square matrix that reads one token of unit variance.
        >>> from propagate.theory.pairs.moments import Moments
        >>> one = Met(Use(100, 100, 1.0, Moments(1.0, 1.0), Moments(1e-4, 1e-4)), tokens=1)
        >>> found = update(one, SGD(lr=0.5))
        >>> {name: round(float(found[name]), 6) for name in ("own_change", "update_ratio", "first_order_fall")}
        {'own_change': 0.25, 'update_ratio': 0.05, 'first_order_fall': 0.5}
    """
    use, tokens = met.use, met.tokens
    if use.several:
        raise ModelError("predict_step does not cover experts, whose matrices have some of the tokens each")
    if isinstance(optimizer, Muon) and tokens > min(use.fan_in, use.fan_out):
        raise ModelError(
            "predict_step with Muon needs at most as many tokens as every matrix has rows and columns, got"
            f" {tokens} for {use.fan_in} x {use.fan_out}"
        )
    gain = float(use.gain) / met.multiplier
    if gain == 0:
        raise ModelError("predict_step needs gains that are not 0, got 0 for a matrix")
    made, rate, decay = step(optimizer, met), optimizer.lr, optimizer.decay
    applied, shrunk = (rate * met.multiplier) ** 2, (rate * decay) ** 2
    ratio = rate * rate * made.square / (gain * gain * use.fan_out)
    own = gain * (1 + math.sqrt(use.fan_out / use.fan_in))  # the largest singular value of the matrix
    return {
        "own_change": applied * made.change + shrunk * (met.multiplier * gain) ** 2 * met.length / tokens,
        "update_ratio": np.sqrt(ratio + shrunk),
        "spectral_ratio": rate * made.largest / own if decay == 0 else np.nan * made.largest,
        "first_order_fall": rate * made.fall,
        CROWDING: made.crowding,
        SOFTNESS: made.softness,
        BY_MATRIX: met.multiplier**2 * use.gradient(tokens),
    }


@singledispatch
def step(optimizer: Any, met: Met) -> Step:
    """What an optimiser makes of the gradient."""
    raise ModelError(f"predict_step does not cover {type(optimizer).__name__}, got {optimizer!r}")


@step.register
def _(optimizer: SGD, met: Met) -> Step:
    use, found = met.use, modes(met.tokens, met.use.x, met.use.g, balanced=met.use.balanced)
    power = met.multiplier**2
    meeting, total = ((found.times * found.power * size).sum(axis=-1) for size in (found.size, 1.0))
    square = power * use.gradient(met.tokens)
    crowding = np.divide(total * met.length, meeting, out=np.ones_like(total), where=meeting > 0)
    change = power * use.fan_in**2 * meeting / met.tokens
    return Step(change, square, square, np.sqrt(power * met.entries * found.power.max(axis=-1)), crowding)


@step.register
def _(optimizer: Muon, met: Met) -> Step:
    use, found = met.use, modes(met.tokens, met.use.x, met.use.g, balanced=met.use.balanced)
    scale = optimizer.size(use.fan_in, use.fan_out)
    change = scale**2 * use.fan_in / use.fan_out * found.spanned / met.tokens
    roots = (found.times * np.sqrt(found.power)).sum(axis=-1)
    fall = scale * met.multiplier * math.sqrt(met.entries) * roots
    return Step(change, fall, scale**2 * found.rank, scale * np.minimum(found.rank, 1.0))


@step.register
def _(optimizer: Sign, met: Met) -> Step:
    use = met.use
    if use.draw_x is None and use.draw_g is None:
        return _sign_of_gaussian(met)
    return _by_entry(met, 0.0)


@step.register
def _(optimizer: Adam, met: Met) -> Step:
    return _by_entry(met, optimizer.eps)


def _sign_of_gaussian(met: Met) -> Step:
    use, found = met.use, modes(met.tokens, met.use.x, met.use.g, balanced=met.use.balanced)
    n, some = use.fan_in, found.rank > 0
    shares = mean_shares(found.power, found.times)
    along = 2 / math.pi * (found.times * shares * found.size).sum(axis=-1)
    own, crossed = n * met.length * some, n * (n - 1) * along
    fall = met.entries * met.multiplier * math.sqrt(2 / math.pi) * mean_root(found.power, found.times)
    return Step((crossed + own) / met.tokens, fall, met.entries * some, np.nan * fall, _share(own, crossed))


def _share(own: Any, crossed: Any) -> Any:
    total = np.maximum(np.abs(crossed) + own, np.finfo(float).tiny)
    return own / total


def _by_entry(met: Met, eps: float) -> Step:
    use = met.use
    x, g = (resolved(moments, met.tokens) for moments in (use.x, use.g))
    if use.draw_x is not None:
        return _of_drawn_inputs(met, use.draw_x, g, eps)
    if use.draw_g is None:
        draw = np.random.default_rng([*met.seed, 1])
        apart, shared = drawn_tokens(g, 1, met.units, draw)
        arriving = (apart + shared)[:, 0].swapaxes(-1, -2)
    else:
        units = use.draw_g(met.seed, met.units)
        arriving = units.reshape(len(units), -1, met.tokens)
    return _of_gaussian_inputs(met, x, arriving, eps)


def _of_gaussian_inputs(met: Met, x: Gram, g: Array, eps: float) -> Step:
    """Given cotangents g (replicas, coordinates, tokens): x . g is Gaussian, of variance g^T K g."""
    n, tokens = met.use.fan_in, met.tokens
    if met.use.balanced:
        g = g - g.mean(axis=-1, keepdims=True)
        along = -g @ x.deviation
        variance = (along * g).sum(axis=-1)
        along = along + (g @ uneven(x)[..., None]) / 2
    else:
        along = g @ x.matrix
        variance = (along * g).sum(axis=-1)
    variance = np.maximum(variance, 0.0)
    std = np.sqrt(variance)
    first, second, fourth = soft_sign_averages(met.multiplier * std, eps)
    # E x f = K g E y f / (g^T K g), y = multiplier x . g
    power = np.divide((along**2).sum(axis=-1), variance, out=np.zeros_like(std), where=variance > 0)
    mean = np.divide(first / met.multiplier, std, out=np.zeros_like(std), where=std > 0)
    total = x.variance.sum(axis=-1)[..., None]
    crossed, own = n * (n - 1) * mean**2 * power, n * (total * second + power * (fourth - second))
    crossed, own, first, second = (of.mean(axis=-1) for of in (crossed, own, first, second))
    fall, square = met.entries * first, met.entries * second
    softness = 1 - square / met.entries if eps else 0 * square
    return Step((crossed + own) / tokens, fall, square, np.nan * fall, _share(own, crossed), softness)


def _of_drawn_inputs(met: Met, draw: Any, g: Gram, eps: float) -> Step:
    """Products of independent units: what one has of itself is taken out of the square of their sum."""
    n, tokens = met.use.fan_in, met.tokens
    x = draw(met.seed, met.units)  # (replicas, units, coordinates, tokens)
    normals = np.random.default_rng([*met.seed, 1])
    apart, shared = drawn_tokens(g, 1, MET, normals)
    arriving = (apart + shared)[:, 0]  # (replicas, tokens, MET)
    replicas, drawn, size, _ = x.shape
    flat = x.reshape(replicas, drawn * size, tokens)
    y = met.multiplier * (flat @ arriving)
    f = soft_sign(y, eps)
    of_all = flat.swapaxes(-1, -2) @ f
    if size == 1:
        own = ((flat * flat).sum(axis=-1)[:, None] @ (f * f))[:, 0]
    else:
        own = ((x.swapaxes(-1, -2) @ f.reshape(replicas, drawn, size, MET)) ** 2).sum(axis=(1, 2))
    crossed = ((of_all**2).sum(axis=1) - own) / (drawn * (drawn - 1) * size**2)
    crossed, own = (n * (n - size) * crossed).mean(axis=-1), (n * own / (drawn * size)).mean(axis=-1)
    std = met.multiplier * np.sqrt(np.maximum(((flat @ g.matrix) * flat).sum(axis=-1), 0.0))  # of y, given x
    fall, square = (met.entries * of.mean(axis=-1) for of in soft_sign_averages(std, eps)[:2])
    softness = 1 - square / met.entries if eps else 0 * square
    return Step((crossed + own) / tokens, fall, square, np.nan * fall, _share(own, crossed), softness)
