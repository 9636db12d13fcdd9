"""What is read off one block of a torch model: its attention, its FFN or experts, its norm, and their gains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from propagate.activations import GATES
from propagate.checks import ModelError
from propagate.experts import Experts
from propagate.latent import LatentAttention
from propagate.norms import Norm
from propagate.scaling import Gains
from propagate.sublayers import FFN, Attention
from propagate.tracing.configuration import (
    activation_of,
    experts_of,
    inner_norms,
    logit_factor,
)
from propagate.tracing.experts_read import as_asked
from propagate.tracing.find import unwrapped
from propagate.tracing.gains import (
    Rows,
    Sizes,
    attention_gains,
    ffn_gains,
    ffn_sizes,
    router_std,
    rows_of,
    sizes_of,
)
from propagate.tracing.latent_rows import MARK, LatentRows
from propagate.tracing.layers import output_rms
from propagate.tracing.mixtures import apart
from propagate.tracing.norms import adds_elsewhere, norm_of
from propagate.tracing.positions import base_of, rope_of, turned
from propagate.tracing.probe import Seen, rule


class Read(NamedTuple):
    """What was read off one block: its descriptions without gains, and those; `norm` is None where it norms nothing."""

    attention: Attention | LatentAttention
    ffn: FFN
    experts: Experts | None
    norm: Norm | None
    gains: Gains
    width: int
    unsaid: tuple[str, ...]


def read_block(
    at: int,
    seen: Seen,
    config: Any,
    tokens: int,
    attention: Attention | LatentAttention | None,
    ffn: FFN | Experts | None,
) -> Read:
    block = unwrapped(seen.block)
    if attention is not None and ffn is not None:
        width = (
            seen.calls[0][1].shape[-1] if seen.calls else next(p.shape[-1] for p in block.parameters() if p.dim() > 1)
        )
        dense, experts = (ffn, None) if isinstance(ffn, FFN) else (ffn.ffn or FFN(), ffn)
        unsaid: list[str] = []
        return Read(attention, dense, experts, _norm(seen.norms, width, unsaid), Gains(), width, tuple(unsaid))
    if attention is None:
        _check_softmax(at, seen)
    described = [path for kind, path in seen.paths if kind == "attention" and attention is not None]
    rows, inside = _rows(seen, described)
    rows, beside = apart(rows)
    width = seen.calls[0][1].shape[-1] if described else 0
    sizes = ffn_sizes(block, rows, width) if described else sizes_of(block, rows, seen.attended.core, config)
    normed = inner_norms(block)
    dense, gains = _ffn(block, rows, sizes, inside, config, hidden_normed="hidden" in normed)
    _check_alike(seen, rows, inside, config, sizes)
    unsaid = []
    experts = _experts(block, rows, sizes, config, unsaid) if sizes.routed and ffn is None else None
    if beside is not None and ffn is None:
        of_mixture = ffn_sizes(block, beside, sizes.width)
        own_ffn, own_gains = _ffn(block, beside, of_mixture, {}, config, hidden_normed="hidden" in normed)
        experts = _experts(block, beside, of_mixture, config, unsaid)
        experts = replace(experts, ffn=_times(own_ffn, own_gains, gains))
    own: Attention | LatentAttention
    if attention is None:
        own = _attention(at, replace(seen, inside=inside), rows, sizes, config, tokens, unsaid)
        gains = gains * attention_gains(block, rows, sizes)
    else:
        own = attention
    if ffn is not None:
        dense, experts = (ffn, None) if isinstance(ffn, FFN) else (ffn.ffn or dense, ffn)
        gains = Gains(gains.query, gains.key, gains.value, gains.attention_out)
    norm = _norm(seen.norms, sizes.width, unsaid)
    return Read(own, dense, experts, norm, gains, sizes.width, tuple(unsaid))


def _ffn(
    block: nn.Module, rows: Rows, sizes: Sizes, inside: dict[str, Tensor], config: Any, *, hidden_normed: bool
) -> tuple[FFN, Gains]:
    """An FFN, or what each expert is, without its gains, and those."""
    core = activation_of(block, inside, config, gated=sizes.gated)
    gated = {plain: name for name, plain in GATES.items()}
    if sizes.gated and core not in gated:
        raise ModelError(f"no gated activation of {core!r} is known, of {', '.join(gated)} only")
    gains = ffn_gains(block, rows, sizes, 1.0 if hidden_normed else output_rms(core))
    return FFN(gated[core] if sizes.gated else core, hidden=sizes.hidden), gains


def _experts(block: nn.Module, rows: Rows, sizes: Sizes, config: Any, unsaid: list[str]) -> Experts:
    return as_asked(block, rows, experts_of(config, sizes, router_std(block, rows), unsaid), unsaid)


def _times(ffn: FFN, own: Gains, block: Gains) -> FFN:
    """With its own gains, of which the block's are taken off."""
    return ffn.with_(
        in_gain=own.ffn_in / block.ffn_in,
        gate_gain=own.ffn_gate / block.ffn_gate if ffn.activation.gated else 1.0,
        out_gain=own.ffn_out / block.ffn_out,
    )


