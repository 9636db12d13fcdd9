"""Reads a `Model` off a torch model of a known architecture: its placement by name, its gains off the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

import propagate
from propagate.experts import Experts
from propagate.model import Model, ModelError
from propagate.scaling import Gains, Number
from propagate.tracing.find import Blocks, blocks_of, is_norm, unwrapped
from propagate.tracing.layers import GATED, output_rms
from propagate.tracing.roles import by_role
from propagate.tracing.statistics import precise

# by the configuration's model_type in the library transformers
PLACEMENTS = {
    **dict.fromkeys(("gpt2", "opt", "starcoder2", "stablelm", "olmo", "mixtral", "qwen3_moe"), "prenorm"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), "prenorm"),
    **dict.fromkeys(("bert", "roberta", "albert", "distilbert", "electra"), "postnorm"),
    **dict.fromkeys(("gemma2", "gemma3_text"), "sandwichnorm"),
    "gpt_neox": "parallelprenorm",
    "olmo2": "olmo2",
}
REFUSED = {
    "longcat_flash": "its block has dense FFNs and a mixture of experts, which joins two sublayers later; a Model has"
    " one kind of FFN, so no placement says both",
}
"""Architectures that can be traced, and why no `Model` describes them."""
BIDIRECTIONAL = ("bert", "roberta", "albert", "distilbert", "electra")
TORCH_ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "swish": "silu"}


class Description(NamedTuple):
    """What was read off a torch model.

    Attributes:
        model: the network that theory and simulation know.
        unread: in words, what the torch model has and `model` does not.
    """

    model: Model
    unread: tuple[str, ...]


@dataclass(frozen=True)
class MeasuredGains:
    """A scaling: gains of every block's matrices as they are in a torch model, entries' rms times sqrt(fan_in).

    Example:
        >>> MeasuredGains((Gains(value=0.5), Gains(value=0.25))).gains(index=2, depth=2).value
        0.25
    """

    blocks: tuple[Gains, ...]

    def gains(self, index: Number, depth: Number) -> Gains:
        return self.blocks[min(int(index), len(self.blocks)) - 1]  # the readout, past the last block, has no matrix


def describe(module: nn.Module, *, tokens: int = 32, blocks: Blocks = None) -> Description:
    """The `Model` that a torch model of a known architecture is at its present weights, and what that leaves out.

    Placement, norm, activation, depth, width and heads are those of the architecture. Gains are read off the weights,
    matrix by matrix and block by block, as if their entries were Gaussian: at initialisation they are; of trained
    weights this keeps the second moments and nothing else.

    Args:
        module: a model of the library `transformers`, a stack of `nn.TransformerEncoderLayer`, or what `build` made.
        tokens: length of the sequences it will be asked about.
        blocks: where the residual stream runs, as for `trace`.

    Raises:
        ModelError: for an architecture that is not known here, or that no `Model` can say (LongCat-Flash).

    Example: theory of a model that is not ours, from where its trace begins.
        >>> import torch, propagate as pg
        >>> layers = [nn.TransformerEncoderLayer(32, 2, 64, batch_first=True) for _ in range(3)]
        >>> module, x = nn.Sequential(*layers), torch.randn(4, 8, 32)
        >>> model, unread = describe(module, tokens=8)
        >>> model.placement, model.activation, unread
        (PostNorm(), 'relu', ('eps 1e-05 of the norms', 'biases that are not zero'))
        >>> pg.predict(model, **pg.start_of(pg.trace(module, x))).sizes["block"]
        4
    """
    module = unwrapped(module)
    if hasattr(module, "model") and isinstance(module.model, Model):
        return Description(module.model, ())
    distinct = [unwrapped(block) for block in blocks_of(module, blocks)]
    config = getattr(module, "config", None)
    found = _called(distinct, config)
    if isinstance(found[0], nn.TransformerEncoderLayer):
        layer: Any = found[0]
        kind = "prenorm" if layer.norm_first else "postnorm"
        heads, activation, causal = layer.self_attn.num_heads, _activation_of(layer.activation), False
    else:
        kind, heads, activation, causal = _configured(config, module)
    matrices = [_matrices(block) for block in found]
    gated = "ffn_gate" in matrices[0]
    activation = ACTIVATIONS.get(activation, activation)
    gate = {core: name for name, core in GATED.items()}
    if gated and activation not in gate:
        raise ModelError(f"no gated activation of {activation!r} is known, of {', '.join(gate)} only")
    hidden, width = _fans(matrices[0]["ffn_out"], found[0])
    read = [_gains(block, rows, activation) for block, rows in zip(found, matrices, strict=True)]
    gains, logits = tuple(gain for gain, _ in read), [spread for _, spread in read]
    routers = [_gain(block, rows, "router") for block, rows in zip(found, matrices, strict=True) if "router" in rows]
    if routers and len(routers) < len(found):
        raise ModelError(f"a Model has experts in all blocks or in none, got {len(routers)} of {len(found)} with them")
    norms = [part for part in found[0].modules() if is_norm(part)]
    model = Model(
        kind,
        depth=len(found),
        width=width,
        tokens=tokens,
        heads=heads,
        activation=gate[activation] if gated else activation,
        normed=_normed(found[0]),
        ffn_ratio=hidden / width,
        norm="layer" if any("LayerNorm" in type(part).__name__ for part in norms) else "rms",
        causal=causal,
        rope=_rope(config),
        logit_std=sum(logits) / len(logits),
        scaling=MeasuredGains(gains),
        experts=_experts(module.config, len(matrices[0]["router"][0][1]), routers) if routers else None,
    )
    return Description(model, tuple(_unread(found, norms, config, logits, routers, tokens)))


def _called(blocks: Sequence[nn.Module], config: Any) -> list[nn.Module]:
    """The blocks in the order of their calls: ALBERT calls each of its groups of one layer many times."""
    groups, depth = getattr(config, "num_hidden_groups", None), getattr(config, "num_hidden_layers", len(blocks))
    if groups != len(blocks) or depth <= groups:
        return list(blocks)
    return [blocks[index * groups // depth] for index in range(depth)]


def _activation_of(function: Any) -> str:
    """The name of an activation that torch was given as a function or a module."""
    name = getattr(function, "__name__", type(function).__name__).lower()
    if name not in TORCH_ACTIVATIONS or getattr(function, "approximate", "none") not in ("none", "tanh"):
        raise ModelError(
            f"the activation must be a function or module of torch that is known here"
            f" ({', '.join(TORCH_ACTIVATIONS)}), got {function!r}"
        )
    return name


def _configured(config: Any, module: nn.Module) -> tuple[str, int, str, bool]:
    name = getattr(config, "model_type", None)
    if name in REFUSED:
        raise ModelError(f"the architecture {name} cannot be described: {REFUSED[name]}")
    if name not in PLACEMENTS:
        known = ", ".join(sorted(PLACEMENTS))
        raise ModelError(f"the architecture {name or type(module).__name__} is not known here; known are {known}")
    if PLACEMENTS[name] not in propagate.placements():
        raise ModelError(f"the placement {PLACEMENTS[name]} of {name} is not among those of this package")
    activation = next(
        value
        for key in ("hidden_act", "activation_function", "hidden_activation", "activation")
        if isinstance(value := getattr(config, key, None), str)
    )
    return PLACEMENTS[name], config.num_attention_heads, activation, name not in BIDIRECTIONAL


def _matrices(block: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """The weights of a block by role."""
    found = by_role(block)
    if "ffn_both" in found:
        found["ffn_gate"] = found["ffn_in"] = found["ffn_both"]
    for role in ("attention_out", "ffn_in", "ffn_out"):
        if role not in found:
            raise ModelError(f"the matrix {role} of {type(block).__name__} was not found by name")
    return found


def _fans(weights: Sequence[tuple[str, nn.Parameter]], block: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a matrix, or of each of a stack; GPT-2's Conv1D stores it transposed."""
    path, weight = weights[0]
    outputs, inputs = weight.shape[-2:]
    owner = block.get_submodule(path.rpartition(".")[0])
    return (outputs, inputs) if type(owner).__name__ == "Conv1D" else (inputs, outputs)


