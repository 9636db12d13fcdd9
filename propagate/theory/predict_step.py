"""The first step of training, predicted: what every matrix's update does, from the moments of one walk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from propagate.checks import integer
from propagate.crossing import CrossAttention
from propagate.latent import LatentAttention
from propagate.losses import CrossEntropy, Linear, Loss, check_loss
from propagate.model import Model, ModelError, check_model
from propagate.optimizers import Adam, Muon, Optimizer, Sign, check_optimizer
from propagate.outline import Block, Stream, outline
from propagate.recurrent import LinearAttention
from propagate.start import Start
from propagate.table import BY_MATRIX, JOINED, STREAM, table
from propagate.theory.end_uses import embedding_use, unembedding_uses
from propagate.theory.finite.step_allowances import end_allowances, step_allowances
from propagate.theory.losses_met import Ends, ends_met
from propagate.theory.parameter_gradients import Numbers
from propagate.theory.predict import walk_of
from propagate.theory.reading.network import Path
from propagate.theory.stacked import updates
from propagate.theory.transferred import transferred
from propagate.theory.updates import CROWDING, SOFTNESS, UNEVEN, UNITS, Met
from propagate.theory.uses import Use, uses_of_block
from propagate.theory.walks import mixers_of
from propagate.transfer import Factors, Kind, Transfer, as_transfer, factors_by_kind, kind_of, trained_with

if TYPE_CHECKING:
    import xarray as xr

SEED = 20_261_129
COLUMNS = ("own_change", "own_covariance", "update_ratio", "spectral_ratio", "first_order_fall")
MOST_UNITS = 2**16
Updated = tuple[Use, dict[str, Any]]
"""A use of a matrix, and what `updates.update` found of it."""


def predict_step(
    model: Model,
    optimizer: Optimizer,
    start: Start | None = None,
    *,
    loss: Loss = Linear(),  # noqa: B008  # frozen
    transfer: str | Transfer | None = None,
    base: tuple[int, int] | None = None,
    samples: int | None = None,
) -> xr.Dataset:
    """What the first step of an optimiser does to every matrix, in the limit of infinite width.

    SGD and Muon are exact there, in closed form. Sign and Adam are integrals of one variable where the inputs and the
    cotangents of a matrix are Gaussian, and averages over drawn hidden units and heads, with a standard error, where
    they are not; see `propagate.theory.updates`.

    Args:
        model: the network.
        optimizer: `SGD`, `Sign`, `Adam` or `Muon`; momentum has no part in the first step.
        start: moments or Gram matrices at the two ends; plain numbers. With a cross-entropy only `variance`.
        loss: `Linear()`, the sum of the start's cotangent times the stream that leaves the last block (of several
            streams, that leaves the readout); or `CrossEntropy(vocabulary)`, with the embedding's columns at block 0
            and the unembedding's at the last.
        transfer: a rule of transfer, by its name or itself; None leaves gains and rates as they are.
        base: (width, depth) at which the rule is neutral; by default the model's own.
        samples: for Sign and Adam, about how many coordinates are drawn of hidden units and of heads, in each of
            8 replicas; with experts, which have more replicas, as many in all.

    Returns:
        A Dataset over `block` 0 ... depth, NaN at 0 but for the embedding, and `matrix`, named as in `simulate_steps`:
        `own_change`, mean square per token and coordinate of H dW, H the matrix's own input and dW its change, times
        the rule's multiplier; `own_covariance`, the mean over pairs of tokens of products, so that the two are the Gram
        matrix of H dW where all tokens have one law, else the means on and off its diagonal; `update_ratio`, |dW| / |W|
        in Frobenius norms, the root of its mean square over networks (a mean of ratios lies below it, within the
        allowance); `spectral_ratio`, that of the largest singular values (NaN where that is not derived: Sign, Adam,
        and with decay); `first_order_fall`, <dLoss/dW, -dW>, by which the loss falls to first order. Each but
        `spectral_ratio` with `<name>_allowance`, how far a network of the model's width may lie from it, relative to it
        (of `own_covariance`, to `own_change`), and, where anything was drawn, `<name>_se`.

        Without dimensions `total_fall`, the sum of all falls (`total_fall_se` its error, at most), and
        `tangent_kernel`, the trace of the tangent kernel, which of this one output is the sum of all squared norms of
        gradients. With a cross-entropy allowances are larger by (tokens - 1) / vocabulary, since a step depends on
        which tokens and targets are the same.

    Raises:
        ModelError: for what is not derived: with Sign and Adam dropout or tanh of streams; with Muon experts, or more
            tokens than a matrix has rows or columns.

    Example: SGD moves the output of a matrix by as much as its gradient's size and its input's make it.
        >>> from propagate.optimizers import SGD, Muon
        >>> model = Model("postnorm", depth=2, width=128, tokens=4, heads=8)
        >>> step = predict_step(model, SGD(lr=1e-3))
        >>> step.own_change.dims, bool((step.first_order_fall[1:] > 0).all())
        (('block', 'matrix'), True)
        >>> bool(abs(float(step.total_fall) - 1e-3 * float(step.tangent_kernel)) < 1e-9)
        True

    Example: Muon moves all that a square matrix gives by its rate, whatever the gradient.
        >>> step = predict_step(model, Muon(lr=0.1))
        >>> round(float(step.own_change.sel(block=2, matrix="query")), 9)
        0.01
    """
    check_model(model)
    check_optimizer(optimizer)
    check_loss(loss)
    _check_covered(model, optimizer)
    factors = factors_by_kind(model, transfer, base)
    units = UNITS if samples is None else integer("samples", samples, at_least=16, at_most=MOST_UNITS)
    network = transferred(model, factors)
    ends = ends_met(loss, start, network, factors)
    measure = _Measure(network, optimizer, factors, units, loss, ends)
    options: dict[str, Any] = {"through_readout": ends.through_readout, "head_size": None, "samples": None}
    found = walk_of(network, ends.start, frozenset(), measure, **options).found
    columns = {name: values for name, values in found.columns.items() if name.removesuffix("_se") in COLUMNS}
    gradient, forward = (found.columns[f"{name}_allowance"] for name in (BY_MATRIX, "variance"))
    forward = np.nanmax(forward, axis=1) if found.several else forward
    shape = found.columns[CROWDING], found.columns[SOFTNESS], found.columns[UNEVEN]
    allowed = step_allowances(gradient, forward, *shape, network, optimizer, found.matrices)
    columns |= {name: values + ends.repeated for name, values in allowed.items()}
    if ends.leaving is not None:
        back = found.columns["grad_variance_allowance"]
        drifts = forward, np.nanmax(back, axis=1) if found.several else back
        columns = end_allowances(columns, *drifts, ends.repeated, model, optimizer, found.matrices)
    of_model = {"model": repr(model), "width": model.width, "depth": model.depth, "tokens": model.tokens}
    asked = {
        "optimizer": repr(optimizer),
        "loss": repr(loss),
        "transfer": repr(None if transfer is None else as_transfer(transfer)),
    }
    attributes: dict[str, Any] = {"witness": "theory"} | of_model | asked
    _check_finite(columns, found.matrices)
    step = table(columns, model.depth, attributes, (), found.matrices)
    if found.several:  # as the tables have them that this one is compared with
        streams = [str(i + 1) for i in range(found.columns["variance"].shape[1] - 1)]
        step = step.assign_coords({STREAM: [*streams, JOINED]})
    step = step.assign(total_fall=step.first_order_fall.sum(), tangent_kernel=np.nansum(found.columns[BY_MATRIX]))
    if "first_order_fall_se" in step:  # matrices of a block may have been drawn together, blocks have not
        step["total_fall_se"] = (step.first_order_fall_se.sum("matrix") ** 2).sum() ** 0.5
    return step


def _check_finite(columns: dict[str, Any], matrices: Sequence[str]) -> None:
    for name in ("own_change", "own_covariance", "update_ratio", "first_order_fall"):
        for matrix, values in zip(matrices, columns[name].T, strict=True):
            first = {"embedding": 0, "unembedding": len(values) - 1}.get(matrix, 1)
            wrong = np.flatnonzero(~np.isfinite(values[first : 1 if matrix == "embedding" else None]))
            if len(wrong):
                index = first + wrong[0]
                raise ModelError(f"{name} must stay a finite number, got {values[index]} for {matrix} of block {index}")


def _check_covered(model: Model, optimizer: Optimizer) -> None:
    if model.uneven and isinstance(optimizer, Muon):
        raise ModelError("predict_step with Muon does not cover experts, each of whose matrices has some of the tokens")
    for one in mixers_of(model):
        if isinstance(one, LatentAttention | LinearAttention | CrossAttention):
            name = type(one).__name__
            raise ModelError(f"predict_step does not cover {name}, the law of whose heads is not known there")
    if not isinstance(optimizer, Sign | Adam):
        return
    if model.dropout:
        raise ModelError(f"predict_step with {type(optimizer).__name__} needs dropout=0, got {model.dropout}")
    if "tanh" in _verbs(model):
        raise ModelError(
            f"predict_step with {type(optimizer).__name__} does not cover tanh of a stream, got {model.placement!r}"
        )


def _verbs(model: Model) -> set[str]:
    """Of all calls, of the embedding's and of the readout's too."""
    placement, depth = model.equations, model.depth
    ends = [Block(0, depth), Block(depth + 1, depth)]
    placement.readout(placement.embed(Stream(), ends[0]), ends[1])
    made = [call for end in ends for call in end.made]
    return {call.verb for call in (*made, *(c for i in range(1, depth + 1) for c in outline(placement, depth, i)))}


@dataclass(frozen=True)
class _Measure:
    """The columns of every block's matrices, and of those at the ends of a network with a cross-entropy."""

    model: Model
    optimizer: Optimizer
    factors: dict[Kind, Factors]
    units: int
    loss: Loss
    ends: Ends

    def __call__(self, path: Path) -> list[Numbers]:
        blocks = [
            list(uses_of_block(self.model.at(index), path.calls[index])) if index > 0 else []
            for index in range(self.model.depth + 1)
        ]
        if isinstance(self.loss, CrossEntropy) and self.ends.leaving is not None:
            by_entry = isinstance(self.optimizer, Sign | Adam)
            entering = embedding_use(self.loss, math.sqrt(self.ends.start.variance), self.model.width, path.embedding)
            leaving = unembedding_uses(self.ends.leaving, self.model.width, path.readout, by_entry=by_entry)
            blocks[0].append(("embedding", entering))
            blocks[-1].extend(("unembedding", use) for use in leaving)
        return [_columns(of_block) for of_block in self._updates(blocks)]

    def _updates(self, blocks: list[list[tuple[str, Use]]]) -> list[dict[str, list[Updated]]]:
        """Of each block, by the name of the matrix: uses of it and what their update does."""
        named = [(index, name, use) for index, uses in enumerate(blocks) for name, use in uses]
        found: list[dict[str, list[Updated]]] = [{name: [] for name, _ in uses} for uses in blocks]
        for kind in dict.fromkeys(kind_of(name) for _, name, _ in named):
            factors = self.factors[kind]
            own = [(index, name, use) for index, name, use in named if kind_of(name) == kind]
            mets = [
                Met(use, self.model.tokens, float(factors.multiplier), (SEED, index), self.units)
                for index, _, use in own
            ]
            made = updates(mets, trained_with(self.optimizer, factors))
            for (index, name, use), columns in zip(own, made, strict=True):
                found[index][name].append((use, columns))
        return found


