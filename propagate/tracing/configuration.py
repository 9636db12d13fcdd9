"""What is read off a configuration of the library transformers, where weights and one run do not tell."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from propagate.experts import Experts
from propagate.model import ModelError
from propagate.tracing import layers
from propagate.tracing.cores import Core
from propagate.tracing.find import is_norm
from propagate.tracing.gains import Sizes

TORCH_ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
ACTIVATIONS = {
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python"), "gelu"),
    "swish": "silu",
    "relu2": "squared_relu",
}
"""Other names of activations, and of those that are near to one."""
KNOWN = (*layers.FUNCTIONS, "quick_gelu", "mish", "elu", "softplus")
NEAR = 0.02
"""Largest relative difference of what is one activation: GELU by tanh is GELU."""
ONE = 0.01
"""Difference from 1 of a factor on queries or keys that is rounding, or the eps of their norm."""
FIELDS = (
    "hidden_act",
    "activation_function",
    "hidden_activation",
    "dense_act_fn",
    "activation",
    "afn",
    "mlp_hidden_act",
)
CHOSEN = ("num_experts_per_tok", "moe_topk", "top_k", "num_experts_per_token")


def activation_of(block: nn.Module, inside: Mapping[str, Tensor], config: Any, *, gated: bool) -> str:
    """The name of a block's activation: the function that takes what its matrices gave to what the last is given.

    Where that was not seen, as in stacks of experts, it is the configuration's name.

    Raises:
        ModelError: for one that is not known, or where there is no name of one.
    """
    if isinstance(block, nn.TransformerEncoderLayer):
        return _of_torch(block.activation)
    if (seen := _seen_activation(inside, gated=gated)) is not None:
        return seen
    given = next((value for key in FIELDS if isinstance(value := getattr(config, key, None), str)), "")
    name = ACTIVATIONS.get(given, given)
    if name not in KNOWN:
        which = f"activation {given!r}" if given else "function between the matrices of the FFN"
        raise ModelError(
            f"the {which} of {type(block).__name__} is none that is known here ({', '.join(KNOWN)}); say it with ffn="
        )
    return name


def _seen_activation(inside: Mapping[str, Tensor], *, gated: bool) -> str | None:
    wrote, entry = inside.get("ffn_out"), inside.get("ffn_both", inside.get("ffn_in"))
    if wrote is None or entry is None:
        return None
    gate, factor = inside.get("ffn_gate", entry), torch.ones(())
    if gated:
        gate, factor = (inside["ffn_gate"], entry) if "ffn_gate" in inside else entry.chunk(2, dim=-1)
    if gate.numel() != wrote.numel() or factor.numel() not in (1, wrote.numel()):
        return None
    wrote, gate = wrote.reshape(gate.shape).double(), gate.double()
    misses = {name: float((layers.function_of(name)(gate) * factor - wrote).square().mean()) for name in KNOWN}
    best = min(misses, key=lambda name: misses[name])
    return best if misses[best] < NEAR**2 * float(wrote.square().mean()) else None


def _of_torch(function: Any) -> str:
    """Of an activation that torch was given as a function or a module."""
    name = getattr(function, "__name__", type(function).__name__).lower()
    if name not in TORCH_ACTIVATIONS or getattr(function, "approximate", "none") not in ("none", "tanh"):
        raise ModelError(
            f"the activation must be a function or module of torch that is known here"
            f" ({', '.join(TORCH_ACTIVATIONS)}), got {function!r}"
        )
    return name


def experts_of(config: Any, sizes: Sizes, router_std: float, unsaid: list[str]) -> Experts:
    """Mixtral renormalises the gates of the chosen experts; Qwen3-MoE only if its configuration says so; LongCat-Flash,
    whose last candidates are identity experts, never."""
    top_k = next((value for key in CHOSEN if isinstance(value := getattr(config, key, None), int)), None)
    if top_k is None:
        raise ModelError("how many experts a token chooses was not found in the configuration; say it with ffn=")
    factor = getattr(config, "routed_scaling_factor", 1.0) or 1.0
    shared = sizes.shared // sizes.hidden if sizes.shared else 0
    if sizes.shared and sizes.shared % sizes.hidden:
        unsaid.append(f"shared experts of {sizes.shared} hidden units, where routed ones have {sizes.hidden}")
    identity = getattr(config, "zero_expert_num", 0) or 0
    return Experts(
        count=sizes.routed - identity,
        top_k=top_k,
        router_std=router_std,
        softmax="after" if getattr(config, "norm_topk_prob", not identity) else "before",
        shared=shared,
        identity=identity,
        gain=None if factor == 1 else float(factor),
    )


def inner_norms(block: nn.Module) -> tuple[str, ...]:
    """Inner projections that pass a norm."""
    paths = [path for path, part in block.named_modules() if is_norm(part)]
    ends = {
        "query": ("q_norm", "query_norm", "q_layernorm", "query_layernorm"),
        "key": ("k_norm", "key_norm", "k_layernorm", "key_layernorm"),
        "heads": ("attn_sub_norm", "inner_attn_ln"),
        "hidden": ("ffn_sub_norm", "mlp.ffn_layernorm"),
    }
    return tuple(sorted(name for name, known in ends.items() if any(path.endswith(known) for path in paths)))


def logit_factor(block: nn.Module, core: Core | None, inside: Mapping[str, Tensor], normed: Collection[str]) -> float:
    """The factor on the logits, times the square root of the width of a head: 1 as a rule.

    Queries and keys count as their matrices make them (OPT's kind scales the ones, DeBERTa's the others) or, where they
    are `normed`, as of size 1.
    """
    for part in block.modules():
        own = getattr(part, "scaling", None)
        size = next(
            (s for n in ("head_dim", "head_size", "attention_head_size") if (s := getattr(part, n, None))), None
        )
        if isinstance(own, float) and isinstance(size, int) and core is None:
            return own * math.sqrt(size)
    if core is None:
        return 1.0
    factor = core.scale * math.sqrt(core.size)
    for name, met in (("query", core.query), ("key", core.key)):
        made = 1.0 if name in core.normed else _size(inside[name]) if name in inside and name not in normed else None
        if made and abs(ratio := _size(met) / made - 1) > ONE:
            factor *= 1 + ratio
    return factor


def _size(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())
