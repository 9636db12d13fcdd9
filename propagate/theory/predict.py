"""The first witness: exact second moments of a network in the limit of infinite width."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from propagate.checks import check_memory, integer
from propagate.model import Model, ModelError, check_flag, check_model
from propagate.start import Start, included
from propagate.table import BY_MATRIX, EMBEDDING_SHARE, STREAM, of_tokens, table
from propagate.theory import exchangeable, token_resolved
from propagate.theory.call_columns import MOMENTS as CALL_MOMENTS
from propagate.theory.call_columns import call_columns
from propagate.theory.finite.allowances import call_allowances
from propagate.theory.finite.bias import finite_columns, sampled
from propagate.theory.finite.covered import check_covered, check_resolved, check_sampled
from propagate.theory.found import Found
from propagate.theory.pairs.moments import Moments
from propagate.theory.parameter_gradients import Measure, block_gradients, by_block
from propagate.theory.reading.blocks import NotExchangeable
from propagate.theory.starts import aligned, gram_of, moments_of
from propagate.theory.tokens.gram import Gram
from propagate.theory.unstable import allowing, gram_with_leak, starts_with_leaks, with_leak
from propagate.theory.validity import Uses, warn_of_means, warn_of_scarce, warn_of_uses

if TYPE_CHECKING:
    import xarray as xr

MOST_SAMPLES = 2**20  # of attention's logits in one sublayer
GRAMS = 24  # arrays of tokens by tokens that a block of unequal tokens takes
INCLUDE = ("calls", BY_MATRIX, EMBEDDING_SHARE, "bias", "fluctuations")
"""What a prediction can hold beside the moments at every block."""
MOMENTS = ("variance", "covariance", "grad_variance", "grad_covariance")


def predict(
    model: Model,
    start: Start | None = None,
    *,
    include: Collection[str] = (),
    variance: Any = 1.0,
    covariance: Any = 0.0,
    grad_variance: Any = 1.0,
    grad_covariance: Any = 0.0,
    gram: Any = None,
    grad_gram: Any = None,
    through_readout: bool = False,
    head_size: float | None = None,
    samples: int | None = None,
    parameter_gradients: bool | None = None,
    fluctuations: bool | None = None,
    bias: bool | None = None,
) -> xr.Dataset:
    """Variance, covariance and their gradient counterparts at every block, as the number of heads goes to infinity.

    That is the limit of a large width with heads that keep their size.

    Args:
        model: the network.
        start: a `Start`, in place of the six arguments of its names that follow.
        include: what else is asked for, of "calls", "param_grad", "embedding_share", "bias" and "fluctuations".

            "calls" are the moments of what every sublayer call gives. "param_grad" is the gradient of every weight
            matrix. "embedding_share" is how much of a token is still its embedding. "bias" is how far the mean of
            networks of the model's width, heads and hidden width lies from the limit, and with what sign; it takes
            seconds: 16 tokens and 12 blocks about 12, growing with the blocks and with tokens^3. "fluctuations" are how
            much such networks differ from one another; of one stream of exchangeable tokens without tanh, dropout or
            norms inside sublayers in closed form (about 10 ms a block), else from samples, as the bias. Those two are
            for normal weights, and refuse what they do not cover: experts, LayerNorm of hidden units, or of queries and
            keys with rotary positions, tanh of a stream with dropout or beside LayerNorm; and tokens that are one, to
            1e-10 of their variance, at the start or after one block (those that become one over several are followed).
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
            up to a multiple of 16; by default so often that 2^13 rows are, at least 64 times. Where there are experts,
            how many networks, with routers of their own, averages are taken over, at least 64, and that by default.
        parameter_gradients, fluctuations, bias: deprecated names in `include`.

    Returns:
        A Dataset over `block` 0 ... depth with `variance`, `covariance`, `deviation`, `grad_variance`,
        `grad_covariance`, `grad_deviation`, each a second moment per coordinate; `<name>_allowance`, how far a
        network of the model's width may lie from it, relative to it (a covariance: to its variance); and `skip_gain`,
        what the gradient variance would be if the cotangent returned along the skips alone. Where the averages of
        small heads at wide logits, or of normed queries and keys, are read off tables of drawn heads, `<name>_se` is
        the standard error that this makes. Dimensions of
        DataArray arguments follow `block`. With one token there are no covariances and no deviations.

        With "embedding_share" also `embedding_share`, <x_l, x_0>^2 / (|x_l|^2 |x_0|^2) with x_0 the embedded token (the
        mean over tokens), and its allowance. It is that of a network of the model's width, in which what branches write
        lies along x_0 by chance: it never falls below 1 / width.

        With "calls" also `call_variance`, `call_covariance`, `call_deviation` over (`block`, `call`). A call is named
        by its sublayer and its number in the block, as in a `trace`: "norm2" is the second norm. Where tokens are not
        exchangeable these are means over tokens and over pairs of tokens.

        With "param_grad" also `param_grad` over `block` and, last, `matrix` ("query", "key", "value",
        "attention_out", "ffn_gate", "ffn_in", "ffn_out"; with experts "router", and "shared_gate", "shared_in",
        "shared_out" of the shared ones): the expected squared Frobenius norm of dLoss/dW, for W with entries of
        standard deviation gain / sqrt(fan_in), as the modules of `build` hold them (`logit_std` is a factor on the
        logits, and in no matrix), of all matrices of that name in the block together and without a dimension
        `stream`; NaN at block 0, which has no matrix. With "fluctuations" also
        `<name>_spread` of variance, deviation and their gradients: the standard deviation of the quantity's
        logarithm between networks, to first order in 1/width, and `<name>_spread_allowance`, the relative size
        of the next order. With "bias" also, to first order in 1/width, `<name>_bias`, the mean over networks
        less the limit, relative as the allowance is; `log_<name>_bias`, the mean logarithm less that of the
        limit; `<name>_se`, their sampling error; and `<name>_allowance` is then for what they leave out, of
        second order (see `bias`). Deviations below 1e-8 of the variance keep the stated allowance, unless tokens became
        one over several blocks.

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
    asked = included(include, INCLUDE, parameter_gradients=parameter_gradients, fluctuations=fluctuations, bias=bias)
    size = head_size if head_size is None or _infinite(head_size) else integer("head_size", head_size)
    drawn = rounded_samples(samples)
    given = Start.of(
        start,
        variance=variance,
        covariance=covariance,
        grad_variance=grad_variance,
        grad_covariance=grad_covariance,
        gram=gram,
        grad_gram=grad_gram,
    )
    finite = [name for name in ("fluctuations", "bias") if name in asked]
    walked = walk_of(model, given, asked, through_readout=through_readout, head_size=size, samples=drawn)
    found, dims, closed = walked.found, walked.dims, walked.closed
    columns = found.columns
    if "bias" in asked:
        warn_of_scarce(model)
    if "bias" in asked or (finite and not closed):
        grams = walked.grams(model.tokens)
        check_sampled(model, finite[-1], *grams)
        check_resolved(finite[-1], columns)
        of_samples = sampled(model, *grams, through_readout=through_readout)
        spread = "fluctuations" in asked and not closed
        columns = columns | finite_columns(model, of_samples, columns, spread=spread, bias="bias" in asked)
    attributes = {"witness": "theory", "model": repr(model), "width": model.width, "depth": model.depth}
    attributes |= {"tokens": model.tokens}
    streams = (STREAM,) if found.several else ()
    _check_finite(columns, several=found.several)
    moments = table(columns, model.depth, attributes, (*streams, *dims), found.matrices).assign_coords(walked.coords)
    return _with_calls(moments, model, found.calls) if found.calls else moments


