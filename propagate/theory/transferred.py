"""A network as a rule of transfer makes it: what tokens meet, and what each matrix is trained with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from propagate.checks import ModelError, integer, shown
from propagate.model import Model
from propagate.outline import outline
from propagate.scaling import Gains, Number, Scaling, checked_gains
from propagate.transfer import Factors, Transfer, as_transfer, kind_of

NEUTRAL = Factors()
REACHED = ("query", "key", "value", "attention_out", "ffn_in", "ffn_out")
"""Matrices whose gains a block scales, in the order of `Gains`; an FFN's two input matrices are of one kind."""


class Rule(NamedTuple):
    """A rule of transfer at the sizes of one network.

    Attributes:
        transfer: the rule; None leaves all as it is.
        width, depth: over those at which it is neutral.
    """

    transfer: Transfer | None
    width: float
    depth: float

    @classmethod
    def of(cls, transfer: Any, base: Any, model: Model) -> Rule:
        """Checked.

        Raises:
            ModelError: for what is no rule, or sizes that are not two whole numbers.

        Example:
            >>> Rule.of("mup", (128, 2), Model("prenorm", depth=2, width=512)).width
            4.0
        """
        if base is not None and not (isinstance(base, tuple) and len(base) == 2):
            raise ModelError(f"base must be None or (width, depth), got {shown(base)}")
        width, depth = (model.width, model.depth) if base is None else base
        ratios = model.width / integer("base width", width), model.depth / integer("base depth", depth)
        return cls(None if transfer is None else as_transfer(transfer), *ratios)

    def factors(self, matrix: str) -> Factors:
        """Of the matrix of this name."""
        if self.transfer is None:
            return NEUTRAL
        return self.transfer.factors(kind_of(matrix), self.width, self.depth)

    def applied(self, matrix: str) -> Number:
        """What the map of this name is larger by."""
        factors = self.factors(matrix)
        return float(factors.gain * factors.multiplier)


@dataclass(frozen=True)
class Transferred:
    """A scaling, times what a rule makes of the maps."""

    scaling: Scaling | None
    factors: Gains

    def gains(self, index: Number, depth: Number) -> Gains:
        plain = Gains() if self.scaling is None else checked_gains(self.scaling, index, depth)
        return plain * self.factors


def transferred(model: Model, rule: Rule) -> Model:
    """The network whose maps are those of another one under a rule of transfer.

    Raises:
        ModelError: where the rule changes maps that it cannot reach: of experts and of sublayers of a user's own.

    Example:
        >>> model = Model("prenorm", depth=4)
        >>> transferred(model, Rule.of("complete-p", (512, 1), model)).at(1).attention.out_gain
        0.25
    """
    applied = {name: rule.applied(name) for name in REACHED}
    own = [call for index in range(1, model.depth + 1) for call in outline(model.equations, model.depth, index)]
    if model.uneven or any(call.verb == "apply" for call in own):
        others = {rule.applied(kind) for kind in ("router", "attention_out")}
        if others != {1.0}:
            raise ModelError("transfer does not reach the maps of experts and of sublayers of one's own")
    if set(applied.values()) == {1.0}:
        return model
    return replace(model, scaling=Transferred(model.scaling, Gains(**applied)))
