"""What a torch model does to a stream, found by running it once: the equations of its blocks, who attends to whom.

Every block is given a stream with tokens of unequal sizes, so that a norm is no multiple of what it reads. Streams
that norms and sublayers gave are then told apart as vectors: what a norm reads is a sum of them, whose factors are
solved for; what a sublayer reads is where autograd's graph leads from its output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from propagate.model import ModelError
from propagate.tracing.cores import Attended, Cores
from propagate.tracing.find import is_norm, unwrapped
from propagate.tracing.layout import Axes, Layout, gradient_at
from propagate.tracing.lists import all_listed, blocks_in_lists, on_its_own
from propagate.tracing.mixtures import told_apart
from propagate.tracing.recorder import OWN_TENSORS, Recorder, check_handed_on, watching
from propagate.tracing.roles import by_role
from propagate.tracing.streams import Choice, replaced, stream_of
from propagate.tracing.structure import Parts, Product, parts_of, product_of
from propagate.tracing.sublayers import Call, is_bare, sublayers
from propagate.tracing.sums import Solver
from propagate.tracing.wiring import Sum

ROWS = 16
"""Tokens for which is asked whom they attend to; of all if those are not as one of the rules has it."""


INSIDE = ("query", "key", "ffn_gate", "ffn_in", "ffn_both", "ffn_out")
"""Matrices whose outputs, and of the last whose inputs, are looked at."""


@dataclass(frozen=True)
class Seen:
    """One call of a block.

    Attributes:
        block: the module.
        equations: what leaves it; None if that is no sum of what its norms and sublayers give.
        visible: of its attention, which token attends to which, (rows asked for, tokens); None without attention.
        rows: the tokens that were asked for.
        attended: what its attention asked torch for.
        norms: the modules that norm streams.
        calls: of its sublayers, in order: "attention", "ffn" or, beside an FFN, "experts", what it read and what it
            gave, (1, tokens, width).
        paths: of its sublayers' modules within the block, in order, by what they are.
        inside: by role, what matrices gave ("query", "ffn_gate", "ffn_in", "ffn_both") or were given ("ffn_out").
        parts: its matrices by role, as autograd's graph tells; None where it does not.
        common: the share of the entering stream's second moment that its tokens' means over coordinates have.
    """

    block: nn.Module
    equations: Sum | None
    visible: Tensor | None
    rows: tuple[int, ...]
    attended: Attended
    norms: tuple[nn.Module, ...]
    calls: tuple[tuple[str, Tensor, Tensor], ...]
    paths: tuple[tuple[str, str], ...]
    inside: dict[str, Tensor]
    parts: Parts | None
    common: float


class Probe:
    """Hooks as `watching` sets them, a recorder of its own for every call of a block."""

    def __init__(self, axes: Axes, stream: Choice, cores: Cores, seed: int = 0) -> None:
        self.axes, self.stream, self.cores = axes, stream, cores
        self.seen: list[Seen] = []
        self._recorder = Recorder(None, axes, stream)
        self._norms: list[tuple[nn.Module, Tensor, Tensor]] = []
        self.inside: dict[str, Tensor] = {}
        self.products: list[Product] = []
        self.asleep = False
        self._entered: Tensor | None = None
        self._kept: list[tuple[Tensor, int]] = []  # tensors whose values are looked at later, and their versions
        self._left: Tensor | None = None
        self._generator = torch.Generator().manual_seed(seed)

    def embed(self, *_: Any) -> None: ...

    embedded = joined = embed

    def enter(self, block: nn.Module, args: Any, kwargs: Any) -> Any:
        if self.asleep:
            return None
        self._recorder, self._norms = Recorder(None, self.axes, self.stream), []
        self.cores.clear()
        self.inside, self.products = {}, []
        found = stream_of([*args, *kwargs.values()])
        self._entered = found
        if found is not None:
            if self._left is not None:
                check_handed_on(found, self._left, len(self.seen))
            sizes = torch.rand((*found.shape[:-1], 1), generator=self._generator) + 0.5
            uneven = found.detach() * sizes.to(found)
            args = replaced(args, found, uneven)
            kwargs = {key: replaced(value, found, uneven) for key, value in kwargs.items()}
        given = self._recorder.enter(block, args, kwargs)
        self._kept = [(self._recorder.source, self._recorder.source._version)]
        return given

    def step_in(self, block: nn.Module, stream: Tensor) -> None:
        """Before a block of lists, whose skips read the stream outside of any module: it is made uneven where it is."""
        self._recorder, self._norms = Recorder(None, self.axes, self.stream), []
        self.cores.clear()
        self.inside, self.products, self._entered, self._kept = {}, [], stream, []
        sizes = torch.rand((*stream.shape[:-1], 1), generator=self._generator) + 0.5
        stream.data.mul_(sizes.to(stream))
        self._recorder.step_in(block, stream)

    def begin(self, part: nn.Module, args: Any, kwargs: Any) -> None:
        self._recorder.begin(part, args, kwargs)

    def saw(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._recorder.saw(module, args, kwargs, output)
        if not self._recorder.inside:
            return
        read, source = stream_of([*args, *kwargs.values()]), self._recorder.source
        if read is None or not is_norm(module) or read.shape != output.shape:
            return
        if read.numel() == source.numel() and read.shape[-1] == source.shape[-1]:
            self._norms.append((module, read, output))
            self._kept.append((read, read._version))

    def name(self, name: str, output: Tensor) -> None: ...

    def close(self, path: str, part: nn.Module, output: Any) -> Any:
        return self._recorder.close(path, part, output)

    def leave(self, block: nn.Module, args: Any, output: Any) -> Any:
        if self.asleep:
            return None
        self.asleep = True
        try:
            with OWN_TENSORS:
                return self._read(block, args, output)
        finally:
            self.asleep = False

    def _read(self, block: nn.Module, args: Any, output: Any) -> Any:
        source, name = self._recorder.source, f"block {len(self.seen) + 1}"
        output = self._recorder.leave(block, args, output)
        left = self._recorder.states[-1][0]
        if not left.requires_grad:
            raise ModelError(
                f"describe needs autograd, and {name} runs without it (torch.no_grad, or a re-entrant checkpoint)"
            )
        if not bool(left.isfinite().all()):
            raise ModelError(f"what leaves {name} is not finite, so it cannot be read")
        if any(x._version != version for x, version in self._kept):
            raise ModelError(
                f"{name} changes in place a stream that it or its norms were given, so it cannot be read; describe one"
                " that writes x = x + y for x += y"
            )
        self._left = self._recorder.handed_on
        seen = _seen(block, source, self._recorder, self._norms, self.cores, self.inside, self.products)
        self.seen.append(
            seen if self._entered is None else replace(seen, common=_common(self._entered, self._recorder))
        )
        return output

    def multiplied(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not self._recorder.inside:
                return
            product = product_of(path, module, args[0] if args else None, output)
            self.products += [] if product is None else [product]

        return hook

    def gave(self, role: str) -> Any:
        return lambda module, args, output: self.inside.update({role: output.detach()})

    def given(self, role: str) -> Any:
        return lambda module, args: self.inside.update({role: args[0].detach()})


def probed(module: nn.Module, blocks: Sequence[nn.Module], inputs: Any, axes: Axes = None) -> list[Seen]:
    """Every call of a block in one forward pass, without dropout.

    Raises:
        ModelError: where the model cannot be run on these inputs, or a block is no sum of what its norms and sublayers
            give.
    """
    if torch.is_inference_mode_enabled() or any(p.is_inference() for p in module.parameters()):
        raise ModelError(
            "describe needs autograd: call it outside torch.inference_mode, with weights made outside of it"
        )
    cores = Cores()
    probe: Any = Probe(axes, None, cores)
    training = [(part, part.training) for part in module.modules()]
    module.eval()
    hooks: list[Any] = []
    try:
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            blocks = blocks_in_lists(blocks, lambda: _call(module, inputs))
            known: set[nn.Module] = set()
            hooks = [hook for block in dict.fromkeys(blocks) for hook in _inside(probe, unwrapped(block), known)]
            given = on_its_own(inputs) if all_listed(blocks) else inputs
            with watching(probe, module, blocks, None), cores:
                _call(module, given)
    except ModelError:
        raise
    except Exception as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise ModelError(
            f"{type(module).__name__} could not be run to see what its blocks do ({said[0]}); give inputs=,"
            " as for trace"
        ) from None
    finally:
        for part, was in training:
            part.training = was
        for hook in hooks:
            hook.remove()
    return list(probe.seen)


def _inside(probe: Probe, block: nn.Module, known: set[nn.Module]) -> Iterator[Any]:
    """Hooks on the modules of matrices, by role and all of them, but for those `known` of another block."""
    own = {part for part in block.modules() if part not in known}
    known |= own
    for path, part in block.named_modules():
        if is_bare(part) and part is not block and part in own:
            yield part.register_forward_hook(probe.multiplied(path))
    for role, rows in by_role(block).items():
        owner = block.get_submodule(rows[0][0].rpartition(".")[0])
        if role in INSIDE and len(rows) == 1 and rows[0][1].dim() == 2 and owner is not block and owner in own:
            yield (
                owner.register_forward_pre_hook(probe.given(role))
                if role == "ffn_out"
                else (owner.register_forward_hook(probe.gave(role)))
            )


def _call(module: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def inputs_for(module: nn.Module, blocks: Sequence[nn.Module], tokens: int) -> Any:
    """Something to run a model on: token ids, pixels or a stream, one sequence of random ones."""
    generator = torch.Generator().manual_seed(0)
    config: Any = getattr(module, "config", None)
    if isinstance(size := getattr(config, "image_size", None), int):
        shape = (1, getattr(config, "num_channels", 3), size, size)
        return {"pixel_values": torch.randn(shape, generator=generator)}
    own = not hasattr(config, "to_dict")  # not of the library transformers
    if own and (image := _image(module)) is not None:
        return torch.randn((1, *image), generator=generator).to(next(iter(module.parameters())))
    get = getattr(module, "get_input_embeddings", None)
    embedding = get() if callable(get) else None
    if isinstance(embedding, nn.Embedding):
        most = min(tokens, *_positions(config))
        low = min(10, embedding.num_embeddings - 1)  # below are special ones, as a rule
        return {"input_ids": torch.randint(low, embedding.num_embeddings, (1, most), generator=generator)}
    within = {id(part) for block in blocks for part in block.modules()}
    tables = [e for e in module.modules() if isinstance(e, nn.Embedding) and id(e) not in within]
    if own and tables:  # ids that every table has, of tokens and of positions
        count = min(table.num_embeddings for table in tables)
        return torch.randint(0, count, (1, min(tokens, count)), generator=generator)
    width = next((p.shape[-1] for block in blocks for p in block.parameters() if p.dim() > 1), 1)
    like = next(iter(module.parameters()))
    return torch.randn((1, tokens, width), generator=generator).to(like)


def _image(module: nn.Module) -> tuple[int, int, int] | None:
    """Channels, height and width of the images that a model without configuration cuts into patches."""
    for part in module.modules():
        size = getattr(part, "img_size", getattr(part, "image_size", None))
        first = next((inner for inner in part.modules() if isinstance(inner, nn.Conv2d)), None)
        if size is not None and first is not None:
            height, width = (size, size) if isinstance(size, int) else size[-2:]
            return first.in_channels, int(height), int(width)
    return None


def _positions(config: Any) -> list[int]:
    """How many tokens there are places for; RoBERTa's kind loses two of them."""
    given = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    return [value - 2 for value in given if isinstance(value, int) and value > 4] or [1 << 30]


