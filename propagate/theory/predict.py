"""The first witness: exact second moments of a network in the limit of infinite width."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from propagate.model import Model, ModelError, check_flag, check_model
from propagate.table import table
from propagate.theory.activations import ACTIVATIONS
from propagate.theory.blocks import Block, BlockMap, Stream, Tape, read
from propagate.theory.finite_width import allowances, matrix_allowances
from propagate.theory.fluctuations import spreads
from propagate.theory.functions import Scalar
from propagate.theory.moments import Moments
from propagate.theory.parameter_gradients import MATRICES
from propagate.theory.parameter_gradients import parameter_gradients as matrix_norms
from propagate.theory.sublayers import Sublayer, attention, ffn

if TYPE_CHECKING:
    import xarray as xr


def predict(
    model: Model,
    *,
    variance: Any = 1.0,
    covariance: Any = 0.0,
    grad_variance: Any = 1.0,
    grad_covariance: Any = 0.0,
    through_readout: bool = False,
    parameter_gradients: bool = False,
    fluctuations: bool = False,
) -> xr.Dataset:
    """Variance, covariance and their gradient counterparts at every block, as the width goes to infinity.

    Args:
        model: the network.
        variance: E x^2 of the embedded tokens; a number or an `xarray.DataArray`.
        covariance: E x_t x_s of two of them; likewise.
        grad_variance: E g^2 of the cotangent that enters at the stream that leaves the last block.
        grad_covariance: E g_t g_s of it.
        through_readout: the cotangent enters behind the readout (PreNorm's final norm) instead.
        parameter_gradients: predict the gradient of every weight matrix too.
        fluctuations: predict how much networks of the model's width, heads and hidden width differ from one another
            too (about 10 ms a block).

    Returns:
        A Dataset over `block` 0 ... depth with `variance`, `covariance`, `deviation`, `grad_variance`,
        `grad_covariance`, `grad_deviation`, each a second moment per coordinate; `<name>_allowance`, how far a
        network of the model's width may lie from it, relative to it (a covariance: to its variance); and `skip_gain`,
        what the gradient variance would be if the cotangent returned along the skips alone. Dimensions of
        DataArray arguments follow `block`. With one token the covariances are NaN. With `parameter_gradients` also
        `param_grad` over `block` and `matrix` ("query", "key", "value", "attention_out", "ffn_in", "ffn_gate",
        "ffn_out"): the expected squared Frobenius norm of dLoss/dW, for W with entries of standard deviation
        gain / sqrt(fan_in); NaN at block 0, which has no matrix. With `fluctuations` also `<name>_spread` of variance,
        deviation and their gradients: the standard deviation of the quantity's logarithm between networks, to first
        order in 1/width, and `<name>_spread_allowance`, the relative size of the next order.

    Raises:
        ModelError: for a start that is no second moment, or a model the theory does not cover.

    Example:
        >>> from propagate.model import Model
        >>> moments = predict(Model("prenorm", depth=24, logit_std=0.0), covariance=0.3)
        >>> round(float(moments.variance[-1]), 3), round(float(moments.grad_variance[0]), 4)
        (44.233, 11.3036)
    """
    check_model(model)
    check_flag("through_readout", through_readout)
    check_flag("parameter_gradients", parameter_gradients)
    check_flag("fluctuations", fluctuations)
    if model.causal:
        raise ModelError("causal must be False for predict: exchangeable tokens have no order (simulate can do it)")
    values, dims, coords = _aligned(
        variance=variance, covariance=covariance, grad_variance=grad_variance, grad_covariance=grad_covariance
    )
    start = _moments("variance", "covariance", values[0], values[1], model.tokens)
    cotangent = _moments("grad_variance", "grad_covariance", values[2], values[3], model.tokens)

    path = propagate_moments(model, start, cotangent, through_readout=through_readout)
    shape = np.broadcast(*values).shape
    columns: dict[str, Any] = {}
    for prefix, moments in (("", path.forward), ("grad_", path.backward)):
        for name in ("variance", "covariance", "deviation"):
            columns[prefix + name] = _stacked([getattr(m, name) for m in moments], shape)
        if model.tokens == 1:
            columns[prefix + "covariance"] = np.full_like(columns[prefix + "variance"], np.nan)
            columns[prefix + "deviation"] = columns[prefix + "covariance"]
    columns["skip_gain"] = np.cumprod(_stacked([*path.skips, 1.0], shape)[::-1], axis=0)[::-1]
    columns |= allowances(columns, model.width, model.tokens, through_readout=through_readout)
    matrices: list[str] = []
    if parameter_gradients:
        norms = matrix_norms(model, lambda index: block_of(model, index), path.forward, path.backward)
        matrices = [name for name in MATRICES if name in norms]
        columns["param_grad"] = np.stack([_stacked([math.nan, *norms[name]], shape) for name in matrices], axis=1)
        columns["param_grad_allowance"] = matrix_allowances(
            columns, matrices, model.width, model.tokens, model.heads, model.logit_std
        )
    if fluctuations:
        if shape:
            raise ModelError("fluctuations needs a start of plain numbers, got an array of starts")
        columns |= spreads(
            model,
            lambda index: _sublayers(model, index),
            path.forward,
            path.backward,
            cotangent if through_readout else None,
        )
    attributes = {"witness": "theory", "model": repr(model), "width": model.width, "depth": model.depth}
    attributes |= {"tokens": model.tokens}
    return table(columns, model.depth, attributes, dims, matrices).assign_coords(coords)


class Path(NamedTuple):
    """Moments along a network.

    Attributes:
        forward, backward: of the stream and of its cotangent, at blocks 0 ... depth.
        skips: gain of each block's skip path, blocks 1 ... depth.
    """

    forward: list[Moments]
    backward: list[Moments]
    skips: list[Scalar]


def propagate_moments(model: Model, start: Moments, cotangent: Moments, *, through_readout: bool = False) -> Path:
    """The network's moments from those at its two ends; floats or arrays.

    Example:
        >>> from propagate.model import Model
        >>> path = propagate_moments(Model("postnorm", depth=3), Moments(1.0, 1.0), Moments(1.0, 1.0))
        >>> len(path.forward), path.forward[-1].variance
        (4, 1.0)
    """
    placement, depth = model.equations, model.depth

    def block_map(equations: Callable[[Any, Any], Any], index: int, x: Moments) -> BlockMap:
        block = block_of(model, index)
        return read(lambda stream: _single(equations(stream, block)), block.tape, x)

    forward = [block_map(placement.embed, 0, start).output]
    maps = []
    for index in range(1, depth + 1):
        maps.append(block_map(placement.block, index, forward[-1]))
        forward.append(maps[-1].output)
    if through_readout:
        cotangent = block_map(placement.readout, depth + 1, forward[-1]).pull(cotangent)
    backward = [cotangent]
    for done in reversed(maps):
        backward.append(done.pull(backward[-1]))
    return Path(forward, backward[::-1], [done.skip for done in maps])


def block_of(model: Model, index: int) -> Block:
    """The block a placement's equations see at `index`: 0 for the embedding, depth + 1 for the readout."""
    gains = model.gains(max(index, 1))
    return Block(
        index=index,
        depth=model.depth,
        first=index == 1,
        last=index == model.depth,
        tape=Tape(),
        attention_map=attention(model.tokens, model.logit_std**2, gains.value * gains.attention_out),
        ffn_map=ffn(ACTIVATIONS[model.activation], gains.ffn_in, gains.ffn_out),
    )


def _sublayers(model: Model, index: int) -> tuple[Sublayer, Sublayer]:
    block = block_of(model, index)
    return block.attention_map, block.ffn_map


def _stacked(values: list[Scalar], shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    if not shape:
        return np.array(values, dtype=float)
    return np.stack([np.broadcast_to(np.asarray(value, dtype=float), shape) for value in values])


def _single(stream: Any) -> Stream:
    if not isinstance(stream, Stream):
        raise TypeError(f"a placement must return one stream, got {stream!r}")
    return stream


def _aligned(**starts: Any) -> tuple[list[Scalar], tuple[str, ...], dict[str, Any]]:
    """Numbers as floats; DataArrays broadcast by dimension name."""
    for name, start in starts.items():
        kind = getattr(getattr(start, "dtype", None), "kind", None)
        if isinstance(start, bool) or not (isinstance(start, numbers.Real) or kind in ("i", "u", "f")):
            raise ModelError(f"{name} must be a number or a DataArray of numbers, got {start!r}")
    if not any(hasattr(start, "dims") for start in starts.values()):
        return [_float(name, start) for name, start in starts.items()], (), {}
    import xarray as xr

    arrays = xr.broadcast(*(xr.DataArray(start) for start in starts.values()))
    coords = {str(name): array for array in arrays for name, array in array.coords.items()}
    return [array.to_numpy().astype(float) for array in arrays], tuple(map(str, arrays[0].dims)), coords


def _float(name: str, value: Any) -> float:
    try:
        return float(value)
    except TypeError:
        raise ModelError(f"{name} must be a number or a DataArray, with named dimensions, got {value!r}") from None


def _moments(variance_name: str, covariance_name: str, variance: Scalar, covariance: Scalar, tokens: int) -> Moments:
    """Checked: finite, and the covariance one that `tokens` tokens of this variance can have."""
    for name, value in ((variance_name, variance), (covariance_name, covariance)):
        if not np.all(np.isfinite(value)):
            raise ModelError(f"{name} must be finite, got {value!r}")
    if np.any(np.asarray(variance) < 0) or (variance_name == "variance" and np.any(np.asarray(variance) == 0)):
        raise ModelError(f"{variance_name} must be positive, got {variance!r}")
    lowest = -1 / (tokens - 1) if tokens > 1 else -math.inf
    bad = (np.asarray(covariance) > variance) | (np.asarray(covariance) < lowest * np.asarray(variance) - 1e-12)
    if np.any(bad):
        allowed = f"between -{variance_name} / (tokens - 1) and {variance_name}"
        raise ModelError(f"{covariance_name} must lie {allowed}, got {covariance!r} with {variance_name}={variance!r}")
    return Moments(variance, variance - covariance)
