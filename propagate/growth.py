"""A network stacked on itself: a deeper one that begins as several copies of one network's blocks, end to end.

LongCat-Flash (arXiv:2509.01322) trains a shallower network first and stacks it, 14 layers to 28. Its embedding and its
readout stand once; block i of the stack has the weights of block (i - 1) mod L + 1 of the network of L blocks. What a
placement's equations make of an index and a depth they make of those in the stack: DeepNorm's alpha, KEEL's, Mix-LN's
first blocks are those of the deeper network.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from propagate.checks import ModelError, check_flag, integer
from propagate.model import DEEPEST, Model, check_model
from propagate.placement import Placement
from propagate.scaling import Gains, Number, Scaling, checked_gains, product_of_gains


@dataclass(frozen=True)
class CopiedGains:
    """The gains of weights that were drawn for a shallower network, in the stack: a `Scaling`.

    Attributes:
        placement, scaling: of the network.
        depth: its blocks.
        drawn_for: the depth that its gains are taken at: its own, or the stack's where branches are rescaled.

    Example: output matrices of 4 blocks with ScaleInit keep their size, or have that of 8 blocks.
        >>> from propagate.placements import PreNorm
        >>> from propagate.scaling import ScaleInit
        >>> [round(CopiedGains(PreNorm(), ScaleInit(0.5), 4, depth).gains(7, 8).ffn_out, 3) for depth in (4, 8)]
        [0.5, 0.354]
    """

    placement: Placement
    scaling: Scaling | None
    depth: int
    drawn_for: int

    def gains(self, index: Number, depth: Number) -> Gains:
        own = (index - 1) % self.depth + 1
        wanted = product_of_gains((self.placement, self.scaling), own, self.drawn_for)
        there = checked_gains(self.placement, index, depth)
        return Gains(*(_over(getattr(wanted, one.name), getattr(there, one.name)) for one in dataclasses.fields(Gains)))


def _over(wanted: Number, there: Number) -> Number:
    if wanted == there:
        return 1.0
    if there == 0:
        raise ModelError(f"gains must not be 0 in the stack where they are {wanted:g} in the network")
    return wanted / there


def grown(model: Model, times: int = 2, *, rescaled: bool = False) -> Model:
    """The network of `times` as many blocks that a stack of copies is, its copies' weights taken for independent.

    `predict` and `simulate` of it have fresh weights in every block; `predict_growth` and `simulate_growth` have the
    copies' own.

    Args:
        model: the network that is stacked.
        times: copies.
        rescaled: whether gains are those that placement and scaling give the blocks at the stack's depth, as if
            output matrices were multiplied by their ratio; else the weights stay as they are.

    Raises:
        ModelError: for values out of range.

    Example:
        >>> from propagate.scaling import ScaleInit
        >>> small = Model("spannorm", depth=4, scaling=ScaleInit(0.5))
        >>> [round(grown(small, rescaled=again).at(8).ffn.out_gain, 3) for again in (False, True)]
        [0.5, 0.354]
    """
    check_model(model)
    check_flag("rescaled", rescaled)
    times = integer("times", times)
    depth = integer("depth times times", model.depth * times, at_most=DEEPEST)
    own = model.__getstate__()["layers"] or {}
    layers = {at * model.depth + index: parts for at in range(times) for index, parts in own.items()}
    scaling = CopiedGains(model.equations, model.scaling, model.depth, depth if rescaled else model.depth)
    return dataclasses.replace(model, depth=depth, layers=layers or None, scaling=scaling)
