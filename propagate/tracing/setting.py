"""The torch module of a description: one registered function a kind, and what it is told of the block."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from torch import nn

from propagate.model import ModelError
from propagate.norms import Norm
from propagate.sublayers import registered


@dataclass(frozen=True)
class Setting:
    """What a module is told of the block that it stands in.

    Attributes:
        width: coordinates of the stream, or of what a norm reads.
        tokens: in the sequence; a module may be given fewer or more.
        weights: law of the weight matrices.
        dropout: probability with which an entry of a branch's output is set to 0.
        norm: the block's norm.
    """

    width: int
    tokens: int
    weights: str = "normal"
    dropout: float = 0.0
    norm: Norm = Norm()  # noqa: RUF009  # frozen

    def inner_norm(self, width: int, *, wanted: bool) -> nn.Module:
        """The block's norm over `width` coordinates inside a sublayer; the identity unless it is wanted."""
        return module_of(self.norm, dataclasses.replace(self, width=width)) if wanted else nn.Identity()


@singledispatch
def apply(description: Any, block: Setting) -> nn.Module:
    """The torch module of a sublayer or a norm, from streams (..., tokens, width) to streams of that shape.

    Args:
        description: in force in its block: sizes filled in, times the block's gains, with its inner norms.
        block: the setting it stands in.

    Raises:
        ModelError: for a kind of description that has no function here, by name.

    Example: a kind of one's own, which `block.apply(TokenShift(), x)` then is in every network that `build` makes.
        >>> import torch, propagate as pg
        >>> @dataclass(frozen=True)
        ... class TokenShift(pg.Sublayer):
        ...     gain: float = 1.0
        >>> apply(TokenShift(), Setting(width=8, tokens=4))
        Traceback (most recent call last):
        propagate.checks.ModelError: torch modules do not cover TokenShift
        >>> class Shift(nn.Module):
        ...     def __init__(self, gain):
        ...         super().__init__()
        ...         self.gain = gain
        ...
        ...     def forward(self, x):
        ...         return self.gain * torch.roll(x, 1, dims=-2)
        >>> @pg.tracing.apply.register
        ... def _(shift: TokenShift, block):
        ...     return Shift(shift.gain)
        >>> apply(TokenShift(2.0), Setting(width=8, tokens=4))(torch.eye(3))[0]
        tensor([0., 0., 2.])
    """
    raise ModelError(f"torch modules do not cover {type(description).__name__}")


def module_of(description: Any, block: Setting) -> nn.Module:
    """The module of this very kind of description: one that inherits from another kind needs a function of its own."""
    module: nn.Module = registered(apply.registry, description)(description, block)
    return module


def check_fields(description: Any, known: frozenset[str]) -> None:
    """ModelError unless every other field has its default: never a module that is silently another network.

    Example:
        >>> check_fields(Norm(eps=0.1), frozenset({"kind"}))
        Traceback (most recent call last):
        propagate.checks.ModelError: eps must be 0.0 for a torch module, got 0.1
    """
    for field in dataclasses.fields(description):
        value = getattr(description, field.name)
        if field.name not in known and value != field.default:
            raise ModelError(f"{field.name} must be {field.default!r} for a torch module, got {value!r}")
