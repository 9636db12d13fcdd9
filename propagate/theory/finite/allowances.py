"""How far a network of finite width may lie from the limit: a stated allowance, as one standard deviation.

A block leaves part of its input on the skip path and replaces the rest by fresh random vectors, whose squared lengths
and inner products fluctuate with relative variance of order 1/width. The mean logarithm of a second moment therefore
drifts by about 1/width for each unit of log(1 / kept), where `kept` is the share of the output's variance that the skip
path kept: log 4 a block for unscaled PostNorm, next to nothing with ScaleInit. A covariance drifts with the energy of
the tokens' mean and that of their deviations, each by its part. Further, backward:

- the first norm that a cotangent meets removes one of `width` directions: 1/width, once;
- the token-deviation mode receives about 1/width of the energy in the token-mean mode, once.

What a block adds, the share 1 - kept, is itself the mean over finitely many units, whose relative variance r moves the
mean logarithm by (1 - kept)^2 r / 2:

- hidden units, each of relative variance 1 to 3;
- heads, each with a choice of its own: at logits of variance v between tokens as alike as they are, of relative
  variance (0.4 + 0.12 v) / (tokens - 1) backward, without the growth forward, and of a single token's gradient
  tokens - 1 times as much (fitted to heads drawn as in `units`, 2 to 32 tokens, v to 30: within a third);
- heads of linear attention, whose output is a product of three Gaussian vectors: 2 + 6 / n of one token's, over n
  coordinates of a key (measured in heads of 4, with 6 tokens: 1.2 of their mean, 4 of a single one);
- where all of these pass a norm, what it divides by: the gradient grows by 1 / (2 heads), and by 8 over the coordinates
  if they were opened before (measured in one PreNorm block of 4, 8 and 16 heads at width 128, 256, 256: 0.13, 0.06 and
  0.04 of what comes through the branch, and opened before 0.19, 0.08 and 0.09);
- where they pass none of their own, norms of the branch or of the stream divide by it: 1 / heads both ways (measured in
  one block of 4 to 32 heads, 8 tokens, width 512: gradients 0.9 to 1 over heads of what comes through Peri-LN's branch,
  half as much in SpanNorm and PostNorm, whose covariances move by 0.3 to 0.6 over heads);
- where a norm divides by what one sublayer gave, alone, that sublayer's scarcity beyond 1 / width, of a token each for
  itself: the gradient's arithmetic mean grows by it, of what comes through the branch, as E[1 / x] of a mean of n terms
  does. Of values, 1 over the coordinates of all that heads share; of hidden units their relative variance (one block
  of Sandwich, Peri-LN and OLMo2 at width 256: with 16 and 32 coordinates 0.040 and 0.025, with 32 units of ReLU 0.023,
  of SwiGLU 0.096; PreNorm and PostNorm less than 0.004 with 16 coordinates);
- coordinates of the latents of latent attention, whose Gram matrix all heads share; of half as much forward. A token is
  attended to more by those that are like it in what it hands on: what a block adds grows by 0.6 v / (1 + v)^2 of
  (tokens - 1) / rank forward, at logits of variance v (measured in one block of 4 and 16 tokens, ranks 8 to 32,
  logit_std 0.5 to 2: within a third, 16 tokens; two thirds of it with 4);
- what all of this leaves single tokens of the last block to differ by in size, where the readout's norm divides by it
  (measured in one block of PreNorm, one head of 8 tokens, embedded tokens of variance 0.01: 0.07 of a stated 0.14);
- coordinates, of which dropout leaves 1 - p: the fourth moment of what is left is 3 / (1 - p). Measured (three
  placements, p = 0.9): backward up to this much, forward nothing.

Logits and their cotangents go through the same matrices of queries and keys: at logits of variance v the
gradient of what a block adds grows by about 0.3 v over the width (measured: Peri-LN, PreNorm and SpanNorm in heads of 4
and 16, logit_std 3 to 5, width 64 to 512). Up to v = 1 the constants above contain it. And what comes back through
queries and keys goes as the square of the tokens' deviation: where that is off by what is allowed forward, the gradient
of what a block adds is off by twice as much, as far as logits are wide (measured in a block of logit_std 4 behind one
whose latents have 16 coordinates: deviations 7 % more, gradients 9 %; at logit_std 1 2 %, of a deviation as far off).

Embedded tokens, last, have the second moments that they are given; a LayerNorm with eps that they meet before the first
block takes up to 1/width of them.

Heads, logits and hidden units are those of each block; of a dense FFN beside experts, what allows for more.

All vanish as 1/width; a test regresses the slope. It is no bound: measured drifts (width 512, 12 blocks of 24
placements, 640 draws) are 0.6 of it in the root mean square and reach 2. Signed and without such constants the same
drift is derived in `bias`, and the spread between networks in `fluctuations`, when asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagate.crossing import CrossAttention
from propagate.experts import Experts
from propagate.latent import LatentAttention
from propagate.layers import Layer
from propagate.model import Model
from propagate.outline import Block, Stream, outline
from propagate.recurrent import LinearAttention, Mixer
from propagate.sublayers import FFN, Attention
from propagate.theory.finite.scarce_units import of_denominator, of_ranks, of_shared_latents, of_state, wildness

DRIFT = 1.0
LEAK = 1.0
SAME_MATRICES = 0.3
NO_SKIP = 4.0  # units of log(1 / kept) for a block with hardly any skip path

Array = NDArray[Any]


def allowances(
    columns: dict[str, Array], model: Model, *, through_readout: bool = False, single_tokens: bool = False
) -> dict[str, Array]:
    """Relative allowance of each quantity, at every block; of covariances, and of deviations that are 0, relative to
    the variance.

    Args:
        columns: `variance`, `deviation`, `grad_variance`, `grad_deviation`, `skip_gain`; blocks along the first axis.
        model: the network.
        through_readout: the cotangent meets the readout's norm before the last block.
        single_tokens: the moments are those of single tokens, whose heads' choices no mean over tokens evens out.

    Example: a block that keeps all of its input on the skip path and adds nothing.
        >>> one = np.ones(2)
        >>> import numpy as np
        >>> names = ("variance", "deviation", "grad_variance", "grad_deviation", "skip_gain")
        >>> found = allowances(dict.fromkeys(names, one), Model("prenorm", depth=1, width=100, tokens=2, heads=1))
        >>> found["variance_allowance"].tolist(), found["grad_variance_allowance"].tolist()
        ([0.0, 0.0], [0.01, 0.0])
    """
    variance, skip = columns["variance"], columns["skip_gain"]
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = skip[:-1] / skip[1:] * variance[:-1] / variance[1:]
    return _of_kept(columns, kept, model, through_readout=through_readout, single_tokens=single_tokens)


def allowances_of_streams(
    columns: dict[str, Array], kept: Array, model: Model, *, single_tokens: bool = False
) -> dict[str, Array]:
    """The same for a placement of several streams, whose cotangent always enters behind the readout.

    Args:
        columns: as in `allowances`, streams along the second axis.
        kept: share of the variance that the skips of a block kept, least of all streams: what one stream loses, the
            others hear of through the branches.
        model: the network.
        single_tokens: as in `allowances`.
    """
    kept = np.broadcast_to(kept[:, None], (len(kept), *columns["variance"].shape[1:]))
    return _of_kept(columns, kept, model, through_readout=True, single_tokens=single_tokens)


def _of_kept(
    columns: dict[str, Array], kept: Array, model: Model, *, through_readout: bool, single_tokens: bool = False
) -> dict[str, Array]:
    variance, tokens, width = columns["variance"], model.tokens, model.width
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = np.nan_to_num(np.clip(np.log(1 / kept), 0.0, NO_SKIP), nan=NO_SKIP)
        distinct = np.nan_to_num(columns["deviation"][:-1] / variance[:-1], nan=1.0)
    kept = np.exp(-lost)
    drift = DRIFT * (1 + tokens / width) / width * lost
    scarce = _scarce(model, kept, distinct, 1 if single_tokens else max(tokens - 1, 1))
    none = np.zeros((1, *variance.shape[1:]))
    start = none + _embedding(model)
    forward = np.concatenate([start, start + np.cumsum(drift + scarce[0], axis=0)])
    of_logits = _same_matrices(model, kept, distinct) + _heard(model, kept, distinct, forward[:-1])
    back = np.cumsum((drift + scarce[1] + of_logits)[::-1], axis=0)[::-1]
    back = np.concatenate([back + 1 / width, none + (1 / width if through_readout else 0.0)])
    if through_readout and _normed_readout(model):
        single = _scarce(model, kept, distinct, 1)[0] + np.square(1 - kept) / 2 * _coordinates(model)
        back = back + _varying(single, kept)
    mean_mode = columns["grad_variance"] - columns["grad_deviation"] * (tokens - 1) / tokens
    deviation = columns["grad_deviation"]  # where it is 0, what leaks into it is relative to the variance
    apart = np.where(deviation != 0, deviation, columns["grad_variance"])
    apart = np.where(apart != 0, apart, 1.0)
    leak = np.where(back > 0, LEAK / width * mean_mode / apart, 0.0)
    parts = []
    for prefix in ("", "grad_"):
        size = columns[f"{prefix}variance"]
        parts.append(1 - (1 - 2 / tokens) * columns[f"{prefix}deviation"] / np.where(size != 0, size, 1.0))
    return {
        "variance_allowance": forward,
        "covariance_allowance": forward * parts[0],
        "deviation_allowance": forward,
        "grad_variance_allowance": back,
        "grad_covariance_allowance": back * parts[1],
        "grad_deviation_allowance": back + leak,
    }


def _embedding(model: Model) -> float:
    """What the embedded tokens, whose second moments are exact, lose in a LayerNorm beside eps: the mean over their
    coordinates, 1 / width of them. Without eps the norm gives it back.
    """
    norm, block = model.at(0).norm, Block(0, model.depth)
    if not (norm.centred and norm.eps):
        return 0.0
    model.equations.embed(Stream(), block)
    return any(call.verb == "norm" for call in block.made) / model.width


def _coordinates(model: Model) -> float:
    """What dropout adds to the relative variance of a token's size."""
    return 3 * model.dropout / (1 - model.dropout) / model.width


