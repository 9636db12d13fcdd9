"""The coordinates of any torch model in its first steps, under an optimiser of its user's own.

What a parameter's change makes by itself: the innermost module that was called and holds it is called again, on what it
was first given at step 0, with this one parameter as it is now and all others as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from propagate.checks import ModelError, shown
from propagate.coordinates.curves import Coordinates, Matrix
from propagate.tracing.loss import value_of

Make = Callable[[int], nn.Module]
Optimize = Callable[[nn.Module, int], torch.optim.Optimizer]


@dataclass(frozen=True, eq=False)
class First:
    """The first call of a module: what it was given, and gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor

    @property
    def input(self) -> Tensor | None:
        """The stream that it was given; None where that is no stream."""
        given = _tensor((*self.args, *self.kwargs.values()))
        return given if given is not None and given.is_floating_point() else None


def coordinates_of_family(
    make: Make, size: int, inputs: Any, loss: Callable[[Any], Tensor], optimizer: Optimize, steps: int, seeds: list[int]
) -> Iterator[Coordinates]:
    """Of independent networks of one size.

    Args:
        make: from the size to a module with random weights, drawn from torch's own generator.
        size: the width.
        inputs: what the module is called with: a tensor, a tuple of arguments, a mapping of keyword arguments, or a
            function from the number of a network to one of these.
        loss: from the module's output to a scalar.
        optimizer: from the module and the size to an optimiser of its parameters.
        steps: how many.
        seeds: one a network.

    Raises:
        ModelError: where `make` gives no module, `loss` no scalar, `optimizer` none of torch's, or nothing is trained.

    Example:
        >>> make = lambda width: nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 1))
        >>> sgd = lambda module, width: torch.optim.SGD(module.parameters(), lr=0.1)
        >>> (seen,) = coordinates_of_family(make, 8, torch.ones(2, 4), torch.sum, sgd, steps=1, seeds=[0])
        >>> list(seen.response)
        ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    for draw, seed in enumerate(seeds):
        given = inputs(draw) if callable(inputs) else inputs
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            module = make(size)
            if not isinstance(module, nn.Module):
                raise ModelError(f"a function of the width must give a torch module, got {shown(module)}")
            with torch.enable_grad():
                yield _stepped(module.eval(), given, loss, optimizer, size, steps)


def _stepped(
    module: nn.Module, inputs: Any, loss: Callable[[Any], Tensor], optimizer: Optimize, size: int, steps: int
) -> Coordinates:
    made = optimizer(module, size)
    if not isinstance(made, torch.optim.Optimizer):
        raise ModelError(f"optimizer must give an optimiser of torch, from the module and its width, got {shown(made)}")
    # a parameter that two modules share is there under both names
    parameters = {name: p for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    first, output = _heard(module, inputs)
    owners = _owners(module, list(parameters), first)
    if not owners:
        raise ModelError("the model has no parameter that is trained and used")
    found = Coordinates()
    for name, path in owners.items():
        call, parameter = first[path], parameters[name]
        linear = parameter.dim() > 1 and next(module.get_submodule(path).children(), None) is None
        heard = call.input if linear else None
        found.gain[name] = math.nan if heard is None else _rms(call.output) / _rms(heard)
        found.matrices[name] = Matrix(*_sides(parameter, heard))
        found.response[name], found.own_change[name], found.output_change[name] = [0.0], [0.0], [0.0]
    found.whole["output"] = [0.0]
    for step in range(steps):
        made.zero_grad()
        torch.autograd.backward(value_of(loss, _call(module, inputs)))
        if step == 0:
            for name in owners:
                gradient = parameters[name].grad
                found.gradient[name] = 0.0 if gradient is None else _rms(gradient)
        made.step()
        now, after = _heard(module, inputs)
        moved = {name: parameters[name].detach().clone() for name in owners}
        with torch.no_grad(), _restored(module, before):
            for name, path in owners.items():
                own = _seen(_own(module, path, name, moved[name], first[path]), first[path].output)
                linear = not math.isnan(found.gain[name])
                heard = first[path].input
                found.own_change[name].append(own)
                found.response[name].append(own / _rms(heard) if linear and heard is not None else own)
                alike = path in now and now[path].output.shape == first[path].output.shape
                found.output_change[name].append(_rms(now[path].output - first[path].output) if alike else math.nan)
        found.whole["output"].append(_rms(after - output))
    return found


def _own(module: nn.Module, path: str, name: str, moved: Tensor, call: First) -> Tensor:
    """What one moved parameter changes of a module's output, the others being as they were."""
    owner, parameter = module.get_submodule(path), module.get_parameter(name)
    base = _output(owner(*call.args, **call.kwargs))
    kept = parameter.detach().clone()
    parameter.copy_(moved)
    changed = _output(owner(*call.args, **call.kwargs))
    parameter.copy_(kept)
    return changed - base


