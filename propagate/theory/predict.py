"""The first witness: exact second moments of a network in the limit of infinite width."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from propagate.model import Model, ModelError, check_flag, check_model
from propagate.placement import check_streams
from propagate.table import STREAM, table
from propagate.theory.activations import ACTIVATIONS
from propagate.theory.blocks import Block, BlockMap, State, Tape, alone, read
from propagate.theory.finite_width import allowances, allowances_of_streams
from propagate.theory.functions import Scalar
from propagate.theory.moments import Joint, Moments
from propagate.theory.sublayers import attention, ffn

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]


def predict(
    model: Model,
    *,
    variance: Any = 1.0,
    covariance: Any = 0.0,
    grad_variance: Any = 1.0,
    grad_covariance: Any = 0.0,
    through_readout: bool = False,
) -> xr.Dataset:
    """Variance, covariance and their gradient counterparts at every block, as the width goes to infinity.

    Args:
        model: the network.
        variance: E x^2 of the embedded tokens; a number or an `xarray.DataArray`.
        covariance: E x_t x_s of two of them; likewise.
        grad_variance: E g^2 of the cotangent that enters at the stream that leaves the last block.
        grad_covariance: E g_t g_s of it.
        through_readout: the cotangent enters behind the readout (PreNorm's final norm) instead.

    Returns:
        A Dataset over `block` 0 ... depth with `variance`, `covariance`, `deviation`, `grad_variance`,
        `grad_covariance`, `grad_deviation`, each a second moment per coordinate; `<name>_allowance`, how far a
        network of the model's width may lie from it, relative to it (a covariance: to its variance); and `skip_gain`,
        what the gradient variance would be if the cotangent returned along the skips alone. Dimensions of
        DataArray arguments follow `block`. With one token the covariances are NaN.

        A placement of several streams (ResiDual, SiameseNorm) has a further dimension `stream`: "1", "2", ... in the
        order of its equations, and "joined", which holds what the streams are made of and come together in: at block 0
        the embedded tokens before `embed`, at the last block what leaves the readout; in between it is NaN. The
        cotangent of such a placement always enters behind the readout.

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
    for prefix, ends, joints in (
        ("", (start, path.readout), path.forward),
        ("grad_", (path.embedding, cotangent), path.backward),
    ):
        for name in ("variance", "covariance", "deviation"):
            columns[prefix + name] = _column(name, joints, ends if path.several else None, shape)
        if model.tokens == 1:
            columns[prefix + "covariance"] = np.full_like(columns[prefix + "variance"], np.nan)
            columns[prefix + "deviation"] = columns[prefix + "covariance"]
    columns["skip_gain"] = _skip_gain(path, shape)
    if path.several:
        columns |= allowances_of_streams(columns, _kept(path, shape), model.width, model.tokens)
        dims = (STREAM, *dims)
    else:
        columns |= allowances(columns, model.width, model.tokens, through_readout=through_readout)
    attributes = {"witness": "theory", "model": repr(model), "width": model.width, "depth": model.depth}
    return table(columns, model.depth, attributes | {"tokens": model.tokens}, dims).assign_coords(coords)


class Path(NamedTuple):
    """Moments along a network.

    Attributes:
        forward, backward: of the streams and of their cotangents, at blocks 0 ... depth.
        skips: factors along each block's skips, blocks 1 ... depth (`BlockMap.skips`).
        readout: of what the output head reads.
        embedding: of the cotangent at the embedded tokens, before `embed`.
        readout_skips: factors along the readout's skips.
    """

    forward: list[Joint]
    backward: list[Joint]
    skips: list[tuple[tuple[Scalar, ...], ...]]
    readout: Moments
    embedding: Moments
    readout_skips: tuple[Scalar, ...]

    @property
    def several(self) -> bool:
        """Whether more than one stream passes from block to block."""
        return len(self.forward[0]) > 1


def propagate_moments(model: Model, start: Moments, cotangent: Moments, *, through_readout: bool = False) -> Path:
    """The network's moments from those at its two ends; floats or arrays.

    Where several streams pass from block to block the cotangent enters behind the readout, which joins them.

    Example:
        >>> from propagate.model import Model
        >>> path = propagate_moments(Model("postnorm", depth=3), Moments(1.0, 1.0), Moments(1.0, 1.0))
        >>> len(path.forward), path.forward[-1][0][0].variance
        (4, 1.0)
    """
    placement, depth = model.equations, model.depth

    def block_map(equations: Callable[[Any, Any], Any], index: int, state: State) -> BlockMap:
        block = block_of(model, index)
        return read(lambda streams: equations(streams, block), block.tape, state)

    embed = block_map(placement.embed, 0, alone(start))
    states, maps = [embed.output], []
    for index in range(1, depth + 1):
        maps.append(block_map(placement.block, index, states[-1]))
        states.append(maps[-1].output)
        check_streams(placement, "block", found=len(states[-1].joint), expected=len(states[0].joint))
    readout = block_map(placement.readout, depth + 1, states[-1])
    check_streams(placement, "readout", found=len(readout.output.joint), expected=1)
    entering: Joint = ((cotangent,),)
    if through_readout or len(states[-1].joint) > 1:
        entering = readout.pull(entering)
    backward = [entering]
    for done in reversed(maps):
        backward.append(done.pull(backward[-1]))
    return Path(
        forward=[state.joint for state in states],
        backward=backward[::-1],
        skips=[done.skips for done in maps],
        readout=readout.output.joint[0][0],
        embedding=embed.pull(backward[-1])[0][0],
        readout_skips=readout.skips[0],
    )


def block_of(model: Model, index: int) -> Block:
    """The block a placement's equations see at `index`: 0 for the embedding, depth + 1 for the readout."""
    gains = model.gains(max(index, 1))
    return Block(
        index=index,
        depth=model.depth,
        first=index == 1,
        last=index == model.depth,
        tape=Tape(),
        attention_map=attention(model.tokens, model.logit_std**2, gains),
        ffn_map=ffn(ACTIVATIONS[model.activation], gains, centred=model.norm == "layer"),
        inner_norms=model.inner_norms,
    )


def _stacked(values: Sequence[Scalar], shape: tuple[int, ...]) -> Array:
    if not shape:
        return np.array(values, dtype=float)
    return np.stack([np.broadcast_to(np.asarray(value, dtype=float), shape) for value in values])


def _column(name: str, joints: list[Joint], ends: tuple[Moments, Moments] | None, shape: tuple[int, ...]) -> Array:
    """One quantity along the network: (block, ...), or (block, stream, ...) with the two ends under "joined"."""
    streams = [_stacked([getattr(joint[i][i], name) for joint in joints], shape) for i in range(len(joints[0]))]
    if ends is None:
        return streams[0]
    joined = np.full_like(streams[0], np.nan)
    joined[0], joined[-1] = (getattr(end, name) for end in ends)
    return np.stack([*streams, joined], axis=1)


def _skip_gain(path: Path, shape: tuple[int, ...]) -> Array:
    """Square of the factor that a cotangent returns with along the skips alone."""
    factors = list(path.readout_skips) if path.several else [1.0]
    found = [[factor * factor for factor in factors]]
    for skips in reversed(path.skips):
        factors = [sum(f * row[j] for f, row in zip(factors, skips, strict=True)) for j in range(len(factors))]
        found.append([factor * factor for factor in factors])
    if not path.several:
        return _stacked([block[0] for block in found[::-1]], shape)
    ends = (np.nan,) * len(found)
    return np.stack([_stacked(stream, shape) for stream in (*zip(*found[::-1], strict=True), ends)], axis=1)


def _kept(path: Path, shape: tuple[int, ...]) -> Array:
    """Share of the variance of what leaves a block that its skips kept, (block, ...): the least of all streams."""
    shares = []
    for entering, leaving, skips in zip(path.forward[:-1], path.forward[1:], path.skips, strict=True):
        streams = range(len(skips))
        powers = [sum(row[i] * row[j] * entering[i][j].variance for i in streams for j in streams) for row in skips]
        shares.append([power / leaving[i][i].variance for i, power in enumerate(powers)])
    columns = [_stacked(stream, shape) for stream in zip(*shares, strict=True)]
    return np.asarray(np.min(columns, axis=0))


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
