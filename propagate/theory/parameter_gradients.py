"""Squared Frobenius norm of the loss gradient with respect to each weight matrix, in the limit of infinite width.

For y = x W the gradient is x^T g, g the cotangent of y, and |x^T g|^2 = sum_ts (x_t . x_s) (g_t . g_s). Both Gram
matrices concentrate as the width grows, and cotangents are independent of what was passed forward, so that the
expectation is fan_in fan_out (T variance grad_variance + T (T - 1) covariance grad_covariance), with the moments of
this matrix's own input and output cotangent.

The gradient is with respect to the matrix as a network stores it (the modules of `propagate.build` do): its entries
have standard deviation gain / sqrt(fan_in), the gain being that of the model, the placement and the scaling together.
`logit_std` is in no matrix: it is a constant factor on the logits, beside the 1 / sqrt(head size) of every attention,
so that gradients of queries and keys are proportional to it. The gain of the FFN's output matrix includes the constant
that gives the FFN's output its size (see `Model.ffn_gain`), unless its input is normed. A normed projection has its
gain too, and its gradient falls as one over it, though what goes forward ignores it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from propagate.model import Model, ModelError
from propagate.placement import join, split
from propagate.scaling import Gains
from propagate.theory.activations import ACTIVATIONS, Activation
from propagate.theory.blocks import Block, State, Stream, Sublayer
from propagate.theory.functions import Scalar
from propagate.theory.moments import Combination, Joint, Moments, correlated
from propagate.theory.network import Path, block_of
from propagate.theory.sublayers import NOTHING, attention_paths, projection_powers, size_of

Norms = dict[str, Scalar]
MATRICES = ("query", "key", "value", "attention_out", "ffn_gate", "ffn_in", "ffn_out")


def parameter_gradients(model: Model, path: Path, head_size: float | None = None) -> dict[str, list[Scalar]]:
    """Expected squared Frobenius norms of the gradients of every block's matrices.

    Args:
        model: the network.
        path: its moments.
        head_size: stands in for the model's own.

    Returns:
        A list over blocks 1 ... depth for each matrix; of a matrix that a block has more than once, the sum; 0 where a
        block has none.

    Example: a linear FFN alone, on one token; both matrices see unit moments.
        >>> from propagate.placements import PreNorm
        >>> from propagate.theory.network import propagate_moments
        >>> model, unit = Model("prenorm", 1, width=8, tokens=1, heads=1, activation="linear"), Moments(1.0, 0.0)
        >>> found = parameter_gradients(model, propagate_moments(model, unit, unit))
        >>> round(found["ffn_out"][0], 9)
        256.0
    """
    of_blocks = [
        _of_block(
            model,
            index,
            head_size or model.head_size,
            State(path.forward[index - 1], path.layouts[index - 1]),
            path.backward[index],
        )
        for index in range(1, model.depth + 1)
    ]
    used = [name for name in MATRICES if any(name in norms for norms in of_blocks)]
    return {name: [norms.get(name, 0.0) for norms in of_blocks] for name in used}


def _of_block(model: Model, index: int, head_size: float, entering: State, leaving: Joint) -> Norms:
    """A block's equations again, its sublayers observed while its cotangents return."""
    block, gains, total = block_of(model, index, head_size), model.gains(index), dict[str, Scalar]()

    def observed(sublayer: Sublayer, norms: Callable[..., Norms]) -> Sublayer:
        def apply(x: Moments, normed: frozenset[str]) -> tuple[Moments, Callable[[Moments], Moments]]:
            output, pull = sublayer(x, normed)

            def observing_pull(g: Moments) -> Moments:
                for name, norm in norms(model, gains, x, g, normed).items():
                    total[name] = total.get(name, 0.0) + norm
                returned: Moments = pull(g)
                return returned

            return output, observing_pull

        return apply

    block = replace(
        block,
        attention_map=observed(block.attention_map, partial(attention_gradients, head_size=head_size)),
        ffn_map=observed(block.ffn_map, ffn_gradients),
    )
    _pull(model.equations.block, block, entering, leaving)
    return total


def _pull(equations: Callable[[Any, Block], Any], block: Block, entering: State, leaving: Joint) -> None:
    """Read the equations and send the cotangents back, once: every sublayer sees the one that arrives at it."""
    sources = [Stream(Combination.of(atom), block.tape) for atom in correlated(entering.joint)]
    streams, _ = split(equations(join(sources, entering.layout), block), Stream)
    block.tape.pull(streams, [Combination.of(atom) for atom in correlated(leaving)], sources)
    block.tape.steps.clear()


