"""How far single networks of finite width stray from the limit: relative standard deviations, to first order.

A placement's equations are read with streams of energies (see `responses`) that respond linearly to noise. Noise comes
in where random matrices of finite size act:

- a Gaussian matrix of n coordinates turns a Gram matrix G into one with Cov(G_ab, G_cd) = (G_ac G_bd + G_ad G_bc) / n,
  so a mode of energy e and multiplicity m gets variance 2 e^2 / (m n);
- two streams a, b that are uncorrelated in the limit have at width n an inner product of variance e_a e_b / (m n), and
  their sum twice that inner product;
- hidden units and heads are finitely many (`units`).

Everything else - norms, activations, softmax, gains - answers by its derivative. To first order only the fluctuations
of the two exchangeable energies matter: those that tell tokens apart average out. Between blocks the forward state is a
Markov chain; the cotangent's response to the state it will meet is carried along, so that depth costs linear time.

Left out: fluctuations of a head's logits beyond their Gaussian law (order 1 / head size), how attention mixes the noise
of its cotangent's values, everything of second order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np

from propagate.layers import Layer
from propagate.model import Model
from propagate.sublayers import FFN, Attention, Sublayer
from propagate.theory.finite.responses import (
    COTANGENT,
    STATE,
    Array,
    Atom,
    Energies,
    Noise,
    Response,
    Terms,
    mapped,
    to_energies,
    to_moments,
)
from propagate.theory.finite.units import (
    distinct_share,
    heads_backward,
    heads_forward,
    hidden_backward,
    hidden_forward,
    rounded,
)
from propagate.theory.gaussian.roots import symmetric_root
from propagate.theory.gaussian.softmax import softmax_averages
from propagate.theory.pairs.moments import Moments, of_pairs
from propagate.theory.reading.blocks import Applied
from propagate.theory.reading.network import Path
from propagate.theory.reading.reader import Block, Made, Stream, Tape
from propagate.theory.tokens.apply import Setting, applied

RESIDUE = 1e-6  # spreads below it are what finite differences leave of zero


@dataclass(frozen=True, slots=True)
class EnergyAlgebra:
    """What norms and sublayers do to energies that respond to noise, as far as `covered` lets them."""

    model: Model
    layer: Layer
    noise: Noise

    def norm(self, x: Terms) -> Made[Terms]:
        energies, tokens = self.noise.energies(x), self.model.tokens
        scale = ((energies.mean + energies.deviation * float(tokens - 1)) * (1 / tokens)).power(-0.5)
        return x * scale, lambda g: g * scale

    def sublayer(self, verb: str, description: Sublayer, x: Terms) -> Made[Terms]:
        if isinstance(description, Attention):
            return self._branch(x, description, self._attention_forward, self._attention_backward)
        return self._branch(x, description, self._ffn_forward, self._ffn_backward)

    def tanh(self, x: Terms) -> NoReturn:
        raise NotImplementedError("covered refuses it")

    def std(self, x: Terms) -> NoReturn:
        raise NotImplementedError("covered refuses it")

    def _branch(
        self,
        x: Terms,
        description: Sublayer,
        forward_noise: Callable[[Moments], tuple[Array, Array]],
        backward_noise: Callable[[Moments, Moments], tuple[Array, Array]],
    ) -> Made[Terms]:
        """The noise is given as relative covariances: of its Gaussian matrices, and of its units, which meet again."""
        noise, tokens = self.noise, self.model.tokens
        setting = Setting(self.model.width, tokens, self.layer.norm)

        def sublayer(m: Moments) -> Applied:
            return applied(description, m, setting)

        entered = noise.energies(x)
        at = to_moments(entered.mean.value, entered.deviation.value, tokens)
        gaussian, units = forward_noise(at)
        sources, root = noise.fresh(), symmetric_root(units)
        output = noise.added(
            mapped(lambda m: of_pairs(sublayer(m).output), entered, tokens),
            (symmetric_root(gaussian), noise.fresh()),
            (root, sources),
        )

        def pull(cotangent: Terms) -> Terms:
            arrived = noise.energies(cotangent)
            g = to_moments(arrived.mean.value, arrived.deviation.value, tokens)
            by_cotangent = mapped(sublayer(at).pull, arrived, tokens)
            by_state = mapped(lambda m: sublayer(m).pull(g), entered, tokens)
            sent = Energies(*(a + b + -b.value for a, b in zip(by_cotangent, by_state, strict=True)))
            gaussian, both = backward_noise(at, g)
            again = both[2:, :2] @ np.linalg.pinv(root.T)  # as far as the forward noise of the units is met again
            rest = symmetric_root(both[2:, 2:] - again @ again.T)
            parts = ((symmetric_root(gaussian), noise.fresh()), (again, sources), (rest, noise.fresh()))
            return Terms({Atom(noise.added(sent, *parts)): Response(1.0)})

        return Terms({Atom(output): Response(1.0)}), pull

    def _ffn_forward(self, x: Moments) -> tuple[Array, Array]:
        model, noise, ffn = self.model, self.noise, self._ffn
        variance = rounded(float(ffn.in_gain) ** 2 * x.variance)
        units = hidden_forward(ffn.activation, model.tokens, variance, self._distinct(x), float(ffn.gate_gain))
        return noise.gaussian(model.width), units / ffn.units

    def _ffn_backward(self, x: Moments, g: Moments) -> tuple[Array, Array]:
        model, noise, ffn = self.model, self.noise, self._ffn
        variance = rounded(float(ffn.in_gain) ** 2 * x.variance)
        kind = ffn.activation, model.tokens, variance, self._distinct(x), self._distinct(g)
        units = hidden_backward(*kind, float(ffn.gate_gain))
        return noise.gaussian(model.width), units / ffn.units

    @property
    def _ffn(self) -> FFN:
        assert isinstance(self.layer.ffn, FFN)
        return self.layer.ffn

    def _attention_forward(self, x: Moments) -> tuple[Array, Array]:
        """The output matrix, the value matrix (whose two energies attention mixes) and the heads."""
        model, noise = self.model, self.noise
        gaussian = noise.gaussian(model.width)
        if model.tokens == 1:
            return 2 * gaussian, np.zeros((2, 2))
        of_logits = self._logit_std**2 * x.variance * x.deviation
        second, overlap, _, _ = softmax_averages(model.tokens, of_logits, x.covariance / x.variance)
        tokens, (mean, deviation) = model.tokens, to_energies(x, model.tokens)
        own = deviation * (second - overlap)  # of the deviations at the output
        variance = mean / tokens + deviation * second
        out_mean = tokens * variance - (tokens - 1) * own
        kept = mean / out_mean if out_mean > 0 else 1.0  # of tokens that add up to 0, uniform attention leaves nothing
        mixing = np.array([[kept, 1 - kept], [0.0, 1.0]])
        heads = heads_forward(tokens, self._logits(x), self._distinct(x)) / self.layer.attention.heads
        return gaussian + mixing @ gaussian @ mixing.T, heads

    def _attention_backward(self, x: Moments, g: Moments) -> tuple[Array, Array]:
        model, gaussian = self.model, self.noise.gaussian(self.model.width)
        if model.tokens == 1:
            return 2 * gaussian, np.zeros((4, 4))
        return 2 * gaussian, heads_backward(
            model.tokens, self._logits(x), self._distinct(x), self._distinct(g)
        ) / self.layer.attention.heads

    def _distinct(self, x: Moments) -> float:
        return distinct_share(x, self.model.tokens)

    @property
    def _logit_std(self) -> float:
        attention = self.layer.attention
        assert isinstance(attention, Attention)  # others are not covered
        return float(attention.logit_std * attention.query_gain * attention.key_gain)

    def _logits(self, x: Moments) -> float:
        return rounded((self._logit_std * x.variance) ** 2)


def spreads(model: Model, path: Path, arriving: Moments | None = None) -> dict[str, Array]:
    """Columns `<name>_spread` and `<name>_spread_allowance` over blocks, of a model that is `covered`.

    What first order leaves out of a spread is, relative to it, of the order of its square; of tokens / width, by which
    the Gram matrix of the tokens is itself uncertain; and, where branches are so weak that little else is left, a
    variance of order 1 / width^2, such as that of the direction which the first norm takes out of a cotangent.

    Args:
        model: the network.
        path: its moments in the limit.
        arriving: those of the cotangent behind the readout, if it is sent through the readout.
    """
    forward, backward = ([of_pairs(joint[0][0]) for joint in joints] for joints in (path.forward, path.backward))
    found = spread(model, forward, backward, arriving)
    columns: dict[str, Array] = {}
    for prefix, covariances, moments in (("", found.forward, forward), ("grad_", found.backward, backward)):
        values = [log_spreads(c, x, model.tokens) for c, x in zip(covariances, moments, strict=True)]
        for name, column in zip(("variance", "deviation"), np.array(values).T, strict=True):
            columns[f"{prefix}{name}_spread"] = column
            with np.errstate(divide="ignore"):
                next_order = column**2 + model.tokens / model.width + 0.5 / (model.width * column) ** 2
            columns[f"{prefix}{name}_spread_allowance"] = np.where(column > 0, next_order, 0.0)
    return columns


class Spread(NamedTuple):
    """Covariance matrices (2, 2) of the logarithms of the two energies, forward and backward, blocks 0 ... depth."""

    forward: list[Array]
    backward: list[Array]


class Reading(NamedTuple):
    """How a block's output and pulled cotangent answer: to the state that enters, the cotangent, its own noise."""

    state: Array
    noise: Array
    pulled_state: Array
    pulled_cotangent: Array
    pulled_noise: Array


