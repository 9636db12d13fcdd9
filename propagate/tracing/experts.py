"""A mixture of experts as a torch module: each expert reads the tokens that chose it, and no others."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from propagate.model import Model
from propagate.scaling import Gains
from propagate.tracing.layers import FeedForward, Projection


class Mixture(nn.Module):
    """The routed, shared and identity experts that stand in place of an FFN; see `propagate.Experts`.

    Attributes:
        router: to a logit for each candidate; identity experts are the last.
        routed, shared: FFNs. One that no token of a batch chose gets no gradient from it.
    """

    def __init__(self, model: Model, gains: Gains, normed: frozenset[str] = frozenset()) -> None:
        super().__init__()
        assert model.experts is not None
        self.experts, split = model.experts, model.experts.split
        uncut = dataclasses.replace(model, experts=None, dropout=0.0)
        cut = dataclasses.replace(uncut, ffn_ratio=model.hidden / split / model.width)
        # an output matrix keeps the standard deviation of its entries while its fan-in is cut
        cut_gains = dataclasses.replace(gains, ffn_out=gains.ffn_out / math.sqrt(split))
        self.router = Projection(model.width, self.experts.candidates, self.experts.router_std, law=model.weights)
        self.routed = nn.ModuleList(FeedForward(cut, cut_gains, normed) for _ in range(self.experts.routed))
        self.shared = nn.ModuleList(FeedForward(uncut, gains, normed) for _ in range(self.experts.shared))
        self.dropout = nn.Dropout(model.dropout)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        weights, chosen = self.gates(tokens)
        kept = torch.where(chosen >= len(self.routed), weights, 0.0).sum(-1, keepdim=True)
        output = kept * tokens
        for number, expert in enumerate(self.routed):
            rows, places = torch.where(chosen == number)
            if len(rows):
                output = output.index_add(0, rows, weights[rows, places, None] * expert(tokens[rows]))
        for expert in self.shared:
            output = output + expert(tokens)
        found: Tensor = self.dropout(output.reshape(x.shape))
        return found

    def gates(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Of each token (tokens, width) the weights and the numbers of the candidates chosen, (tokens, chosen) each.

        The choice itself has no derivative.
        """
        logits = self.router(tokens)
        values, chosen = logits.topk(self.experts.chosen, dim=-1)
        weights = logits.softmax(-1).gather(-1, chosen) if self.experts.softmax == "before" else values.softmax(-1)
        return weights * self.experts.factor, chosen