def _varying(added: Array, kept: Array) -> Array:
    """By how much the size of what leaves the last block varies, of what each block added and of what it kept."""
    found: Array = np.zeros_like(added[0])
    for new, share in zip(added, kept, strict=True):
        found = np.square(share) * found + new
    return found


def _normed_readout(model: Model) -> bool:
    """Whether the readout divides by the size of a stream."""
    streams, block = model.equations.embed(Stream(), Block(0, model.depth)), Block(model.depth + 1, model.depth)
    model.equations.readout(streams, block)
    return any(call.verb == "norm" for call in block.made)


def _scarce(model: Model, kept: Array, distinct: Array, evened: int) -> tuple[Array, Array]:
    """What few heads, hidden units and coordinates add at each block, forward and backward: half a relative variance.

    Args:
        model: the network.
        kept: share of each block's output that its skips kept.
        distinct: deviation over variance of what enters it.
        evened: over how many tokens a head's choices are evened out.
    """
    logits = _logit_variance(model, distinct)
    choice = 0.4 * logits / (logits + 0.3)
    units = _over_blocks([_of_units(layer) for layer in layers_of(model)], distinct)
    coordinates = _coordinates(model)
    share = np.square(1 - kept) / 2
    count = _over_blocks([layer.attention.heads for layer in layers_of(model)], distinct)
    recurrent = _over_blocks([of_state(layer.attention) for layer in layers_of(model)], distinct)
    heads = [(answer + recurrent) / evened / count for answer in (choice, choice + 0.12 * logits)]
    ranks = [of_ranks(layer.attention, model.tokens) for layer in layers_of(model)]
    of_values, of_queries = (_over_blocks([float(one[i]) for one in ranks], distinct) for i in range(2))
    latents = of_values + of_queries * choice
    divided = [of_denominator(layer.attention) for layer in layers_of(model)]
    normed = [(1 - kept) * _over_blocks([both[way] for both in divided], distinct) for way in range(2)]
    alone = (1 - kept) * _over_blocks(_divided_alone(model), distinct)
    alike = _over_blocks([of_shared_latents(layer.attention, model.tokens) for layer in layers_of(model)], distinct)
    shared = 0.6 * (1 - kept) * alike * logits / np.square(1 + logits)
    forward = share * (heads[0] + units + latents) + shared + normed[0]
    return forward, share * (heads[1] + units + 2 * latents + coordinates) + normed[1] + alone


