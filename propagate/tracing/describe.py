"""Reads a `Model` off a torch model: its equations by running it once, its gains off the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from propagate.checks import ModelError, integer, shown
from propagate.experts import Experts
from propagate.latent import LatentAttention
from propagate.layers import KINDS
from propagate.model import Model, as_placement
from propagate.norms import Norm
from propagate.placement import Placement
from propagate.scaling import Gains, Number
from propagate.sublayers import FFN, Attention
from propagate.tracing.build import LanguageModel
from propagate.tracing.embedding import not_of_a_model
from propagate.tracing.find import Blocks, blocks_of, check_module, none_called, unwrapped
from propagate.tracing.latent_rows import evened
from propagate.tracing.layout import Axes
from propagate.tracing.probe import Seen, inputs_for, probed
from propagate.tracing.read import Read, inner_norms_of, read_block
from propagate.tracing.recheck import misses
from propagate.tracing.unread import unread
from propagate.tracing.wiring import placement_of

MOST_TOKENS = 2**20
COMMON = 0.1
"""Share of a stream's second moment; of random coordinates it is one over their number."""


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


def describe(
    module: nn.Module,
    *,
    tokens: int = 32,
    blocks: Blocks = None,
    inputs: Any = None,
    axes: Axes = None,
    placement: str | Placement | None = None,
    attention: Attention | LatentAttention | None = None,
    ffn: FFN | Experts | None = None,
) -> Description:
    """The `Model` that a torch model is at its present weights, and what that leaves out.

    The model is run once. The equations of its blocks are those between the streams that its norms and sublayers
    give; where no placement has them, they are one (`AsRead`). Who attends to whom is read off gradients, sizes off
    matrices and torch's attention, positions and routers off the configuration. Gains are read off the weights, matrix
    by matrix and block by block, as if their entries were Gaussian: at initialisation they are; of trained weights this
    keeps the second moments and nothing else. What was read is then drawn afresh and given what the model's sublayers
    were given: where it writes something else, `unread` says so.

    Args:
        module: any torch model whose matrices have one of the usual names, or what `build` made.
        tokens: length of the sequences it will be asked about; of models of images their own.
        blocks: where the residual stream runs, as for `trace`.
        inputs: what the model is called with, as for `trace`. By default random token ids, pixels or streams.
        axes: as for `trace`.
        placement, attention, ffn: in place of what would be read; gains of `attention` and `ffn` are their own then.
            Latent attention is not read: it must be given.

    Raises:
        ModelError: where the blocks are not found or cannot be run, or hold what no `Model` can say, by name.

    Example: theory of a model that is not ours, from where its trace begins.
        >>> import torch, propagate as pg
        >>> layers = [nn.TransformerEncoderLayer(32, 2, 64, batch_first=True) for _ in range(3)]
        >>> module, x = nn.Sequential(*layers), torch.randn(4, 8, 32)
        >>> model, unread = describe(module, tokens=8)
        >>> model.placement, model.activation, unread
        (PostNorm(), 'relu', ('biases that are not zero',))
        >>> pg.predict(model, **pg.start_of(pg.trace(module, x))).sizes["block"]
        4
    """
    check_module(module)
    tokens = integer("tokens", tokens, at_most=MOST_TOKENS)
    for name, given, kinds in (("attention", attention, KINDS["attention"][0]), ("ffn", ffn, (FFN, Experts))):
        if given is not None and not isinstance(given, kinds):
            raise ModelError(f"{name} must be None or a propagate.{kinds[0].__name__}, got {shown(given)}")
    module = unwrapped(module)
    if isinstance(module, LanguageModel):
        return Description(module.network.model, tuple(not_of_a_model(module.embedding)))
    if hasattr(module, "model") and isinstance(module.model, Model):
        return Description(module.model, ())
    distinct = blocks_of(module, blocks)
    config = getattr(module, "config", None)
    called_with = inputs_for(module, distinct, tokens) if inputs is None else inputs
    seen = probed(module, distinct, called_with, axes)
    if not seen:
        raise none_called()
    images = called_with.get("pixel_values") if isinstance(called_with, dict) else called_with
    if isinstance(images, Tensor) and images.dim() == 4 and seen[0].calls:
        tokens = seen[0].calls[0][1].shape[1]
    found = [unwrapped(one.block) for one in seen]
    read = [read_block(at, one, config, tokens, attention, ffn) for at, one in enumerate(seen)]
    normed = tuple(sorted(set.intersection(*({*inner_norms_of(one)} for one in seen))))
    equations = _equations(seen, placement, normed)
    model = _model(equations, read, normed, tokens)
    paths = {path for one in seen if one.parts for row in one.parts.rows.values() for path, _ in row}
    if attention is not None:
        paths |= {path for one in seen for path in _of_attention(one)}
    words = [*unread(found, paths, config), *dict.fromkeys(word for one in read for word in one.unsaid)]
    if (share := seen[0].common) > COMMON and model.at(1).norm.centred:
        words.append(f"means over coordinates, {100 * share:.0f} % of the embedded tokens, which LayerNorms take out")
    if attention is None and ffn is None:
        words += misses(model, seen)
    return Description(model, tuple(words))