class Walked(NamedTuple):
    """What one walk gave, and from where it began.

    Attributes:
        found: the table's columns.
        closed: whether tokens were exchangeable and what was asked for has a closed form.
        given: the start.
        first, last: the moments at both ends.
        dims, coords: of an array of starts.
    """

    found: Found
    closed: bool
    given: Start
    first: Moments
    last: Moments
    dims: tuple[str, ...]
    coords: dict[str, Any]

    def grams(self, tokens: int) -> tuple[Gram, Gram]:
        """The Gram matrices at both ends."""
        return _grams(self.given, self.first, self.last, tokens)


def _grams(given: Start, first: Moments, last: Moments, tokens: int) -> tuple[Gram, Gram]:
    return gram_of("gram", given.gram, first, tokens), gram_of("grad_gram", given.grad_gram, last, tokens)


def walk_of(
    model: Model,
    given: Start,
    asked: frozenset[str],
    measure: Measure | None = None,
    *,
    through_readout: bool,
    head_size: float | None,
    samples: int | None,
) -> Walked:
    """One walk, at the resolution that the start and the model need; warns of what the maps were used for.

    Args:
        model: the network.
        given: the start.
        asked: names in `predict`'s `include`.
        measure: what is asked of every block's matrices; by default their gradients, if "param_grad" is asked for.
        through_readout, head_size, samples: as for `predict`, checked.
    """
    if measure is None and BY_MATRIX in asked:
        measure = by_block(model, block_gradients)
    values, dims, coords = aligned(**{name: given[name] for name in MOMENTS})
    first = moments_of("variance", "covariance", values[0], values[1], model.tokens)
    last = moments_of("grad_variance", "grad_covariance", values[2], values[3], model.tokens)
    if dims and asked - {BY_MATRIX, EMBEDDING_SHARE}:
        name = min(asked - {BY_MATRIX, EMBEDDING_SHARE})
        raise ModelError(f"{name} needs a start of plain numbers, got an array of starts over {dims}")
    finite = [name for name in ("fluctuations", "bias") if name in asked]
    closed = all([check_covered(model, name) for name in finite])  # noqa: C419  # each must be asked
    options: dict[str, Any] = {"through_readout": through_readout, "head_size": head_size}
    found, uses, leaking = None, Uses(), list[dict[str, Any]]()
    alike = given.gram is None and given.grad_gram is None and model.exchangeable
    if alike and (dims or not model.uneven):
        warn_of_means(model)
        with suppress(NotExchangeable):
            of_pairs = asked if closed else asked - {"fluctuations"}
            found = exchangeable.found(model, first, last, uses, of_pairs, measure, **options)
            for ends in starts_with_leaks((first, last), partial(with_leak, tokens=model.tokens), model.width):
                leaking.append(exchangeable.found(model, *ends, Uses(), (), measure, **options).columns)
    if found is None:
        if dims:
            raise ModelError(f"variance must be a number where tokens are not exchangeable, got dimensions {dims}")
        check_memory(f"tokens={model.tokens} that are not exchangeable", GRAMS * 8 * model.tokens**2)
        closed, uses = False, Uses()
        grams = _grams(given, first, last, model.tokens)
        found = token_resolved.found(model, *grams, uses, asked, measure, **options, samples=samples)
        for begun in starts_with_leaks(grams, gram_with_leak, model.width) if model.exchangeable else ():
            of_begun = token_resolved.found(model, *begun, Uses(), (), measure, **options, samples=samples)
            leaking.append(of_begun.columns)
    if leaking:
        found = found._replace(columns=allowing(found.columns, leaking))
    warn_of_uses(model, uses, wide=head_size == math.inf)
    return Walked(found, closed, given, first, last, dims, coords)


