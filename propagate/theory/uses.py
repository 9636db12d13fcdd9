"""How a sublayer uses each of its weight matrices: the second moments of what a matrix reads, and of its cotangent.

For y = x W everything that the first step of training does to W follows from the Gram matrices of x and of the
cotangent g of y, both per coordinate, and from the law of their coordinates. Both concentrate as the width grows, and
cotangents are independent of what was passed forward. `matrix_uses` gives them for each named matrix of a description.

The matrix is the one that a network stores (the modules of `propagate.build` do): its entries have standard deviation
gain / sqrt(fan_in), the gain being that of the model, the placement and the scaling together. `logit_std` is in no
matrix: it is a constant factor on the logits, beside the 1 / sqrt(head size) of every attention, so that gradients of
queries and keys are proportional to it. The gain of the FFN's output matrix includes the constant that gives the FFN's
output its size (see `Model.ffn_gain`), unless its input is normed. A normed projection has its gain too, and its
gradient falls as one over it, though what goes forward ignores it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial, singledispatch
from typing import Any

from propagate.experts import Experts
from propagate.layers import Layer
from propagate.model import ModelError
from propagate.norms import Norm
from propagate.scaling import Number
from propagate.sublayers import FFN, Attention, Sublayer, registered
from propagate.theory.gaussian.activations import Maps, maps_of
from propagate.theory.pairs.moments import Moments
from propagate.theory.reading.blocks import Call
from propagate.theory.tokens.drawn_gates import of_logits, of_random_experts
from propagate.theory.tokens.drawn_units import PROJECTIONS, Draw, Heads, HiddenUnits
from propagate.theory.tokens.gram import Gram
from propagate.theory.tokens.kernels import Kernel, kernel_of
from propagate.theory.tokens.sublayers import of_means


@dataclass(frozen=True)
class Use:
    """One matrix in one place of a network: y = x W, and the cotangent g of y.

    Attributes:
        fan_in, fan_out: its rows and columns.
        gain: standard deviation of its entries times sqrt(fan_in).
        x, g: second moments of x and g, per coordinate, of either resolution.
        balanced: whether g sums to zero over tokens, so that differences of the tokens of x alone count.
        several: how many matrices it stands for, side by side as one: of experts, each with some of the tokens.
        free: how many independent numbers make a token's cotangent, at least: of a router few, whose columns do not
            average out.
        rows: whether x has one entry for each token, no two of them in one place, so that each meets a row of its own.
        draw_x, draw_g: the law of their coordinates; None where they are independent and Gaussian.

    Example: independent tokens, at both resolutions.
        >>> import numpy as np
        >>> Use(4, 2, 1.0, Moments(1.0, 1.0), Moments(2.0, 2.0)).gradient(tokens=3)
        48.0
        >>> float(Use(4, 2, 1.0, Gram.of(np.eye(3)), Gram.of(2 * np.eye(3))).gradient(tokens=3))
        48.0
    """

    fan_in: int
    fan_out: int
    gain: Number
    x: Any
    g: Any
    balanced: bool = False
    several: int = 1
    free: float = math.inf
    rows: bool = False
    draw_x: Draw | None = None
    draw_g: Draw | None = None

    def gradient(self, tokens: int) -> Any:
        """Expected squared Frobenius norm of the loss gradient with respect to the matrix.

        It is that of x^T g, sum_ts (x_t . x_s) (g_t . g_s).
        """
        of = frobenius_of_differences if self.balanced else frobenius
        return self.fan_in * self.fan_out * of(tokens, self.x, self.g)


Uses = dict[str, Use | tuple[Use, ...]]
"""By the name of the matrix; of several of one name a tuple."""


def uses_of_block(layer: Layer, calls: Iterable[Call]) -> list[tuple[str, Use]]:
    """Every use that a block makes of a matrix, from the records of its calls in an exact walk.

    Raises:
        ModelError: for a sublayer whose matrices are not known here, see `matrix_uses`; and where one's result is
            dropped while another of its kind is used: means over the matrices of one name would be of both.

    Example: a linear FFN on one token; its output matrix reads 32 hidden units.
        >>> from propagate.model import Model
        >>> from propagate.theory.walks import walk
        >>> model, unit = Model("prenorm", 1, width=8, tokens=1, heads=1, activation="linear"), Moments(1.0, 0.0)
        >>> path = walk(model, unit, unit, exact=True)
        >>> {name: (use.fan_in, use.fan_out) for name, use in uses_of_block(model.at(1), path.calls[1])}["ffn_out"]
        (32, 8)
    """
    of_sublayers = [call for call in calls if isinstance(call.description, Sublayer)]
    used = {type(call.description) for call in of_sublayers if call.arrived}
    for call in of_sublayers:
        if not call.arrived and type(call.description) in used:
            raise ModelError(f"equations must use what every sublayer gives, got a dropped {call.verb} in a block")
    return [
        (name, use)
        for call in of_sublayers
        for g, seen in call.arrived
        for name, found in uses_of(call, g, seen, layer).items()
        for use in (found if isinstance(found, tuple) else (found,))
    ]


def uses_of(call: Call, g: Any, seen: Any, layer: Layer) -> Uses:
    """Of one call, by what is registered for its description."""
    found: Uses = registered(matrix_uses.registry, call.description)(call.description, call, g, seen, layer)
    return found


@singledispatch
def matrix_uses(description: Any, call: Call, g: Any, seen: Any, layer: Layer) -> Uses:
    """The uses of its matrices that one sublayer call makes, from its record and one entry of its `arrived`.

    Register one for a description of your own. Several matrices of one name are a tuple.

    Args:
        description: in force.
        call: `call.entered` are the moments of what the sublayer read.
        g, seen: the moments of the cotangent at its output, and what was found out on its way.
        layer: what the block is made of; `layer.width` coordinates.

    Raises:
        ModelError: for one whose matrices are not known.

    Example: a linear layer of one's own.
        >>> @dataclass(frozen=True)
        ... class Blending(Sublayer):
        ...     gain: float = 1.0
        >>> @matrix_uses.register
        ... def _(description: Blending, call, g, seen, layer):
        ...     return {"blending": Use(layer.width, layer.width, description.gain, call.entered, g)}
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


