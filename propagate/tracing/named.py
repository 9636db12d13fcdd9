"""The weights of a module by path, as they act: those that torch's parametrizations make, as they are made."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import parametrize


def named_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters by path; in place of what a weight is made from (`weight_norm`, `spectral_norm` and their like), it.

    Example:
        >>> linear = nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
        >>> [path for path, _ in named_weights(linear)]
        ['weight', 'bias']
    """
    for path, part in module.named_modules():
        if path.rpartition(".")[2] == "parametrizations" or ".parametrizations." in f".{path}.":
            continue
        start = f"{path}." if path else ""
        made = dict(_made(part))
        for name, weight in made.items():
            yield start + name, weight.detach()
        for name, parameter in part.named_parameters(recurse=False):
            if not name.startswith(tuple(f"{one}_" for one in made)):  # weight_g and weight_v, of which it is made
                yield start + name, parameter


def is_matrix(weight: Tensor) -> bool:
    """Whether it has more than one row and more than one column.

    Example:
        >>> is_matrix(nn.Linear(2, 3).weight), is_matrix(nn.Linear(2, 3).bias)
        (True, False)
    """
    return sum(size > 1 for size in weight.shape) > 1


def _made(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    if parametrize.is_parametrized(part):
        of_torch: nn.ModuleDict = part.parametrizations  # type: ignore[assignment]
        names = list(of_torch)
    else:  # the older way: a hook that makes the weight before each call
        names = [name for hook in part._forward_pre_hooks.values() if isinstance(name := getattr(hook, "name", 0), str)]
    for name in names:
        if isinstance(weight := getattr(part, name, None), Tensor) and name not in part._parameters:
            yield name, weight
