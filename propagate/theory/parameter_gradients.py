"""Squared Frobenius norm of the loss gradient with respect to each weight matrix, in the limit of infinite width.

For y = x W the gradient is x^T g, g the cotangent of y, and |x^T g|^2 = sum_ts (x_t . x_s) (g_t . g_s): for
exchangeable tokens fan_in fan_out (T variance grad_variance + T (T - 1) covariance grad_covariance). See `uses`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import propagate.theory.cross_uses
import propagate.theory.latent_uses
import propagate.theory.recurrent_uses  # noqa: F401  # which register those of other attentions
from propagate.layers import Layer
from propagate.model import Model
from propagate.table import BY_MATRIX
from propagate.theory.finite.allowances import matrix_allowances
from propagate.theory.reading.blocks import Call
from propagate.theory.reading.network import Path
from propagate.theory.uses import uses_of_block

Array = NDArray[np.float64]
Numbers = dict[str, dict[str, Any]]
"""Of a block, by the name of a column and by that of a matrix: a number, or one a replica."""
Measure = Callable[[Path], list[Numbers]]
"""What is asked of the matrices of block 0, the embedding, and of blocks 1 ... depth, from a walk."""
ENDS = ("embedding", "unembedding")
"""Matrices that a network has once."""
PARTS = ("gate", "in", "out")
MATRICES = (
    *("embedding", "query_down", "query", "key_value_down", "key_rotary", "key", "value"),
    *("decay", "output_gate", "attention_out"),
    *("cross_query", "cross_key", "cross_value", "cross_out", "router"),
    *(f"ffn_{p}" for p in PARTS),
    *(f"shared_{p}" for p in PARTS),
)
"""In the order of the table; those of other descriptions come after."""


def block_gradients(index: int, layer: Layer, calls: Sequence[Call]) -> Numbers:
    """Expected squared Frobenius norms of the gradients of a block's matrices.

    Of a matrix that a block has more than once, the sum; of experts, all together.

    Raises:
        ModelError: for a sublayer whose matrices are not known here; see `matrix_uses`.

    Example: a linear FFN alone, on one token; both matrices see unit moments.
        >>> from propagate.theory.pairs.moments import Moments
        >>> from propagate.theory.walks import walk
        >>> model, unit = Model("prenorm", 1, width=8, tokens=1, heads=1, activation="linear"), Moments(1.0, 0.0)
        >>> path = walk(model, unit, unit, exact=True)
        >>> round(block_gradients(1, model.at(1), path.calls[1])["param_grad"]["ffn_out"], 9)
        256.0
    """
    total: dict[str, Any] = {}
    for name, use in uses_of_block(layer, calls):
        total[name] = total.get(name, 0.0) + use.gradient(layer.tokens)
    return {BY_MATRIX: total}


def by_block(model: Model, of_block: Callable[[int, Layer, Sequence[Call]], Numbers]) -> Measure:
    """Of the matrices inside blocks, from a block's index, its layer and the records of its calls.

    Example: nothing is asked of the embedding.
        >>> from propagate.theory.pairs.moments import Moments
        >>> from propagate.theory.walks import walk
        >>> model, unit = Model("prenorm", 1, width=8, tokens=1, heads=1, activation="linear"), Moments(1.0, 0.0)
        >>> found = by_block(model, block_gradients)(walk(model, unit, unit, exact=True))
        >>> [sorted(of.get("param_grad", ())) for of in found]
        [[], ['attention_out', 'ffn_in', 'ffn_out', 'key', 'query', 'value']]
    """

    def measure(path: Path) -> list[Numbers]:
        return [{}, *(of_block(i, model.at(i), path.calls[i]) for i in range(1, model.depth + 1))]

    return measure


def matrix_columns(
    model: Model,
    blocks: Sequence[Numbers],
    found: dict[str, Array],
    shape: tuple[int, ...],
    *,
    several: bool,
    wide: bool,
) -> tuple[dict[str, Array], list[str]]:
    """A column (block, *shape, matrix) for each that was measured, 0 for a matrix that a block lacks; the allowance of
    `param_grad`; and the names of the matrices, in order.

    Where a measure drew replicas of its own, of a walk that has none or one, `shape` is theirs.

    Args:
        model: the network.
        blocks: measures of blocks 0 ... depth.
        found: the table's other columns, of several streams with these along the second axis.
        shape: of the starts, or of the replicas.
        several: whether there are several streams.
        wide: whether heads are taken for wide.
    """
    met = [name for block in blocks for of_matrices in block.values() for name in of_matrices]
    names = [name for name in dict.fromkeys(itertools.chain(MATRICES, met)) if name in met]
    columns: dict[str, Array] = {}
    for column in dict.fromkeys(itertools.chain(*blocks)):
        of_blocks = [block.get(column, {}) for block in blocks]
        stacked = [
            [block.get(name, 0.0 if index and name not in ENDS else np.nan) for name in names]
            for index, block in enumerate(of_blocks)
        ]
        shapes = {shape, *(getattr(value, "shape", ()) for row in stacked for value in row)}  # of floats quickly
        if shapes != {()}:  # of plain numbers, which is most often, there is nothing to fit
            every = np.broadcast_shapes(*shapes)
            stacked = [[np.broadcast_to(value, every) for value in row] for row in stacked]
        columns[column] = np.moveaxis(np.array(stacked, dtype=float), 1, -1)
    drifts = (found[f"{name}_allowance"] for name in ("variance", "grad_variance"))
    forward, back = (np.nanmax(drift, axis=1) if several else drift for drift in drifts)
    columns[f"{BY_MATRIX}_allowance"] = matrix_allowances(forward, back, model, names, wide=wide)
    return columns, names
