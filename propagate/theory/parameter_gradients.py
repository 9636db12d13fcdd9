"""Squared Frobenius norm of the loss gradient with respect to each weight matrix, in the limit of infinite width.

For y = x W the gradient is x^T g, g the cotangent of y, and |x^T g|^2 = sum_ts (x_t . x_s) (g_t . g_s). Both Gram
matrices concentrate as the width grows, and cotangents are independent of what was passed forward, so that the
expectation is fan_in fan_out (T variance grad_variance + T (T - 1) covariance grad_covariance), with the moments of
this matrix's own input and output cotangent.

The gradient is with respect to the matrix as a network stores it, with no factor outside: its entries have standard
deviation gain / sqrt(fan_in). The gain of queries and keys is the square root of `logit_std` each; that of the FFN's
output matrix includes the constant that gives the FFN's output its size (see `Model.ffn_gain`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from propagate.model import Model
from propagate.theory.activations import ACTIVATIONS, Activation
from propagate.theory.blocks import Block, Stream
from propagate.theory.functions import Scalar
from propagate.theory.moments import Atom, Combination, Moments
from propagate.theory.sublayers import Sublayer, attention_paths

Norms = dict[str, Scalar]
MATRICES = ("query", "key", "value", "attention_out", "ffn_gate", "ffn_in", "ffn_out")


def parameter_gradients(
    model: Model,
    blocks: Callable[[int], Block],
    forward: list[Moments],
    backward: list[Moments],
) -> dict[str, list[Scalar]]:
    """Expected squared Frobenius norms of the gradients of every block's matrices.

    Args:
        model: the network.
        blocks: the block at an index.
        forward, backward: moments of the stream and of its cotangent, at blocks 0 ... depth.

    Returns:
        A list over blocks 1 ... depth for each matrix; of a matrix that a block has more than once, the sum.

    Example: a linear FFN alone, on one token; both matrices see unit moments.
        >>> from propagate.placements import PreNorm
        >>> from propagate.theory.predict import block_of
        >>> model, unit = Model("prenorm", 1, width=8, tokens=1, heads=1, activation="linear"), Moments(1.0, 0.0)
        >>> found = parameter_gradients(model, lambda index: block_of(model, index), [unit, unit], [unit, unit])
        >>> round(found["ffn_out"][0], 9)
        256.0
    """
    found: dict[str, list[Scalar]] = {}
    for index in range(1, model.depth + 1):
        norms = _of_block(model, blocks(index), forward[index - 1], backward[index])
        for name, norm in norms.items():
            found.setdefault(name, []).append(norm)
    return found


def _of_block(model: Model, block: Block, x: Moments, g: Moments) -> Norms:
    """A block's equations again, its sublayers observed while one cotangent returns."""
    gains, total = model.gains(max(block.index, 1)), dict[str, Scalar]()

    def observed(sublayer: Sublayer, norms: Callable[[Moments, Moments], Norms]) -> Sublayer:
        def apply(entering: Moments) -> tuple[Moments, Callable[[Moments], Moments]]:
            output, pull = sublayer(entering)

            def observing_pull(arriving: Moments) -> Moments:
                for name, norm in norms(entering, arriving).items():
                    total[name] = total.get(name, 0.0) + norm
                return pull(arriving)

            return output, observing_pull

        return apply

    def attention_norms(entering: Moments, arriving: Moments) -> Norms:
        return attention_gradients(model, gains.value, gains.attention_out, entering, arriving)

    def ffn_norms(entering: Moments, arriving: Moments) -> Norms:
        return ffn_gradients(model, gains.ffn_in, gains.ffn_out, entering, arriving)

    block = replace(
        block,
        attention_map=observed(block.attention_map, attention_norms),
        ffn_map=observed(block.ffn_map, ffn_norms),
    )
    source = Stream(Combination.of(Atom(x)), block.tape)
    output = model.equations.block(source, block)
    block.tape.pull(output, Combination.of(Atom(g)), source)
    block.tape.steps.clear()
    return total


def frobenius(tokens: int, x: Moments, g: Moments) -> Scalar:
    """Per entry of the matrix: T variance grad_variance + T (T - 1) covariance grad_covariance.

    Example: independent tokens.
        >>> frobenius(3, Moments(1.0, 1.0), Moments(2.0, 2.0))
        6.0
    """
    return tokens * (x.variance * g.variance + (tokens - 1) * x.covariance * g.covariance)


def attention_gradients(model: Model, gain_value: Scalar, gain_out: Scalar, x: Moments, g: Moments) -> Norms:
    """Of the attention's matrices, from the moments of its input and of the cotangent at its output."""
    tokens, entries = model.tokens, model.width**2
    g_heads = g.times(gain_out)
    if tokens == 1:  # the one weight is 1 whatever the logits
        norms = {
            "value": entries * frobenius(1, x, g_heads),
            "attention_out": entries * frobenius(1, x.times(gain_value), g),
        }
        return ({"query": 0.0 * x.variance, "key": 0.0 * x.variance} if model.logit_std else {}) | norms
    paths = attention_paths(tokens, model.logit_std**2, x)
    through = paths.pull(g_heads)
    norms = {
        "value": entries * frobenius(tokens, x, through.value),
        "attention_out": entries * frobenius(tokens, paths.output.times(gain_value), g),
    }
    if not model.logit_std:
        return norms
    per_logit = gain_value * gain_value / model.logit_std  # `through` has met the query or key matrix, of this variance
    key = (tokens - 1) * x.deviation * through.key.deviation  # the keys' cotangents sum to zero over tokens
    return {
        "query": entries * per_logit * frobenius(tokens, x, through.query),
        "key": entries * per_logit * key,
    } | norms


def ffn_gradients(model: Model, gain_in: Scalar, gain_out: Scalar, x: Moments, g: Moments) -> Norms:
    """Of the FFN's matrices, from the moments of its input and of the cotangent at its output.

    The cotangent at a hidden unit is smaller by width / hidden than that at the output, and there are hidden / width
    as many entries: the hidden width appears in the output matrix alone.
    """
    activation, tokens = ACTIVATIONS[model.activation], model.tokens
    before = x.times(gain_in)
    size = activation.value(1.0, 0.0)[0]
    hidden = g.times(gain_out).times(size**-0.5)
    norms = {"ffn_out": model.hidden * model.width * frobenius(tokens, Moments(*activation.value(*before)), g)}
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