def _gain(block: nn.Module, rows: dict[str, list[tuple[str, nn.Parameter]]], role: str) -> float:
    weights = rows[role] if role in rows else rows["fused"]
    fan_in, _ = _fans(weights, block)
    squares = [precise(weight).square().mean().item() for _, weight in weights]
    return math.sqrt(sum(squares) / len(squares) * fan_in)


def _gains(block: nn.Module, rows: dict[str, list[tuple[str, nn.Parameter]]], activation: str) -> tuple[Gains, float]:
    """Gains of a block, and the standard deviation of its logits at unit-variance tokens and unit gains."""
    gain = {role: _gain(block, rows, role) for role in ("query", "key", "value", "attention_out", "ffn_in", "ffn_out")}
    read = Gains(
        query=gain["query"],
        key=gain["key"],
        value=gain["value"],
        attention_out=gain["attention_out"],
        ffn_in=gain["ffn_in"],
        ffn_out=gain["ffn_out"] * output_rms(activation),
    )
    return read, _logit_factor(block)


def _normed(block: nn.Module) -> tuple[str, ...]:
    """Inner projections that pass a norm."""
    paths = [path for path, _ in block.named_modules()]
    return ("key", "query") if any(path.endswith(("q_norm", "query_norm")) for path in paths) else ()


