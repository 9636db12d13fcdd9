"""What a torch model does to a stream, found by running it once: the equations of its blocks, who attends to whom.

Every block is given a stream with tokens of unequal sizes, so that a norm is no multiple of what it reads. Streams
that norms and sublayers gave are then told apart as vectors: what a norm reads is a sum of them, whose factors are
solved for; what a sublayer reads is where autograd's graph leads from its output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from propagate.model import ModelError
from propagate.tracing.find import is_norm
from propagate.tracing.layout import Axes, Layout, gradient_at
from propagate.tracing.recorder import Recorder, watching
from propagate.tracing.roles import by_role
from propagate.tracing.streams import Choice, replaced, stream_of
from propagate.tracing.sublayers import Call, sublayers
from propagate.tracing.wiring import Node, Sum

SPAN = 1e-3
"""Largest relative residual of a stream that is a sum of others, in float32."""
ROWS = 16
"""Tokens for which is asked whom they attend to; of all if those are not as one of the rules has it."""


INSIDE = ("query", "ffn_gate", "ffn_in", "ffn_both", "ffn_out")
"""Matrices whose outputs, and of the last whose inputs, are looked at."""


class Core(NamedTuple):
    """Softmax attention as torch was asked for it.

    Attributes:
        query: (..., heads, tokens, size), as it meets the keys.
        scale: factor on the logits.
        biased: whether something finite is added to logits.
    """

    query: Tensor
    scale: float
    biased: bool

    @property
    def heads(self) -> int:
        return self.query.shape[-3]

    @property
    def size(self) -> int:
        return self.query.shape[-1]


@dataclass(frozen=True)
class Seen:
    """One call of a block.

    Attributes:
        block: the module.
        equations: what leaves it; None if that is no sum of what its norms and sublayers give.
        visible: of its attention, which token attends to which, (rows asked for, tokens); None without attention.
        rows: the tokens that were asked for.
        core: of its attention, if torch's own was used.
        norms: the modules that norm streams.
        calls: of its sublayers, in order: "attention" or "ffn", what it read and what it gave, (1, tokens, width).
        inside: by role, what matrices gave ("query", "ffn_gate", "ffn_in", "ffn_both") or were given ("ffn_out").
    """

    block: nn.Module
    equations: Sum | None
    visible: Tensor | None
    rows: tuple[int, ...]
    core: Core | None
    norms: tuple[nn.Module, ...]
    calls: tuple[tuple[str, Tensor, Tensor], ...]
    inside: dict[str, Tensor]


class Cores(TorchFunctionMode):
    """Notes every softmax attention that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Core] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            query, mask = (
                args[0] if args else kwargs["query"],
                kwargs.get("attn_mask", args[3] if len(args) > 3 else None),
            )
            scale = kwargs.get("scale") or query.shape[-1] ** -0.5
            self.found.append(Core(query.detach(), scale, _is_bias(mask)))
        return func(*args, **kwargs)


def _is_bias(mask: Tensor | None) -> bool:
    if mask is None or not mask.is_floating_point():
        return False
    return bool(((mask != 0) & (mask > torch.finfo(mask.dtype).min / 4)).any())