def spread(model: Model, forward: list[Moments], backward: list[Moments], arriving: Moments | None = None) -> Spread:
    """Fluctuations at every block, of networks that all start from exact second moments.

    Args:
        model: the network.
        forward, backward: the limit's moments at blocks 0 ... depth.
        arriving: those of the cotangent behind the readout, if it is sent through the readout.
    """
    placement, depth = model.equations, model.depth

    def reading(equations: Callable[[Any, Any], Any], index: int, x: Moments, g: Moments) -> Reading:
        return _read(model, equations, index, x, g)

    readings = [reading(placement.block, i, forward[i - 1], backward[i]) for i in range(1, depth + 1)]
    covariance = [np.zeros((2, 2))]
    for one in readings:
        covariance.append(one.state @ covariance[-1] @ one.state.T + one.noise @ one.noise.T)
    own, answer = np.zeros((2, 2)), np.zeros((2, 2))  # covariance of what is independent of the state; response to it
    if arriving is not None:
        last = reading(placement.readout, depth + 1, forward[-1], arriving)
        own, answer = last.pulled_noise @ last.pulled_noise.T, last.pulled_state
    found = [own + answer @ covariance[-1] @ answer.T]
    for index, one in zip(range(depth - 1, -1, -1), reversed(readings), strict=True):
        fresh = one.pulled_cotangent @ answer @ one.noise + one.pulled_noise
        own = one.pulled_cotangent @ own @ one.pulled_cotangent.T + fresh @ fresh.T
        answer = one.pulled_cotangent @ answer @ one.state + one.pulled_state
        found.append(own + answer @ covariance[index] @ answer.T)
    return Spread(covariance, found[::-1])