def _columns(of_block: dict[str, list[Updated]]) -> Numbers:
    names = {name: _together(parts) for name, parts in of_block.items()}
    columns = dict.fromkeys(column for found in names.values() for column in found)
    return {column: {name: found[column] for name, found in names.items()} for column in columns}


def _together(parts: list[Updated]) -> dict[str, Any]:
    """Of all matrices of one name in a block: gradients add up, outputs and entries are counted together."""
    if len(parts) == 1:
        return parts[0][1]
    outputs = np.array([use.fan_out for use, _ in parts], dtype=float)
    sizes = outputs * np.array([float(use.gain) ** 2 for use, _ in parts])

    def mean(column: str, weights: Any, power: int = 1) -> Any:
        values = [np.asarray(found[column]) ** power for _, found in parts]
        total = sum(weight * value for weight, value in zip(weights, values, strict=True))
        return (total / weights.sum()) ** (1 / power)

    return {
        **{name: mean(name, outputs) for name in ("own_change", "own_covariance")},
        "update_ratio": mean("update_ratio", sizes, 2),
        "spectral_ratio": np.nan * parts[0][1]["spectral_ratio"],
        **{name: sum(found[name] for _, found in parts) for name in ("first_order_fall", BY_MATRIX)},
        **{name: mean(name, outputs) for name in (CROWDING, SOFTNESS, UNEVEN)},
    }
