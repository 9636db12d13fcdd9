"""Makes a torch module of a model, from the very same text of its placement that theory and simulation read.

The k-th call of a sublayer inside a block is that block's k-th module of the kind. One dry run on the meta device,
where tensors have shapes and no values, finds which calls there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import propagate.tracing.crossing
import propagate.tracing.experts
import propagate.tracing.latent
import propagate.tracing.recurrent  # noqa: F401  # which, as layers, register what the package covers
from propagate.checks import ModelError, check_memory, integer, shown
from propagate.embeddings import MOST_WORDS, TokenEmbedding
from propagate.layers import Layer
from propagate.model import SHORTHAND, Model, check_model
from propagate.norms import Norm
from propagate.placement import split
from propagate.sublayers import FFN, Sublayer
from propagate.tracing.embedding import Embedding, Table, TextEmbedding, Tied
from propagate.tracing.layers import Projection
from propagate.tracing.setting import Setting, check_fields
from propagate.tracing.setting import apply as apply
from propagate.tracing.setting import module_of as module_of

Equations = Callable[[Any, Any], Any]
Describe = Callable[[], Sublayer | Norm]
M = TypeVar("M", bound=nn.Module)


KNOWN = frozenset({"placement", "depth", "width", "tokens", "norm", "normed", "attention", "ffn", "experts", "layers"})
KNOWN |= {"scaling", "weights", "dropout", *(short for of in SHORTHAND.values() for short in of)}
"""Fields of a `Model` that the modules here follow; with any other a model is refused, unless it has its default."""


@dataclass(frozen=True)
class Verbs:
    """What a placement's equations see of a block: the sublayers, the norm, and where in the network they are.

    `module` gives the module of a call from its name ("norm2": the second call of `norm`) and its description. Streams
    have so many leading axes that tell networks apart: 0, or 1 in an ensemble.
    """

    layer: Layer
    index: int
    depth: int
    module: Callable[[str, Describe], nn.Module]
    networks: int = 0
    calls: dict[str, int] = field(default_factory=dict)

    @property
    def first(self) -> bool:
        return self.index == 1

    @property
    def last(self) -> bool:
        return self.index == self.depth

    def norm(self, x: Tensor) -> Tensor:
        return self._call("norm", lambda: self.layer.norm, x)

    def attention(self, x: Tensor, normed: Sequence[str] = ()) -> Tensor:
        return self._call("attention", lambda: self.layer.norming(self.layer.attention, normed), x)

    def ffn(self, x: Tensor, normed: Sequence[str] = ()) -> Tensor:
        """The dense FFN or, where they stand in its place, the mixture of experts."""
        return self._call("ffn", lambda: self.layer.norming(self.layer.ffn, normed), x)

    def experts(self, x: Tensor, normed: Sequence[str] = ()) -> Tensor:
        return self._call("experts", lambda: self.layer.norming(self.layer.mixture, normed), x)

    def apply(self, description: Sublayer, x: Tensor, normed: Sequence[str] = ()) -> Tensor:
        return self._call(description.call, lambda: self.layer.in_force(description, normed), x)

    def tanh(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def std(self, x: Tensor) -> Tensor:
        """Of the batch at hand, at every call; a constant to the gradient."""
        return x.detach().square().mean(tuple(range(self.networks, x.dim())), keepdim=True).sqrt()

    def _call(self, name: str, describe: Describe, x: Tensor) -> Tensor:
        self.calls[name] = self.calls.get(name, 0) + 1
        output: Tensor = self.module(f"{name}{self.calls[name]}", describe)(x)
        return output


class Block(nn.Module):
    """Equations, and a module for each sublayer call in them: `block.sublayers["attention1"]`.

    Attributes:
        networks: leading axes of the stream that tell networks apart.
    """

    networks: int = 0

    def __init__(self, model: Model, equations: Equations, index: int) -> None:
        super().__init__()
        self.model, self.equations, self.index, self.layer = model, equations, index, model.at(index)
        self.sublayers = nn.ModuleDict()

    def verbs(self, module: Callable[[str, Describe], nn.Module]) -> Verbs:
        return Verbs(self.layer, self.index, self.model.depth, module, self.networks)

    def plan(self, x: Any) -> Any:
        """The dry run: makes the modules, in the order of the calls, and runs none, since all keep the shape."""
        model = self.model
        setting = Setting(model.width, model.tokens, model.weights, model.dropout, self.layer.norm)

        def made(name: str, describe: Describe) -> nn.Module:
            self.sublayers[name] = module_of(describe(), setting)
            return nn.Identity()

        return self.equations(x, self.verbs(made))

    def forward(self, x: Any) -> Any:
        return self.equations(x, self.verbs(lambda name, _: self.sublayers[name]))


class Network(nn.Module):
    """Blocks 1 ... depth between the placement's embedding and readout: (..., tokens, width) to the same shape.

    What passes between blocks is a stream or, where the placement has several, a tuple.

    Attributes:
        streams: how many.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, placement = model, model.equations
        self.embed = Block(model, placement.embed, 0)
        self.blocks = nn.ModuleList(Block(model, placement.block, i) for i in range(1, model.depth + 1))
        self.readout = Block(model, placement.readout, model.depth + 1)
        x = self.embed.plan(torch.empty(1, 2, model.width, device="meta"))
        self.streams = len(split(x, Tensor)[0])
        for part in (*self.blocks, self.readout):
            x = part.plan(x)
        if not isinstance(x, Tensor):
            raise TypeError(f"a placement must return one stream, got {x!r}")

    def forward(self, x: Tensor) -> Tensor:
        state = self.embed(x)
        for block in self.blocks:
            state = block(state)
        output: Tensor = self.readout(state)
        return output