def _experts(config: Any, count: int, routers: Sequence[float]) -> Experts:
    """Mixtral renormalises the gates of the chosen experts; Qwen3-MoE only if its configuration says so."""
    return Experts(
        count=count,
        top_k=config.num_experts_per_tok,
        router_std=sum(routers) / len(routers),
        softmax="after" if getattr(config, "norm_topk_prob", True) else "before",
    )


def _logit_factor(block: nn.Module) -> float:
    """The factor on the logits, times the square root of the width of a head: 1 as a rule, but not in Gemma."""
    for part in block.modules():
        factor, size = getattr(part, "scaling", None), getattr(part, "head_dim", None)
        if isinstance(factor, float) and isinstance(size, int):
            return factor * math.sqrt(size)
    return 1.0


def _rope(config: Any) -> float | None:
    """Base of the rotary positions, if there are any and they turn whole heads."""
    given = getattr(config, "rope_parameters", None) or {}
    whole = given.get("rope_type", "default") == "default" and given.get("partial_rotary_factor", 1.0) == 1.0
    return float(given["rope_theta"]) if whole and "rope_theta" in given else None


def _repeated(blocks: Sequence[nn.Module]) -> int:
    """How many blocks have the weights of another: shared, or copies as `nn.TransformerEncoder` makes them."""
    seen: dict[tuple[float, ...], int] = {}
    for block in blocks:
        weights = [precise(p).sum().item() for p in block.parameters() if sum(size > 1 for size in p.shape) > 1]
        seen[tuple(weights)] = seen.get(tuple(weights), 0) + 1
    return sum(count for weights, count in seen.items() if weights and count > 1)


def _unread(
    blocks: Sequence[nn.Module],
    norms: Sequence[nn.Module],
    config: Any,
    logits: Sequence[float],
    routers: Sequence[float],
    tokens: int,
) -> list[str]:
    """What a model has and a `Model` has not, as far as it can be seen."""
    words = []
    if repeated := _repeated(blocks):
        words.append(f"the same weights in {repeated} of {len(blocks)} blocks, where a Model's are independent")
    eps = {float(value) for n in norms for key in ("eps", "variance_epsilon") if (value := getattr(n, key, None))}
    if eps:
        words.append(f"eps {', '.join(f'{value:g}' for value in sorted(eps))} of the norms")
    biases = [p for block in blocks for path, p in block.named_parameters() if path.endswith("bias")]
    if any(bool(bias.detach().abs().sum() > 0) for bias in biases if bias is not None):
        words.append("biases that are not zero")
    weights = [p.detach() for block in blocks for part in block.modules() if is_norm(part) for p in part.parameters()]
    if any(float(weight.float().var(correction=0)) > 0 for weight in weights):
        words.append("learned gains of the norms that are not all one")
    for what, spreads in (("attention", logits), ("routers", routers)):
        if spreads and max(spreads) > 1.1 * min(spreads):
            words.append(f"logits of {what} whose spread differs between blocks; their mean is taken")
    rotary = getattr(config, "rope_parameters", None)
    if rotary and _rope(config) is None:
        several = any(isinstance(value, dict) for value in rotary.values())
        what = "that differ between blocks" if several else "of parts of the heads, or rescaled ones"
        words.append(f"rotary positions {what}")
    window = getattr(config, "sliding_window", None)
    if isinstance(window, int) and getattr(config, "use_sliding_window", True) and window < tokens:
        words.append(f"attention of some blocks to {window} tokens only")
    if cap := getattr(config, "attn_logit_softcapping", None):
        words.append(f"attention logits capped softly at {cap:g}")
    return words
