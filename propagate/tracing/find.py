"""Finds the residual stream of a torch model by structure: the list of equal blocks, and the sublayers in a block."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from propagate.checks import ModelError, shown

ATTENTION = re.compile(r"att(n|ention)", re.IGNORECASE)
CROSS = re.compile(r"cross.?att|enc.?dec.?att|encoder_attn|multihead_attn", re.IGNORECASE)
WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module")
Blocks = str | nn.Module | Sequence[nn.Module] | None


def blocks_of(module: nn.Module, blocks: Blocks = None) -> list[nn.Module]:
    """The blocks between which the residual stream runs.

    Args:
        module: the model.
        blocks: the modules themselves, a container of them or its dotted path. By default the container of equal
            modules (a ModuleList or Sequential) that holds the most parameters.

    Raises:
        ModelError: where no such container is found, or two of like size that are not parts of one another.

    Example:
        >>> layer = lambda: nn.TransformerEncoderLayer(8, 2, batch_first=True)
        >>> len(blocks_of(nn.Sequential(nn.Embedding(5, 8), nn.ModuleList([layer(), layer()]))))
        2
    """
    check_module(module)
    if isinstance(blocks, str):
        try:
            blocks = module.get_submodule(blocks)
        except AttributeError:
            raise ModelError(f"blocks must be the path of a module of {_name(module)}, got {shown(blocks)}") from None
    if isinstance(blocks, nn.Module) and not isinstance(blocks, nn.ModuleList | nn.Sequential):
        return [blocks]
    if blocks is not None:
        listed: Any = blocks
        found = list(listed) if isinstance(blocks, list | tuple | nn.Module) else []
        if not found or not all(isinstance(block, nn.Module) for block in found):
            raise ModelError(f"blocks must be torch modules, got {shown(blocks)}")
        return found
    stacks = sorted(_stacks(module), key=lambda stack: -_size(stack[1]))
    if not stacks:
        raise ModelError(f"no list of equal blocks in {_name(module)}; point at them with blocks=")
    path, chosen = stacks[0]
    for other, stack in stacks[1:]:
        if not other.startswith(f"{path}.") and not path.startswith(f"{other}.") and 2 * _size(stack) > _size(chosen):
            raise ModelError(f"{_name(module)} has several stacks of blocks, {path} and {other}; name one with blocks=")
    return list(chosen)


def check_module(module: Any) -> None:
    """ModelError unless it is a torch model."""
    if not isinstance(module, nn.Module):
        raise ModelError(f"module must be a torch model, got {shown(module)}")


def none_called() -> ModelError:
    """What to say where a model was run and none of its blocks was.

    Example:
        >>> print(none_called())
        the model called none of its blocks; point at those it uses with blocks=
    """
    return ModelError("the model called none of its blocks; point at those it uses with blocks=")


def _stacks(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, part in module.named_modules():
        equal = isinstance(part, nn.ModuleList | nn.Sequential) and len({type(child) for child in part}) == 1
        if equal and all(next(child.parameters(), None) is not None for child in part.children()):
            yield path, part


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _name(module: nn.Module) -> str:
    return type(module).__name__


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm: by the name of its class or, of one that is not torch's, by what it does to a vector.

    Example:
        >>> is_norm(nn.RMSNorm(4)), is_norm(nn.Linear(4, 4))
        (True, False)
        >>> class Unit(nn.Module):
        ...     def forward(self, x):
        ...         return x / x.norm(dim=-1, keepdim=True)
        >>> is_norm(Unit())
        True
    """
    if type(module).__module__.startswith("torch.nn.utils."):  # of weights, as in weight_norm
        return False
    if "norm" in _name(module).lower():  # which "PreNormBlock" has in its name too
        return next(module.children(), None) is None or all(p.dim() < 2 for p in module.parameters())
    if type(module).__module__.startswith("torch.") or next(module.children(), None) is not None:
        return False
    if module not in _DOES_NORM:
        _DOES_NORM[module] = _does_norm(module)
    return _DOES_NORM[module]


_DOES_NORM: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _does_norm(module: nn.Module) -> bool:
    """Whether it makes the same of a vector without mean and of a multiple: a fixed gain times it, less a bias."""
    sizes = {parameter.shape for parameter in module.parameters()}
    if any(len(size) != 1 for size in sizes) or len(sizes) > 1:
        return False
    like, gains = next(iter(module.parameters()), torch.zeros(16)), []
    for seed in (3, 4):
        x = torch.randn(1, 1, len(like), generator=torch.Generator().manual_seed(seed)).double()
        x = (x - x.mean()) / x.std(correction=0)
        try:
            with torch.no_grad():  # the forward by itself: hooks are for what the model calls
                once, more = (module.forward((s * x).to(like)) - module.forward((-s * x).to(like)) for s in (10, 1000))
            if once.shape != x.shape or not torch.allclose(once, more, rtol=0.05, atol=0.01):
                return False
            gains.append(more.double() / x.to(like.device))
        except Exception:
            return False
    return bool(gains[0].abs().min() > 0) and torch.allclose(gains[0], gains[1], rtol=0.05)


def named_attention(path: str, module: nn.Module) -> bool:
    """Whether a module is called attention; what it computes counts for more.

    Example:
        >>> named_attention("self_attn", nn.Linear(4, 4))
        True
    """
    return bool(ATTENTION.search(path) or ATTENTION.search(_name(module)))


def named_cross_attention(path: str, module: nn.Module) -> bool:
    """Whether a module is called attention to another stream.

    Example:
        >>> named_cross_attention("encoder_attn", nn.Linear(4, 4)), named_cross_attention("attn", nn.Linear(4, 4))
        (True, False)
    """
    return bool(CROSS.search(path) or CROSS.search(_name(module)))


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that a wrapper of torch stands for: compiled, checkpointed, sharded or replicated.

    Example:
        >>> unwrapped(nn.DataParallel(nn.Linear(2, 3)))
        Linear(in_features=2, out_features=3, bias=True)
    """
    for name in WRAPPED:
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module) and (name != "module" or "Parallel" in _name(module)):
            return unwrapped(inner)
    return module


def parts(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a block calls itself, by path; wrappers, lists and dicts of modules are opened.

    A block that does nothing but call one module with parts of its own (ALBERT's groups of layers) has that one's.
    """
    found = list(_opened(block))
    if len(found) == 1 and has_norm(found[0][1]) and len(list(found[0][1].children())) > 1:
        path, only = found[0]
        return iter([(f"{path}.{name}", part) for name, part in _opened(only)])
    return iter(found)


def _opened(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in unwrapped(block).named_children():
        child = unwrapped(child)
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            for inner, module in _opened(child):
                yield f"{name}.{inner}", module
        else:
            yield name, child


def candidates(path: str, part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Of one part of a block, the modules whose output may be what a sublayer gave, by path.

    A norm is itself. A part without norms is one branch, or all of it but a last sum with its skip. In one with norms
    (BERT's attention adds and norms, Qwen3's norms its queries) every module without norms may be the branch, and every
    norm the part's last step: the caller sees which of them gives a stream, and whether it is the part's own.
    """
    yield path, part
    if is_norm(part):
        return
    mixed = has_norm(part)
    for name, module in part.named_modules():
        if module is not part and (not mixed or is_norm(module) or not has_norm(module)):
            yield f"{path}.{name}", module


def has_norm(module: nn.Module) -> bool:
    """Whether a module holds a norm.

    Example:
        >>> has_norm(nn.Sequential(nn.LayerNorm(4))), has_norm(nn.Linear(4, 4))
        (True, False)
    """
    return any(is_norm(part) for part in module.modules())
