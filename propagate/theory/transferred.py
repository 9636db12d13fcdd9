"""A network as a rule of transfer makes it: what tokens meet, and what each matrix is trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from propagate.checks import ModelError
from propagate.model import Model
from propagate.outline import outline
from propagate.scaling import Gains, Number, Scaling, checked_gains
from propagate.transfer import Factors, Kind, kind_of

REACHED = ("query", "key", "value", "attention_out", "ffn_in", "ffn_out")
"""Matrices whose gains a block scales, in the order of `Gains`; an FFN's two input matrices are of one kind."""


@dataclass(frozen=True)
class Transferred:
    """A scaling, times what a rule makes of the maps."""

    scaling: Scaling | None
    factors: Gains

    def gains(self, index: Number, depth: Number) -> Gains:
        plain = Gains() if self.scaling is None else checked_gains(self.scaling, index, depth)
        return plain * self.factors


def transferred(model: Model, factors: Mapping[Kind, Factors]) -> Model:
    """The network whose maps are those of another one under a rule of transfer, of these factors by a matrix's kind.

    Raises:
        ModelError: where the rule changes maps that it cannot reach: of experts and of sublayers of a user's own.

    Example:
        >>> from propagate.transfer import factors_by_kind
        >>> model = Model("prenorm", depth=4)
        >>> transferred(model, factors_by_kind(model, "complete-p", (512, 1))).at(1).attention.out_gain
        0.25
    """
    larger = {kind: float(of.gain * of.multiplier) for kind, of in factors.items()}
    applied = {name: larger[kind_of(name)] for name in REACHED}
    if set(applied.values()) == {1.0}:
        return model
    own = [call for index in range(1, model.depth + 1) for call in outline(model.equations, model.depth, index)]
    if model.uneven or any(call.verb == "apply" for call in own):
        raise ModelError("transfer does not reach the maps of experts and of sublayers of one's own")
    return replace(model, scaling=Transferred(model.scaling, Gains(**applied)))
