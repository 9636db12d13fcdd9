"""What a router makes of its logits, found by asking it: for those whose configuration does not tell."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor, nn

from propagate.experts import Experts, Kind
from propagate.model import ModelError
from propagate.tracing.experts import gates_of
from propagate.tracing.gains import Rows
from propagate.tracing.mixtures import home

ALIKE, NEAR = 1e-4, 0.35
"""Shares of the gates' root mean square: what is the same, and what may stand for them."""
TOKENS = 64
BIASES = ("e_score_correction_bias", "expert_bias")
"""Names of what routers add to scores when candidates are chosen."""


def as_asked(block: nn.Module, rows: Rows, experts: Experts, unsaid: list[str]) -> Experts:
    """With the softmax, or the logistic functions, and the bias on the choice that the router's own gates tell.

    Of gates that are none of these, as where groups of experts are chosen first, the nearest, which is said.

    Args:
        block: which holds the router.
        rows: its weights by role.
        experts: as the configuration says.
        unsaid: words are added to it.

    Raises:
        ModelError: for gates that are far from all.
    """
    router = _router(block, rows)
    bias = choice_bias(block, unsaid)
    path, weight = rows["router"][0]
    own = dict(block.named_parameters()).get(path.removesuffix("weight") + "bias")
    x = torch.randn(TOKENS, weight.shape[-1], generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        found = [one for one in _given(block, rows, router, x) if one.shape == (TOKENS, experts.chosen)]
        logits = nn.functional.linear(x, weight, own)
    if not found:
        if bias is not None:
            unsaid.append("a bias on the choice of experts")
        return experts
    kinds = [experts.with_(softmax=kind, bias=None if kind == "after" else bias) for kind in get_args(Kind)]
    gates = found[0].sort(dim=-1).values
    apart = {kind: _apart(gates, kind, logits) for kind in kinds}
    nearest = min(kinds, key=lambda kind: apart[kind])
    if apart[nearest] > NEAR:
        raise ModelError(
            f"the gates of {type(router).__name__} are no softmax over the chosen experts nor over all, nor logistic"
            f" functions, and {100 * apart[nearest]:.0f} % from the nearest: other functions of logits and groups of"
            " experts are not covered; say what the mixture is with ffn="
        )
    if nearest.bias is None and bias is not None:
        unsaid.append("a bias on the choice of experts")
    if apart[nearest] > ALIKE:
        unsaid.append(
            f"gates that are {100 * apart[nearest]:.2g} % from those of softmax={nearest.softmax!r}, which is read"
        )
    return nearest


def choice_bias(block: nn.Module, unsaid: list[str]) -> tuple[float, ...] | None:
    """What is added to a router's scores when candidates are chosen; None where it is the same for all.

    A constant chooses nothing, so that numbers beyond those of a description are taken from their middle.
    """
    named = (*block.named_buffers(), *block.named_parameters())
    found = [bias for name, bias in named if name.endswith(BIASES)]
    if len(found) != 1 or bool((found[0] == found[0].flatten()[0]).all()):
        return None
    bias = found[0].detach().double().flatten()
    if float(bias.abs().max()) > 1:
        bias = bias - (bias.max() + bias.min()) / 2
    if float(bias.abs().max()) > 1:
        unsaid.append(f"a bias on the choice of experts that spreads over {2 * float(bias.max()):.2g}, more than 2")
        return None
    return tuple(bias.tolist())


def _router(block: nn.Module, rows: Rows) -> nn.Module:
    owner = rows["router"][0][0].rpartition(".")[0]
    router = block.get_submodule(owner)
    return block.get_submodule(owner.rpartition(".")[0]) if isinstance(router, nn.Linear) else router


def _given(block: nn.Module, rows: Rows, router: nn.Module, x: Tensor) -> list[Tensor]:
    """What the router gives of these tokens, in numbers; by way of the mixture where it wants more than tokens."""
    given: list[Any] = []
    hook = router.register_forward_hook(lambda module, arguments, output: given.append(output))
    try:
        if type(router).__name__.endswith(("Router", "Gate")) or "router" in type(router).__name__.lower():
            try:
                router(x)
            except TypeError:
                block.get_submodule((home(rows) or "").rstrip("."))(x[None])
    finally:
        hook.remove()
    outputs = given[0] if given and isinstance(given[0], tuple | list) else given
    return [one for one in outputs if isinstance(one, Tensor) and one.is_floating_point()]


def _apart(gates: Tensor, experts: Experts, logits: Tensor) -> float:
    bias = None if experts.bias is None else torch.tensor(experts.bias).to(logits)
    expected = gates_of(experts, logits, bias)[0].sort(dim=-1).values
    return float((gates - expected).norm() / expected.norm())