@contextmanager
def _restored(module: nn.Module, before: Mapping[str, Tensor]) -> Iterator[None]:
    """With the parameters of step 0; afterwards as they are now."""
    now = {name: p.detach().clone() for name, p in module.named_parameters()}
    try:
        for name, parameter in module.named_parameters():
            parameter.copy_(before[name])
        yield
    finally:
        for name, parameter in module.named_parameters():
            parameter.copy_(now[name])


@torch.no_grad()
def _heard(module: nn.Module, inputs: Any) -> tuple[dict[str, First], Tensor]:
    """The first call of every module by its path, in the order in which they began, and the whole output."""
    found: dict[str, First] = {}
    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    handles = []
    for path, part in module.named_modules():

        def enter(_: Any, args: Any, kwargs: Any, path: str = path) -> None:
            given.setdefault(path, (_copied(args), _copied(kwargs)))

        def leave(_: Any, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            made = _tensor((output,))
            if path not in found and made is not None and path in given:
                found[path] = First(*given[path], made.detach().clone())

        handles.append(part.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(part.register_forward_hook(leave, with_kwargs=True))
    try:
        output = _output(_call(module, inputs))
    finally:
        for handle in handles:
            handle.remove()
    return {path: found[path] for path in given if path in found}, output


def _owners(module: nn.Module, names: Iterable[str], first: Mapping[str, First]) -> dict[str, str]:
    """The innermost called module of each parameter, in the order of the calls."""
    found: dict[str, str] = {}
    for name in names:
        path = name.rpartition(".")[0]
        while path and not (path in first and _tensor((*first[path].args, *first[path].kwargs.values())) is not None):
            path = path.rpartition(".")[0]
        if path in first:
            found[name] = path
    order = {path: place for place, path in enumerate(first)}
    return dict(sorted(found.items(), key=lambda pair: order[pair[1]]))


def _sides(parameter: Tensor, heard: Tensor | None) -> tuple[int, int]:
    """Fan-in and fan-out: the side that the input has, and the rest."""
    fan_in = 1 if heard is None else heard.shape[-1]
    return fan_in, max(1, parameter.numel() // max(fan_in, 1))


def _call(module: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def _copied(value: Any) -> Any:
    """Tensors as they were when a module was called, whatever it does to them in place."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(_copied(one) for one in value)
    return {key: _copied(one) for key, one in value.items()} if type(value) is dict else value


def _tensor(values: Iterable[Any]) -> Tensor | None:
    """The first tensor, also inside tuples and mappings."""
    for value in values:
        if isinstance(value, Tensor):
            return value
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
        found = _tensor(inner)
        if found is not None:
            return found
    return None


def _output(value: Any) -> Tensor:
    found = _tensor((value,))
    if found is None:
        raise ModelError(f"the model must give a tensor, or a tuple or mapping that holds one, got {shown(value)}")
    return found


def _seen(change: Tensor, output: Tensor) -> float:
    """Its root mean square; NaN where it is hardly more than the output's rounding."""
    found = _rms(change)
    rounding = 30 * torch.finfo(output.dtype).eps * _rms(output)
    return found if found == 0 or found > rounding else math.nan


def _rms(x: Tensor) -> float:
    return float(x.detach().to(torch.float64).square().mean().sqrt())
