"""What a router makes of its logits, found by asking it: for those whose configuration does not tell."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from propagate.experts import Experts
from propagate.model import ModelError

TELLING = ("e_score_correction_bias", "topk_method", "topk_group", "num_group")
"""Attributes of routers that do something else than a configuration's `norm_topk_prob` says."""
ALIKE, NEAR = 1e-4, 0.35
"""Shares of the gates' root mean square: what is the same, and what may stand for them."""
TOKENS = 64


def softmax_of(block: nn.Module, rows: dict[str, list[tuple[str, Tensor]]], experts: Experts, unsaid: list[str]) -> Any:
    """Whether the softmax is taken "after" or "before" the choice, as the router's own gates tell.

    Of gates that are neither, such as DeepSeek-V3's of logistic functions of the logits, the nearer, which is said.

    Args:
        block: which holds the router.
        rows: its weights by role.
        experts: as the configuration says.
        unsaid: words are added to it.

    Raises:
        ModelError: for gates that are far from both, as where groups of experts are chosen first.
    """
    path, weight = rows["router"][0]
    owner = path.rpartition(".")[0]
    router = block.get_submodule(owner)
    if isinstance(router, nn.Linear):  # inside one, perhaps
        router = block.get_submodule(owner.rpartition(".")[0])
    if not any(hasattr(router, name) for name in TELLING):
        return experts.softmax
    x = torch.randn(TOKENS, weight.shape[-1], generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        given = router(x)
        found = [one for one in given if isinstance(one, Tensor) and one.is_floating_point()] if given else []
        gates = [one.sort(dim=-1).values for one in found if one.shape == (TOKENS, experts.chosen)]
        kinds: tuple[Literal["before", "after"], ...] = ("before", "after")
        expected = {kind: _gates(x @ weight.mT, experts, kind).sort(dim=-1).values for kind in kinds}
    if not gates:
        return experts.softmax
    apart = {kind: float((gates[0] - one).norm() / one.norm()) for kind, one in expected.items()}
    kind = min(kinds, key=lambda one: apart[one])
    if apart[kind] > NEAR:
        raise ModelError(
            f"the gates of {type(router).__name__} are no softmax over the chosen experts nor over all, and"
            f" {100 * apart[kind]:.0f} % from the nearer: other functions of logits and groups of experts are not"
            " covered; say what the mixture is with ffn="
        )
    if apart[kind] > ALIKE:
        unsaid.append(
            f"gates that are no softmax, {100 * apart[kind]:.2g} % from that {kind} the choice, which is read"
        )
    return kind


def _gates(logits: Tensor, experts: Experts, kind: Literal["after", "before"]) -> Tensor:
    """Of the chosen, (tokens, chosen)."""
    if kind == "before":
        return logits.softmax(-1).topk(experts.chosen, dim=-1).values * experts.factor
    return logits.topk(experts.chosen, dim=-1).values.softmax(-1) * experts.factor
