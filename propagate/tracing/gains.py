"""Sizes and gains of a torch block's matrices, read off its weights: roles by name, sizes by shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from propagate.model import ModelError
from propagate.scaling import Gains
from propagate.tracing.cores import Core
from propagate.tracing.find import is_norm
from propagate.tracing.latent_rows import MARK, LatentRows
from propagate.tracing.named import is_matrix, named_weights
from propagate.tracing.roles import by_role
from propagate.tracing.statistics import precise

Rows = dict[str, list[tuple[str, Tensor]]]
Cut = Callable[[Tensor], Sequence[Tensor]]


class Sizes(NamedTuple):
    """Of one block's sublayers, as its matrices have them.

    Attributes:
        width: of the stream.
        hidden: of the FFN, or of each expert.
        gated: whether the FFN has a gate.
        heads, kv_heads, head_size: of the attention.
        routed: how many experts there are; 0 is a dense FFN.
        shared: hidden units of shared experts together.
    """

    width: int
    hidden: int
    gated: bool
    heads: int
    kv_heads: int
    head_size: int
    routed: int
    shared: int


def rows_of(block: nn.Module, described: Sequence[str] = (), known: Rows | None = None) -> Rows:
    """The weights of a block by role, but for those of modules whose description is given.

    Args:
        block: a module.
        described: paths of the modules whose description is given.
        known: weights whose roles are known, whatever their names.

    Raises:
        ModelError: where a matrix has no known role, or a role that every block needs is not found.
    """
    elsewhere = tuple(f"{path}." for path in described)
    found = {role: list(rows) for role, rows in (known or {}).items()}
    told = {path for rows in found.values() for path, _ in rows}
    for role, rows in by_role(block).items():
        found.setdefault(role, []).extend(row for row in rows if row[0] not in told)
    found = {role: [row for row in rows if not row[0].startswith(elsewhere)] for role, rows in found.items()}
    found = {role: rows for role, rows in found.items() if rows}
    told = {path for rows in found.values() for path, _ in rows}
    if further := [path for path in matrices(block) if path not in told and not path.startswith(elsewhere)]:
        raise ModelError(
            f"what the matrix {further[0]} of {type(block).__name__} does is not known by its name;"
            " say what the block is with placement=, attention= and ffn="
        )
    for role in ("ffn_in", "ffn_out") if described else ("attention_out", "ffn_in", "ffn_out"):
        if role not in found and not (role == "ffn_in" and "ffn_both" in found):
            raise ModelError(
                f"the matrix {role} of {type(block).__name__} was not found; say what the block is with placement=,"
                " attention= and ffn="
            )
    return found


def matrices(block: nn.Module) -> list[str]:
    """Paths of a block's matrices, but for those inside norms and tables of positions.

    Example:
        >>> matrices(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)))
        ['0.weight']
    """
    parts = [(name, part) for name, part in block.named_modules() if is_norm(part)]
    norms = {f"{name}.{own}" for name, part in parts for own, _ in part.named_parameters()}
    tables = ("relative_attention_bias.weight", "_bias", "shared_expert_gate.weight")
    wide = [path for path, weight in named_weights(block) if is_matrix(weight)]
    return [path for path in wide if path not in norms and not path.endswith(tables)]


def sizes_of(block: nn.Module, rows: Rows, core: Core | None, config: Any) -> Sizes:
    """See `Sizes`."""
    inside, width = _fans(rows["attention_out"][0], block)
    heads, size = _heads(block, core, config, inside)
    if MARK in rows:  # queries are of another size than values
        kv_heads, size = heads, inside // heads
    elif "value" in rows:
        several = len(rows["attention_out"])  # a head may have a matrix of its own, or a block several attentions
        kv_heads = sum(_fans(row, block)[1] for row in rows["value"]) // several // size
    else:
        kv_heads = (_fans(rows["fused"][0], block)[1] // size - heads) // 2
    if inside != heads * size or not 1 <= kv_heads <= heads:
        raise ModelError(
            f"the heads of {type(block).__name__} do not fit its matrices: {heads} of {size}, {inside} in all"
        )
    return ffn_sizes(block, rows, width)._replace(heads=heads, kv_heads=kv_heads, head_size=size)


def ffn_sizes(block: nn.Module, rows: Rows, width: int) -> Sizes:
    """Without those of the attention, which are 0."""
    hidden, _ = _fans(rows["ffn_out"][-1], block, outputs=width)
    router = rows.get("router")
    routed = len(router[0][1]) if router else 0
    both = "ffn_both" in rows or "ffn_gate" in rows
    reads = rows.get("ffn_both") or rows.get("ffn_in") or []
    gated = both or any(_fans(row, block, inputs=width)[1] == 2 * hidden for row in reads)
    shared = _fans(rows["shared_out"][0], block)[0] if "shared_out" in rows else 0
    return Sizes(width, hidden, gated, 0, 0, 0, routed, shared)


def attention_gains(block: nn.Module, rows: Rows, sizes: Sizes) -> Gains:
    """Gains of an attention's matrices: the root mean square of entries times that of the fan-in."""
    query, key, value = _attention(block, rows, sizes)
    return Gains(query=query, key=key, value=value, attention_out=_gain(block, rows["attention_out"]))


