"""What the first step of an optimiser does to a matrix, from how the network uses it.

For y = x W with T tokens, K and Gamma the Gram matrices of x and of the cotangent g of y per coordinate, n rows and m
columns, C = K^(1/2) Gamma K^(1/2) with eigenvalues lambda and eigenvectors v, and a step dW = -eta S:

- SGD, S = x^T g: mean square of x S per token and coordinate n^2 tr K Gamma K / T, and <gradient, S> n m tr K Gamma;
- Muon, S = U V^T of it: n / (m T) tr of K on the span of the v with lambda > 0, and sqrt(n m) sum sqrt(lambda);
- f of every entry: (n (n - 1) E |E_x x f(x . g)|^2 + n E |x|^2 f(x . g)^2) / T, and n m E (x . g) f(x . g).

Of the Gram matrix of x S the trace is told in this way and, with sums over tokens in place of lengths, the sum of all
entries: the mean over pairs of tokens follows.

The first two are exact in the wide limit whatever the law of coordinates, if T <= min(n, m). The third is for the sign,
and for Adam's first step, f(y) = y / (|y| + eps), eps being felt where it nears an entry. Given g, x . g is Gaussian
where the coordinates of x are, and the averages over x are integrals of one variable; so are those over g for the sign,
where g is Gaussian too. Else they are taken over drawn units (`tokens.drawn_units`), in independent replicas, whose
spread is the standard error; second moments, which are known, serve as control variates. E_x of two different
coordinates makes n (n - 1); coordinates of one head count as one.

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
from propagate.theory.tokens.controls import controlled
from propagate.theory.tokens.drawn_units import drawn_tokens, normals, precision, resolved
from propagate.theory.tokens.gram import Array, Gram
from propagate.theory.tokens.modes import modes, squares, uneven, without_mean
from propagate.theory.uses import Use

CROWDING, SOFTNESS, UNEVEN = "crowding", "softness", "uneven"  # see `finite.step_allowances`
UNITS = 256  # coordinates drawn in each replica
ROWS = 4096  # coordinates drawn of rows that each token has to itself
MET = 64  # of the other side, where both are drawn


class Step(NamedTuple):
    """S, before the learning rate; numbers, or one a replica.

    Attributes:
        change: of the Gram matrix of x S, per coordinate, the trace and the sum of all entries, along the first axis.
        fall: <gradient, S>.
        square: |S|^2.
        largest: its largest singular value; NaN where that is not derived.
        crowding: of SGD tr K tr (K Gamma) / tr (K Gamma K); of single entries the share of the change that one
            coordinate has of itself.
        softness: 1 - |S|^2 over the number of entries, where eps softens the sign.
        uneven: by how much the mean of |S| over networks lies below the root of the mean of |S|^2.
    """

    change: Any
    fall: Any
    square: Any
    largest: Any
    crowding: Any = 0.0
    softness: Any = 0.0
    uneven: Any = 0.0


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
    def lengths(self) -> Any:
        """The trace of K and the sum of its entries."""
        x, tokens = self.use.x, self.tokens
        if isinstance(x, Gram):
            return np.stack([x.variance.sum(axis=-1), x.matrix.sum(axis=(-1, -2))])
        return np.array([tokens * x.variance, tokens**2 * x.mean_mode(tokens)])


def update(met: Met, optimizer: Optimizer) -> dict[str, Any]:
    """Of one matrix's first step by its own optimiser: the columns of `predict_step`, numbers or one a replica.

    Of several matrices of one shape whose moments and gains are arrays over them, one a matrix.

    Example: SGD on a square matrix that reads one token of unit variance.
        >>> from propagate.theory.pairs.moments import Moments
        >>> one = Met(Use(100, 100, 1.0, Moments(1.0, 1.0), Moments(1e-4, 1e-4)), tokens=1)
        >>> found = update(one, SGD(lr=0.5))
        >>> {name: round(float(found[name]), 6) for name in ("own_change", "update_ratio", "first_order_fall")}
        {'own_change': 0.25, 'update_ratio': 0.05, 'first_order_fall': 0.5}
    """
    use, tokens = met.use, met.tokens
    if isinstance(optimizer, Muon) and use.several > 1:
        raise ModelError("predict_step with Muon does not cover experts, each of whose matrices it makes orthogonal")
    if isinstance(optimizer, Muon) and tokens > min(use.fan_in, use.fan_out):
        raise ModelError(
            "predict_step with Muon needs at most as many tokens as every matrix has rows and columns, got"
            f" {tokens} for {use.fan_in} x {use.fan_out}"
        )
    gain = np.asarray(use.gain, dtype=float)[()] / met.multiplier
    if np.any(gain == 0):
        raise ModelError("predict_step needs gains that are not 0, got 0 for a matrix")
    made, rate, decay = step(optimizer, met), optimizer.lr, optimizer.decay
    applied, shrunk = (rate * met.multiplier) ** 2, (rate * decay) ** 2
    ratio = rate * rate * made.square / (gain * gain * use.fan_out)
    own = gain * (1 + math.sqrt(use.fan_out / use.fan_in))  # the largest singular value of the matrix
    own_shrunk = shrunk * (met.multiplier * gain) ** 2
    trace, total = (applied * of + own_shrunk * length for of, length in zip(made.change, met.lengths, strict=True))
    return {
        "own_change": trace / tokens,
        "own_covariance": (total - trace) / (tokens * max(tokens - 1, 1)),
        "update_ratio": np.sqrt(ratio + shrunk),
        "spectral_ratio": rate * made.largest / own if decay == 0 else np.nan * made.largest,
        "first_order_fall": rate * made.fall,
        CROWDING: made.crowding,
        SOFTNESS: made.softness,
        UNEVEN: made.uneven,
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
    change = np.stack([(found.times * found.power * size).sum(axis=-1) for size in (found.size, found.total)])
    square, total = power * use.gradient(met.tokens), (found.times * found.power).sum(axis=-1)
    crowding = np.divide(total * met.lengths[0], change[0], out=np.ones_like(total), where=change[0] > 0)
    change = power * use.fan_in**2 * change
    largest = np.sqrt(power * met.entries * found.power.max(axis=-1))
    # |S|^2 is a sum over modes of squares of so many normals each
    modal = (found.times * found.power**2).sum(axis=-1)
    uneven = np.divide(modal, total**2, out=np.zeros_like(total), where=total > 0) / (4 * use.free)
    largest = largest if use.several == 1 else np.nan * largest
    return Step(change, square, square, largest, crowding, uneven=uneven)


@step.register
def _(optimizer: Muon, met: Met) -> Step:
    use, found = met.use, modes(met.tokens, met.use.x, met.use.g, balanced=met.use.balanced)
    scale = optimizer.size(use.fan_in, use.fan_out)
    change = scale**2 * use.fan_in / use.fan_out * np.moveaxis(found.spanned, -1, 0)
    roots = (found.times * np.sqrt(found.power)).sum(axis=-1)
    fall = scale * met.multiplier * math.sqrt(met.entries) * roots
    return Step(change, fall, scale**2 * found.rank, scale * np.minimum(found.rank, 1.0))


@step.register
def _(optimizer: Sign, met: Met) -> Step:
    use = met.use
    if use.draw_x is None and use.draw_g is None and not use.rows:
        return _sign_of_gaussian(met)
    return _by_entry(met, 0.0)


@step.register
def _(optimizer: Adam, met: Met) -> Step:
    return _by_entry(met, optimizer.eps)


def _sign_of_gaussian(met: Met) -> Step:
    use, found = met.use, modes(met.tokens, met.use.x, met.use.g, balanced=met.use.balanced)
    n, some = use.fan_in, found.rank > 0
    shares = mean_shares(found.power, found.times)
    along = np.stack([(found.times * shares * size).sum(axis=-1) for size in (found.size, found.total)])
    own, crossed = n * met.lengths * some, n * (n - 1) * 2 / math.pi * along
    fall = met.entries * met.multiplier * math.sqrt(2 / math.pi) * mean_root(found.power, found.times)
    return Step(crossed + own, fall, met.entries * some, np.nan * fall, _share(own[0], crossed[0]))


def _share(own: Any, crossed: Any) -> Any:
    total = np.maximum(np.abs(crossed) + own, np.finfo(float).tiny)
    return own / total


def _by_entry(met: Met, eps: float) -> Step:
    use = met.use
    if use.rows:
        return _of_rows(met, eps)
    x, g = (resolved(moments, met.tokens) for moments in (use.x, use.g))
    kept = precision(
        *(size for gram in (x, g) for size in (gram.variance, gram.deviation)), np.array(max(eps, 1.0) ** 2)
    )
    if use.draw_g is None:
        draw = normals([*met.seed, 1], kept)
        apart, shared = drawn_tokens(g, 1, MET if use.draw_x is not None else met.units, draw)
        arriving = (apart + shared)[:, 0].swapaxes(-1, -2)
    else:
        units = use.draw_g(met.seed, met.units, kept)
        arriving = units.reshape(len(units), -1, met.tokens)
    meeting = _Meeting.of(met, x, g, arriving, eps)
    if use.draw_x is not None:
        return _of_drawn_inputs(met, use.draw_x(met.seed, met.units, kept), meeting, eps)
    return _of_gaussian_inputs(met, meeting, eps)


def _of_rows(met: Met, eps: float) -> Step:
    """Each token's row moves by f of its own cotangent, which is Gaussian."""
    g, multiplier = resolved(met.use.g, met.tokens), met.multiplier
    apart, shared = drawn_tokens(g, 1, ROWS, normals([*met.seed, 1], np.float64))
    together = soft_sign(multiplier * (apart + shared)[:, 0], eps).sum(axis=1)  # (replicas, coordinates)
    first, second = (of.sum(axis=-1) for of in soft_sign_averages(multiplier * np.sqrt(g.variance), eps)[:2])
    total = (together * together).mean(axis=-1)
    width = met.use.fan_out
    softness = 1 - second / met.tokens if eps else 0 * second
    change = np.stack(np.broadcast_arrays(second, total))
    return Step(change, width * first, width * second, np.nan * first, softness=softness)