def _of_attention(seen: Seen) -> list[str]:
    """Parameters of a block's attentions."""
    starts = tuple(f"{path}." for kind, path in seen.paths if kind == "attention")
    return [path for path, _ in unwrapped(seen.block).named_parameters() if path.startswith(starts)]


def _equations(seen: Sequence[Seen], placement: str | Placement | None, normed: Sequence[str]) -> Placement:
    if placement is not None:
        return as_placement(placement)
    for at, one in enumerate(seen):
        if silent := [kind for kind, _, wrote in one.calls if not bool(wrote.any())]:
            raise ModelError(
                f"the {silent[0]} of block {at + 1} writes zeros, so where it is added is not seen;"
                " say what the block is with placement="
            )
        if one.equations is None:
            raise ModelError(
                f"block {at + 1}, {type(unwrapped(one.block)).__name__}, is no sum of the streams that its norms and"
                " sublayers give; say what it is with placement="
            )
    return placement_of([one.equations for one in seen if one.equations is not None], normed)


def _model(equations: Placement, read: Sequence[Read], normed: tuple[str, ...], tokens: int) -> Model:
    """The model, with what most blocks have as its own and the rest by block."""
    read = _evened(read)
    attention, ffn = (
        Counter(one).most_common(1)[0][0] for one in zip(*((r.attention, r.ffn) for r in read), strict=True)
    )
    norm = Counter([one.norm for one in read if one.norm is not None] or [Norm()]).most_common(1)[0][0]
    experts = next((one.experts for one in read if one.experts is not None), None)
    layers: dict[int, dict[str, Any]] = {}
    for index, one in enumerate(read, 1):
        own: dict[str, Any] = {} if one.attention == attention else {"attention": one.attention}
        if one.ffn != ffn:
            own["ffn"] = one.ffn
        if one.experts != experts:
            own["experts"] = one.experts
        if one.norm not in (norm, None):
            own["norm"] = one.norm
        if own:
            layers[index] = own
    width = read[0].width
    gains = tuple(one.gains for one in read)
    fields: dict[str, Any] = {"attention": attention, "ffn": ffn}
    if (
        isinstance(attention, Attention)
        and attention.head_size is None
        and attention == Attention(**(short := _short(attention)))
    ):
        names = {"out_gain": "attention_gain"}
        fields = {names.get(name, name): value for name, value in short.items()} | {"ffn": ffn}
    if ffn.hidden is not None and ffn == FFN(ffn.activation, hidden=ffn.hidden):
        del fields["ffn"]
        fields |= {"activation": ffn.activation, "ffn_ratio": ffn.hidden / width}
    return Model(
        equations,
        depth=len(read),
        width=width,
        tokens=tokens,
        normed=normed,
        norm=norm.kind if norm.eps == 0 else norm,
        scaling=None if set(gains) == {Gains()} else MeasuredGains(gains),
        experts=experts,
        layers=layers or None,
        **fields,
    )


def _short(attention: Attention) -> dict[str, Any]:
    names = ("heads", "key_value_heads", "causal", "window", "mask", "rope", "logit_std", "value_gain", "out_gain")
    return {name: getattr(attention, name) for name in names}


def _evened(read: Sequence[Read]) -> list[Read]:
    """Routers whose spread differs by what a draw makes it differ are one description; and so is latent attention."""
    latent = [one.attention for one in read if isinstance(one.attention, LatentAttention)]
    if latent and len(latent) == len(read):
        read = [one._replace(attention=kind) for one, kind in zip(read, evened(latent), strict=True)]
    spreads = [one.experts.router_std for one in read if one.experts is not None]
    if not spreads or max(spreads) > 1.1 * min(spreads):
        return list(read)
    mean = sum(spreads) / len(spreads)
    return [one if one.experts is None else one._replace(experts=one.experts.with_(router_std=mean)) for one in read]
