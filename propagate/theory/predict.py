"""The first witness: exact second moments of a network in the limit of infinite width."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from propagate.model import Model, ModelError, check_flag, check_model
from propagate.table import table
from propagate.theory.activations import ACTIVATIONS
from propagate.theory.blocks import Block, BlockMap, Stream, Tape, read
from propagate.theory.finite_width import allowances
from propagate.theory.functions import Scalar
from propagate.theory.moments import Moments
from propagate.theory.starts import aligned, gram_of, moments_of
from propagate.theory.sublayers import attention, ffn
from propagate.theory.token_resolved import Path as TokenPath
from propagate.theory.token_resolved import columns as token_columns
from propagate.theory.token_resolved import propagate_grams

if TYPE_CHECKING:
    import xarray as xr


def predict(
    model: Model,
    *,
    variance: Any = 1.0,
    covariance: Any = 0.0,
    grad_variance: Any = 1.0,
    grad_covariance: Any = 0.0,
    gram: Any = None,
    grad_gram: Any = None,
    through_readout: bool = False,
    samples: int | None = None,
) -> xr.Dataset:
    """Variance, covariance and their gradient counterparts at every block, as the width goes to infinity.

    Args:
        model: the network.
        variance: E x^2 of the embedded tokens; a number or an `xarray.DataArray`.
        covariance: E x_t x_s of two of them; likewise.
        grad_variance: E g^2 of the cotangent that enters at the stream that leaves the last block.
        grad_covariance: E g_t g_s of it.
        gram: (tokens, tokens) second moments of the embedded tokens, in place of `variance` and `covariance`.
        grad_gram: the same of the cotangent, in place of `grad_variance` and `grad_covariance`.
        through_readout: the cotangent enters behind the readout (PreNorm's final norm) instead.
        samples: for tokens that are not exchangeable, how often attention's logits are drawn in each sublayer, rounded
            up to a multiple of 16; by default so often that 2^13 rows are, at least 64 times.

    Returns:
        A Dataset over `block` 0 ... depth with `variance`, `covariance`, `deviation`, `grad_variance`,
        `grad_covariance`, `grad_deviation`, each a second moment per coordinate; `<name>_allowance`, how far a
        network of the model's width may lie from it, relative to it (a covariance: to its variance); and `skip_gain`,
        what the gradient variance would be if the cotangent returned along the skips alone. Dimensions of
        DataArray arguments follow `block`. With one token the covariances are NaN.

        With a Gram matrix, a mask or rotary positions tokens are not exchangeable, and full (tokens, tokens) matrices
        are propagated. The names then mean what a simulation measures: averages over tokens and over pairs of tokens.
        `token_variance` and `grad_token_variance` over (block, token) come beside them. Averages over a softmax with
        such tokens have no closed form; they are taken over drawn tokens x tokens logits, in 8 independent
        evaluations of the whole network, whose mean is given with its standard error `<name>_se`. (There is none with
        `logit_std=0`, where nothing is drawn.) Draws are the same in every run.

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
    values, dims, coords = aligned(
        variance=variance, covariance=covariance, grad_variance=grad_variance, grad_covariance=grad_covariance
    )
    start = moments_of("variance", "covariance", values[0], values[1], model.tokens)
    cotangent = moments_of("grad_variance", "grad_covariance", values[2], values[3], model.tokens)

    attributes = {"witness": "theory", "model": repr(model), "width": model.width, "depth": model.depth}
    attributes |= {"tokens": model.tokens}
    if gram is None and grad_gram is None and model.exchangeable:
        path = propagate_moments(model, start, cotangent, through_readout=through_readout)
        columns = _columns(path, model, np.broadcast(*values).shape, through_readout)
        return table(columns, model.depth, attributes, dims).assign_coords(coords)
    if dims:
        raise ModelError(f"variance must be a number where tokens are not exchangeable, got dimensions {dims}")
    ends = gram_of("gram", gram, start, model.tokens), gram_of("grad_gram", grad_gram, cotangent, model.tokens)
    found: TokenPath = propagate_grams(model, *ends, through_readout=through_readout, samples=_samples(samples))
    return table(token_columns(found, model.width, through_readout=through_readout), model.depth, attributes)


def _samples(samples: Any) -> int | None:
    if samples is None:
        return None
    if isinstance(samples, bool) or not hasattr(samples, "__index__") or samples < 1:
        raise ModelError(f"samples must be a whole number of at least 1, got {samples!r}")
    return -(-int(samples) // 16) * 16


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


def _columns(path: Path, model: Model, shape: tuple[int, ...], through_readout: bool) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for prefix, moments in (("", path.forward), ("grad_", path.backward)):
        for name in ("variance", "covariance", "deviation"):
            columns[prefix + name] = _stacked([getattr(m, name) for m in moments], shape)
        if model.tokens == 1:
            columns[prefix + "covariance"] = np.full_like(columns[prefix + "variance"], np.nan)
            columns[prefix + "deviation"] = columns[prefix + "covariance"]
    columns["skip_gain"] = np.cumprod(_stacked([*path.skips, 1.0], shape)[::-1], axis=0)[::-1]
    return columns | allowances(columns, model.width, model.tokens, through_readout=through_readout)


def _stacked(values: list[Scalar], shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    if not shape:
        return np.array(values, dtype=float)
    return np.stack([np.broadcast_to(np.asarray(value, dtype=float), shape) for value in values])


def _single(stream: Any) -> Stream:
    if not isinstance(stream, Stream):
        raise TypeError(f"a placement must return one stream, got {stream!r}")
    return stream
