"""Attention of finite width and heads on perturbed streams (see `perturbation`).

Attention is the average over tokens and, beside it, the choice that each token makes among them. The average is two
Gaussian matrices, one after the other, and is followed to second order: forward; and backward as far as the cotangent
along the output is the one along the mean value, and what returns is known along the input. The choice is taken by its
two exchangeable moments, which are the limit's (with them its queries and keys): to second order in the input's two
energies, with the fluctuation of as many heads as there are. Where attention is uniform that is all of it.

Left out: how the choice answers to what tells tokens apart, that a head has few coordinates, and what the choice sends
back along its own input.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from propagate.model import Model
from propagate.scaling import Gains
from propagate.theory.moments import Moments
from propagate.theory.perturbation import Array, Frame, Noise, factored, inner, root
from propagate.theory.responses import root as root_of
from propagate.theory.responses import to_moments
from propagate.theory.sublayers import Sublayer, projection_powers
from propagate.theory.units import heads_backward, heads_forward, rounded

Pull = Callable[[Array], Array]
ALIKE = 1e-10  # energy of the tokens' deviations over that of their mean, below which there is nothing to choose
STEP = 0.02  # of a logarithm, in finite differences: softmax averages are good to 1e-6


def attention(
    model: Model, gains: Gains, limit: Sublayer, inside: frozenset[str], frame: Frame, x: Array
) -> tuple[Array, Pull]:
    """Output and pull, as arrays of vectors. `limit` is the exchangeable map, `inside` names its normed projections."""
    noise, tokens, power = frame.noise, model.tokens, float(gains.value * gains.attention_out) ** 2
    lower, span = factored(x)
    share = lower.mean(axis=1, keepdims=True)  # of the mean token, along the span
    mean = (share**2).sum(axis=-1, keepdims=True)
    gram = power * mean * np.ones((tokens, tokens))
    entered = energies_of(inner(x, x))
    chooses = model.logit_std > 0 and entered[-1, 1] > ALIKE * entered[-1, 0]
    choice = _Choice(model, gains, limit, inside, noise, entered) if chooses else None
    if choice is None:
        root_h, image = np.sqrt(gram[:, :, :1] * (1 + noise.symmetric(1))), frame.image(1)
    else:
        gram = gram + exchangeable(choice.forward(power), tokens)
        gram = gram + exchangeable(choice.heads_forward * energies_of(gram), tokens)
        root_h, image = root(gram), _twice(noise, tokens) @ frame.image(tokens)
    toward, of_mean = share / np.sqrt(mean), root_h.mean(axis=1, keepdims=True)
    found = np.sqrt((of_mean**2).sum(axis=-1, keepdims=True))
    same = min(math.sqrt(power * mean[-1, 0, 0]) / found[-1, 0, 0], 1.0)  # cosine of mean output and mean value

    def pull(g: Array) -> Array:
        centre = g.mean(axis=1, keepdims=True)
        arrived, met = inner(centre, centre), inner(image, centre)
        apart = arrived * (1 - met.shape[1] * noise.square + noise.symmetric(1))
        through = np.sqrt((met**2).sum(axis=1, keepdims=True) + apart)
        across = noise.normals(1, tokens)
        across = across - (across @ toward.swapaxes(1, 2)) @ toward
        on_mean = same * (of_mean / found) @ met + np.sqrt(arrived * (1 - same**2)) * noise.normals(1, 1)
        along = (on_mean * toward + np.sqrt(arrived) * across) @ span
        rest = through * frame.image(1, without=span)
        average = math.sqrt(power) * (rest + frame.padded(along)) * np.ones((1, tokens, 1))
        if choice is None:
            return np.asarray(average)
        chosen = root(exchangeable(choice.backward(energies_of(inner(g, g)), power), tokens))
        made = chosen @ _twice(noise, tokens) @ frame.image(tokens)
        return made + frame.padded(average)

    return np.asarray(root_h @ image), pull


def _twice(noise: Noise, size: int) -> Array:
    """The fluctuation of one Gaussian matrix more, in none of the frame's directions."""
    apart = noise.symmetric(size)
    return np.eye(size) + apart / 2 - apart @ apart / 8