def _rows(seen: Seen, described: Sequence[str]) -> tuple[Rows, dict[str, Tensor]]:
    """A block's weights by role, by their names or else by what they do; and what they gave or were given."""
    block, parts = unwrapped(seen.block), seen.parts
    inside = seen.inside if parts is None or "ffn_out" in seen.inside else parts.inside | seen.inside
    try:
        return rows_of(block, described), inside
    except ModelError:
        if parts is None:
            raise
        return rows_of(block, described, parts.rows), seen.inside | parts.inside


def _check_alike(seen: Seen, rows: Rows, inside: dict[str, Tensor], config: Any, sizes: Sizes) -> None:
    """ModelError where several attentions or FFNs of a block are not of one kind, as a Model's are."""
    block, given = unwrapped(seen.block), seen.parts.ffns if seen.parts else ()
    kinds = {activation_of(block, one, config, gated=sizes.gated) for one in given if len(given) > 1}
    shapes = [{weight.shape for _, weight in rows.get(role, ())} for role in ("attention_out", "ffn_out")]
    if len(kinds) > 1 or any(len(one) > 1 for one in shapes):
        raise ModelError(
            f"{type(block).__name__} has several attentions or FFNs that differ in size or activation, and a Model's"
            " are alike; say what they are with attention= and ffn="
        )


def _check_softmax(at: int, seen: Seen) -> None:
    """ModelError for what mixes tokens in no way that an `Attention` does."""
    if not seen.attended.softmax:
        raise ModelError(
            f"what mixes tokens in block {at + 1} asks torch for no softmax over tokens, so it is no softmax attention,"
            " as far as is seen; say what it is with attention="
        )
    if "heads" in seen.attended.uneven:
        raise ModelError(f"the heads of block {at + 1} attend to different tokens, which no Model has")


def inner_norms_of(seen: Seen) -> tuple[str, ...]:
    """Inner projections of a block that pass a norm, by its modules or by what was seen of queries and keys."""
    by_module, core = inner_norms(unwrapped(seen.block)), seen.attended.core
    return tuple(sorted({*by_module, *(core.normed if core else ())}))


def _attention(
    at: int, seen: Seen, rows: Rows, sizes: Sizes, config: Any, tokens: int, unsaid: list[str]
) -> Attention | LatentAttention:
    """A block's, without its gains."""
    attended = seen.attended
    if attended.uneven:
        unsaid.append(f"{attended.uneven[0]} that attend to different tokens, of which the first are read")
    if attended.beside:
        unsaid.append("a key and a value beside those of the tokens")
    fields: dict[str, Any] = {"causal": False}
    if seen.visible is None:
        unsaid.append("who attends to whom, which gradients did not tell; all to all is taken")
    elif (known := rule(seen.visible, seen.rows)) is not None:
        fields = known
    elif len(seen.visible) == tokens:
        fields = {"mask": seen.visible.numpy()}
    else:
        raise ModelError(
            f"who attends to whom in block {at + 1} follows no rule that is known here, and was seen among"
            f" {len(seen.visible)} tokens; describe it with tokens={len(seen.visible)}"
        )
    if attended.biased:
        unsaid.append("a bias on attention logits")
    block, core = unwrapped(seen.block), attended.core
    rope = rope_of(config, at, turned(seen.inside, core), base_of(seen.inside, core), unsaid)
    if MARK in rows:
        latent: LatentAttention = LatentRows.of(rows, sizes.heads).description(block, core, rope, fields)
        return latent
    return Attention(
        heads=sizes.heads,
        key_value_heads=None if sizes.kv_heads == sizes.heads else sizes.kv_heads,
        head_size=None if sizes.heads * sizes.head_size == sizes.width else sizes.head_size,
        rope=rope,
        logit_std=round(logit_factor(block, core, seen.inside, inner_norms_of(seen)), 5),
        **fields,
    )


def _norm(norms: Sequence[nn.Module], width: int, unsaid: list[str]) -> Norm | None:
    """What a block's norms of streams have in common."""
    found = Counter(norm_of(norm, width) for norm in norms)
    if len({norm.kind for norm in found}) > 1:
        raise ModelError("norms of streams must all take out the mean or none, got both")
    if len(found) > 1:
        unsaid.append(f"norms of one block with eps {', '.join(f'{norm.eps:g}' for norm in found)}")
    if any(adds_elsewhere(norm, width) for norm in norms):
        unsaid.append("an eps of the norms that is added to something else than the mean square")
    return found.most_common(1)[0][0] if found else None