class Probe:
    """Hooks as `watching` sets them, a recorder of its own for every call of a block."""

    def __init__(self, axes: Axes, stream: Choice, cores: Cores, seed: int = 0) -> None:
        self.axes, self.stream, self.cores = axes, stream, cores
        self.seen: list[Seen] = []
        self._recorder = Recorder(None, axes, stream)
        self._norms: list[tuple[nn.Module, Tensor, Tensor]] = []
        self.inside: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def embed(self, *_: Any) -> None: ...

    embedded = joined = embed

    def enter(self, block: nn.Module, args: Any, kwargs: Any) -> Any:
        self._recorder, self._norms = Recorder(None, self.axes, self.stream), []
        self.cores.found.clear()
        self.inside = {}
        found = stream_of([*args, *kwargs.values()])
        if found is not None:
            sizes = torch.rand((*found.shape[:-1], 1), generator=self._generator) + 0.5
            uneven = found.detach() * sizes.to(found)
            args = replaced(args, found, uneven)
            kwargs = {key: replaced(value, found, uneven) for key, value in kwargs.items()}
        return self._recorder.enter(block, args, kwargs)

    def begin(self, part: nn.Module, args: Any, kwargs: Any) -> None:
        self._recorder.begin(part, args, kwargs)

    def saw(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._recorder.saw(module, args, kwargs, output)
        read, source = stream_of([*args, *kwargs.values()]), self._recorder.source
        if read is None or not is_norm(module) or read.shape != output.shape:
            return
        if read.numel() == source.numel() and read.shape[-1] == source.shape[-1]:
            self._norms.append((module, read, output))

    def name(self, name: str, output: Tensor) -> None: ...

    def close(self, path: str, part: nn.Module, output: Any) -> Any:
        return self._recorder.close(path, part, output)

    def leave(self, block: nn.Module, args: Any, output: Any) -> Any:
        source = self._recorder.source
        output = self._recorder.leave(block, args, output)
        self.seen.append(_seen(block, source, self._recorder, self._norms, self.cores.found, self.inside))
        return output

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
    cores = Cores()
    probe: Any = Probe(axes, None, cores)
    training = [(part, part.training) for part in module.modules()]
    module.eval()
    hooks = [hook for block in dict.fromkeys(blocks) for hook in _inside(probe, block)]
    try:
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"), watching(probe, blocks, None), cores:
            _call(module, inputs)
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


def _inside(probe: Probe, block: nn.Module) -> Iterator[Any]:
    """Hooks on the modules of matrices, by role."""
    for role, rows in by_role(block).items():
        owner = block.get_submodule(rows[0][0].rpartition(".")[0])
        if role in INSIDE and len(rows) == 1 and rows[0][1].dim() == 2 and owner is not block:
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
    get = getattr(module, "get_input_embeddings", None)
    embedding = get() if callable(get) else None
    if isinstance(embedding, nn.Embedding):
        most = min(tokens, *_positions(config))
        low = min(10, embedding.num_embeddings - 1)  # below are special ones, as a rule
        return {"input_ids": torch.randint(low, embedding.num_embeddings, (1, most), generator=generator)}
    width = next((p.shape[-1] for block in blocks for p in block.parameters() if p.dim() > 1), 1)
    like = next(iter(module.parameters()))
    return torch.randn((1, tokens, width), generator=generator).to(like)


def _positions(config: Any) -> list[int]:
    """How many tokens there are places for; RoBERTa's kind loses two of them."""
    given = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    return [value - 2 for value in given if isinstance(value, int) and value > 4] or [1 << 30]


def _seen(
    block: nn.Module,
    source: Tensor,
    recorder: Recorder,
    norms: Sequence[tuple[nn.Module, Tensor, Tensor]],
    cores: Sequence[Core],
    inside: dict[str, Tensor],
) -> Seen:
    layout = recorder.layout
    calls = [(kind, call) for kind, call in sublayers(recorder.seen, source, layout) if kind != "norm"]
    solver = Solver(block, source, calls, list(norms), layout)
    attention = next((call for kind, call in calls if kind == "attention"), None)
    visible, rows = (None, ()) if attention is None else _visible(attention, solver, layout)
    heard = [
        (kind, solver.heard(call), layout.flat(call.output.detach().reshape(source.shape))) for kind, call in calls
    ]
    known = tuple((kind, layout.flat(x), y) for kind, x, y in heard if x is not None)
    equations = solver.sum_of(recorder.states[-1][0])
    return Seen(block, equations, visible, rows, cores[0] if cores else None, tuple(solver.kept_norms), known, inside)


class NoSum(Exception):
    """What a sublayer reads is no sum of the streams that norms and sublayers give."""


class Solver:
    """The streams of a block as vectors, and what is a sum of which.

    Norms that read no such sum are inside of sublayers and are left out.
    """

    def __init__(
        self,
        block: nn.Module,
        source: Tensor,
        calls: Sequence[tuple[str, Call]],
        norms: list[tuple[nn.Module, Tensor, Tensor]],
        layout: Layout,
    ) -> None:
        self.block, self.source, self.layout = block, source, layout
        self.calls = list(calls)
        self.norms = norms
        while True:
            self.streams: list[Tensor] = [source, *(call.output for _, call in self.calls), *(n[2] for n in self.norms)]
            self.matrix = torch.stack([self._vector(x) for x in self.streams], dim=1)
            inner = [norm for norm in self.norms if self._factors(norm[1]) is None]
            if not inner:
                break
            self.norms = [norm for norm in self.norms if not any(norm is one for one in inner)]
        self._nodes: dict[int, Node | None] = {0: None}
        self._numbers = self._numbered()

    @property
    def kept_norms(self) -> list[nn.Module]:
        return [module for module, _, _ in self.norms]

    def sum_of(self, x: Tensor) -> Sum | None:
        """A stream as a sum of those known, in words of calls; None if it is none."""
        factors = self._factors(x)
        try:
            return None if factors is None else self._in_words(factors)
        except NoSum:
            return None

    def _in_words(self, factors: dict[int, float]) -> Sum:
        total = Sum.of({})
        for at, factor in factors.items():
            total = total + Sum.of({self._node(at): factor * self._size(at)})
        return total

    def read_by(self, call: Call) -> list[int]:
        """Numbers of the streams that a sublayer hears of, by autograd's graph."""
        nodes = {x.grad_fn: at for at, x in enumerate(self.streams) if x.grad_fn is not None and x is not call.output}
        met: list[int] = []
        waiting: list[Any] = [] if call.output.grad_fn is None else [f for f, _ in call.output.grad_fn.next_functions]
        known: set[Any] = {None}
        while waiting:
            node = waiting.pop()
            if node in known:
                continue
            known.add(node)
            if node in nodes:
                met.append(nodes[node])
            else:
                waiting.extend(function for function, _ in node.next_functions)
        return sorted(met)

    def _numbered(self) -> dict[int, int]:
        counts, numbers = Counter[str](), {}
        for at, (kind, _) in enumerate(self.calls):
            counts[kind] += 1
            numbers[at] = counts[kind]
        return numbers

    def _node(self, at: int) -> Node | None:
        if at in self._nodes:
            return self._nodes[at]
        if at > len(self.calls):
            factors = self._factors(self.norms[at - 1 - len(self.calls)][1])
            assert factors is not None
            self._nodes[at] = Node("norm", self._in_words(factors))
            return self._nodes[at]
        kind, call = self.calls[at - 1]
        heard = self._heard(call)
        if heard is None:
            raise NoSum
        self._nodes[at] = Node(kind, self._in_words(heard), self._numbers[at - 1])
        return self._nodes[at]

    def heard(self, call: Call) -> Tensor | None:
        """The stream that a sublayer reads; None where that is not known."""
        factors = self._heard(call)
        if factors is None:
            return None
        parts = [factor * self.streams[at].detach().reshape(self.source.shape) for at, factor in factors.items()]
        return torch.stack(parts).sum(0)

    def _heard(self, call: Call) -> dict[int, float] | None:
        """As a sum: of what it was given or, where that was more than it uses, of the one stream it hears of."""
        met = self.read_by(call)
        if call.entered is not None and call.entered.numel() == self.source.numel():
            factors = self._factors(call.entered)
            if factors is not None and set(factors) <= set(met):
                return factors
        return {met[0]: 1.0} if len(met) == 1 else None

    def _size(self, at: int) -> float:
        """The learned gain of a norm that has one number in all of its coordinates; 1 otherwise."""
        if at <= len(self.calls):
            return 1.0
        gain = learned_gain(self.norms[at - 1 - len(self.calls)][0], self.source.shape[-1])
        return _rounded(float(gain.mean())) if float(gain.std()) < 1e-4 * float(gain.abs().mean()) else 1.0

    def _factors(self, x: Tensor) -> dict[int, float] | None:
        same = [at for at, stream in enumerate(self.streams) if stream is x]
        if same:
            return {same[0]: 1.0}
        wanted = self._vector(x)
        others = [at for at, stream in enumerate(self.streams) if stream is not x and not self._is_copy(at)]
        basis = self.matrix[:, others]
        scale = basis.norm(dim=0).clamp_min(1e-30)
        found = torch.linalg.lstsq((basis / scale).double(), wanted[:, None].double()).solution[:, 0]
        missed = (basis / scale).double() @ found - wanted.double()
        if not bool(missed.norm() <= SPAN * wanted.double().norm()):
            return None
        sizes = (found * wanted.norm().reciprocal()).abs()  # what is below rounding is not there
        return {
            at: _rounded(float(f / scale[i]))
            for i, (at, f) in enumerate(zip(others, found, strict=True))
            if sizes[i] > SPAN
        }

    def _is_copy(self, at: int) -> bool:
        """Whether an earlier stream is the same: that of a second norm of one stream."""
        own = self.matrix[:, at]
        return any(bool(torch.allclose(own, self.matrix[:, earlier], rtol=1e-4, atol=1e-6)) for earlier in range(at))

    def _vector(self, x: Tensor) -> Tensor:
        vector: Tensor = x.detach().reshape(self.source.shape).flatten().float()
        return vector


def _rounded(factor: float) -> float:
    """Without the noise of float32: a multiple of 1e-4 where that is near."""
    near = round(factor, 3)
    return near if abs(near - factor) < 2e-4 * max(1.0, abs(factor)) and near != 0 else float(f"{factor:.4g}")


def learned_gain(norm: nn.Module, width: int) -> Tensor:
    """What a norm multiplies each coordinate by, from what it does to a random vector; (width,)."""
    like = next(iter(norm.parameters()), torch.zeros(1))
    x = 1000 * torch.randn(1, 1, width, generator=torch.Generator().manual_seed(1)).to(like)  # eps is nothing
    with torch.no_grad():
        bias = getattr(norm, "bias", None)
        given = norm(x)[0, 0].double() - (bias.double() if isinstance(bias, Tensor) else 0.0)
        plain = x[0, 0].double()
        plain = plain - plain.mean() if is_centred(norm, width) else plain
        gain: Tensor = given / (plain / plain.square().mean().sqrt())
        return gain


def is_centred(norm: nn.Module, width: int) -> bool:
    """Whether a norm takes out the mean over coordinates: a shift of all of them then changes nothing."""
    like = next(iter(norm.parameters()), torch.zeros(1))
    x = torch.randn(1, 1, width, generator=torch.Generator().manual_seed(2)).to(like)
    with torch.no_grad():
        plain, shifted = norm(x).double(), norm(x + 1).double()
    return bool((plain - shifted).abs().max() < 0.1 * plain.abs().max())


def _visible(attention: Call, solver: Solver, layout: Layout) -> tuple[Tensor | None, tuple[int, ...]]:
    """Which tokens reach a token's output, for some tokens or, where no rule is seen in them, for all."""
    sources = [solver.streams[at] for at in solver.read_by(attention)][:1]
    if not sources:
        return None, ()
    output = layout.flat(attention.output.reshape(solver.source.shape))
    tokens = output.shape[1]
    some = sorted({round(i * (tokens - 1) / max(1, min(ROWS, tokens) - 1)) for i in range(min(ROWS, tokens))})
    rows = [_touched(output, sources[0], token, layout) for token in some]
    if any(row is None for row in rows):
        return None, ()
    found = torch.stack([row for row in rows if row is not None])
    if rule(found, tuple(some)) is None and len(some) < tokens:
        some = list(range(tokens))
        found = torch.stack([row for t in some if (row := _touched(output, sources[0], t, layout)) is not None])
    return found, tuple(some)


def _touched(output: Tensor, source: Tensor, token: int, layout: Layout) -> Tensor | None:
    gradient = gradient_at(output, source, (0, token))
    if gradient is None or not torch.isfinite(gradient).all():
        return None
    return layout.flat(gradient)[0].abs().sum(-1) > 0


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
