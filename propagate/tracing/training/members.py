"""Many networks of one model as one: a leading axis of members on every weight and on every stream.

The modules and equations are those of one network. Only what holds weights is replaced: matrices of all members act in
one batched product, (members, sequences, tokens, width) in and out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from propagate.model import Model, ModelError
from propagate.tracing.build import Block, LanguageModel, Network
from propagate.tracing.embedding import Embedding
from propagate.tracing.experts import Mixture
from propagate.tracing.layers import Attention, FeedForward, Projection, UniformAttention, times

Parameters = dict[str, nn.Parameter]
WHOLE: tuple[type[nn.Module], ...] = (Network, Block, Attention, UniformAttention, FeedForward, Mixture)
WHOLE += (nn.ModuleDict, nn.ModuleList, nn.Identity, nn.Dropout)
"""Modules without weights of their own, whose text holds for streams with any leading axes."""


class Projections(nn.Module):
    """A projection of each member, weights (members, fan_out, fan_in)."""

    def __init__(self, one: Projection, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight, self.multiplier = weight, one.multiplier

    def forward(self, x: Tensor) -> Tensor:
        weight = times(self.multiplier, self.weight)
        flat = torch.bmm(x.reshape(len(weight), -1, x.shape[-1]), weight.mT)
        return flat.reshape(*x.shape[:-1], weight.shape[-2])


class Embeddings(nn.Module):
    """A table of each member, weights (members, vocabulary, width); token ids (members, ...)."""

    def __init__(self, one: Embedding, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight, self.multiplier = weight, one.multiplier
        # the rows of all tables stand one behind the other
        self.register_buffer("begins", len(weight[0]) * torch.arange(len(weight), device=weight.device))

    def forward(self, ids: Tensor) -> Tensor:
        begins = torch.as_tensor(self.begins).reshape(-1, *[1] * (ids.dim() - 1))
        return times(self.multiplier, functional.embedding(ids + begins, self.weight.flatten(0, 1)))


class Norms(nn.Module):
    """A norm of each member: its gains, and biases if any, (members, size)."""

    def __init__(self, one: nn.RMSNorm | nn.LayerNorm, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.one = type(one)(one.normalized_shape, eps=one.eps, elementwise_affine=False)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        shape = (len(self.weight), *[1] * (x.dim() - 2), -1)
        gained = self.one(x) * self.weight.reshape(shape)
        return torch.as_tensor(gained if self.bias is None else gained + self.bias.reshape(shape))


class EveryExpert(nn.Module):
    """A mixture whose every expert reads every token, with weight 0 where it was not chosen.

    Nothing depends on how many tokens chose an expert, so that no number has to be known on the host. It costs count /
    top_k times the routed experts' products.
    """

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, x: Tensor) -> Tensor:
        mixture, (weights, chosen) = self.mixture, self.mixture.gates(x)
        routed = len(mixture.routed)
        output = torch.where(chosen >= routed, weights, 0.0).sum(-1, keepdim=True) * x
        for number, expert in enumerate(mixture.routed):
            output = output + torch.where(chosen == number, weights, 0.0).sum(-1, keepdim=True) * expert(x)
        for expert in mixture.shared:
            output = output + expert(x)
        return torch.as_tensor(mixture.dropout(output))


def check_batchable(model: Model) -> None:
    """ModelError, by name, for modules whose weights are not known here, as those of a user's own sublayers.

    Example:
        >>> check_batchable(Model("prenorm", depth=1, width=8, heads=2))
    """
    with torch.device("meta"):
        parts = list(Network(model).modules())
    for part in parts:
        if type(part) not in (*WHOLE, Projection, Embedding, nn.RMSNorm, nn.LayerNorm):
            raise ModelError(
                f"together must be 1 with {type(part).__name__}, whose members cannot be batched, so that arms train "
                "one by one"
            )


def stack(learner: LanguageModel, weights: Parameters) -> None:
    """Make of one network all members, in place.

    Args:
        learner: of modules that `check_batchable` knows.
        weights: by the paths of its parameters, with an axis of members in front.
    """
    for path, part in list(learner.named_modules()):
        new: nn.Module | None = None
        if isinstance(part, Block):
            part.networks = 1
        elif isinstance(part, Projection):
            new = Projections(part, weights[f"{path}.weight"])
        elif isinstance(part, Embedding):
            new = Embeddings(part, weights[f"{path}.weight"])
        elif isinstance(part, nn.RMSNorm | nn.LayerNorm):
            new = Norms(part, weights[f"{path}.weight"], weights.get(f"{path}.bias"))
        if new is not None:
            _put(learner, path, new)
    for path, part in list(learner.named_modules()):
        if isinstance(part, Mixture):
            _put(learner, path, EveryExpert(part))


def _put(learner: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    learner.get_submodule(parent)._modules[name] = new