def _divided_alone(model: Model) -> list[float]:
    """Of each block, the scarcity beyond 1 / width of the scarcest sublayer that a norm divides by alone.

    Outlines of all blocks are asked for only where a sublayer is scarce, or one is applied that no field describes.
    """
    first = outline(model.equations, model.depth, 1)
    own = [max(_scarcity(kind) for kind in _own(layer).values()) > 1 / model.width for layer in layers_of(model)]
    if not any(own) and all(call.description is None for call in first):
        return [0.0] * model.depth
    found = []
    for index, layer in enumerate(layers_of(model), 1):
        calls = outline(model.equations, model.depth, index)
        divided = [call.reads for call in calls if call.verb == "norm" and call.reads is not None]
        kinds = (_own(layer).get(c.verb) if c.description is None else layer.in_force(c.description) for c in divided)
        found.append(max((_scarcity(kind) - 1 / model.width for kind in kinds), default=0.0))
    return [max(scarce, 0.0) for scarce in found]


def _own(layer: Layer) -> dict[str, Any]:
    """What a block's verbs call."""
    return {"attention": layer.attention, "ffn": layer.ffn} | ({"experts": layer.experts} if layer.experts else {})


def _scarcity(kind: Any) -> float:
    """Relative variance of the mean square of what a sublayer gives a token, as far as its units are few."""
    if isinstance(kind, Attention):
        return 1 / (kind.kv_heads * kind.size)
    if isinstance(kind, CrossAttention):
        return 1 / (kind.heads * kind.size)
    if isinstance(kind, LatentAttention):
        return 1 / min(kind.rank, kind.heads * kind.of_value)
    if isinstance(kind, FFN):
        return wildness(kind.activation) / kind.units
    if isinstance(kind, Experts):
        return _scarcity(kind.expert)
    return 0.0  # linear attention, whose denominators have a law of their own; a norm of a norm