@matrix_uses.register
def _(description: Attention, call: Call, g: Any, sent: dict[str, Any], layer: Layer) -> Uses:
    """A projection's own cotangent is that which it sends back to the input over the variance of its matrix, also where
    a norm follows. Heads that share keys and values add up their cotangents, which are uncorrelated: the matrix is
    smaller, and the sum over its entries the same.

    Every head has attention weights of its own: given them its coordinates are Gaussian, all heads' together are not.
    """
    kind, width, x = description, layer.width, call.entered
    heads = None
    if "value" in kind.normed or (kind.logit_std and layer.tokens > 1):
        at_heads = g.times(kind.out_gain * math.sqrt(width / kind.inside))
        heads = Heads(kind, x, at_heads, layer.tokens, layer.norm)
    uses: Uses = {"attention_out": Use(kind.inside, width, kind.out_gain, call.pull.heads, g, draw_x=_of(heads, "out"))}
    for name in PROJECTIONS if kind.logit_std else ("value",):
        gain = getattr(kind, f"{name}_gain")
        if gain == 0:
            raise ModelError(f"parameter_gradients needs gains that are not 0, got 0 for {name}")
        fan_out = kind.inside if name == "query" else kind.kv_heads * kind.size
        arrived = sent[name].times(math.sqrt(width / fan_out) / gain) if name in sent else g.times(0.0)
        # what the keys receive sums to zero over tokens, unless each is turned or stretched by itself
        balanced = name == "key" and name not in kind.normed and kind.rope is None
        uses[name] = Use(width, fan_out, gain, x, arrived, balanced=balanced, draw_g=_of(heads, name))
    return uses


def _of(heads: Heads | None, name: str) -> Draw | None:
    return None if heads is None else partial(heads.draw, name)