def _seen(
    block: nn.Module,
    source: Tensor,
    recorder: Recorder,
    norms: Sequence[tuple[nn.Module, Tensor, Tensor]],
    cores: Cores,
    inside: dict[str, Tensor],
    products: Sequence[Product],
) -> Seen:
    layout = recorder.layout
    norms = [*norms, *cores.norms_besides([output for _, _, output in norms], source)]
    calls = [(kind, call) for kind, call in sublayers(recorder.seen, source, layout) if kind != "norm"]
    calls = told_apart(calls, unwrapped(block))
    solver = Solver(block, source, calls, list(norms), layout)
    attentions = [call for kind, call in calls if kind == "attention"]
    visible, rows = _one_for_all([_visible(call, solver, layout) for call in attentions], block)
    heard = [
        (kind, solver.heard(call), layout.flat(call.output.detach().reshape(source.shape))) for kind, call in calls
    ]
    known = tuple((kind, layout.flat(x), y) for kind, x, y in heard if x is not None)
    equations = solver.sum_of(recorder.states[-1][0])
    attended = cores.attended(len(attentions), len(layout.flat(source)))
    if any(kind == "crossattention" for kind, _ in calls):
        raise ModelError(
            f"{type(unwrapped(block)).__name__} attends to another stream, which describe does not read: write its"
            " equations as a placement that applies propagate.CrossAttention"
        )
    if attended is None:
        raise ModelError(
            f"{type(unwrapped(block)).__name__} attends {cores.count} times, and {len(attentions)} of its sublayers mix"
            " tokens: cross-attention, or several attentions in one sublayer, which describe does not read"
        )
    parts = parts_of(calls, products, solver.streams, attended.cores)
    paths = tuple((kind, call.path) for kind, call in calls)
    return Seen(block, equations, visible, rows, attended, tuple(solver.kept_norms), known, paths, inside, parts, 0.0)