def frobenius(tokens: int, x: Moments, g: Moments) -> Scalar:
    """Per entry of the matrix: T variance grad_variance + T (T - 1) covariance grad_covariance.

    Example: independent tokens.
        >>> frobenius(3, Moments(1.0, 1.0), Moments(2.0, 2.0))
        6.0
    """
    return tokens * (x.variance * g.variance + (tokens - 1) * x.covariance * g.covariance)


def attention_gradients(
    model: Model, gains: Gains, x: Moments, g: Moments, normed: frozenset[str] = NOTHING, *, head_size: float
) -> Norms:
    """Of the attention's matrices, from the moments of its input and of the cotangent at its output.

    A projection's own cotangent is that which it sends back to the input over the variance of its matrix. Of a normed
    one it is smaller by that matrix's gain, which the norm takes out.

    Raises:
        ModelError: for a gain of 0 where a gradient is one over it.
    """
    tokens, entries = model.tokens, model.width**2
    powers = projection_powers(gains, x, normed)
    g_heads = g.times(gains.attention_out)
    if tokens == 1:  # the one weight is 1 whatever the logits
        output, sent = x, {"value": frobenius(1, x, g_heads)}
        if model.logit_std:
            sent |= {"query": 0.0 * x.variance, "key": 0.0 * x.variance}
    else:
        paths = attention_paths(tokens, model.logit_std**2 * powers.query * powers.key, x, size_of(normed, head_size))
        output, through = paths.output, paths.pull(g_heads)
        sent = {"value": frobenius(tokens, x, through.value)}
        if model.logit_std:
            sent["query"] = frobenius(tokens, x, through.query)
            sent["key"] = (tokens - 1) * x.deviation * through.key.deviation  # they sum to zero over tokens
    value_power = 1 / output.variance if "heads" in normed else powers.value
    norms = {"attention_out": entries * frobenius(tokens, Moments(*(value_power * m for m in output)), g)}
    if normed & {"value", "heads"}:
        norms["value"] = entries * sent["value"] * value_power / _square(gains.value, "value")
    else:
        norms["value"] = entries * sent["value"]
    for name in ("query", "key") if model.logit_std else ():
        norms[name] = entries * sent[name] * value_power / _square(getattr(gains, name), name)
    return norms


def _square(gain: Scalar, name: str) -> Scalar:
    if gain == 0:
        raise ModelError(f"parameter_gradients needs gains that are not 0, got 0 for {name}")
    return gain * gain


def ffn_gradients(model: Model, gains: Gains, x: Moments, g: Moments, normed: frozenset[str] = NOTHING) -> Norms:
    """Of the FFN's matrices, from the moments of its input and of the cotangent at its output.

    The cotangent at a hidden unit is smaller by width / hidden than that at the output, and there are hidden / width
    as many entries: the hidden width appears in the output matrix alone.
    """
    activation, tokens = ACTIVATIONS[model.activation], model.tokens
    before = x.times(gains.ffn_in)
    value, drop = activation.value(*before)
    if "hidden" in normed:  # a LayerNorm also takes the mean over hidden units out
        left = activation.value(before.variance, before.variance)[1] if model.norm == "layer" else value
        after, scale = Moments(1.0, drop / left), 1 / left
    else:
        after, scale = Moments(value, drop), 1 / activation.value(1.0, 0.0)[0]
    hidden = g.times(gains.ffn_out).scaled(scale, 1.0)
    norms = {"ffn_out": model.hidden * model.width * frobenius(tokens, after, g)}
    for name, slope in _slopes(activation, before).items():
        at_unit = Moments(
            slope.variance * hidden.variance, slope.variance * hidden.deviation + slope.deviation * hidden.covariance
        )
        norms[name] = model.width**2 * frobenius(tokens, x, at_unit)
    return norms


def _slopes(activation: Activation, before: Moments) -> dict[str, Moments]:
    """What multiplies the cotangent on its way into each input matrix: E s_t^2, and its drop to E s_t s_s."""
    if activation.gate is None:
        return {"ffn_in": Moments(*activation.slope(*before))}
    slope, value = Moments(*activation.gate.slope(*before)), Moments(*activation.gate.value(*before))
    return {
        "ffn_in": value,
        "ffn_gate": Moments(
            slope.variance * before.variance, slope.variance * before.deviation + slope.deviation * before.covariance
        ),
    }