@matrix_uses.register
def _(description: FFN, call: Call, g: Any, seen: Any, layer: Layer) -> Uses:
    """The cotangent at a hidden unit is smaller by width / hidden than that at the output.

    Hidden units are Gaussian before the activation, not behind it; nor is the cotangent that has passed its slope.
    """
    ffn = _InsideFFN.of(description, call.entered, g, layer)
    units, width, gains = description.units, layer.width, _gains_in(description)
    uses: Uses = {"ffn_out": Use(units, width, ffn.gain_out, ffn.after, g, draw_x=ffn.drawn.values)}
    for name, slope in ffn.slopes.items():
        arrived = slope.product(ffn.at_units)
        uses[name] = Use(width, units, gains[name], call.entered, arrived, draw_g=partial(ffn.drawn.cotangents, name))
    return uses


@matrix_uses.register
def _(description: Experts, call: Call, g: Any, seen: Any, layer: Layer) -> Uses:
    """The routed experts side by side as one matrix, and the shared ones; see those of an FFN.

    A routed expert's matrices meet only the tokens that chose it, by their gates: second moments are those of an FFN,
    times w_tj w_sj, on average over experts sum_j w_tj w_sj / count. Of any single coordinate, the gates are those of
    an expert drawn at random. The router's cotangent is what it sends back over the variance of its matrix.
    """
    experts, x, pull, width, shared = description, call.entered, call.pull, layer.width, description.shared
    ffn = _InsideFFN.of(experts.expert, x, g, layer)
    units, gains, count = experts.expert.units, _gains_in(experts.expert), experts.routed
    inside = units * experts.count  # of all routed experts
    mean = pull.overlap.times(1 / math.sqrt(count))
    # entries of a cut expert's output matrix are as large as in the uncut one
    gain_out = ffn.gain_out * math.sqrt(experts.count)
    gated = partial(of_random_experts, pull.gates)
    after = ffn.after.product(mean)
    uses: Uses = {"ffn_out": Use(inside, width, gain_out, after, g, several=count, draw_x=gated(ffn.drawn.values))}
    if shared:
        side = math.sqrt(shared)
        of_all = Use(shared * units, width, ffn.gain_out * side, ffn.after, g, several=shared, draw_x=ffn.drawn.values)
        uses["shared_out"] = of_all
    for name, slope in ffn.slopes.items():
        arrived, draw = slope.product(ffn.at_units), partial(ffn.drawn.cotangents, name)
        uses[name] = Use(width, inside, gains[name], x, arrived.product(mean), several=count, draw_g=gated(draw))
        if shared:
            of_shared = name.replace("ffn", "shared")
            uses[of_shared] = Use(width, shared * units, gains[name], x, arrived, several=shared, draw_g=draw)
    at_router = pull.router(g, seen).times(math.sqrt(width / experts.candidates) / experts.router_std)
    columns = None if pull.logits is None else partial(of_logits, width, partial(pull.logits, g, seen))
    uses["router"] = Use(width, experts.candidates, experts.router_std, x, at_router, free=1, draw_g=columns)
    return uses


@dataclass(frozen=True)
class _InsideFFN:
    """What an FFN's matrices meet.

    Attributes:
        after: moments of what the output matrix reads.
        gain_out: of the output matrix.
        at_units: moments of the cotangent that it sends to each hidden unit.
        slopes: by input matrix, E s_t s_u of what multiplies that cotangent on its way into it.
        drawn: the law of hidden units.
    """

    after: Any
    gain_out: Any
    at_units: Any
    slopes: dict[str, Any]
    drawn: HiddenUnits

    @classmethod
    def of(cls, ffn: FFN, x: Any, g: Any, layer: Layer) -> _InsideFFN:
        kernel, before = _kernel(ffn, x), x.times(ffn.in_gain)
        after, scale = _hidden(ffn, kernel, before, layer.norm)
        at_units = g.times(ffn.out_gain * scale * math.sqrt(layer.width / ffn.units))
        normed = "hidden" in ffn.normed
        drawn = HiddenUnits(ffn, before, at_units, layer.tokens, scale if normed else None, layer.norm)
        return cls(after, ffn.out_gain * (1 if normed else scale), at_units, _slopes(kernel, before), drawn)


def _gains_in(ffn: FFN) -> dict[str, Number]:
    return {"ffn_in": ffn.in_gain, "ffn_gate": ffn.in_gain * ffn.gate_gain}


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