Visible = tuple[Tensor | None, tuple[int, ...]]


def _one_for_all(found: Sequence[Visible], block: nn.Module) -> Visible:
    """Whom tokens attend to in all attentions of a block."""
    if not found:
        return None, ()
    masks = [mask for mask, _ in found if mask is not None]
    if any(mask.shape != masks[0].shape or not torch.equal(mask, masks[0]) for mask in masks):
        raise ModelError(
            f"the attentions of one {type(unwrapped(block)).__name__} attend to different tokens, which no Model has"
        )
    return found[0]


def _common(entered: Tensor, recorder: Recorder) -> float:
    x = recorder.flat(entered.detach()).double()
    return float(x.mean(-1).square().mean() / x.square().mean().clamp_min(1e-300))


def _visible(attention: Call, solver: Solver, layout: Layout) -> Visible:
    """Which tokens reach a token's output, for some tokens or, where no rule is seen in them, for all."""
    sources = [solver.streams[at] for at in solver.read_by(attention)][:1]
    if not sources:
        return None, ()
    output = layout.flat(attention.output.reshape(solver.source.shape))
    tokens = output.shape[1]
    some = sorted({round(i * (tokens - 1) / max(1, min(ROWS, tokens) - 1)) for i in range(min(ROWS, tokens))})
    shape = solver.source.shape
    rows = [_touched(output, sources[0], token, layout, shape) for token in some]
    if any(row is None for row in rows):
        return None, ()
    found = torch.stack([row for row in rows if row is not None])
    if rule(found, tuple(some)) is None and len(some) < tokens:
        some = list(range(tokens))
        found = torch.stack([row for t in some if (row := _touched(output, sources[0], t, layout, shape)) is not None])
    return found, tuple(some)


def _touched(output: Tensor, source: Tensor, token: int, layout: Layout, shape: torch.Size) -> Tensor | None:
    gradient = gradient_at(output, source, (0, token))
    if gradient is None or not torch.isfinite(gradient).all():
        return None
    touched = layout.flat(gradient.reshape(shape))[0].abs().sum(-1) > 0
    return touched if bool(touched.any()) else None


def rule(visible: Tensor, rows: Sequence[int]) -> dict[str, Any] | None:
    """Fields of an `Attention` that say who attends to whom; None if none does, short of a mask.

    Example:
        >>> rule(torch.tensor([[True, False, False], [False, True, True]]), (0, 2))
        {'causal': True, 'window': 2}
    """
    tokens = visible.shape[1]
    if bool(visible.all()):
        return {"causal": False}
    lag = torch.tensor(list(rows))[:, None] - torch.arange(tokens)
    if torch.equal(visible, lag >= 0):
        return {"causal": True}
    window = int(visible.sum(1).max())
    if torch.equal(visible, (lag >= 0) & (lag < window)):
        return {"causal": True, "window": window}
    return None