def _infinite(size: Any) -> bool:
    return isinstance(size, float) and size == math.inf


def _check_finite(columns: dict[str, Any], *, several: bool) -> None:
    """ModelError where the stream or the gradient leaves the range of numbers."""
    for name in ("variance", "grad_variance"):
        values = np.asarray(columns[name], dtype=float)
        wrong = np.argwhere(~np.isfinite(values[:, :-1] if several else values))
        if len(wrong):
            at = wrong[-1 if name == "grad_variance" else 0]
            raise ModelError(f"{name} must stay a finite number, got {values[tuple(at)]} at block {at[0]}")


def _with_calls(moments: xr.Dataset, model: Model, calls: dict[str, Any]) -> xr.Dataset:
    """With the columns of the calls, and what a comparison must allow for."""
    columns = call_columns(calls)
    allowed = call_allowances(moments.variance_allowance.to_numpy(), model.width)[:, None]
    columns |= {f"call_{moment}_allowance": np.repeat(allowed, len(calls), axis=1) for moment in CALL_MOMENTS}
    columns = of_tokens(columns, model.tokens)
    moments = moments.assign({name: (("block", "call"), values) for name, values in columns.items()})
    return moments.assign_coords(call=("call", list(calls)))


def rounded_samples(samples: Any) -> int | None:
    """Checked, and rounded up to whole rows of quasi-random points; None stays the default."""
    if samples is None:
        return None
    return -(-integer("samples", samples, at_most=MOST_SAMPLES) // 16) * 16