class LanguageModel(nn.Module):
    """A network between a token embedding, of variance 1 if it is not described, and a linear head: token ids to
    logits.

    Positions are rotary, where the model has them (`rope`). Without them and without a causal mask the network treats
    tokens as a set.
    """

    embedding: Embedding | TextEmbedding
    head: Projection | Tied

    def __init__(self, model: Model, vocabulary: int | TokenEmbedding) -> None:
        super().__init__()
        if isinstance(vocabulary, TokenEmbedding):
            self.embedding, words = TextEmbedding(vocabulary, model.width), vocabulary.vocabulary
        else:
            self.embedding, words = Embedding(vocabulary, model.width), vocabulary
        self.network = Network(model)
        self.head = Projection(model.width, words, 1.0)
        if isinstance(self.embedding, TextEmbedding) and self.embedding.description.tied:
            self.head = Tied(self.embedding.tokens)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.network(self.embedding(ids)))
        return logits


def build(model: Model, *, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Network:
    """A trainable network with the placement, sublayers, norms and initial gains of a model, block by block.

    Args:
        model: the network.
        seed: of the weights; the same seed gives the same weights on the same kind of device.
        device, dtype: of the weights. Nothing is made anywhere else first.

    Returns:
        A module from streams (..., tokens, width), the embedded tokens, to what the placement's readout makes of them.

    Raises:
        ModelError: for a seed that is no whole number, or a field or description that torch modules do not know.

    Example: the trace of it, beside `propagate.simulate` of the same model, is a check of both.
        >>> network = build(Model("spannorm", depth=2, width=16, tokens=4, heads=2), seed=1)
        >>> network(torch.randn(4, 16)).shape, list(network.blocks[1].sublayers)
        (torch.Size([4, 16]), ['attention1', 'norm1', 'ffn1', 'norm2'])
    """
    _check_known(model)
    check_model(model)
    return _drawn(lambda: Network(model), seed, device, dtype)


def build_language_model(
    model: Model,
    vocabulary: int | TokenEmbedding,
    *,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LanguageModel:
    """The same between a token embedding and a linear head.

    Args:
        model, seed, device, dtype: as in `build`.
        vocabulary: how many tokens there are, whose embeddings have variance 1; or a `TokenEmbedding`, which also says
            whether the head is tied to it.

    Returns:
        A module from token ids (..., tokens) to logits (..., tokens, vocabulary).

    Raises:
        ModelError: for a vocabulary or a seed that is no whole number, an embedding that does not fit the width, or
            tables larger than this machine's memory.

    Example: one step of training.
        >>> learner = build_language_model(Model("prenorm", depth=1, width=16, heads=2, causal=True), vocabulary=10)
        >>> ids = torch.arange(5) % 10
        >>> nn.functional.cross_entropy(learner(ids)[:-1], ids[1:]).backward()
        >>> all(parameter.grad.abs().sum() > 0 for parameter in learner.network.parameters())
        True
    """
    _check_known(model)
    check_model(model)
    size = vocabulary
    if isinstance(size, TokenEmbedding):
        tables = [] if size.ngrams is None else [rows * size.ngrams.size(model.width) for _, rows in size.ngrams.sizes]
        check_memory(f"embedding of {len(tables)} tables of n-grams", 4.0 * sum(tables))
    else:
        size = integer("vocabulary", size, at_most=MOST_WORDS)
    return _drawn(lambda: LanguageModel(model, size), seed, device, dtype)


def _check_known(model: Model) -> None:
    """That the modules follow all of its fields, and that their matrices fit into memory."""
    check_model(model)
    check_fields(model, KNOWN)
    found = model.at(1).ffn
    count, ffn = (1, found) if isinstance(found, FFN) else (found.count, found.expert)
    columns = 2 * model.width + count * (3 if ffn.activation.gated else 2) * ffn.units  # at least
    what = f"depth={model.depth} and width={model.width} with {count * ffn.units} hidden units"
    check_memory(what, 4.0 * model.depth * model.width * columns)


def _drawn(make: Callable[[], M], seed: int, device: str, dtype: torch.dtype) -> M:
    """The module with weights drawn in the order of its parts: kinds of a user's own draw theirs as they are made."""
    seed = integer("seed", seed, at_least=0, at_most=2**63 - 1)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelError(f"dtype must be a floating-point type of torch, got {shown(dtype)}")
    if not isinstance(device, str | torch.device):
        raise ModelError(f"device must be a name such as 'cpu' or 'cuda', got {shown(device)}")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise ModelError(f"device must be one that torch has here, got {shown(device)}: {said[:200]}") from None
    with place, torch.random.fork_rng([] if place.type == "cpu" else [place], device_type=place.type):
        torch.manual_seed(seed)
        module = make().to(dtype)
    generator = torch.Generator(place).manual_seed(seed)
    for part in module.modules():
        if isinstance(part, Projection | Table):
            part.draw(generator)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, generator=generator)
    return module
