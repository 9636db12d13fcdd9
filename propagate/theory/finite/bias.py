"""Predicted bias of networks of finite width and, where no closed form is at hand, their spread.

To first order in 1 / width, from samples (see `perturbed_network`). With s the spread of a quantity's logarithm, its
mean is off by s^2 / 2 more than its mean logarithm is. What is left out is of second order: measured at width 16, where
it shows (seven placements, masks and dropout among them, two blocks, 4 tokens, 5000 draws), it is 0.2 of |bias|
(tokens / width + s^2) in the root mean square, of either sign; the allowance, one standard deviation, is 0.25 of it.
Of a covariance it is that of the variance and the deviation which it is the difference of.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from propagate.model import Model
from propagate.quantities import quantity_of
from propagate.theory.finite.allowances import Array
from propagate.theory.finite.perturbation import Noise
from propagate.theory.finite.perturbed_attention import energies_of
from propagate.theory.finite.perturbed_network import Grams, evaluated
from propagate.theory.tokens.gram import Gram
from propagate.threads import one_thread_each

PAIRS = 256
SEED = 20260219
AT_ONCE = 2**17  # pairs x tokens^2 x (blocks + 2) held at a time
SECOND = 0.25  # of the product above
FAINT = 1e-8  # share of deviations below which rounding is larger than what is looked for


class Sampled(NamedTuple):
    """Of one quantity, times the width: bias of its mean and of its mean logarithm, both relative; their standard
    errors; and the variance of its logarithm. Of a covariance relative to the variance, and of the latter's logarithm.
    """

    mean: float
    log: float
    mean_error: float
    log_error: float
    square: float


Table = dict[str, list[list[Sampled]]]
"""By quantity: blocks 0 ... depth, streams (the last of several is "joined")."""
NAMES = ("variance", "covariance", "deviation")


@one_thread_each()
def sampled(model: Model, start: Gram, cotangent: Gram, *, through_readout: bool = False, pairs: int = PAIRS) -> Table:
    """Biases and spreads of every quantity, of networks that all start from exact second moments.

    Args:
        model: a network that is `covered`.
        start, cotangent: (tokens, tokens), at the two ends.
        through_readout: the cotangent enters behind the readout.
        pairs: samples.

    Example: the first norm that a cotangent meets takes one of its directions away.
        >>> from propagate.placement import Placement
        >>> class Normed(Placement):
        ...     def block(self, x, block):
        ...         return block.norm(x)
        >>> one = Gram.of(np.eye(1))
        >>> found = sampled(Model(Normed(), depth=2, tokens=1, heads=1), one, one, pairs=4000)
        >>> [round(block[0].mean) for block in found["grad_variance"]]
        [-1, -1, 0]
    """
    random = np.random.default_rng(SEED)
    at_once = min(max(AT_ONCE // (model.tokens**2 * (model.depth + 2)), 1), pairs, 64)
    parts: list[dict[str, Array]] = []
    for first in range(0, pairs, at_once):
        noise = Noise(min(at_once, pairs - first), random)
        parts.append(
            _samples(evaluated(model, noise, start.matrix, cotangent.matrix, through_readout=through_readout), noise)
        )
    found: Table = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts], axis=-1)  # (blocks, streams, 3, samples)
        found[name] = [[_summary(stream) for stream in block] for block in values]
    return found


def _samples(grams: Grams, noise: Noise) -> dict[str, Array]:
    """By quantity (blocks, streams, 3, pairs): second order, second and first order of the logarithm."""
    found: dict[str, Array] = {}
    last = len(grams.forward) - 1
    several = len(grams.forward[0]) > 1
    for prefix, of_blocks, joined in (
        ("", grams.forward, {last: grams.readout}),
        ("grad_", grams.backward, {0: grams.embedding}),
    ):
        rows = [[*streams, *([joined.get(block)] if several else [])] for block, streams in enumerate(of_blocks)]
        parts = [[_parts(gram, noise) for gram in row] for row in rows]
        for i, name in enumerate(NAMES):
            found[prefix + name] = np.array([[part[i] for part in row] for row in parts])
    return found


def _parts(gram: Array | None, noise: Noise) -> Array:
    if gram is None:
        return np.full((3, 3, noise.pairs), np.nan)
    tokens, energies = gram.shape[-1], energies_of(gram)
    mean, deviation = energies[:, 0], energies[:, 1]
    variance = (mean + (tokens - 1) * deviation) / tokens
    found = []
    for values, size in ((variance, variance), ((mean - deviation) / tokens, variance), (deviation, deviation)):
        present = size[-1] > FAINT * variance[-1]  # of what is 0 in the limit, nothing is relative to it
        relative = values / (size[-1] if present else np.nan)
        logarithm = np.log(size / size[-1]) if present else np.zeros_like(size)
        found.append([_even(relative, noise), _even(logarithm, noise), _odd(logarithm, noise)])
    return np.array(found)


def _even(values: Array, noise: Noise) -> Array:
    up, down = values[: noise.pairs], values[noise.pairs : -1]
    return np.asarray(((up - values[-1]) + (down - values[-1])) / (2 * noise.small**2))


def _odd(values: Array, noise: Noise) -> Array:
    return np.asarray((values[: noise.pairs] - values[noise.pairs : -1]) / (2 * noise.small))


def _summary(samples: Array) -> Sampled:
    mean, log, slope = samples
    mean_error, log_error = (float(of.std()) / math.sqrt(of.size) for of in (mean, log))
    return Sampled(float(mean.mean()), float(log.mean()), mean_error, log_error, float((slope**2).mean()))


def finite_columns(
    model: Model, table: Table, columns: dict[str, Any], *, spread: bool, bias: bool
) -> dict[str, Array]:
    """Those of `bias_columns` and of `sampled_spreads`, as they are asked for."""
    found = sampled_spreads(model, table) if spread else {}
    return found | bias_columns(model, table, columns) if bias else found


def bias_columns(model: Model, table: Table, columns: dict[str, Any]) -> dict[str, Array]:
    """Columns `<name>_bias`, `log_<name>_bias`, `<name>_se` and, in place of the stated ones, `<name>_allowance`.

    Args:
        model: the network.
        table: of `sampled`.
        columns: of the limit, with their stated allowances.
    """
    found: dict[str, Array] = {}
    for name, blocks in table.items():
        prefix = "grad_" if quantity_of(name).backward else ""
        limit, variance = np.asarray(columns[name]), np.asarray(columns[f"{prefix}variance"])
        of = _columns(blocks, limit.shape)
        known = np.isfinite(of["mean"]) & (model.tokens > 1 or name == f"{prefix}variance")
        logarithm = quantity_of(name).scale == "log"
        scale = np.abs(limit if logarithm else variance)
        of = {key: np.where(known, value, 0.0) / model.width for key, value in of.items()}
        size = np.maximum(np.abs(of["mean"]), np.abs(of["log"]) if logarithm else 0.0)
        beyond = SECOND * size * (model.tokens / model.width + of["square"])
        found[f"{name}_bias"] = of["mean"]
        if logarithm:
            found[f"log_{name}_bias"] = of["log"]
        error = np.where(np.isfinite(scale), of["log_error" if logarithm else "mean_error"] * scale, 0.0)
        found[f"{name}_se"] = np.hypot(error, columns.get(f"{name}_se", 0.0))
        found[f"{name}_allowance"] = np.where(known, beyond, columns[f"{name}_allowance"])
    for prefix in ("", "grad_"):
        whole, apart, shared = f"{prefix}variance", f"{prefix}deviation", f"{prefix}covariance"
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.asarray(columns[apart]) / np.asarray(columns[whole])
        both = np.hypot(found[f"{whole}_allowance"], found[f"{apart}_allowance"] * share)
        own = found[f"{shared}_allowance"]
        found[f"{shared}_allowance"] = np.where(found[f"{shared}_bias"] != 0, np.fmax(own, both), own)
    return found


def _columns(blocks: list[list[Sampled]], shape: tuple[int, ...]) -> dict[str, Array]:
    values = np.array([[tuple(stream) for stream in block] for block in blocks])
    return {key: values[..., i].reshape(shape) for i, key in enumerate(Sampled._fields)}


def sampled_spreads(model: Model, table: Table) -> dict[str, Array]:
    """Columns `<name>_spread` and `<name>_spread_allowance` of `fluctuations`, from samples."""
    found: dict[str, Array] = {}
    for name, blocks in table.items():
        if quantity_of(name).scale != "log":
            continue
        square = np.array([[stream.square for stream in block] for block in blocks]) / model.width
        square = square[:, 0] if square.shape[1] == 1 else square
        with np.errstate(divide="ignore", invalid="ignore"):
            found[f"{name}_spread"] = np.sqrt(square)
            next_order = square + model.tokens / model.width + 0.5 / (model.width**2 * square)
            allowance = np.hypot(next_order, 1 / math.sqrt(2 * PAIRS))  # and the error of the samples
            found[f"{name}_spread_allowance"] = np.where(square > 0, allowance, 0.0)
    return found
