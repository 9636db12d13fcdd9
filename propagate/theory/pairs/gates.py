"""Averages of a router's gates over its Gaussian logits, for a token alone and for two tokens.

With many coordinates the logits of a token are independent normals of one variance, and those of two tokens are
correlated as the tokens are. Nothing here has a width. A top-k choice of softmax weights has no closed form, nor have
logistic functions of the k largest of normals (alone, they have a quadrature; of two tokens they do not), so the
averages are sampled, from the same normals every time; two tokens' correlation enters as the angle theta between them,
in which averages are smooth (where the choice may change, they fall off like theta, not like theta^2), and a polynomial
in theta is fitted to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from propagate.checks import ModelError
from propagate.experts import Experts
from propagate.theory.gaussian.functions import Scalar, is_plain, is_symbolic
from propagate.theory.gaussian.routers import routing_of
from propagate.theory.pairs.moments import Moments

Array = NDArray[np.float64]
LOGITS = 2**19  # sampled for each token; the sample is this over the number of candidates
ANGLES = np.linspace(0.12, math.pi, 12)
DEGREE = 7


class Gates(NamedTuple):
    """Averages of gates g_te of token t, times `factor` already: of one token, and their drop to two.

    Attributes:
        kept: E k_t, with k_t the sum of the gates of the identity experts.
        kept_spread: variance of k_t, and its excess over the covariance of k_t and k_s.
        routed: sum over FFN experts e of E g_te^2, and its excess over that of E g_te g_se.
        routed_slope, kept_slope: of the derivatives by the logits r: E |d g_te / d r_t|^2 summed over FFN experts e,
            and E |d k_t / d r_t|^2, and their excess over the scalar product for two tokens.
        along_own, along_one: with the derivative of sum_e g_te w_e over FFN experts by the logits of t, for weights
            w = g_t each token's own gates, the same; and with those of one of the two tokens as weights for both.
    """

    kept: Scalar
    kept_spread: Moments
    routed: Moments
    routed_slope: Moments
    kept_slope: Moments
    along_own: Moments
    along_one: Moments


def gate_averages(experts: Experts, logit_variance: Scalar, loss: Scalar) -> Gates:
    """The averages for logits of this variance, and for tokens of correlation 1 - loss.

    Sampled: `gate_errors` states their standard errors. Of SymPy expressions, named functions (`symbols`). A bias is
    refused.

    Example: two chosen of eight, as good as independent, rarely coincide.
        >>> routed = gate_averages(Experts(count=8, top_k=2), 1.0, 1.0).routed
        >>> round(routed.variance, 2), round(8 * routed.covariance, 1)
        (0.55, 1.0)
    """
    if experts.bias is not None:
        raise ModelError(
            "experts.bias must be None for averages over routers, as for an array of starts and in a recursion, got a"
            " bias: where choices change with it is not derived; take plain numbers, with which routers are drawn"
        )
    if is_symbolic(logit_variance, loss):
        return symbols(experts, logit_variance, loss)
    if is_plain(logit_variance, loss):
        return _at(experts, float(logit_variance), float(loss))
    columns = np.vectorize(lambda v, x: tuple(np.hstack(_at(experts, v, x))), otypes=[float] * 13)
    found = columns(logit_variance, loss)
    return Gates(found[0], *(Moments(*found[i : i + 2]) for i in range(1, 13, 2)))


def symbols(experts: Experts, logit_variance: Scalar, loss: Scalar) -> Gates:
    """The averages as SymPy expressions: a number or a closed form where there is one, else a named function.

    `gate_routed(v, c)` is the average over logits of variance v for two tokens of correlation c, and `gate_routed(v,
    1)` that for one token; so for every field of `Gates` but `kept`, which is `gate_kept(v)`. In closed form: without
    identity experts, their averages are 0; a single renormalised gate is constant, and of two candidates two tokens
    choose the same with probability 1 - arccos(c) / pi; renormalised gates of alike candidates share evenly.

    Example:
        >>> import sympy
        >>> c = sympy.Symbol("c", real=True)
        >>> symbols(Experts(2, 1), sympy.Symbol("v"), 1 - c).routed.deviation
        acos(c)/pi
        >>> symbols(Experts(8, 2), sympy.Symbol("v"), 1 - c).routed.covariance
        gate_routed(v, c)
    """
    import sympy

    correlation, zero = sympy.simplify(1 - loss), sympy.Integer(0)
    nothing = Moments(zero, zero)

    def pair(name: str) -> Moments:
        function = sympy.Function(f"gate_{name}")
        one = function(logit_variance, sympy.Integer(1))
        return Moments(one, one - function(logit_variance, correlation))

    renormalised = experts.renormalised
    found = Gates(zero, *(pair(name) for name in Gates._fields[1:]))
    if renormalised:
        found = found._replace(kept=sympy.nsimplify(_symmetric_share(experts), rational=True))
    else:
        found = found._replace(kept=sympy.Function("gate_kept")(logit_variance))
    if not experts.identity:
        found = found._replace(kept=zero, kept_spread=nothing, kept_slope=nothing)
    if renormalised and experts.chosen == 1 and not experts.identity:
        square = sympy.nsimplify(experts.factor**2, rational=True)
        drop = square - sympy.Function("gate_routed")(logit_variance, correlation)
        if experts.candidates == 2:
            drop = square * sympy.acos(correlation) / sympy.pi
        found = found._replace(routed=Moments(square, drop), routed_slope=nothing, along_own=nothing, along_one=nothing)
    return found


def named(experts: Experts) -> dict[str, Callable[..., float]]:
    """The functions of `symbols`, as numbers."""

    def of_pair(name: str) -> Callable[[float, float], float]:
        def at(logit_variance: float, correlation: float) -> float:
            return float(
                getattr(gate_averages(experts, float(logit_variance), 1 - float(correlation)), name).covariance
            )

        return at

    found: dict[str, Callable[..., float]] = {f"gate_{name}": of_pair(name) for name in Gates._fields[1:]}
    return found | {"gate_kept": lambda v: float(gate_averages(experts, float(v), 1.0).kept)}


def gate_errors(experts: Experts, logit_variance: float) -> Array:
    """Standard errors of the averages in `Gates`, in order: of one token or two independent ones, whichever is larger.

    Example:
        >>> bool(gate_errors(Experts(count=8, top_k=2), 1.0)[2] < 1e-3)
        True
    """
    return _table(experts, _rounded(logit_variance)).errors


def _at(experts: Experts, logit_variance: float, loss: float) -> Gates:
    table = _table(experts, _rounded(logit_variance))
    theta = 2 * math.asin(math.sqrt(min(max(loss / 2, 0.0), 1.0)))
    drops = theta**table.power * np.asarray(np.polynomial.polynomial.polyval(theta, table.series))
    return Gates(table.kept, *(Moments(float(a), float(d)) for a, d in zip(table.alone, drops, strict=True)))


def _rounded(value: float) -> float:
    """Behind a norm the variance is 1 but for rounding, which must not make a new table."""
    return float(f"{value:.12g}")


class _Table(NamedTuple):
    kept: float
    alone: Array  # one token
    power: int  # the drops are theta^power times
    series: Array  # a polynomial in theta, coefficients along the first axis
    errors: Array


@lru_cache(maxsize=512)
def _table(experts: Experts, logit_variance: float) -> _Table:
    first, second = _normals(experts.candidates)
    root = math.sqrt(logit_variance)
    one = _sample(experts, root * first)
    columns = _products(one, one)
    own = columns.mean(axis=1)
    kept = _symmetric_share(experts) if experts.renormalised else float(one.kept.mean())
    independent = _products(one, _sample(experts, root * second))
    control = np.zeros_like(independent)
    control[:4] = independent[:4] - _of_independent_tokens(experts, one)[:, None]
    drops = []
    for theta in ANGLES:
        other = _sample(experts, root * (math.cos(theta) * first + math.sin(theta) * second))
        drop = (columns + _products(other, other)) / 2 - _products(one, other)
        drops.append(_controlled_mean(drop, control))
    if experts.chosen == experts.candidates:  # no choice can change: the drop begins with theta^2
        power, series = 2, _fitted(np.array(drops) / ANGLES[:, None] ** 2)
    else:
        start = _rate_of_changed_choices(experts, logit_variance)
        rest = _fitted((np.array(drops) / ANGLES[:, None] - start) / ANGLES[:, None])
        power, series = 1, np.vstack([start, rest])
    errors = np.maximum(columns.std(axis=1), independent.std(axis=1))
    errors = np.array([0.0 if experts.renormalised else one.kept.std(), *errors]) / math.sqrt(len(first))
    return _Table(kept, own - [kept * kept, 0, 0, 0, 0, 0], power, series, errors)


def _of_independent_tokens(experts: Experts, one: _Sample) -> Array:
    """The first four products' means: products of means, which are alike for all candidates.

    A gate's mean derivative by its own logit is a, by any other b.
    """
    n, identity, routed = experts.candidates, experts.identity, experts.routed
    gate, own = (float(part.sum(axis=-1).mean()) / n for part in (one.gates, one.own))
    met = float((one.gates * one.others).sum(axis=-1).mean()) / n
    a = own - met
    b = (met - float((one.gates.sum(axis=-1) * one.others.sum(axis=-1)).mean()) / n) / max(n - 1, 1)
    kept_slope = identity * (a + (identity - 1) * b) ** 2 + routed * (identity * b) ** 2
    return np.array([(identity * gate) ** 2, routed * gate**2, routed * (a * a + (n - 1) * b * b), kept_slope])


def _controlled_mean(samples: Array, control: Array) -> Array:
    """Mean over samples, less what samples of known mean 0 say of its error (control variates)."""
    centred = control - control.mean(axis=1, keepdims=True)
    spread = (centred**2).mean(axis=1)
    slope = np.divide((samples * centred).mean(axis=1), spread, out=np.zeros(len(spread)), where=spread > 1e-24)
    return np.asarray(samples.mean(axis=1) - slope * control.mean(axis=1))


def _fitted(values: Array) -> Array:
    """Coefficients of the polynomials that take these values at ANGLES; few samples bear on the small angles."""
    weight = np.sqrt(np.sin(ANGLES / 2)) * ANGLES
    return np.asarray(np.polynomial.polynomial.polyfit(ANGLES, values, DEGREE, w=weight))


def _rate_of_changed_choices(experts: Experts, logit_variance: float) -> Array:
    """The drops over theta, for theta to 0: what a changed choice drops, times how often one changes.

    A choice changes where the last chosen and the first left out are closer than the difference of their changes, of
    variance 2 theta^2 logit_variance and mean positive part theta sqrt(logit_variance / pi). They tie where one
    logit equals the largest but (chosen - 1) of the others; its density there, summed over candidates, is that of
    a tie. So samples with a tie are made, and weighted.
    """
    logits = math.sqrt(logit_variance) * _normals(experts.candidates)[0]
    rows = np.arange(len(logits))
    tied = rows % experts.candidates
    logits[rows, tied] = -np.inf
    place = experts.candidates - experts.chosen
    last = np.partition(logits, place, axis=-1)[:, place]
    pair = []
    for side in (-1, 1):
        logits[rows, tied] = last + side * 1e-9
        pair.append(_sample(experts, logits))
    density = np.exp(-(last**2) / (2 * logit_variance)) / math.sqrt(2 * math.pi * logit_variance)
    weight = experts.candidates * density * math.sqrt(logit_variance / math.pi)
    return np.asarray((weight * _drop(*pair)).mean(axis=1))


def _symmetric_share(experts: Experts) -> float:
    """Gates that sum to `factor`, and no candidate better than another."""
    return experts.factor * experts.identity / experts.candidates


@lru_cache(maxsize=4)
def _normals(candidates: int) -> Array:
    return np.random.default_rng(20260122).standard_normal((2, max(LOGITS // candidates, 2**10), candidates))


class _Sample(NamedTuple):
    """Of one token, samples along the first axis: the gates, the parts v and q of their derivative (`Routing`), the sum
    of the identity experts' gates, and the derivative of sum_e g_e w_e over FFN experts by the logits, with the gates
    themselves as weights w.
    """

    gates: Array
    own: Array
    others: Array
    kept: Array
    along: Array
    routed: int


def _sample(experts: Experts, logits: Array) -> _Sample:
    routed = experts.routed
    gates, own, others = routing_of(experts, logits)
    squares = np.einsum("ne,ne->n", gates[:, :routed], gates[:, :routed])
    along = -others * squares[:, None]
    along[:, :routed] += gates[:, :routed] * own[:, :routed]
    return _Sample(gates, own, others, gates[:, routed:].sum(axis=-1), along, routed)


def _drop(t: _Sample, s: _Sample) -> Array:
    """Of each product, the mean of its two squares less itself."""
    return (_products(t, t) + _products(s, s)) / 2 - _products(t, s)


def _products(t: _Sample, s: _Sample) -> Array:
    """Of every sample the six products in `Gates`: an array of shape (6, samples).

    With d g_j / d r_e = v_j (j = e) - g_j q_e the scalar product over e of two tokens' rows j and i is
    v_j v'_i (j = i) - v_j g'_i q'_j - g_j q_i v'_i + g_j g'_i q . q'.
    """
    routed = t.routed
    both, alike = _dot(t.others, s.others), t.own * s.own
    crossed, back = t.own * s.gates, t.gates * s.own
    overlap = _dot(t.gates[:, :routed], s.gates[:, :routed])
    routed_slope = overlap * both + alike[:, :routed].sum(axis=-1)
    routed_slope -= _dot(crossed[:, :routed], s.others[:, :routed]) + _dot(back[:, :routed], t.others[:, :routed])
    kept_slope = t.kept * s.kept * both
    if routed < alike.shape[1]:
        kept_slope += alike[:, routed:].sum(axis=-1)
        kept_slope -= s.kept * _dot(t.own[:, routed:], s.others[:, routed:])
        kept_slope -= t.kept * _dot(s.own[:, routed:], t.others[:, routed:])
    along_one = _dot(t.along[:, :routed], back[:, :routed]) + _dot(s.along[:, :routed], crossed[:, :routed])
    along_one -= overlap * (_dot(t.along, s.others) + _dot(s.along, t.others))
    return np.array([t.kept * s.kept, overlap, routed_slope, kept_slope, _dot(t.along, s.along), along_one / 2])


def _dot(a: Array, b: Array) -> Array:
    return np.asarray(np.einsum("ne,ne->n", a, b))


@lru_cache(maxsize=64)
def unevenness(experts: Experts, logit_variance: float) -> float:
    """Standard deviation between tokens of sum_e g_te^2 + k_t^2, over its mean: how unlike in size outputs are.

    Example: sums of two squares, of gates that sum to 1, differ by an eighth.
        >>> round(unevenness(Experts(count=8, top_k=2), 1.0), 2)
        0.13
    """
    one = _sample(experts, math.sqrt(logit_variance) * _normals(experts.candidates)[0])
    squares = _dot(one.gates[:, : one.routed], one.gates[:, : one.routed]) + one.kept**2
    return float(squares.std() / squares.mean())
