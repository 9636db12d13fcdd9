"""The streams of a block as vectors: what is a sum of which, with what factors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from propagate.tracing.graph import first_met
from propagate.tracing.layout import Layout
from propagate.tracing.norms import learned_gain
from propagate.tracing.sublayers import Call
from propagate.tracing.wiring import Node, Sum

SPAN = 1e-3
"""Largest relative residual of a stream that is a sum of others, in float32."""
ROUNDINGS = 4.0
"""The same in roundings of the stream's own type, where those are coarser: bfloat16 keeps three digits."""


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
        return sorted(nodes[function] for function in first_met(call.output, nodes))

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
        unit, wanted = (basis / scale).double().cpu(), wanted.double().cpu()
        # by singular values: streams of zeros have no rank, where torch's pivoted QR starts from unset memory
        found = torch.linalg.lstsq(unit, wanted[:, None], driver="gelsd").solution[:, 0]
        missed = unit @ found - wanted
        span = max(SPAN, ROUNDINGS * torch.finfo(x.dtype).eps)
        if not bool(missed.norm() <= span * wanted.norm()):
            return None
        sizes = (found * wanted.norm().reciprocal()).abs()  # what is below rounding is not there
        return {
            at: _rounded(float(f / scale[i]), span)
            for i, (at, f) in enumerate(zip(others, found, strict=True))
            if sizes[i] > span
        }

    def _is_copy(self, at: int) -> bool:
        """Whether an earlier stream is the same: that of a second norm of one stream."""
        own = self.matrix[:, at]
        return any(bool(torch.allclose(own, self.matrix[:, earlier], rtol=1e-4, atol=1e-6)) for earlier in range(at))

    def _vector(self, x: Tensor) -> Tensor:
        vector: Tensor = x.detach().reshape(self.source.shape).flatten().float()
        return vector


def _rounded(factor: float, span: float = SPAN) -> float:
    """Without the noise of float32, a multiple of 1e-3 where that is near; of coarser types a multiple of 0.1."""
    if span > SPAN:
        return float(f"{factor:.2g}") if abs(factor - round(factor, 1)) > span else round(factor, 1)
    near = round(factor, 3)
    return near if abs(near - factor) < 2e-4 * max(1.0, abs(factor)) and near != 0 else float(f"{factor:.4g}")
