"""Whether what was read off a model writes what the model writes: drawn afresh, given the same streams."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from propagate.model import Model, ModelError
from propagate.tracing.build import module_of
from propagate.tracing.layers import Projection
from propagate.tracing.probe import Seen
from propagate.tracing.setting import Setting

DRAWS = 8
MORE = 64
"""Where it looks far after the first draws, whose spread is a rough one: with it alone one model of thirty is far off
in some sublayer by chance."""
FAR = 5.0
"""Standard deviations, between networks, of the logarithm of what a sublayer writes."""
LEAST = 0.15
"""Differences of the logarithm of a variance that are not worth a word."""


def misses(model: Model, seen: Sequence[Seen]) -> Iterator[str]:
    """In words, sublayers of the model whose output has another variance than the described ones'."""
    said = set[str]()
    for index, one in enumerate(seen, 1):
        layer = model.at(index)
        for kind, read, wrote in one.calls:
            description: Any = getattr(layer, kind, None)
            if kind in said or description is None:
                continue
            setting = Setting(model.width, read.shape[1], norm=layer.norm)
            try:
                off, far = _off(description, setting, read.float(), wrote, DRAWS)
                if not abs(off) <= far:
                    off, far = _off(description, setting, read.float(), wrote, MORE)
            except ModelError:
                continue  # a mask of another length
            if not abs(off) <= far:
                said.add(kind)
                yield f"the {kind} of block {index} writes {math.exp(off):.3g} times the variance that was read for it"


def _off(description: Any, setting: Setting, read: Tensor, wrote: Tensor, draws: int) -> tuple[float, float]:
    """The logarithm of what was written over what drawn sublayers write, and what is far."""
    found = [_log_variance(_drawn(description, setting, seed)(read)) for seed in range(draws)]
    mean = sum(found) / draws
    spread = math.sqrt(sum((value - mean) ** 2 for value in found) / (draws - 1) * (1 + 1 / draws))
    return _log_variance(wrote) - mean, max(FAR * spread, LEAST)


def _log_variance(x: Tensor) -> float:
    value = float(x.double().square().mean())
    return math.log(value) if value > 0 else -math.inf


def _drawn(description: Any, setting: Setting, seed: int) -> nn.Module:
    module, generator = module_of(description, setting), torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, Projection):
            part.draw(generator)
    return module.eval().requires_grad_(False)
