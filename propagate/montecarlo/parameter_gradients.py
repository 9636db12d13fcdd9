"""Squared Frobenius norm of the loss gradient with respect to each weight matrix, seen while a network runs.

For y = x W the gradient is x^T g, g the cotangent of y, and |x^T g|^2 = sum_ts (x_t . x_s) (g_t . g_s): two small Gram
matrices, however the sampler applies W. The gradient is with respect to the matrix as a network stores it, its entries
of standard deviation gain / sqrt(fan_in); the map that is applied may have another gain (the value's, for instance, is
applied with the output's). `logit_std` is in no matrix: it is a constant factor on the logits. The gain of the FFN's
output matrix includes the constant that gives the FFN's output its size, unless its input is normed. A normed
projection has its gain too, and its gradient falls as one over it, though what goes forward ignores it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from propagate.checks import ModelError
from propagate.montecarlo.arrays import Array
from propagate.montecarlo.pulls import Pull
from propagate.table import BY_MATRIX

Norms = dict[str, Array]
"""By a matrix's name, squared norms of shape (draws,); of a matrix that a block has more than once, the sum."""
ORDER = (
    "query_down",
    "query",
    "key_value_down",
    "key_rotary",
    "key",
    "value",
    "decay",
    "output_gate",
    "attention_out",
    "cross_query",
    "cross_key",
    "cross_value",
    "cross_out",
    "router",
    "ffn_gate",
    "ffn_in",
    "ffn_out",
    "shared_gate",
    "shared_in",
    "shared_out",
)
"""Of the matrices in a table; others follow as blocks have them."""


class Part(NamedTuple):
    """A matrix, by itself or with others beside it in one linear map.

    Attributes:
        name: of its column in `param_grad`.
        width: its fan-out.
        gain: with which a network stores it.
        before: what a network's own input of this matrix is over the x that the map is applied to, where a gain that
            comes earlier in the network is applied with the map.
    """

    name: str
    width: int
    gain: float = 1.0
    before: float = 1.0


def noting(xp: Any, x: Array, pull: Pull, gain: float, parts: Sequence[Part], norms: Norms, index: int) -> Pull:
    """The pull of x times a matrix of this gain, which adds the squared norm of the gradient of each part to `norms`.

    Raises:
        ModelError: for a gain of 0, whose matrix the simulation never meets.
    """
    for part in parts:
        if part.gain == 0:
            raise ModelError(f"parameter_gradients needs gains that are not 0, got 0 for {part.name} of block {index}")
        norms.setdefault(part.name, xp.zeros(len(x)))
    gram = _gram(xp, x)  # not x itself, which is larger

    def noting_pull(g: Array) -> Array:
        if g.shape[-1] != sum(part.width for part in parts):
            raise ValueError(f"a matrix has {g.shape[-1]} columns, and its parts are {parts}")
        start = 0
        for name, width, stored, _ in parts:
            norm = (gram * _gram(xp, g[..., start : start + width])).sum(axis=(-1, -2))
            norms[name] = norms[name] + norm * (gain / float(stored)) ** 2
            start += width
        return pull(g)

    return noting_pull


def centred(xp: Any, x: Array) -> Array:
    """The mean token times sqrt(tokens) and the tokens less their mean, tokens + 1 rows.

    Apart, because tokens that have collapsed onto one another leave nothing of the difference in x x^T; and the sum
    over tokens of x_t g_t^T is the sum over these rows.

    Example:
        >>> import numpy as np
        >>> x, g = np.array([[[1.0, 2.0], [3.0, 5.0]]]), np.array([[[1.0], [-1.0]]])
        >>> (centred(np, x).swapaxes(-1, -2) @ centred(np, g)).tolist(), (x.swapaxes(-1, -2) @ g).tolist()
        ([[[-2.0], [-3.0]]], [[[-2.0], [-3.0]]])
    """
    mean = x.mean(axis=-2, keepdims=True)
    return xp.concatenate([mean * math.sqrt(x.shape[-2]), x - mean], axis=-2)


def _gram(xp: Any, x: Array) -> Array:
    """Gram matrix of these rows."""
    rows = centred(xp, x)
    return (rows @ rows.swapaxes(-1, -2)).astype(xp.float64)  # as all that is tokens by tokens


def columns(xp: Any, norms: Sequence[Norms], draws: int) -> dict[str, Array]:
    """Norms of blocks 1 ... depth, an array (draws, depth + 1) for each matrix, named `param_grad:` and its name.

    NaN for the embedding, which has no matrix; 0 for a matrix that a block does not use or no cotangent reached.

    Example:
        >>> import numpy as np
        >>> found = columns(np, [{"mine": np.ones(1), "value": np.ones(1)}, {"mine": np.ones(1)}], draws=1)
        >>> list(found), found["param_grad:value"].tolist()
        (['param_grad:value', 'param_grad:mine'], [[nan, 1.0, 0.0]])
    """
    met = dict.fromkeys(name for of_block in norms for name in of_block)
    zero, missing = xp.zeros(draws), xp.full(draws, xp.nan)
    return {
        f"{BY_MATRIX}:{name}": xp.stack([missing, *(of_block.get(name, zero) for of_block in norms)], axis=1)
        for name in (*(known for known in ORDER if known in met), *(own for own in met if own not in ORDER))
    }
