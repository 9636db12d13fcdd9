"""What a block calls, one description a call: from which memory, samplers and identities of runs are worked out."""

from __future__ import annotations

from propagate.experts import Experts
from propagate.latent import LatentAttention
from propagate.model import Model
from propagate.outline import outline
from propagate.recurrent import LinearAttention
from propagate.sublayers import FFN, Attention, Sublayer


def called(model: Model, index: int) -> list[Sublayer]:
    """The descriptions that block `index` applies, in force and in order.

    Example:
        >>> [type(one).__name__ for one in called(Model("prenorm", depth=1), 1)]
        ['Attention', 'FFN']
    """
    layer, found = model.at(index), []
    for call in outline(model.equations, model.depth, index):
        if call.description is not None:
            found.append(layer.in_force(call.description, call.normed))
        elif call.verb in ("attention", "ffn", "experts") and getattr(layer, call.verb) is not None:
            found.append(getattr(layer, call.verb))
    return found


def smallest_fan_in(model: Model, index: int) -> int:
    """The smallest of a block, as far as its descriptions tell: of those of one's own, the width.

    Example:
        >>> smallest_fan_in(Model("prenorm", depth=1, width=64, ffn_ratio=0.5), 1)
        32
    """
    layer = model.at(index)
    sizes = [model.width]
    for one in (layer.attention, layer.ffn, *called(model, index)):
        if isinstance(one, Attention):
            sizes.append(one.inside)
        elif isinstance(one, LatentAttention | LinearAttention):
            sizes += [fan_in for _, fan_in, _, _ in one.matrices(model.width)]
        elif isinstance(one, FFN | Experts):
            sizes.append((one.expert if isinstance(one, Experts) else one).units)
    return min(sizes)


def exchangeable(model: Model) -> bool:
    """Whether every sublayer of every block treats all tokens alike, those that the placement describes itself too."""
    calls = (call for index in range(1, model.depth + 1) for call in outline(model.equations, model.depth, index))
    described = [call.description for call in calls if call.description is not None]
    return model.exchangeable and all(one.exchangeable(model.tokens) for one in described)