def scarcity(model: Model) -> float:
    """The largest relative variance that few hidden units or few heads leave to a block's output, of distinct tokens.

    Example:
        >>> scarcity(Model("prenorm", depth=1, width=16, heads=2, logit_std=0.0, ffn_ratio=0.5))
        0.125
    """
    units = max(map(_of_units, layers_of(model)))
    logits = np.square(logit_stds(model))
    choices = (0.4 * logits / (logits + 0.3) + 0.12 * logits) / max(model.tokens - 1, 1)
    return float(max(units, *(choices / [layer.attention.heads for layer in layers_of(model)])))


def _same_matrices(model: Model, kept: Array, distinct: Array) -> Array:
    """What each block adds backward because logits and their cotangents share their matrices."""
    logits = _logit_variance(model, distinct)
    return np.asarray(SAME_MATRICES * (1 - kept) * np.maximum(logits - 1, 0.0) / model.width)


def _heard(model: Model, kept: Array, distinct: Array, forward: Array) -> Array:
    """What each block adds backward because what it hears is off by what is allowed forward, and its logits by that."""
    logits = _logit_variance(model, distinct)
    return np.asarray(2 * (1 - kept) * forward * (1 - 1 / np.maximum(logits, 1.0)))


def _logit_variance(model: Model, distinct: Array) -> Array:
    """Of the logits of each block, of tokens of variance 1 that are as alike as those that enter."""
    return np.asarray(np.square(_over_blocks(logit_stds(model), distinct)) * distinct)


