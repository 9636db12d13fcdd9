"""A mixture of experts as a torch module: each expert reads the tokens that chose it, and no others."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from propagate.experts import Experts
from propagate.tracing.layers import Projection
from propagate.tracing.setting import Setting, apply, check_fields, module_of

FIELDS = {"count", "top_k", "router_std", "softmax", "shared", "identity", "split", "gain", "ffn", "bias"}
"""What the module here follows of a description; with anything else it is refused."""


class Mixture(nn.Module):
    """Routed, shared and identity experts; see `propagate.Experts`.

    Attributes:
        router: to a logit for each candidate; identity experts are the last.
        bias: of the candidates when they are chosen, a buffer; None where there is none.
        routed, shared: FFNs. One that no token of a batch chose gets no gradient from it.
    """

    def __init__(self, experts: Experts, block: Setting) -> None:
        super().__init__()
        self.experts, split, uncut = experts, experts.split, experts.expert
        # an output matrix keeps the standard deviation of its entries while its fan-in is cut
        cut = uncut.with_(hidden=uncut.units // split, out_gain=uncut.out_gain / math.sqrt(split))
        inside = dataclasses.replace(block, dropout=0.0)
        self.router = Projection(block.width, experts.candidates, experts.router_std, law=block.weights)
        self.routed = nn.ModuleList(module_of(cut, inside) for _ in range(experts.routed))
        self.shared = nn.ModuleList(module_of(uncut, inside) for _ in range(experts.shared))
        self.dropout = nn.Dropout(block.dropout)
        self.bias: Tensor | None
        self.register_buffer("bias", None if experts.bias is None else torch.tensor(experts.bias, dtype=torch.float64))

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
        """Of each token (tokens, width) the weights and the numbers of the candidates chosen; see `gates_of`."""
        return gates_of(self.experts, self.router(tokens), self.bias)


def gates_of(experts: Experts, logits: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights and numbers of the candidates chosen, (tokens, chosen) each, from logits (tokens, candidates).

    The choice itself has no derivative.

    Example: the larger logistic function over the sum of the two largest.
        >>> gates_of(Experts(3, 2, softmax="sigmoid_after"), torch.tensor([[0.0, 9.0, 0.0]]), None)[0].shape
        torch.Size([1, 2])
    """
    if experts.softmax == "after":
        values, chosen = logits.topk(experts.chosen, dim=-1)
        return values.softmax(-1) * experts.factor, chosen
    scores = logits.sigmoid() if experts.logistic else logits.softmax(-1)
    chosen = (logits if bias is None else scores + bias).topk(experts.chosen, dim=-1).indices
    weights = scores.gather(-1, chosen)
    if experts.renormalised:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * experts.factor, chosen


@apply.register
def _(experts: Experts, block: Setting) -> nn.Module:
    check_fields(experts, frozenset(FIELDS))
    return Mixture(experts, block)
