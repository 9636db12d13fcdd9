"""Squared Frobenius norm of the loss gradient with respect to each weight matrix, in the limit of infinite width.

For y = x W the gradient is x^T g, g the cotangent of y, and |x^T g|^2 = sum_ts (x_t . x_s) (g_t . g_s). Both Gram
matrices concentrate as the width grows, and cotangents are independent of what was passed forward, so that the
expectation is fan_in fan_out sum_ts K_ts Gamma_ts, with the second moments of this matrix's own input and output
cotangent: fan_in fan_out (T variance grad_variance + T (T - 1) covariance grad_covariance) for exchangeable tokens.

The gradient is with respect to the matrix as a network stores it (the modules of `propagate.build` do): its entries
have standard deviation gain / sqrt(fan_in), the gain being that of the model, the placement and the scaling together.
`logit_std` is in no matrix: it is a constant factor on the logits, beside the 1 / sqrt(head size) of every attention,
so that gradients of queries and keys are proportional to it. The gain of the FFN's output matrix includes the constant
that gives the FFN's output its size (see `Model.ffn_gain`), unless its input is normed. A normed projection has its
gain too, and its gradient falls as one over it, though what goes forward ignores it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagate.experts import Experts
from propagate.layers import Layer
from propagate.model import Model, ModelError
from propagate.norms import Norm
from propagate.scaling import Number
from propagate.sublayers import FFN, Attention, Sublayer, registered
from propagate.table import BY_MATRIX
from propagate.theory.finite.allowances import matrix_allowances
from propagate.theory.gaussian.activations import Maps, maps_of
from propagate.theory.pairs.moments import Moments
from propagate.theory.reading.blocks import Call
from propagate.theory.tokens.gram import Gram
from propagate.theory.tokens.kernels import Kernel, kernel_of
from propagate.theory.tokens.sublayers import of_means

Array = NDArray[np.float64]
Norms = dict[str, Any]
"""A number for each matrix, or one a replica."""
PROJECTIONS = ("query", "key", "value")
PARTS = ("gate", "in", "out")
MATRICES = (*PROJECTIONS, "attention_out", "router", *(f"ffn_{p}" for p in PARTS), *(f"shared_{p}" for p in PARTS))
"""In the order of the table; those of other descriptions come after."""


def gradient_columns(
    model: Model, norms: list[Norms], found: dict[str, Array], shape: tuple[int, ...], *, several: bool, wide: bool
) -> tuple[dict[str, Array], list[str]]:
    """`param_grad`, an array (block, *shape, matrix), and its allowance; and the names of the matrices, in order.

    Args:
        model: the network.
        norms: `block_gradients` of blocks 1 ... depth.
        found: the table's other columns, of several streams with these along the second axis.
        shape: of the starts, or of the replicas.
        several: whether there are several streams.
        wide: whether heads are taken for wide.
    """
    names = list(dict.fromkeys(itertools.chain(MATRICES, *norms)))
    names = [name for name in names if any(name in of_block for of_block in norms)]
    of_blocks = [dict.fromkeys(names, np.full(shape, np.nan)), *norms]
    stacked = [[np.broadcast_to(block.get(name, 0.0), shape) for name in names] for block in of_blocks]
    drifts = (found[f"{name}_allowance"] for name in ("variance", "grad_variance"))
    forward, back = (np.nanmax(drift, axis=1) if several else drift for drift in drifts)
    allowed = matrix_allowances(forward, back, model, names, wide=wide)
    values = np.moveaxis(np.array(stacked, dtype=float), 1, -1)
    return {BY_MATRIX: values, f"{BY_MATRIX}_allowance": allowed}, names


def block_gradients(layer: Layer, calls: Iterable[Call]) -> Norms:
    """Expected squared Frobenius norms of the gradients of a block's matrices, from the records of its calls.

    Of a matrix that a block has more than once, the sum; of experts, all together.

    Raises:
        ModelError: for a sublayer whose matrices are not known here; see `matrix_gradients`.

    Example: a linear FFN alone, on one token; both matrices see unit moments.
        >>> from propagate.theory.walks import walk
        >>> model, unit = Model("prenorm", 1, width=8, tokens=1, heads=1, activation="linear"), Moments(1.0, 0.0)
        >>> path = walk(model, unit, unit, exact=True)
        >>> round(block_gradients(model.at(1), path.calls[1])["ffn_out"], 9)
        256.0
    """
    total: Norms = {}
    for call in calls:
        if isinstance(call.description, Sublayer):
            for g, seen in call.arrived:
                for name, norm in gradients_of(call, g, seen, layer).items():
                    total[name] = total.get(name, 0.0) + norm
    return total


def gradients_of(call: Call, g: Any, seen: Any, layer: Layer) -> Norms:
    """Of the matrices of one call, by what is registered for its description."""
    found: Norms = registered(matrix_gradients.registry, call.description)(call.description, call, g, seen, layer)
    return found


@singledispatch
def matrix_gradients(description: Any, call: Call, g: Any, seen: Any, layer: Layer) -> Norms:
    """Of the matrices of one sublayer call, from its record and one entry of its `arrived`.

    Register one for a description of your own.

    Raises:
        ModelError: for one whose matrices are not known.
    """
    raise ModelError(f"param_grad does not cover {type(description).__name__}, got {description!r}")


def frobenius(tokens: int, x: Any, g: Any) -> Any:
    """Per entry of the matrix: the sum over pairs of tokens of the products of their second moments.

    Example: independent tokens, at both resolutions.
        >>> frobenius(3, Moments(1.0, 1.0), Moments(2.0, 2.0))
        6.0
        >>> import numpy as np
        >>> float(frobenius(3, Gram.of(np.eye(3)), Gram.of(2 * np.eye(3))))
        6.0
    """
    if isinstance(x, Gram):
        return (x.matrix * g.matrix).sum(axis=(-1, -2))
    return tokens * (x.variance * g.variance + (tokens - 1) * x.covariance * g.covariance)


def frobenius_of_differences(tokens: int, x: Any, g: Any) -> Any:
    """The same of a cotangent that sums to zero over tokens: differences of tokens alone count, however small.

    Example:
        >>> frobenius_of_differences(2, Moments(1.0, 1e-20), Moments(1.0, 2.0))
        2e-20
        >>> import numpy as np
        >>> x = Gram.exchangeable(1.0, 1e-20, 2)
        >>> float(frobenius_of_differences(2, x, Gram.of([[1.0, -1.0], [-1.0, 1.0]])))
        2e-20
    """
    if isinstance(x, Gram):
        return -(x.deviation * g.matrix).sum(axis=(-1, -2))
    return (tokens - 1) * x.deviation * g.deviation


@matrix_gradients.register
def _(description: Attention, call: Call, g: Any, sent: dict[str, Any], layer: Layer) -> Norms:
    """A projection's own cotangent is that which it sends back to the input over the variance of its matrix, also where
    a norm follows. Heads that share keys and values add up their cotangents, which are uncorrelated: the matrix is
    smaller, and the sum over its entries the same.
    """
    tokens, x = layer.tokens, call.entered
    norms = {"attention_out": description.inside * layer.width * frobenius(tokens, call.pull.heads, g)}
    for name in PROJECTIONS if description.logit_std else ("value",):
        # what the keys receive sums to zero over tokens, unless each is turned or stretched by itself
        balanced = name == "key" and name not in description.normed and description.rope is None
        of = frobenius_of_differences if balanced else frobenius
        found = of(tokens, x, sent[name]) if name in sent else 0.0 * frobenius(tokens, x, g)
        norms[name] = layer.width**2 * found / _square(getattr(description, f"{name}_gain"), name)
    return norms


def _square(gain: Number, name: str) -> Number:
    if gain == 0:
        raise ModelError(f"parameter_gradients needs gains that are not 0, got 0 for {name}")
    return gain * gain


@matrix_gradients.register
def _(description: FFN, call: Call, g: Any, seen: Any, layer: Layer) -> Norms:
    """The cotangent at a hidden unit is smaller by width / hidden than that at the output, and there are hidden / width
    as many entries: the hidden width appears in the output matrix alone.
    """
    x = call.entered
    kernel, before = _kernel(description, x), x.times(description.in_gain)
    after, scale = _hidden(description, kernel, before, layer.norm)
    norms = {"ffn_out": description.units * layer.width * frobenius(layer.tokens, after, g)}
    hidden = g.times(description.out_gain * scale)
    for name, slope in _slopes(kernel, before).items():
        norms[name] = layer.width**2 * frobenius(layer.tokens, x, slope.product(hidden))
    return norms


@matrix_gradients.register
def _(description: Experts, call: Call, g: Any, seen: Any, layer: Layer) -> Norms:
    """The routed experts' together and the shared ones' together; see those of an FFN.

    A routed expert's matrices meet only the tokens that chose it, by their gates: second moments are those of an FFN,
    times sum_j w_tj w_sj. The router's cotangent is what it sends back over the variance of its matrix.
    """
    experts, ffn, tokens, shared = description, description.expert, layer.tokens, description.shared
    x, pull = call.entered, call.pull
    kernel, before = _kernel(ffn, x), x.times(ffn.in_gain)
    value, scale = _hidden(ffn, kernel, before, layer.norm)
    hidden = g.times(ffn.out_gain * scale)
    entries_in, entries_out = layer.width**2, ffn.units * layer.width
    norms = {"ffn_out": entries_out / experts.split * frobenius(tokens, value.product(pull.overlap), g)}
    if shared:
        norms["shared_out"] = shared * entries_out * frobenius(tokens, value, g)
    for name, slope in _slopes(kernel, before).items():
        at_unit = slope.product(hidden)
        norms[name] = entries_in / experts.split * frobenius(tokens, x, at_unit.product(pull.overlap))
        if shared:
            norms[name.replace("ffn", "shared")] = shared * entries_in * frobenius(tokens, x, at_unit)
    norms["router"] = entries_in * frobenius(tokens, x, pull.router(g, seen)) / experts.router_std**2
    return norms


def _kernel(ffn: FFN, x: Any) -> Kernel:
    """The activation's maps at the resolution of x."""
    kind = ffn.activation, ffn.gate_gain
    return kernel_of(*kind) if isinstance(x, Gram) else _of_pairs(maps_of(*kind))


