"""How far the first step of a network of finite width may lie from the limit: relative, as one standard deviation.

A step depends on the Gram matrices of a matrix's input and cotangent beyond their means. Their entries fluctuate from
network to network: relative variance r = 1 / width of a Gaussian stream, more by what earlier blocks have drifted, of
hidden units as their fourth moment says, and of heads, each with a choice of its own, one over their number. To second
order that moves

- what SGD does to a matrix's own output, tr K Gamma K, by half of r times the crowding
  tr K tr (K Gamma) / tr (K Gamma K), large where the cotangent meets the input in its small modes alone, as that of
  keys does;
- the nuclear norm of the gradient, what the sign makes of it and what is spanned by fewer modes than tokens, all of
  which see how uneven the modes are: tokens times r / 8. (Of heads, sqrt(8 tokens) r / 8: a head's own Gram matrix has
  some modes, however many tokens.)

Measured errors are .5 of these in the root mean square (PostNorm and PreNorm, width 64 to 256, 8 and 32 tokens, 4 to 32
heads, ReLU and SwiGLU), and up to 1.3.

What one coordinate of the input does with itself, n tr K beside n (n - 1) M, is less by up to 2 / pi where the Gram
matrix of a start or behind a norm is exact, so that coordinates are not quite independent.

First-order effects are those of the gradient itself, in full or by half where a step does not grow with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from propagate.layers import Layer
from propagate.model import Model
from propagate.optimizers import SGD, Muon, Optimizer
from propagate.outline import outline
from propagate.recurrent import LinearAttention
from propagate.theory.finite.allowances import Array, experts_of, layers_of, logit_stds
from propagate.theory.finite.scarce_units import wildness

CHOICE = 0.5  # of what heads choose, measured with Muon at 4, 8 and 32 heads, 8 and 32 tokens
CROWDED = 0.5  # of the crowding
FEW = 4.0  # of what passes a norm of n coordinates, over n - 4: the variance of its inverse square is 2 / (n - 4)
EXACT = 2 / np.pi


def step_allowances(
    gradient: Array,
    forward: Array,
    crowding: Array,
    softness: Array,
    few: Array,
    model: Model,
    optimizer: Optimizer,
    matrices: Sequence[str],
) -> dict[str, Array]:
    """Relative allowances of `predict_step`, (blocks, matrices).

    Args:
        gradient: that of `param_grad`.
        forward: of the variance of the stream, (blocks,), the most of all streams.
        crowding, softness, few: see `updates.Step`, of every matrix; the last is its `uneven`.
        model: the network.
        optimizer: its optimiser.
        matrices: names, in order.
    """
    blocks = zip(range(1, model.depth + 1), layers_of(model), logit_stds(model), strict=True)
    noise = np.array([_noise(model, *block, matrices) for block in blocks])
    read, met = np.moveaxis(np.concatenate([np.full((1, *noise.shape[1:]), np.nan), noise]), -1, 0)
    entering = np.concatenate([[np.nan], forward[:-1]])[:, None]
    uneven = model.tokens * (read + met + entering) / 8
    fall, ratio = gradient / 2 + uneven, softness * (gradient / 2 + uneven)
    if isinstance(optimizer, SGD):
        own, fall, ratio = gradient + CROWDED * crowding * (read + entering), gradient, gradient / 2
    elif isinstance(optimizer, Muon):
        own = entering + uneven / 2
    else:
        own = entering + uneven + EXACT * crowding
    square = 2 / model.width**2  # the norm of the matrix itself
    found = {"own_change": own, "own_covariance": own, "first_order_fall": fall, "update_ratio": ratio + square + few}
    return {f"{name}_allowance": values + 0 * gradient for name, values in found.items()}


def end_allowances(
    columns: dict[str, Array],
    forward: Array,
    back: Array,
    repeated: float,
    model: Model,
    optimizer: Optimizer,
    matrices: Sequence[str],
) -> dict[str, Array]:
    """Columns with the allowances of the embedding, at block 0, and of the unembedding, at the last, put in.

    The Gram matrix of rows that tokens have to themselves is exact, and so is what Muon and signs make of it; that of
    the cotangents at logits is, for vocabularies that are large, but for which targets are the same.
    """
    found, stream = {name: values.copy() for name, values in columns.items()}, 1 / model.width
    uneven = model.tokens * stream / 8
    linear = isinstance(optimizer, SGD)
    for name, index, gradient, read in (
        ("embedding", 0, back[0], 0.0),
        ("unembedding", -1, forward[-1], stream + forward[-1]),
    ):
        place = index, matrices.index(name)
        own = gradient + read if linear else read + uneven
        several = {"own_change": own, "own_covariance": own}
        several["first_order_fall"] = gradient if linear else gradient / 2 + uneven
        several["update_ratio"] = (gradient / 2 if linear else uneven) + 2 * stream**2
        for quantity, value in several.items():
            found[f"{quantity}_allowance"][place] = value + repeated
    return found


def _noise(
    model: Model, index: int, layer: Layer, logit_std: float, matrices: Sequence[str]
) -> list[tuple[float, float]]:
    """Of each matrix: relative variance of an entry of the Gram matrices of its input and of its cotangent."""
    attention, stream, logits = layer.attention, 1 / model.width, logit_std**2
    assert not isinstance(attention, LinearAttention)  # which is not covered
    few = (8 / model.tokens) ** 0.5 / attention.kv_heads
    heads = CHOICE * few * logits / (logits + 0.3)
    free = attention.size - layer.norm.centred
    tails = FEW * few / max(free - 4, 0.5)  # of what passes the norm of a small head
    normed = {
        *attention.normed,
        *(name for call in outline(model.equations, model.depth, index) for name in call.normed),
    }
    units = max(3.5 * wildness(ffn.activation) / ffn.units for ffn, _ in experts_of(layer))
    read = {"attention_out": stream + heads / model.tokens, "ffn_out": units}
    met = {name: stream + heads + tails * (name in normed) for name in ("query", "key", "value")}
    met |= dict.fromkeys(("ffn_in", "ffn_gate"), units)
    return [(read.get(name, stream), met.get(name, stream)) for name in matrices]