def layers_of(model: Model) -> list[Layer]:
    """Blocks 1 ... depth."""
    return [model.at(index) for index in range(1, model.depth + 1)]


def logit_stds(model: Model) -> list[float]:
    """Of each block, gains of queries and keys included."""
    return [_logit_std(layer.attention, model.width) for layer in layers_of(model)]


def _logit_std(kind: Mixer, width: int) -> float:
    if isinstance(kind, LatentAttention):
        return math.sqrt(kind.logit_power(width))
    if isinstance(kind, LinearAttention):
        return 0.0
    return float(kind.logit_std * kind.query_gain * kind.key_gain)


def experts_of(layer: Layer) -> list[tuple[FFN, int]]:
    """The FFN, or each expert before it is cut, and into how many each is; both of a block that may call both."""
    kinds = (layer.ffn,) if layer.experts is None else (layer.ffn, layer.experts)
    return [(kind.expert, kind.split) if isinstance(kind, Experts) else (kind, 1) for kind in kinds]


def _of_units(layer: Layer) -> float:
    """Relative variance of a hidden unit, over their number: of the FFN or an expert where that is the most."""
    return max(_scarcity(ffn) for ffn, _ in experts_of(layer))


def _over_blocks(values: Sequence[float], like: Array) -> Array:
    """A number for each of the blocks along the first axis of an array."""
    return np.array(values, dtype=float).reshape(-1, *(1,) * (like.ndim - 1))


def call_allowances(forward: Array, width: int) -> Array:
    """Relative allowance of what a sublayer call gives, at every block: that of the streams that enter the block, and
    the most that one block can add.

    Args:
        forward: `variance_allowance`, blocks along the first axis; of several streams, those along the second.
        width: of the model.

    Example:
        >>> call_allowances(np.array([0.0, 0.01, 0.02]), width=800).tolist()
        [nan, 0.005, 0.015]
    """
    entering = forward if forward.ndim == 1 else np.nanmax(forward, axis=1)
    return np.concatenate([[np.nan], entering[:-1] + NO_SKIP * DRIFT / width])


def matrix_allowances(
    forward: Array, back: Array, model: Model, matrices: Sequence[str], *, wide: bool = False
) -> Array:
    """Relative allowance of `param_grad`, of shape (blocks, ..., matrices).

    A matrix's gradient depends on the forward moments up to its block's output and on the cotangents from there on.
    Queries' and keys' are proportional to the square of the deviation, whose arithmetic mean is off by four times as
    much; they meet the token Gram matrix squared, whose entries off the diagonal fluctuate by 1 / sqrt(width): tokens
    / width more; and they alone notice, at leading order, that a head has few coordinates where it was taken for wide:
    logit_std^2 / head size, the gains of queries and keys included, of which half was measured in one block. The FFN's
    matrices notice how few hidden units it or each expert has, whose mean square fluctuates, where a norm follows: 2
    over their number. (Gram matrices of 8 tokens at width 96: +0.08 against 8 / 96.)

    Args:
        forward, back: allowances of the variance and of that of the gradient, blocks along the first axis.
        model: the network.
        matrices: names, in order.
        wide: whether heads were taken for wide.
    """
    layers = layers_of(model)
    squares, small, scarce = (
        _over_blocks([of_blocks[0], *of_blocks], forward)  # block 0 has no matrix
        for of_blocks in (
            np.square(logit_stds(model)),
            [model.width / layer.attention.size / 2 if wide else 0 for layer in layers],
            [max(2 * split / ffn.units for ffn, split in experts_of(layer)) for layer in layers],
        )
    )
    of_block = np.full_like(forward, np.nan)
    of_block[1:] = forward[1:] + back[:-1]
    of_logits = 3 * forward + (model.tokens + squares * small) / model.width
    more = dict.fromkeys(("query", "key", "query_down", "key_rotary"), of_logits)
    more |= dict.fromkeys(("ffn_gate", "ffn_in", "ffn_out"), scarce)
    return np.stack([of_block + more.get(name, 0.0) for name in matrices], axis=-1)
