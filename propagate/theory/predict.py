"""The first witness: exact second moments of a network in the limit of infinite width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from propagate.checks import integer
from propagate.model import Model, ModelError, check_flag, check_model
from propagate.table import STREAM, table
from propagate.theory.covered import check_covered, check_sampled
from propagate.theory.finite.allowances import allowances, allowances_of_streams
from propagate.theory.finite.bias import finite_columns, sampled
from propagate.theory.finite.fluctuations import spreads
from propagate.theory.gaussian.functions import Scalar
from propagate.theory.pairs.experts import warn_of_means
from propagate.theory.pairs.moments import Joint, Moments
from propagate.theory.parameter_gradients import MatrixGradients
from propagate.theory.reading.network import Path, block_of, propagate_moments
from propagate.theory.starts import aligned, gram_of, moments_of
from propagate.theory.token_resolved import columns as token_columns
from propagate.theory.tokens.gram import Gram
from propagate.theory.validity import Watch

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
    gram: Any = None,
    grad_gram: Any = None,
    through_readout: bool = False,
    head_size: float | None = None,
    samples: int | None = None,
    parameter_gradients: bool = False,
    fluctuations: bool = False,
    bias: bool = False,
) -> xr.Dataset:
    """Variance, covariance and their gradient counterparts at every block, as the number of heads goes to infinity.

    That is the limit of a large width with heads that keep their size.

    Args:
        model: the network.
        variance: E x^2 of the embedded tokens; a number or an `xarray.DataArray`.
        covariance: E x_t x_s of two of them; likewise.
        grad_variance: E g^2 of the cotangent that enters at the stream that leaves the last block.
        grad_covariance: E g_t g_s of it.
        gram: (tokens, tokens) second moments of the embedded tokens, in place of `variance` and `covariance`.
        grad_gram: the same of the cotangent, in place of `grad_variance` and `grad_covariance`.
        through_readout: the cotangent enters behind the readout (PreNorm's final norm) instead.
        head_size: coordinates of a head; None means the model's own, `math.inf` the limit of wide heads, in which
            logits are Gaussian. It matters where their standard deviation is 1 or more, and where queries, keys or
            values are normed.
        samples: for tokens that are not exchangeable, how often attention's logits are drawn in each sublayer, rounded
            up to a multiple of 16; by default so often that 2^13 rows are, at least 64 times.
        parameter_gradients: predict the gradient of every weight matrix too.
        fluctuations: predict how much networks of the model's width, heads and hidden width differ from one another
            too; for normal weights, without tanh, experts, rotary positions and LayerNorms of hidden units. Of one
            stream of exchangeable tokens without dropout or norms inside sublayers in closed form (about 10 ms a
            block), else from samples, as `bias`.
        bias: predict how far their mean lies from the limit too, and with what sign; for the same models. It takes
            seconds: 16 tokens and 12 blocks about 12, growing with the blocks and with tokens^3.

    Returns:
        A Dataset over `block` 0 ... depth with `variance`, `covariance`, `deviation`, `grad_variance`,
        `grad_covariance`, `grad_deviation`, each a second moment per coordinate; `<name>_allowance`, how far a
        network of the model's width may lie from it, relative to it (a covariance: to its variance); and `skip_gain`,
        what the gradient variance would be if the cotangent returned along the skips alone. Dimensions of
        DataArray arguments follow `block`. With one token there are no covariances and no deviations.

        With `parameter_gradients` also `param_grad` over `block` and, last, `matrix` ("query", "key", "value",
        "attention_out", "ffn_gate", "ffn_in", "ffn_out"; with experts "router", and "shared_gate", "shared_in",
        "shared_out" of the shared ones): the expected squared Frobenius norm of dLoss/dW, for W with entries of
        standard deviation gain / sqrt(fan_in), as the modules of `build` hold them (`logit_std` is a factor on the
        logits, and in no matrix), of all matrices of that name in the block together and without a dimension
        `stream`; NaN at block 0, which has no matrix. With `fluctuations` also
        `<name>_spread` of variance, deviation and their gradients: the standard deviation of the quantity's
        logarithm between networks, to first order in 1/width, and `<name>_spread_allowance`, the relative size
        of the next order. With `bias` also, to first order in 1/width, `<name>_bias`, the mean over networks
        less the limit, relative as the allowance is; `log_<name>_bias`, the mean logarithm less that of the
        limit; `<name>_se`, their sampling error; and `<name>_allowance` is then for what they leave out, of
        second order (see `bias`). Deviations below 1e-8 of the variance keep the stated allowance.

        With a Gram matrix, a mask or rotary positions tokens are not exchangeable, and full (tokens, tokens) matrices
        are propagated. The names then mean what a simulation measures: averages over tokens and over pairs of tokens.
        `token_variance` and `grad_token_variance` over (block, token) come beside them. Averages over a softmax with
        such tokens have no closed form; they are taken over drawn tokens x tokens logits, in 8 independent
        evaluations of the whole network, whose mean is given with its standard error `<name>_se`. (There is none with
        `logit_std=0`, where nothing is drawn.) Draws are the same in every run.

        Experts have one router a sublayer, whose choices do not average out: tokens behind a mixture differ in
        variance, and networks from one another, at any width. So with experts tokens are resolved whatever the start,
        in 64 evaluations that each draw routers of their own (256 where attention is uniform and tokens are few).
        `log_<name>_bias` is then how far the mean logarithm lies from the logarithm of the mean over routers.

        A placement of several streams (ResiDual, SiameseNorm) has a further dimension `stream`: "1", "2", ... in the
        order of its equations, and "joined", which holds what the streams are made of and come together in: at block 0
        the embedded tokens before `embed`, at the last block what leaves the readout; in between it is NaN. The
        cotangent of such a placement always enters behind the readout.

    Warns:
        UserWarning: for experts and an array of starts, which takes them at the means of their gates.
        ValidityWarning: where a sublayer is used outside its verified domain; see `validity`.

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
    size = _head_size(head_size, model)
    check_flag("bias", bias)
    values, dims, coords = aligned(
        variance=variance, covariance=covariance, grad_variance=grad_variance, grad_covariance=grad_covariance
    )
    start = moments_of("variance", "covariance", values[0], values[1], model.tokens)
    cotangent = moments_of("grad_variance", "grad_covariance", values[2], values[3], model.tokens)

    attributes = {"witness": "theory", "model": repr(model), "width": model.width, "depth": model.depth}
    attributes |= {"tokens": model.tokens}
    alike = gram is None and grad_gram is None and model.exchangeable
    exchangeable = alike and (bool(dims) or model.experts is None)
    closed = exchangeable
    for name, asked in {"fluctuations": fluctuations, "bias": bias}.items():
        if asked:
            if dims:
                raise ModelError(f"{name} needs a start of plain numbers, got an array of starts over {dims}")
            closed = check_covered(model, name) and closed
    drawn = bias or (fluctuations and not closed)
    watch = Watch(model, size)
    gradients = MatrixGradients(model, wide=watch.wide) if parameter_gradients else None
    if exchangeable:
        warn_of_means(model.experts)
        blocks = watch.block_at(partial(block_of, model, head_size=size))
        if gradients:
            blocks = gradients.block_at(blocks)
        path = propagate_moments(model, start, cotangent, through_readout=through_readout, block_at=blocks)
        watch.warn()
        shape = np.broadcast(*values).shape
        columns = _columns(path, start, cotangent, model, shape, through_readout)
        if gradients:
            columns |= gradients.columns(columns, shape, several=path.several)
        if fluctuations and closed:
            columns |= spreads(model, path, cotangent if through_readout else None)
        if drawn:
            grams = [Gram.exchangeable(float(x.variance), float(x.deviation), model.tokens) for x in (start, cotangent)]
            check_sampled(model, "bias" if bias else "fluctuations", *grams)
            of_samples = sampled(model, *grams, through_readout=through_readout)
            columns |= finite_columns(model, of_samples, columns, spread=fluctuations and not closed, bias=bias)
        dims = (STREAM, *dims) if path.several else dims
        return table(columns, model.depth, attributes, dims, gradients.names if gradients else ()).assign_coords(coords)
    if dims:
        raise ModelError(f"variance must be a number where tokens are not exchangeable, got dimensions {dims}")
    ends = gram_of("gram", gram, start, model.tokens), gram_of("grad_gram", grad_gram, cotangent, model.tokens)
    columns, several = token_columns(
        model,
        *ends,
        through_readout=through_readout,
        head_size=size,
        samples=rounded_samples(samples),
        watch=watch,
        gradients=gradients,
    )
    watch.warn()
    if drawn:
        check_sampled(model, "bias" if bias else "fluctuations", *ends)
        of_samples = sampled(model, *ends, through_readout=through_readout)
        columns |= finite_columns(model, of_samples, columns, spread=fluctuations, bias=bias)
    dims = (STREAM,) if several else ()
    return table(columns, model.depth, attributes, dims, gradients.names if gradients else ())


def _head_size(given: Any, model: Model) -> float:
    if given is None:
        return model.head_size
    return math.inf if given == math.inf else integer("head_size", given)


def rounded_samples(samples: Any) -> int | None:
    """Checked, and rounded up to whole rows of quasi-random points; None stays the default."""
    if samples is None:
        return None
    if isinstance(samples, bool) or not hasattr(samples, "__index__") or samples < 1:
        raise ModelError(f"samples must be a whole number of at least 1, got {samples!r}")
    return -(-int(samples) // 16) * 16


def _columns(
    path: Path, start: Moments, cotangent: Moments, model: Model, shape: tuple[int, ...], through_readout: bool
) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for prefix, ends, joints in (
        ("", (start, path.readout), path.forward),
        ("grad_", (path.embedding, cotangent), path.backward),
    ):
        for name in ("variance", "covariance", "deviation"):
            columns[prefix + name] = _column(name, joints, ends if path.several else None, shape)
    columns["skip_gain"] = _skip_gain(path, shape)
    if path.several:
        return columns | allowances_of_streams(columns, _kept(path, shape), model)
    return columns | allowances(columns, model, through_readout=through_readout)


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
