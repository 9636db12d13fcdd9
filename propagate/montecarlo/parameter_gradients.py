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
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from propagate.model import Model, ModelError
from propagate.montecarlo.backend import Array
from propagate.montecarlo.blocks import Block
from propagate.montecarlo.operators import GATED, output_rms
from propagate.montecarlo.pulls import Pull
from propagate.montecarlo.samplers import Sampler

Part = tuple[str, int, float]
"""A matrix's name, its fan-out and its gain. One map of a sampler may hold several, side by side."""


def attention_parts(model: Model, index: int) -> tuple[list[Part], ...]:
    """The attention's matrices at block `index`, for each linear map that it applies.

    Example: two heads share keys and values.
        >>> attention_parts(Model("prenorm", depth=1, width=8, heads=2, key_value_heads=1), 1)[0]
        [('query', 8, 1.0), ('key', 4, 1.0), ('value', 4, 1.0)]
    """
    gains, width, shared = model.gains(index), model.width, model.width // model.heads * model.kv_heads
    sizes = {"query": width, "key": shared, "value": shared}
    projections = [(name, size, float(getattr(gains, name))) for name, size in sizes.items()]
    return projections if model.logit_std else projections[2:], [("attention_out", width, float(gains.attention_out))]


def ffn_parts(model: Model, index: int, normed: Collection[str] = ()) -> tuple[list[Part], ...]:
    """The FFN's matrices at block `index`, for each linear map that it applies; `normed` as in `Model.inner_norms`.

    Example:
        >>> [name for name, _, _ in ffn_parts(Model("prenorm", depth=1, activation="swiglu"), 1)[0]]
        ['ffn_gate', 'ffn_in']
    """
    gains = model.gains(index)
    names = ("ffn_gate", "ffn_in") if model.activation in GATED else ("ffn_in",)
    out = float(gains.ffn_out) / (1 if "hidden" in normed else output_rms(model.activation))
    return [(name, model.hidden, float(gains.ffn_in)) for name in names], [("ffn_out", model.width, out)]


def experts_parts(model: Model, index: int, normed: Collection[str] = ()) -> tuple[list[Part], ...]:
    """The matrices of a mixture at block `index`, for each linear map that it applies; all experts of a kind are one.

    Example:
        >>> from propagate.experts import Experts
        >>> experts_parts(Model("prenorm", depth=1, width=8, experts=Experts(4), activation="linear"), 1)
        ([('router', 4, 1.0)], [('ffn_in', 128, 1.0)], [('ffn_out', 8, 2.0)])
    """
    gains, experts, hidden = model.gains(index), model.experts, model.hidden
    assert experts is not None
    kinds, cut, gain = ("gate", "in") if model.activation in GATED else ("in",), hidden // experts.split, gains.ffn_in
    out, count = float(gains.ffn_out) / (1 if "hidden" in normed else output_rms(model.activation)), experts.routed
    # one after another, the gate's columns of an expert beside its other ones; entries of an output matrix are as in
    # an uncut dense FFN, whatever its number of rows
    routed = [(f"ffn_{kind}", cut, float(gain)) for kind in kinds] * count
    if len(kinds) == 1:
        routed = [("ffn_in", cut * count, float(gain))]
    found = [
        [("router", experts.candidates, experts.router_std)],
        routed,
        [("ffn_out", model.width, out * math.sqrt(count * cut / hidden))],
    ]
    if experts.shared:  # applied as one FFN, whose output is multiplied by the root of their number
        found.append([(f"shared_{kind}", experts.shared * hidden, float(gain)) for kind in kinds])
        found.append([("shared_out", model.width, out * math.sqrt(experts.shared))])
    return tuple(found)


