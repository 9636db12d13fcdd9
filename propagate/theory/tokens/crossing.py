"""The moment map of cross-attention: self-attention of memory and stream together, under a mask.

Memory and stream are uncorrelated, whatever depth: what the stream heard of the memory passed fresh matrices. So the
tokens of both, of which those of the stream see the memory's and those of the memory themselves, have the maps of
`tokens.sublayers`; of what these give, the stream's part is the output, of what they send back its part returns, and
the memory's part is what the memory hears.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from propagate.crossing import CrossAttention, Memory
from propagate.theory.pairs.sublayers import AttentionPull
from propagate.theory.tokens import sublayers
from propagate.theory.tokens.gram import Array, Gram, means
from propagate.theory.tokens.softmax import Attention


def seen(memory: int, tokens: int) -> Array:
    """Which of so many tokens of a memory, and then of a stream, attend to which.

    Example:
        >>> seen(2, 1).astype(int).tolist()
        [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
    """
    mask = np.eye(memory + tokens, dtype=bool)
    mask[memory:] = np.arange(memory + tokens) < memory
    return mask


def together(memory: Gram, x: Gram) -> Gram:
    """Of the tokens of two uncorrelated streams, one after the other.

    Example:
        >>> one = Gram.of([[[1.0]]])
        >>> together(one, one).deviation.tolist()
        [[[0.0, 1.0], [1.0, 0.0]]]
    """
    first, both = memory.matrix.shape[-1], memory.matrix.shape[-1] + x.matrix.shape[-1]
    matrix = np.zeros((len(x.matrix), both, both))
    for own, part in ((slice(first), memory), (slice(first, both), x)):
        matrix[:, own, own] = part.matrix
    apart = means(np.diagonal(matrix, axis1=-2, axis2=-1))
    for own, part in ((slice(first), memory), (slice(first, both), x)):
        apart[:, own, own] = part.deviation
    return Gram(matrix, apart)


def part(gram: Gram, which: slice) -> Gram:
    """Of some of the tokens."""
    return Gram(gram.matrix[..., which, which], gram.deviation[..., which, which])


@dataclass(frozen=True)
class CrossPull:
    """How a cotangent at the output returns.

    Attributes:
        whole: of both streams' tokens together.
        memory: how many tokens are the memory's.
    """

    whole: AttentionPull
    memory: int

    @property
    def heads(self) -> Gram:
        """Of what the output matrix reads."""
        return part(self.whole.heads, slice(self.memory, None))

    def paths(self, g: Gram) -> dict[str, Gram]:
        """What comes back through each projection: through the queries to the stream, else to the memory."""
        tokens = self.memory
        nothing = Gram.of(np.zeros((len(g.matrix), tokens, tokens)))
        sent = self.whole.paths(together(nothing, g))
        own = {"query": slice(tokens, None)}
        return {name: part(gram, own.get(name, slice(tokens))) for name, gram in sent.items()}

    def to_memory(self, g: Gram) -> Gram:
        """What the memory hears."""
        sent = self.paths(g)
        return sent["value"].plus(sent["key"]) if "key" in sent else sent["value"]

    def __call__(self, g: Gram) -> Gram:
        """What the stream hears."""
        return self.paths(g).get("query", g.weighted(0.0))


def repeated(memory: Memory, replicas: int) -> Gram:
    """Its second moments, the same in all replicas."""
    return Gram.of(np.repeat(memory.gram[None], replicas, axis=0))


def cross_attention(
    kind: CrossAttention, x: Gram, samples: int, seed: tuple[int, ...], head_size: float, **inner: Any
) -> tuple[Gram, CrossPull]:
    """Moments of the output, and the pull.

    Args:
        kind: in force.
        x: of the input, with an axis of replicas.
        samples, seed, head_size: see `softmax.Attention`.
        inner: of norms; see `sublayers.attention`.

    Example: uniform attention hears the mean of two uncorrelated tokens, whatever asks.
        >>> kind = CrossAttention(np.eye(2), logit_std=0.0).fitted(8, 3)
        >>> cross_attention(kind, Gram.of(np.eye(3)[None]), 0, (), 1)[0].matrix.round(12).tolist()[0]
        [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    """
    replicas, tokens = x.matrix.shape[:2]
    memory = repeated(kind.memory, replicas)
    mask = seen(kind.memory.tokens, tokens)
    attention = Attention(mask, float(kind.logit_std**2), (), samples, seed, head_size)
    gains = {name: float(getattr(kind, f"{name}_gain")) for name in ("query", "key", "value", "out")}
    apply = sublayers.attention(attention, **gains, **inner)  # type: ignore[arg-type]  # of numbers alone
    output, pull = apply(together(memory, x), frozenset(kind.normed))
    assert isinstance(pull, AttentionPull)
    return part(output, slice(kind.memory.tokens, None)), CrossPull(pull, kind.memory.tokens)