class _Meeting(NamedTuple):
    """Drawn cotangents and what the input's Gram matrix K makes of them; y = multiplier x . g of Gaussian x.

    Attributes:
        x, g: the Gram matrices.
        arriving: cotangents (replicas, coordinates, tokens).
        along: K g of each.
        variance: g^T K g, of x . g.
        powers: |K g|^2 and (1^T K g)^2, along the first axis.
        controls: variance and the first of these over their known means, less 1.
        averages: E y f, E f^2 and E y^2 f^2 over the variance of y.
    """

    x: Gram
    g: Gram
    arriving: Array
    along: Array
    variance: Array
    powers: Array
    controls: tuple[Array, Array]
    averages: tuple[Array, Array, Array]

    @classmethod
    def of(cls, met: Met, x: Gram, g: Gram, arriving: Array, eps: float) -> _Meeting:
        if met.use.balanced:
            arriving = arriving - arriving.mean(axis=-1, keepdims=True)
            kernel, gram = uneven(x)[..., None] / 2 - x.deviation, without_mean(g.matrix)
        else:
            kernel, gram = x.matrix, g.matrix
        along = arriving @ kernel.astype(arriving.dtype, copy=False)
        variance, powers = np.maximum((along * arriving).sum(axis=-1), 0.0), squares(along, -1)
        means = (gram * kernel).sum(axis=(-1, -2)), ((gram @ kernel) * kernel).sum(axis=(-1, -2))
        first, second = (_over(of, mean) for of, mean in zip((variance, powers[0]), means, strict=True))
        averages = soft_sign_averages(met.multiplier * np.sqrt(variance), eps)
        return cls(x, g, arriving, along, variance, powers, (first, second), averages)

    def slope(self, multiplier: float) -> Array:
        """s of E x f(y) = s K g, for Gaussian x: what is linear in f is s x . g."""
        variance, first = self.variance, self.averages[0]
        return np.divide(first / multiplier, variance, out=np.zeros_like(first), where=variance > 0)

    def mean_powers(self, multiplier: float) -> Array:
        """Means over cotangents of |E x f(y)|^2 and of (1^T E x f(y))^2."""
        return controlled(self.slope(multiplier) ** 2 * self.powers, self.controls)

    @property
    def lengths(self) -> Array:
        """The trace of K and the sum of its entries, (2, replicas or 1, 1)."""
        return np.stack([self.x.variance.sum(axis=-1), self.x.matrix.sum(axis=(-1, -2))])[..., None]