def _read(
    model: Model,
    equations: Callable[[Any, Any], Any],
    index: int,
    x: Moments,
    g: Moments,
) -> Reading:
    noise = Noise(model.width, model.tokens)
    layer, tape = model.at(index), Tape[Terms]()
    block = Block(index, model.depth, index == 1, index == model.depth, layer, EnergyAlgebra(model, layer, noise))
    source = Stream(Terms({Atom(_seeded(x, STATE, model.tokens)): Response(1.0)}), tape)
    output = equations(source, block)
    left = noise.energies(output.value)
    cotangent = Terms({Atom(_seeded(g, COTANGENT, model.tokens)): Response(1.0)})
    (arrived,) = tape.pull([output], [cotangent], [source])
    assert isinstance(arrived, Terms)
    back = noise.energies(arrived)
    count = next(noise.sources)
    forward, backward = _matrix(left, count), _matrix(back, count)
    split = COTANGENT[-1] + 1
    return Reading(
        state=forward[:, :2],
        noise=forward[:, split:],
        pulled_state=backward[:, :2],
        pulled_cotangent=backward[:, 2:split],
        pulled_noise=backward[:, split:],
    )


def _seeded(x: Moments, sources: tuple[int, int], tokens: int) -> Energies:
    """Energies whose logarithms move by one with their source."""
    return Energies(*(Response(e, {s: e}) for e, s in zip(to_energies(x, tokens), sources, strict=True)))


def _matrix(energies: Energies, count: int) -> Array:
    """Derivatives of the logarithms of two energies by every source, shape (2, count)."""
    found = np.zeros((2, count))
    for row, energy in enumerate(energies):
        for source, slope in energy.slopes.items():
            if energy.value > 0:
                found[row, source] = slope / energy.value
    return found


def log_spreads(covariance: Array, x: Moments, tokens: int) -> tuple[float, float]:
    """Standard deviations of log variance and log deviation, from the covariance of the log energies.

    Example: a single token has nothing but its variance.
        >>> log_spreads(np.diag([0.04, 0.0]), Moments(1.0, 0.0), 1)[0]
        0.2
    """
    mean, deviation = to_energies(x, tokens)
    weights = np.array([mean, (tokens - 1) * deviation]) / (tokens * x.variance) if x.variance > 0 else np.zeros(2)
    variances = float(weights @ covariance @ weights), float(covariance[1, 1])
    found = [math.sqrt(variance) if variance > RESIDUE**2 else 0.0 for variance in variances]
    return found[0], found[1]