def _of_pairs(maps: Maps) -> Kernel:
    return Kernel(
        lambda x: Moments(*maps.value(*x)),  # type: ignore[arg-type, return-value]
        lambda x: Moments(*maps.slope(*x)),  # type: ignore[arg-type, return-value]
        None if maps.gate is None else _of_pairs(maps.gate),
    )


def _hidden(ffn: FFN, kernel: Kernel, before: Any, norm: Norm) -> tuple[Any, Any]:
    """What the output matrix reads, and by what the cotangent is multiplied from there to behind the activation.

    The factor is a norm's or, without, what the output matrix makes up for the activation's size with.
    """
    value: Any = kernel.value(before)
    if "hidden" not in ffn.normed:
        return value, 1 / math.sqrt(maps_of(ffn.activation).value(1.0, 0.0)[0])
    if norm.centred:  # which also takes the mean over hidden units out
        value = _less_mean(kernel, before, value)
    return value.times(value.norm_scale(norm.eps)), value.norm_scale(norm.eps)


def _less_mean(kernel: Kernel, before: Any, value: Any) -> Any:
    if isinstance(before, Gram):
        return value.less(of_means(kernel, before))
    mean = kernel.value(Moments(before.variance, before.variance)).covariance  # type: ignore[arg-type, attr-defined]
    return Moments(value.variance - mean, value.deviation)


def _slopes(kernel: Kernel, before: Any) -> dict[str, Any]:
    """What multiplies the cotangent on its way into each input matrix: E s_t s_u."""
    if kernel.gate is None:
        return {"ffn_in": kernel.slope(before)}
    return {"ffn_in": kernel.gate.value(before), "ffn_gate": kernel.gate.slope(before).product(before)}