class _Choice:
    """The choice's energies, forward and backward, at the energies (evaluations, 2) that enter."""

    def __init__(
        self, model: Model, gains: Gains, limit: Sublayer, inside: frozenset[str], noise: Noise, entered: Array
    ) -> None:
        self.tokens, self.noise, self.entered = model.tokens, noise, entered
        self.limit, self.inside = limit, inside
        at = to_moments(float(entered[-1, 0]), float(entered[-1, 1]), model.tokens)
        powers = projection_powers(gains, at, inside)
        std = float(model.logit_std) * at.variance
        self.units = model.tokens, rounded(std * std * powers.query * powers.key), _share(at)
        self.size = math.sqrt(model.width / model.heads)  # times e: 1 / sqrt(heads)
        self.normals = noise.odd(noise.random.standard_normal((noise.pairs, 2)))
        self.root = root_of(heads_forward(*self.units))
        self.heads_forward = self.size * self.normals @ self.root.T

    def forward(self, power: float) -> Array:
        """Of the output, less the average's `power` times the mean mode."""

        def at(entered: Array) -> Array:
            output = self.limit(_moments(entered, self.tokens), self.inside)[0]
            return _energies(output, self.tokens) - power * entered * (1.0, 0.0)

        return _expanded(at, self.entered)

    def backward(self, arrived: Array, power: float) -> Array:
        """Of what a cotangent with these energies sends back, likewise, with the fluctuation of the heads."""
        by_mean, by_deviation = (_expanded(self._sent(unit), self.entered) for unit in np.eye(2))
        total = arrived[:, :1] * by_mean + arrived[:, 1:] * by_deviation
        here = to_moments(float(arrived[-1, 0]), float(arrived[-1, 1]), self.tokens)
        both = heads_backward(*self.units, _share(here))
        again = both[2:, :2] @ np.linalg.pinv(self.root.T)
        rest = root_of(both[2:, 2:] - again @ again.T)
        fresh = self.noise.odd(self.noise.random.standard_normal((self.noise.pairs, 2)))
        moved = 1 + self.size * (self.normals @ again.T + fresh @ rest.T)
        return np.asarray(np.maximum(total * moved - power * arrived * (1.0, 0.0), 0.0))

    def _sent(self, unit: Array) -> Callable[[Array], Array]:
        """From energies that enter to those that a cotangent of unit energy in one mode sends back."""

        def at(entered: Array) -> Array:
            arriving = _moments(np.broadcast_to(unit, entered.shape), self.tokens)
            return _energies(self.limit(_moments(entered, self.tokens), self.inside)[1](arriving), self.tokens)

        return at


def _expanded(function: Callable[[Array], Array], e: Array) -> Array:
    """A function of two energies to second order in their logarithms, about the last of the evaluations."""
    one, other = np.eye(2) * STEP
    places = np.array([0 * one, one, -one, other, -other, one + other, -one - other])
    here, up0, down0, up1, down1, up, down = function(e[-1] * np.exp(places))
    slope0, slope1 = (up0 - down0) / (2 * STEP), (up1 - down1) / (2 * STEP)
    bent0, bent1 = (up0 + down0 - 2 * here) / STEP**2, (up1 + down1 - 2 * here) / STEP**2
    mixed = ((up + down - 2 * here) / STEP**2 - bent0 - bent1) / 2
    a, b = np.log(e[:, :1] / e[-1, 0]), np.log(e[:, 1:] / e[-1, 1])
    return np.asarray(here + a * slope0 + b * slope1 + (a * a * bent0 + b * b * bent1) / 2 + a * b * mixed)


def _moments(energies: Array, tokens: int) -> Moments:
    mean, deviation = energies[..., 0], energies[..., 1]
    return Moments((mean + (tokens - 1) * deviation) / tokens, deviation)


def _energies(x: Moments, tokens: int) -> Array:
    return np.stack([tokens * x.variance - (tokens - 1) * x.deviation, x.deviation + 0 * x.variance], axis=-1)


def energies_of(gram: Array) -> Array:
    """Energies of the token mean and of the deviations from it, (..., 2), of Gram matrices.

    Example:
        >>> energies_of(np.array([[1.0, 0.5], [0.5, 1.0]])).tolist()
        [1.5, 0.5]
    """
    tokens = gram.shape[-1]
    mean = gram.sum(axis=(-1, -2)) / tokens
    return np.stack([mean, (np.trace(gram, axis1=-2, axis2=-1) - mean) / max(tokens - 1, 1)], axis=-1)


def exchangeable(energies: Array, tokens: int) -> Array:
    """The Gram matrices with these energies, the inverse of `energies_of`."""
    mean, deviation = energies[..., 0, None, None], energies[..., 1, None, None]
    flat = np.full((tokens, tokens), 1 / tokens)
    return np.asarray(mean * flat + deviation * (np.eye(tokens) - flat))


def _share(x: Moments) -> float:
    return rounded(min(max(x.deviation / x.variance, 0.0), 1.0)) if x.variance > 0 else 1.0
