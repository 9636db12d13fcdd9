"""How many bytes one draw of a network takes while it is trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from propagate.experts import Experts
from propagate.losses import CrossEntropy, Loss
from propagate.model import Model
from propagate.montecarlo.calls import called
from propagate.montecarlo.memory import numbers_of
from propagate.optimizers import SGD, Adam, Muon, Optimizer, Sign
from propagate.sublayers import FFN, Attention, Sublayer


@dataclass(frozen=True)
class Sizes:
    """Numbers that the matrices of a network are kept in.

    Attributes:
        entries: of all matrices.
        largest: entries of the largest.
        inputs, outputs: fan-ins and fan-outs of all maps, those side by side counted once as inputs.
        by_matrix: fan-ins of all matrices, each counted.
        passing: what a way forward and backward remembers beside.
    """

    entries: int
    largest: int
    inputs: int
    outputs: int
    by_matrix: int
    passing: int

    def __add__(self, other: Sizes) -> Sizes:
        return Sizes(
            self.entries + other.entries,
            max(self.largest, other.largest),
            self.inputs + other.inputs,
            self.outputs + other.outputs,
            self.by_matrix + other.by_matrix,
            self.passing + other.passing,
        )


def bytes_of_a_draw(model: Model, optimizer: Optimizer, loss: Loss, *, steps: int, sampler: str, precision: str) -> int:
    """While it is trained for so many steps: matrices and what is remembered of them, tokens and cotangents.

    Example: the matrices once to be applied, once less what they were at first, and three times the largest in passing.
        >>> from propagate.losses import Linear
        >>> model = Model("prenorm", depth=2, width=1024, tokens=8)
        >>> run = {"steps": 5, "precision": "float64"}
        >>> round(bytes_of_a_draw(model, SGD(0.1), Linear(), sampler="dense", **run) / (8 * 2 * 12 * 1024**2), 1)
        2.5
        >>> round(bytes_of_a_draw(model, SGD(0.1), Linear(), sampler="weightless", **run) / 2**20)
        31
    """
    total = _ends(model, loss)
    for index in range(1, model.depth + 1):
        for one in called(model, index):
            total += _of(one, model)
    tokens, rows = model.tokens, model.tokens * (steps + 1)
    streams = 2 * (model.depth + 1) * tokens * model.width
    if sampler == "dense":
        remembered = {SGD: 1, Sign: 1, Adam: 2, Muon: 0}[type(optimizer)]
        if not isinstance(optimizer, Adam) and not optimizer.momentum:
            remembered = 0
        passing = 5 if isinstance(optimizer, Adam) else 3
        kept = (2 + remembered) * total.entries + passing * total.largest + 2 * tokens * (total.inputs + total.outputs)
    else:
        kept = rows * (total.inputs + 2 * total.outputs + total.by_matrix)
    if isinstance(optimizer, Muon) and optimizer.momentum and sampler == "dense":
        kept += 2 * rows * (total.by_matrix + total.outputs)
    return int(np.dtype(precision).itemsize * (kept + streams + total.passing))


def _of(one: Sublayer, model: Model) -> Sizes:
    d, t = model.width, model.tokens
    numbers = numbers_of(one, d, t)
    inputs, outputs = numbers.met // t, numbers.normals // t
    if isinstance(one, Attention):
        more, largest = 2 * d, d * one.inside
    elif isinstance(one, FFN | Experts):
        expert, count = (one.expert, one.count + one.shared) if isinstance(one, Experts) else (one, 1)
        more = d * (2 * count if expert.activation.gated else 1)
        largest = d * expert.units * (1 if expert.activation.gated else count)
    else:
        more, largest = 2 * inputs, numbers.weights
    passing = numbers.kept + 3 * t * (d + numbers.wide) + 3 * numbers.square
    return Sizes(numbers.weights, largest, inputs, outputs, inputs + more, passing)


def _ends(model: Model, loss: Loss) -> Sizes:
    d, t = model.width, model.tokens
    if not isinstance(loss, CrossEntropy):
        return Sizes(0, 0, 0, 0, 0, 10 * t * d)
    size = loss.vocabulary
    return Sizes(2 * size * d, size * d, size + d, size + d, size + d, t * (10 * d + 8 * size))