def ffn_gains(block: nn.Module, rows: Rows, sizes: Sizes, output_rms: float) -> Gains:
    """Gains of an FFN's matrices, likewise."""
    gate, entry = _read(block, rows, sizes)
    return Gains(
        ffn_in=entry,
        ffn_gate=1.0 if gate is None else gate / entry if entry else 1.0,
        ffn_out=_gain(block, rows["ffn_out"], outputs=sizes.width) * output_rms,
    )


def router_std(block: nn.Module, rows: Rows) -> float:
    """Standard deviation of a router's logit at unit-variance input."""
    return _gain(block, rows["router"])


def fused_cut(block: nn.Module, path: str, sizes: Sizes | None) -> Cut | None:
    """How queries, keys and values lie in one parameter: side by side or, in some, so within every head.

    None where it is not known.
    """
    owner = block.get_submodule(path.rpartition(".")[0]) if "." in path else block
    dim = -1 if type(owner).__name__ == "Conv1D" else 0  # that stores it transposed
    if sizes is None or path.startswith("attn.qkv_proj") or "mp_num" in dir(owner):
        return (lambda g: g.chunk(3, dim)) if not path.endswith("query_key_value.weight") else None
    size, heads, kv = sizes.head_size, sizes.heads, sizes.kv_heads
    if path.endswith("query_key_value.weight"):
        if kv == heads:
            return lambda g: g.reshape(heads, 3, size, g.shape[-1]).unbind(1)
        group = heads // kv  # queries of a group, then its key and value
        return lambda g: _grouped(g.reshape(kv, group + 2, size, g.shape[-1]))
    return lambda g: torch.split(g, [heads * size, kv * size, kv * size], dim)


def _grouped(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return g[:, :-2], g[:, -2], g[:, -1]


def _heads(block: nn.Module, core: Core | None, config: Any, inside: int) -> tuple[int, int]:
    if core is not None and core.query.dim() > 3:
        return core.heads, core.size
    if core is not None:
        return inside // core.size, core.size
    for part in block.modules():
        for name in ("num_attention_heads", "num_heads", "n_heads", "n_head", "nhead", "heads"):
            if isinstance(heads := getattr(part, name, None), int) and heads > 0:
                return heads, inside // heads
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        raise ModelError(f"how many heads {type(block).__name__} has was not found; say it with attention=")
    return heads, inside // heads


def _fans(row: tuple[str, Tensor], block: nn.Module, *, inputs: int = 0, outputs: int = 0) -> tuple[int, int]:
    """Inputs and outputs of a matrix, or of each of a stack; Conv1D and some stacks store it transposed.

    `inputs` or `outputs` are what is known of them.
    """
    path, weight = row
    rows, columns = weight.shape[-2:]
    owner = block.get_submodule(path.rpartition(".")[0])
    turned = type(owner).__name__ == "Conv1D"
    if weight.dim() > 2 and rows != columns:
        turned = rows == inputs if inputs else columns == outputs
    return (rows, columns) if turned else (columns, rows)


def _gain(block: nn.Module, rows: Sequence[tuple[str, Tensor]], *, inputs: int = 0, outputs: int = 0) -> float:
    fan_in, _ = _fans(rows[0], block, inputs=inputs, outputs=outputs)
    return _rms([weight for _, weight in rows], fan_in)


def _mean_root(gains: Sequence[float]) -> float:
    return math.sqrt(sum(gain * gain for gain in gains) / len(gains))


def _rms(parts: Sequence[Tensor], fan_in: int) -> float:
    squares = [precise(part).square().mean().item() for part in parts]
    return math.sqrt(sum(squares) / len(squares) * fan_in)


def _attention(block: nn.Module, rows: Rows, sizes: Sizes) -> tuple[float, float, float]:
    if MARK in rows:
        each = [one.gains() for one in LatentRows.each(rows, sizes.heads)]
        query, key, value = (_mean_root([getattr(one, name) for one in each]) for name in ("query", "key", "value"))
        return query, key, value
    if "fused" not in rows:
        query, key, value = (_gain(block, rows[role]) for role in ("query", "key", "value"))
        return query, key, value
    path, weight = rows["fused"][0]
    fan_in, _ = _fans(rows["fused"][0], block)
    cut = fused_cut(block, path, sizes)
    parts = cut(precise(weight)) if cut else [precise(weight)] * 3
    query, key, value = (_rms([part], fan_in) for part in parts)
    return query, key, value


def _read(block: nn.Module, rows: Rows, sizes: Sizes) -> tuple[float | None, float]:
    """Gains of the gate, if there is one, and of the FFN's input."""
    if "ffn_gate" in rows:
        return _gain(block, rows["ffn_gate"]), _gain(block, rows["ffn_in"])
    row = (rows.get("ffn_both") or rows["ffn_in"])[0]
    fan_in, outputs = _fans(row, block, inputs=sizes.width)
    if not sizes.gated:
        return None, _gain(block, rows["ffn_in"])
    weight = precise(row[1])
    weight = weight if weight.shape[-1] == fan_in and weight.shape[-2] == outputs else weight.mT
    gate, entry = weight.chunk(2, dim=-2)
    return _rms([gate], fan_in), _rms([entry], fan_in)


__all__ = [
    "Sizes",
    "attention_gains",
    "ffn_gains",
    "ffn_sizes",
    "fused_cut",
    "matrices",
    "router_std",
    "rows_of",
    "sizes_of",
]
