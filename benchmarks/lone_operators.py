"""Single operators on random tokens, measured: what `operator_table.py` holds formulas against.

Tokens and cotangents are drawn as DeepScaleLM's scripts draw them: x_t = std (sqrt(r) z + sqrt(1 - r) z_t), Gaussian in
every coordinate, correlated by r between tokens. Three things keep the measurement cheap without changing what it is
the mean of.

- A stream that is linear in some of its random parts is measured part by part (`Sums`): one network then serves all
  coefficients of the parts, and so all places of a grid that differ in them alone.
- Attention's values are the tokens themselves. The value matrix enters the output linearly, and the way back through
  the cotangent of the values alone, so second moments are its own times these; what a matrix does is the linear row.
- What uniform attention would give on the same tokens is taken off, and its known mean put back (a control variate).
  The part that tokens have in common is drawn from equal strata of its law for elementwise functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from propagate.montecarlo.arrays import Array
from propagate.montecarlo.backend import Backend
from propagate.montecarlo.normals import Normals
from propagate.montecarlo.operators import layer_norm, operator_of, softmax

BYTES = {"numpy": 3e8, "cupy": 6e9}  # of the arrays of a batch of draws, together
UNITS = 2**12  # coordinates of a draw of elementwise functions


class Sums(NamedTuple):
    """Second moments of parts that a stream is the sum of, each draw's own.

    Attributes:
        alone: (draws, parts, parts), means over tokens and coordinates of products of parts.
        joint: the same of the parts' means over tokens.
        tokens: how many.
        mean: (draws, parts), means over tokens and coordinates; 0 where the mean is known to vanish.
    """

    alone: Any
    joint: Any
    tokens: int
    mean: Any = 0.0

    def moments(self, coefficients: Sequence[float]) -> tuple[Any, Any]:
        """Variance and covariance about the mean of the sum with these coefficients, each (draws,)."""
        c = np.array(coefficients)
        square = (np.asarray(self.mean) @ c) ** 2 if np.ndim(self.mean) else 0.0
        variance, mean_mode = (np.einsum("nij,i,j->n", part, c, c) for part in (self.alone, self.joint))
        return variance - square, (self.tokens * mean_mode - variance) / (self.tokens - 1) - square

    def controlled(self, control: Sums, expected: Sums) -> Sums:
        """Less what a correlated quantity turned out to be, plus what it is on average."""
        return self._replace(
            alone=self.alone - control.alone + expected.alone, joint=self.joint - control.joint + expected.joint
        )


def sums(backend: Backend, parts: Sequence[Array], tokens: int, *, about_mean: bool = False) -> Sums:
    """Of arrays (draws, tokens, coordinates), or (draws, 1, coordinates) where all tokens are alike."""
    xp, n = backend.xp, len(parts)
    means = [part.mean(axis=1) for part in parts]
    joint, alone = (xp.empty((len(parts[0]), n, n)) for _ in range(2))
    for i in range(n):
        for j in range(i + 1):
            joint[:, i, j] = joint[:, j, i] = (means[i] * means[j]).mean(axis=-1)
            own = parts[i].shape[1] > 1 and parts[j].shape[1] > 1
            value = xp.einsum("ntc,ntc->n", parts[i], parts[j]) / parts[i][0].size if own else joint[:, i, j]
            alone[:, i, j] = alone[:, j, i] = value
    centre: Any = 0.0
    if about_mean:
        centre = backend.to_host(xp.stack([mean.mean(axis=-1) for mean in means], axis=-1))
    return Sums(backend.to_host(alone), backend.to_host(joint), tokens, centre)


def joined(batches: Sequence[Sums]) -> Sums:
    """Batches of draws, one after another."""
    alone, joint, _, mean = zip(*batches, strict=True)
    centre = np.concatenate(mean) if np.ndim(mean[0]) else 0.0
    return Sums(np.concatenate(alone), np.concatenate(joint), batches[0].tokens, centre)


def batches(backend: Backend, seed: int, draws: int, numbers: float) -> Iterator[Normals]:
    """Normals for all draws, in batches that fit; `numbers` is how many a draw holds at a time."""
    size = max(int(BYTES[backend.name] / (8 * numbers)), 1)
    for first in range(0, draws, size):
        yield Normals(backend, seed, range(first, min(first + size, draws)))


def linear(backend: Backend, seed: int, draws: int, tokens: int, fan_in: int, fan_out: int) -> tuple[Sums, Sums]:
    """A matrix of variance 1 / fan_in: forward, parts mean, shared and own; backward, parts shared and own."""
    forward, back = [], []
    for normals in batches(backend, seed, draws, fan_in * fan_out + 2 * tokens * (fan_in + fan_out)):
        weight = normals(0, (fan_in, fan_out)) / math.sqrt(fan_in)
        mean = backend.xp.ones((len(weight), 1, fan_in), dtype=backend.dtype)
        parts = mean, normals(1, (1, fan_in)), normals(2, (tokens, fan_in))
        forward.append(sums(backend, [part @ weight for part in parts], tokens))
        cotangents = normals(3, (1, fan_out)), normals(4, (tokens, fan_out))
        back.append(sums(backend, [part @ weight.swapaxes(1, 2) for part in cotangents], tokens))
    return joined(forward), joined(back)


def elementwise(
    backend: Backend, name: str, seed: int, draws: int, tokens: int, std: float, correlation: float
) -> tuple[Sums, Sums]:
    """An activation on tokens of this standard deviation and correlation; backward, parts shared and own."""
    forward, back = [], []
    for normals in batches(backend, seed, draws, 6 * tokens * UNITS):
        shared, shared_cotangent = (_strata(backend, seed, normals.draws, site) for site in (0, 1))
        x = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * normals(2, (tokens, UNITS))
        y, pull = operator_of(name)(backend, std * x)
        forward.append(sums(backend, [y], tokens, about_mean=True))
        everywhere = backend.xp.zeros_like(x) + shared_cotangent
        back.append(sums(backend, [pull(g) for g in (everywhere, normals(3, (tokens, UNITS)))], tokens))
    return joined(forward), joined(back)


def _strata(backend: Backend, seed: int, draws: range, site: int) -> Array:
    """Standard normals (draws, 1, UNITS), in every draw one from each of UNITS equal shares of the law, shuffled."""
    found = []
    for draw in draws:
        random = np.random.default_rng([seed, draw, site])
        found.append(ndtri((random.permutation(UNITS) + random.uniform(size=UNITS)) / UNITS))
    return backend.xp.asarray(np.array(found, dtype=backend.dtype)[:, None])


def norm(backend: Backend, seed: int, draws: int, tokens: int, fan_in: int, correlation: float) -> tuple[Sums, Sums]:
    """LayerNorm of tokens of unit variance, to whose mean and size it is blind; backward, parts shared and own."""
    forward, back = [], []
    for normals in batches(backend, seed, draws, 8 * tokens * fan_in):
        x = math.sqrt(correlation) * normals(0, (1, fan_in))
        x = x + math.sqrt(1 - correlation) * normals(1, (tokens, fan_in))
        y, pull = layer_norm(backend, x)
        forward.append(sums(backend, [y], tokens))
        everywhere = backend.xp.zeros_like(x) + normals(2, (1, fan_in))
        back.append(sums(backend, [pull(g) for g in (everywhere, normals(3, (tokens, fan_in)))], tokens))
    return joined(forward), joined(back)


def attention(
    backend: Backend,
    seed: int,
    draws: int,
    tokens: int,
    fan_in: int,
    head: int,
    correlation: float,
    logit_std: float,
) -> tuple[Sums, Sums]:
    """One head whose values are the tokens, of unit variance; backward, parts shared and own.

    Queries and keys have `head` coordinates, and logits this standard deviation for uncorrelated tokens.
    """
    xp, forward, back = backend.xp, [], []
    r, per = correlation, 1 / tokens
    ones = np.ones((1, 1, 1))
    uniform = Sums((r + (1 - r) * per) * ones, (r + (1 - r) * per) * ones, tokens)
    uniform_back = np.diag([1.0, per])[None]
    for normals in batches(backend, seed, draws, 6 * tokens * tokens + 12 * tokens * fan_in):
        shared = math.sqrt(r) * normals(0, (1, fan_in))
        x = shared + math.sqrt(1 - r) * normals(1, (tokens, fan_in))
        wq, wk = (normals(site, (fan_in, head)) / math.sqrt(fan_in) for site in (2, 3))
        query, key, scale = x @ wq, x @ wk, logit_std / math.sqrt(head)
        weights, pull_softmax = softmax(backend, scale * (query @ key.swapaxes(1, 2)))
        mean = x.mean(axis=1, keepdims=True)
        forward.append(sums(backend, [weights @ x], tokens).controlled(sums(backend, [mean], tokens), uniform))
        parts = normals(4, (1, fan_in)), normals(5, (tokens, fan_in))
        sent = []
        for part in parts:
            h = xp.zeros_like(x) + part
            to_logits = scale * pull_softmax(h @ x.swapaxes(1, 2))
            through = (to_logits @ key) @ wq.swapaxes(1, 2) + (to_logits.swapaxes(1, 2) @ query) @ wk.swapaxes(1, 2)
            sent.append(weights.swapaxes(1, 2) @ h + through)
        control = sums(backend, [part.mean(axis=1, keepdims=True) for part in parts], tokens)
        expected = Sums(uniform_back, uniform_back, tokens)
        back.append(sums(backend, sent, tokens).controlled(control, expected))
    return joined(forward), joined(back)
