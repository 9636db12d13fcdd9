"""Makes a torch module of a model, from the very same text of its placement that theory and simulation read.

The k-th call of a sublayer inside a block is that block's k-th module of the kind. One dry run on the meta device,
where tensors have shapes and no values, finds which calls there are.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from propagate.model import Model, ModelError, check_model
from propagate.placement import split
from propagate.scaling import Gains
from propagate.tracing import layers
from propagate.tracing.experts import Mixture

Equations = Callable[[Any, Any], Any]
Make = Callable[[], nn.Module]
M = TypeVar("M", bound=nn.Module)


KNOWN = frozenset({"placement", "depth", "width", "tokens", "heads", "activation", "ffn_ratio", "norm", "normed"})
KNOWN |= {
    "causal",
    "window",
    "mask",
    "rope",
    "key_value_heads",
    "dropout",
    "weights",
    "logit_std",
    "value_gain",
    "attention_gain",
    "ffn_gain",
    "scaling",
    "experts",
}
"""Fields of a `Model` that the modules here follow; with any other a model is refused, unless it has its default."""


@dataclasses.dataclass(frozen=True)
class Verbs:
    """What a placement's equations see of a block: the sublayers, the norm, and where in the network they are.

    `module` gives the module of a call from its name ("norm2": the second call of `norm`) and from how to make it.
    """

    model: Model
    index: int
    gains: Gains
    module: Callable[[str, Make], nn.Module]
    calls: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def depth(self) -> int:
        return self.model.depth

    @property
    def first(self) -> bool:
        return self.index == 1

    @property
    def last(self) -> bool:
        return self.index == self.model.depth

    def norm(self, x: Tensor) -> Tensor:
        return self._call("norm", lambda: layers.norm(self.model, self.model.width), x)

    def attention(self, x: Tensor, normed: Sequence[str] = ()) -> Tensor:
        inside = self.model.inner_norms("attention", normed)
        return self._call("attention", lambda: layers.attention(self.model, self.gains, inside), x)

    def ffn(self, x: Tensor, normed: Sequence[str] = ()) -> Tensor:
        """The dense FFN or the mixture of experts, whichever the model has."""
        inside = self.model.inner_norms("ffn", normed)
        if self.model.experts is not None:
            return self._call("ffn", lambda: Mixture(self.model, self.gains, inside), x)
        return self._call("ffn", lambda: layers.FeedForward(self.model, self.gains, inside), x)

    def tanh(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def std(self, x: Tensor) -> Tensor:
        """Of the batch at hand, at every call; a constant to the gradient."""
        return x.detach().square().mean().sqrt()

    def _call(self, verb: str, make: Make, x: Tensor) -> Tensor:
        self.calls[verb] += 1
        output: Tensor = self.module(f"{verb}{self.calls[verb]}", make)(x)
        return output


class Block(nn.Module):
    """Equations, and a module for each sublayer call in them: `block.sublayers["attention1"]`."""

    def __init__(self, model: Model, equations: Equations, index: int) -> None:
        super().__init__()
        self.model, self.equations, self.index = model, equations, index
        self.sublayers = nn.ModuleDict()

    def verbs(self, module: Callable[[str, Make], nn.Module]) -> Verbs:
        return Verbs(self.model, self.index, self.model.gains(max(self.index, 1)), module)

    def plan(self, x: Any) -> Any:
        """The dry run: makes the modules, in the order of the calls, and runs none, since all keep the shape."""

        def made(name: str, make: Make) -> nn.Module:
            self.sublayers[name] = make()
            return nn.Identity()

        return self.equations(x, self.verbs(made))

    def forward(self, x: Any) -> Any:
        return self.equations(x, self.verbs(lambda name, make: self.sublayers[name]))


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
        with torch.device("meta"):
            x = torch.empty(1, 2, model.width)
            x = self.embed.plan(x)
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
    """A network between a token embedding of variance 1 and a linear head: token ids to logits.

    Tokens carry no position: without a causal mask the network treats them as a set.
    """

    def __init__(self, model: Model, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, model.width, device="meta")
        self.network = Network(model)
        with torch.device("meta"):
            self.head = layers.Projection(model.width, vocabulary, 1.0)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.network(self.embedding(ids)))
        return logits


def build(model: Model, *, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Network:
    """A trainable network with the placement, sizes, activation, norm and initial gains of a model.

    Args:
        model: the network.
        seed: of the weights; the same seed gives the same weights on the same kind of device.
        device, dtype: of the weights. Nothing is made anywhere else first.

    Returns:
        A module from streams (..., tokens, width), the embedded tokens, to what the placement's readout makes of them.

    Raises:
        ModelError: for a seed that is no whole number, or a field of the model that torch modules do not know.

    Example: the trace of it, beside `propagate.simulate` of the same model, is a check of both.
        >>> network = build(Model("spannorm", depth=2, width=16, tokens=4, heads=2), seed=1)
        >>> network(torch.randn(4, 16)).shape, list(network.blocks[1].sublayers)
        (torch.Size([4, 16]), ['attention1', 'norm1', 'ffn1', 'norm2'])
    """
    _check_known(model)
    return _drawn(Network(model), seed, device, dtype)


def build_language_model(
    model: Model, vocabulary: int, *, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> LanguageModel:
    """The same between a token embedding of variance 1 and a linear head.

    Args:
        model, seed, device, dtype: as in `build`.
        vocabulary: how many tokens there are.

    Returns:
        A module from token ids (..., tokens) to logits (..., tokens, vocabulary).

    Raises:
        ModelError: for a vocabulary or a seed that is no whole number.

    Example: one step of training.
        >>> learner = build_language_model(Model("prenorm", depth=1, width=16, heads=2, causal=True), vocabulary=10)
        >>> ids = torch.arange(5) % 10
        >>> nn.functional.cross_entropy(learner(ids)[:-1], ids[1:]).backward()
        >>> all(parameter.grad.abs().sum() > 0 for parameter in learner.network.parameters())
        True
    """
    _check_known(model)
    if isinstance(vocabulary, bool) or not isinstance(vocabulary, int) or vocabulary < 1:
        raise ModelError(f"vocabulary must be a whole number of at least 1, got {vocabulary!r}")
    return _drawn(LanguageModel(model, vocabulary), seed, device, dtype)


def _check_known(model: Model) -> None:
    check_model(model)
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.name not in KNOWN and value != field.default:
            raise ModelError(f"{field.name} must be {field.default!r} for a torch module, got {value!r}")


def _drawn(module: M, seed: int, device: str, dtype: torch.dtype) -> M:
    """The module off the meta device, with weights drawn in the order of its parts."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ModelError(f"seed must be a whole number of at least 0, got {seed!r}")
    module = module.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for part in module.modules():
        if isinstance(part, layers.Projection):
            part.draw(generator)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, generator=generator)
        elif isinstance(part, nn.RMSNorm | nn.LayerNorm):
            part.reset_parameters()
    return module
