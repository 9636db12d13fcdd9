"""How far a network of finite width may lie from the limit: a stated allowance, not a fitted one.

A block leaves part of its input on the skip path and replaces the rest by fresh random vectors, whose squared lengths
and inner products fluctuate with relative variance of order 1/width. The mean logarithm of a second moment therefore
drifts by about 1/width for each unit of log(1 / kept), where `kept` is the share of the output's variance that the skip
path kept: log 4 a block for unscaled PostNorm, next to nothing with ScaleInit. Measured drifts (40 networks of five
placements, width 128, 8 blocks, 400 draws) reach 1.2 / width a unit at depth, and 2.2 +- 0.4 in Peri-LN's first block;
the allowance is 2. Further, backward:

- the first norm that a cotangent meets removes one of `width` directions: 1/width, once;
- the token-deviation mode receives up to 2/width of the energy in the token-mean mode, once.

All vanish as 1/width; a test regresses the slope. Signed and without such constants the same drift is derived in
`bias`, and the spread between networks in `fluctuations`: for exchangeable tokens, when asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagate.model import Model

DRIFT = 2.0
LEAK = 2.0
NO_SKIP = 4.0  # units of log(1 / kept) for a block with hardly any skip path

Array = NDArray[Any]


def allowances(
    columns: dict[str, Array], width: int, tokens: int, *, through_readout: bool = False
) -> dict[str, Array]:
    """Relative allowance of each quantity, at every block; of covariances, relative to the variance.

    Args:
        columns: `variance`, `grad_variance`, `grad_deviation` and `skip_gain`, blocks along the first axis.
        width, tokens: of the model.
        through_readout: the cotangent meets the readout's norm before the last block.

    Example: a block that keeps all of its input on the skip path and adds nothing.
        >>> one = np.ones(2)
        >>> import numpy as np
        >>> table = {"variance": one, "grad_variance": one, "grad_deviation": one, "skip_gain": one}
        >>> found = allowances(table, width=100, tokens=2)
        >>> found["variance_allowance"].tolist(), found["grad_variance_allowance"].tolist()
        ([0.0, 0.0], [0.01, 0.0])
    """
    variance, skip = columns["variance"], columns["skip_gain"]
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = skip[:-1] / skip[1:] * variance[:-1] / variance[1:]
    return _of_kept(columns, kept, width, tokens, through_readout=through_readout)


def allowances_of_streams(columns: dict[str, Array], kept: Array, width: int, tokens: int) -> dict[str, Array]:
    """The same for a placement of several streams, whose cotangent always enters behind the readout.

    Args:
        columns: as in `allowances`, streams along the second axis.
        kept: share of the variance that the skips of a block kept, least of all streams: what one stream loses, the
            others hear of through the branches.
        width, tokens: of the model.
    """
    kept = np.broadcast_to(kept[:, None], (len(kept), *columns["variance"].shape[1:]))
    return _of_kept(columns, kept, width, tokens, through_readout=True)


def _of_kept(
    columns: dict[str, Array], kept: Array, width: int, tokens: int, *, through_readout: bool
) -> dict[str, Array]:
    variance = columns["variance"]
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = np.nan_to_num(np.clip(np.log(1 / kept), 0.0, NO_SKIP), nan=NO_SKIP)
    none = np.zeros((1, *variance.shape[1:]))
    forward = DRIFT / width * np.concatenate([none, np.cumsum(lost, axis=0)])
    drift = DRIFT / width * np.cumsum(lost[::-1], axis=0)[::-1]
    back = np.concatenate([drift + 1 / width, none + (1 / width if through_readout else 0.0)])
    mean_mode = columns["grad_variance"] - columns["grad_deviation"] * (tokens - 1) / tokens
    deviation = columns["grad_deviation"]  # where it is 0, nothing is relative to it
    apart = np.where(deviation != 0, deviation, 1.0)
    leak = np.where((back > 0) & (deviation != 0), LEAK / width * mean_mode / apart, 0.0)
    return {
        "variance_allowance": forward,
        "covariance_allowance": forward,
        "deviation_allowance": forward,
        "grad_variance_allowance": back,
        "grad_covariance_allowance": back,
        "grad_deviation_allowance": back + leak,
    }


def call_allowances(forward: Array, width: int) -> Array:
    """Relative allowance of what a sublayer call gives, at every block: that of the streams that enter the block, and
    the most that one block can add.

    Args:
        forward: `variance_allowance`, blocks along the first axis; of several streams, those along the second.
        width: of the model.

    Example:
        >>> call_allowances(np.array([0.0, 0.01, 0.02]), width=800).tolist()
        [nan, 0.01, 0.02]
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
    logit_std^2 / head size, the gains of queries and keys included. The FFN's matrices notice how few hidden units it
    or each expert has, whose mean square fluctuates, where a norm follows: 2 over their number.
    (Measured, one block: half of that. Gram matrices of 8 tokens at width 96: +0.08 against 8 / 96.)

    Args:
        forward, back: allowances of the variance and of that of the gradient, blocks along the first axis.
        model: the network.
        matrices: names, in order.
        wide: whether heads were taken for wide.
    """
    logits = [model.logit_std * gains.query * gains.key for gains in map(model.gains, range(1, model.depth + 1))]
    squares = np.square([logits[0], *logits], dtype=float).reshape(-1, *(1,) * (forward.ndim - 1))
    of_block = np.full_like(forward, np.nan)
    of_block[1:] = forward[1:] + back[:-1]
    of_logits = 3 * forward + (model.tokens + squares * (model.heads if wide else 0)) / model.width
    split = 1 if model.experts is None else model.experts.split
    more = dict.fromkeys(("query", "key"), of_logits)
    more |= dict.fromkeys(("ffn_gate", "ffn_in", "ffn_out"), np.full_like(forward, DRIFT * split / model.hidden))
    return np.stack([of_block + more.get(name, 0.0) for name in matrices], axis=-1)