def matrices(model: Model) -> list[str]:
    """Names of a block's matrices.

    Raises:
        ModelError: for a gain of 0, whose matrix the simulation never meets.

    Example:
        >>> matrices(Model("prenorm", depth=1, logit_std=0.0))
        ['value', 'attention_out', 'ffn_in', 'ffn_out']
    """
    of_ffn = ffn_parts if model.experts is None else experts_parts
    for index in range(1, model.depth + 1):
        parts = [part for of_map in (*attention_parts(model, index), *of_ffn(model, index)) for part in of_map]
        for name, _, gain in parts:
            if gain == 0:
                raise ModelError(f"parameter_gradients needs gains that are not 0, got 0 for {name} of block {index}")
    return list(dict.fromkeys(name for name, _, _ in parts))


@dataclass(frozen=True, slots=True)
class RecordedBlock:
    """A block whose sublayers note their matrices' gradients in `norms` while cotangents return.

    It offers a placement's equations what `Block` does. Norms have shape (draws,); of a matrix that a block has more
    than once, the sum.
    """

    block: Block
    norms: dict[str, Array] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.block, name)

    def attention(self, x: Any, normed: Sequence[str] = ()) -> Any:
        return self._recording(attention_parts(self.block.model, self.block.index)).attention(x, normed)

    def ffn(self, x: Any, normed: Sequence[str] = ()) -> Any:
        model, index = self.block.model, self.block.index
        inside = model.inner_norms("ffn", normed)
        of = ffn_parts if model.experts is None else experts_parts
        return self._recording(of(model, index, inside)).ffn(x, normed)

    def _recording(self, parts: tuple[list[Part], ...]) -> Block:
        def note(name: str, norm: Array) -> None:
            self.norms[name] = self.norms[name] + norm if name in self.norms else norm

        return replace(self.block, sampler=recorded(self.block.sampler, self.block.backend.xp, iter(parts), note))


def recorded(sampler: Sampler, xp: Any, parts: Iterator[list[Part]], note: Callable[[str, Array], None]) -> Sampler:
    """The sampler, which notes the squared norm of the gradient of each part of a matrix when its pull is called.

    `parts` are those of the matrices in the order in which they are applied.
    """

    def apply(x: Array, site: int, fan_out: int, gain: float = 1.0) -> tuple[Array, Pull]:
        of_matrix = next(parts)
        known = sum(width for _, width, _ in of_matrix)
        if known != fan_out:  # a sublayer has changed and its parts have not
            raise ValueError(f"the matrix at site {site} has {fan_out} columns, its parts {known}")
        y, pull = sampler(x, site, fan_out, gain)
        gram = _gram(xp, x)  # not x itself, which is larger

        def recording_pull(g: Array) -> Array:
            start = 0
            for name, width, stored in of_matrix:
                norm = (gram * _gram(xp, g[..., start : start + width])).sum(axis=(-1, -2))
                note(name, norm * (gain / stored) ** 2)
                start += width
            return pull(g)

        return y, recording_pull

    return apply


def _gram(xp: Any, x: Array) -> Array:
    """Gram matrix of the mean token times sqrt(tokens) and of the tokens less their mean, tokens + 1 rows.

    Apart, because tokens that have collapsed onto one another leave nothing of the difference in x x^T; and the sum
    over tokens of x_t g_t^T is the sum over these rows.
    """
    mean = x.mean(axis=-2, keepdims=True)
    rows = xp.concatenate([mean * math.sqrt(x.shape[-2]), x - mean], axis=-2)
    return (rows @ rows.swapaxes(-1, -2)).astype(xp.float64)  # as all that is tokens by tokens


def stacked(xp: Any, norms: list[dict[str, Array]], names: Sequence[str], draws: int) -> Array:
    """Norms of blocks 1 ... depth as one array (draws, depth + 1, matrices).

    NaN for the embedding, which has no matrix; 0 for a matrix that a block does not use or no cotangent reached.
    """
    zero, missing = xp.zeros(draws), xp.full((draws, 1, len(names)), xp.nan)
    of_blocks = [xp.stack([at_block.get(name, zero) for name in names], axis=-1) for at_block in norms]
    return xp.concatenate([missing, xp.stack(of_blocks, axis=1)], axis=1)