def _over(values: Array, mean: Array) -> Array:
    """Values over their mean, less 1."""
    mean = mean[..., None]
    return np.divide(values, mean, out=np.ones_like(values), where=mean > 0) - 1


def _of_gaussian_inputs(met: Met, meeting: _Meeting, eps: float) -> Step:
    n, variance = met.use.fan_in, meeting.variance
    first, second, fourth = meeting.averages
    crossed = n * (n - 1) * meeting.mean_powers(met.multiplier)
    powers = np.divide(meeting.powers, variance, out=np.zeros_like(meeting.powers), where=variance > 0)
    own = n * (meeting.lengths * second + powers * (fourth - second)).mean(axis=-1)
    return _step(met, crossed, own, controlled(first, meeting.controls[:1]), second.mean(axis=-1), eps)


def _of_drawn_inputs(met: Met, x: Array, meeting: _Meeting, eps: float) -> Step:
    """Inputs (replicas, units, coordinates, tokens): products of independent units.

    f is split in two: a part linear in x . g, of which the mean is known, and the rest, which is averaged over units.
    What a unit has of itself is taken out of the square of their sum.
    """
    n, multiplier = met.use.fan_in, met.multiplier
    replicas, drawn, size, tokens = x.shape
    flat, number = x.reshape(replicas, drawn * size, tokens), drawn * size
    products = flat @ meeting.arriving.swapaxes(-1, -2)  # (replicas, coordinates, MET)
    slope = meeting.slope(multiplier).astype(x.dtype, copy=False)
    f, linear = soft_sign(multiplier * products, eps), slope[:, None] * products
    lengths = squares(flat, -1)[:, :, None]  # (2, replicas, 1, coordinates)
    share = _share_of(lengths[0], f, linear)
    rest = f - share * linear
    of_rest = flat.swapaxes(-1, -2) @ rest
    if size == 1:
        own_rest, missed = ((lengths @ of)[:, :, 0] for of in (rest * rest, 1 - f * f))
        own = np.where(meeting.variance > 0, meeting.lengths - missed / number, 0.0)
    else:
        turned = x.swapaxes(-1, -2)
        by_unit = (squares(turned @ of.reshape(replicas, drawn, size, -1), -2) for of in (rest, f))
        own_rest, own = (of.sum(axis=2) for of in by_unit)
        own = own / number
    known = share * (slope[..., None] * meeting.along).swapaxes(-1, -2)
    of_pairs = (squares(of_rest, 1) - own_rest) / (drawn * (drawn - 1) * size**2)
    mixed = np.stack([(known * of_rest).sum(axis=1), known.sum(axis=1) * of_rest.sum(axis=1)])
    of_pairs = (of_pairs + 2 * mixed / number).mean(axis=-1)
    crossed = n * (n - size) * (share**2 * meeting.mean_powers(multiplier) + of_pairs)
    variance = np.maximum(
        ((flat @ meeting.g.matrix.astype(x.dtype, copy=False)) * flat).sum(axis=-1), 0.0
    )  # of g . x, given x
    first, second = soft_sign_averages(multiplier * np.sqrt(variance), eps)[:2]
    mean = (meeting.x.matrix * meeting.g.matrix).sum(axis=(-1, -2))
    fall = controlled(first, [_over(variance, mean)])
    return _step(met, crossed, n * own.mean(axis=-1), fall, second.mean(axis=-1), eps)


def _share_of(lengths: Array, f: Array, linear: Array) -> float:
    """The share of the linear part that leaves least of x f."""
    total = float((lengths @ (linear * linear)).sum())
    return float((lengths @ (f * linear)).sum()) / total if total > 0 else 0.0


def _step(met: Met, crossed: Array, own: Array, first: Array, second: Array, eps: float) -> Step:
    """From what n (n - 1) pairs of coordinates and each by itself make of the change, E y f and E f^2."""
    fall, square = met.entries * first, met.entries * second
    softness = 1 - square / met.entries if eps else 0 * square
    return Step(crossed + own, fall, square, np.nan * fall, _share(own[0], crossed[0]), softness)
