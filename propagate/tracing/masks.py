"""Which tokens count, from the masks among a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from propagate.checks import ModelError, shown

ENCODER = ("attention_mask", "src_key_padding_mask", "key_padding_mask")
DECODER = ("decoder_attention_mask", "tgt_key_padding_mask")
PADDING = ("src_key_padding_mask", "key_padding_mask", "tgt_key_padding_mask")
"""Torch's own masks, which are true (or -inf) where a token does not count."""


def counted_tokens(inputs: Any, module: nn.Module, block: nn.Module) -> Tensor | None:
    """(sequences, tokens), true for tokens that count, as the inputs say for the stack that `block` is in.

    An encoder-decoder has a mask for each of its stacks: the one named for the other stack says nothing of this one's
    tokens. A mask over pairs of tokens, as a model gives itself, counts the tokens that any token may attend to.

    Example: torch's own masks are true where there is padding.
        >>> inputs = {"src_key_padding_mask": torch.tensor([[False, True]])}
        >>> counted_tokens(inputs, nn.Identity(), nn.Identity())
        tensor([[ True, False]])
    """
    if not isinstance(inputs, Mapping):
        return None
    for name in DECODER if _in_decoder(module, block) else ENCODER:
        given = inputs.get(name)
        if isinstance(given, Tensor):
            return _counted(given, inverted=name in PADDING)
    return None


def checked_mask(mask: Tensor) -> Tensor:
    """A mask of booleans that lets at least one token of every sequence count; ModelError otherwise."""
    if not isinstance(mask, Tensor) or mask.dim() < 1:
        raise ModelError(f"mask must be a tensor (sequences, tokens), got {shown(mask)}")
    keep = mask.bool()
    if not keep.any(-1).all():
        raise ModelError("mask must let at least one token of every sequence count")
    return keep


def _counted(mask: Tensor, *, inverted: bool) -> Tensor:
    if mask.is_floating_point():
        additive = inverted or (mask.dim() > 2 and bool((mask <= 0).all()))
        seen = mask > torch.finfo(mask.dtype).min / 4 if additive else mask.bool()
    else:
        seen = ~mask.bool() if inverted else mask.bool()
    if seen.dim() > 2:  # (sequences, [heads,] queries, keys): a key that any query sees
        seen = seen.flatten(1, -2).any(1)
    return seen


def _in_decoder(module: nn.Module, block: nn.Module) -> bool:
    """Whether the block lies in the decoder of a model that has an encoder too."""
    paths = [(path.lower().split("."), part) for path, part in module.named_modules()]
    if not any("encoder" in names for names, _ in paths):
        return False
    return any(part is block and "decoder" in names for names, part in paths)
