"""The first steps of training as torch takes them: autograd and its own optimisers, on networks that `build` makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from propagate.checks import ModelError, integer, shown
from propagate.losses import Linear, Loss, check_loss
from propagate.model import Model, check_model
from propagate.optimizers import Optimizer, check_optimizer
from propagate.quantities import quantity_of
from propagate.start import Start
from propagate.table import BY_MATRIX, STREAM, table
from propagate.tracing.build import build
from propagate.tracing.leaves import FactorsOf
from propagate.tracing.starts import ends_of
from propagate.tracing.stepping import Columns, stepped
from propagate.transfer import Transfer, factors_by_kind, kind_of

if TYPE_CHECKING:
    import xarray as xr


def trace_steps(
    model: Model,
    optimizer: Optimizer,
    start: Start | None = None,
    *,
    steps: int = 1,
    draws: int = 8,
    seed: int = 0,
    loss: Loss = Linear(),  # noqa: B008  # frozen
    transfer: str | Transfer | None = None,
    base: tuple[int, int] | None = None,
    approximate: bool = False,
    dtype: torch.dtype = torch.float64,
) -> xr.Dataset:
    """The first steps of a model that `build` makes, by autograd and torch's optimisers, with standard errors.

    Every matrix is trained, by itself, even where one array holds several; learned gains of norms stay at 1. The same
    sequence of tokens is seen at every step.

    Args:
        model: the network.
        optimizer: `SGD`, `Sign`, `Adam` or `Muon`.
        start: moments of the embedded tokens and, with the linear loss, of its cotangent.
        steps: how many.
        draws: independent networks.
        seed: of weights and tokens.
        loss: `Linear()` or `CrossEntropy(vocabulary)`.
        transfer: a rule of transfer, by its name or itself; None changes nothing.
        base: width and depth of the network on which the rule changes nothing; by default the model's own.
        approximate: Muon's orthogonal factor by torch's own Newton-Schulz steps in bfloat16, not exactly.
        dtype: of weights.

    Returns:
        A Dataset over `step` 0 ... steps, with the names of `simulate` over `block` and of the change since step 0:
        `change` of the stream, mean square per coordinate; over (`block`, `matrix`) `own_change`, mean square of what
        the change of a matrix makes of its input at step 0; `output_change` of its output; `update_ratio`, of Frobenius
        norms; `param_grad`; `first_order_fall` of the loss in the first step; `loss`; `logit_change`. The embedding's
        matrix stands at block 0, the unembedding's at the last. Blocks without a matrix have NaN there.

    Raises:
        ModelError: for settings out of range, and modules whose matrices are not known by name.

    Example: what a rate of 0.1 makes of the loss, to first order and in fact.
        >>> from propagate.optimizers import SGD
        >>> model = Model("prenorm", depth=1, width=16, heads=2, tokens=3)
        >>> seen = trace_steps(model, SGD(lr=1e-4), draws=2)
        >>> fall = float(seen.loss[0] - seen.loss[1])
        >>> abs(fall / float(seen.first_order_fall.sum()) - 1) < 0.01
        True
    """
    steps, draws = integer("steps", steps), integer("draws", draws)
    check_model(model)
    check_optimizer(optimizer)
    check_loss(loss)
    if model.dropout:
        raise ModelError(f"dropout must be 0 where steps are taken, got {shown(model.dropout)}")
    factors_of = factors_for(model, transfer, base)
    ends = ends_of(model, Start.of(start), loss, dtype)
    found = []
    for draw in range(draws):
        network = build(model, seed=1_000_003 * integer("seed", seed, at_least=0) + draw, dtype=dtype)
        entering = ends(torch.Generator().manual_seed(1_000_003 * seed + draw))
        columns, _ = stepped(network, entering, optimizer, factors_of, steps, approximate=approximate)
        found.append(columns)
    attributes: dict[str, Any] = {
        "witness": "trace",
        "model": repr(model),
        "optimizer": repr(optimizer),
        "loss": repr(loss),
    }
    attributes |= {"transfer": repr(transfer), "width": model.width, "depth": model.depth, "tokens": model.tokens}
    attributes |= {"draws": draws, "seed": seed, "steps": steps, "dtype": str(dtype).removeprefix("torch.")}
    attributes |= {"torch": torch.__version__}
    return labelled(found, attributes)


def factors_for(model: Model, transfer: str | Transfer | None, base: tuple[int, int] | None) -> FactorsOf:
    """What a rule says of each matrix of a network, against that of the base.

    Raises:
        ModelError: for what is no rule, or a base that is no width and depth.

    Example:
        >>> factors_for(Model("prenorm", depth=2, width=512), "mup", (128, 2))("query").lr
        0.25
    """
    factors = factors_by_kind(model, transfer, base)
    return lambda matrix: factors[kind_of(matrix)]


SCALARS = ("loss", "logit_change")
"""Of a step, whatever the block."""
FIRST = "first_order_fall"


def labelled(draws: Sequence[list[Columns]], attributes: dict[str, Any]) -> xr.Dataset:
    """Means over draws of what `stepped` gave, and their standard errors, as a table with a dimension `step`."""
    import xarray as xr

    matrices = list(dict.fromkeys(name for _, name in draws[0][0]["own_change"]))
    dims = (STREAM,) if np.ndim(draws[0][0]["variance"]) > 1 else ()
    tables: list[xr.Dataset] = []
    scalars: dict[str, list[Any]] = {}
    for step in range(len(draws[0])):
        columns: Columns = {}
        for name in draws[0][step]:
            values = np.array([_array(draw[step][name], matrices, attributes["depth"]) for draw in draws])
            if name == BY_MATRIX:  # as in `simulate`: 0 where a block does not use it
                inside = [place for place, matrix in enumerate(matrices) if "embedding" not in matrix]
                values[:, 1:, inside] = np.nan_to_num(values[:, 1:, inside])
            columns |= _over_draws(name, values)
        for name in [name for name in columns if quantity_of(name).name in SCALARS]:
            scalars.setdefault(name, []).append(columns.pop(name))
        tables.append(table(columns, attributes["depth"], attributes, dims, matrices))
    falls = {name: tables[0][name] for name in tables[0] if quantity_of(str(name)).name == FIRST}
    joined = xr.concat([one.drop_vars(falls, errors="ignore") for one in tables], "step", combine_attrs="override")
    of_steps = {name: ("step", values) for name, values in scalars.items()}
    return joined.assign(falls | of_steps).assign_coords(step=range(len(tables)))


def _array(values: Any, matrices: Sequence[str], depth: int) -> Any:
    """Numbers by block and matrix as an array with NaN where there is no such matrix; others as they are."""
    if not isinstance(values, dict):
        return values
    found = np.full((depth + 1, len(matrices)), np.nan)
    for (block, name), value in values.items():
        found[block, matrices.index(name)] = value
    return found


def _over_draws(name: str, values: Any) -> Columns:
    """Mean, that of the logarithm where it is judged, and standard errors where there are several draws."""
    known, root = quantity_of(name), math.sqrt(len(values))
    found = {known.column(): values.mean(0)}
    if len(values) > 1:
        found[known.column("se")] = values.std(0, ddof=1) / root
        if known.scale == "log" and known.judged:
            with np.errstate(divide="ignore", invalid="ignore"):
                logarithms = np.where(values > 0, np.log(values), np.nan)
            found[known.column("log")] = logarithms.mean(0)
            found[known.column("log_se")] = logarithms.std(0, ddof=1) / root
    return found
