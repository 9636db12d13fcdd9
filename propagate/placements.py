"""Normalisation placements, each written as the equations of its paper.

A placement is read by every witness: the theory passes in streams of moments, the simulation streams of arrays,
SymPy streams of symbols. `x` is a stream: it can be added to a stream and multiplied by a number. `block` offers
`attention`, `ffn` and `norm`, and knows `index` (1 ... depth), `depth`, `first` and `last`. Every call of a sublayer
is a fresh, independent one.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Protocol, Self, TypeVar, dataclass_transform

from propagate.scaling import Gains, Number


class Stream(Protocol):
    """What an equation may do with a stream. `x * 2`, `2 * x`, `x / 2` and `x + y`."""

    def __add__(self, other: Self) -> Self: ...
    def __mul__(self, factor: Number) -> Self: ...
    def __rmul__(self, factor: Number) -> Self: ...
    def __truediv__(self, divisor: Number) -> Self: ...


S = TypeVar("S", bound=Stream)
QUARTER = Fraction(1, 4)  # exact, so that SymPy prints roots and not decimals


class Block(Protocol[S]):
    """What an equation may do inside a block."""

    @property
    def index(self) -> Number: ...
    @property
    def depth(self) -> Number: ...
    @property
    def first(self) -> bool: ...
    @property
    def last(self) -> bool: ...

    def attention(self, x: S) -> S: ...
    def ffn(self, x: S) -> S: ...
    def norm(self, x: S) -> S: ...


@dataclass_transform(frozen_default=True)
class Placement:
    """Base of every placement. Subclass it and write `block`; annotated attributes become dataclass fields.

    Subclassing registers the placement under its class name, in lower case, so that `Model(placement="mynorm")` finds
    it. `embed` and `readout` are the identity and `gains` are all 1 unless a subclass says otherwise.

    Example:
        >>> class WeightedPostNorm(Placement):
        ...     skip: float = 2.0
        ...
        ...     def block(self, x, block):
        ...         y = block.norm(self.skip * x + block.attention(x))
        ...         return block.norm(self.skip * y + block.ffn(y))
        >>> placement("weighted postnorm").skip
        2.0
    """

    citation: ClassVar[str] = ""
    """Where the equations come from, as an arXiv id."""

    def __init_subclass__(cls) -> None:
        known = _REGISTRY.get(_key(cls.__name__))
        if known is not None and known.__module__ == __name__ != cls.__module__:
            raise ValueError(f"a placement called {cls.__name__} comes with the package; choose another name")
        dataclass(frozen=True)(cls)
        _REGISTRY[_key(cls.__name__)] = cls

    def embed(self, x: Any, block: Any) -> Any:
        """The stream at block 0, from the embedded tokens. `block` offers `norm`."""
        return x

    def block(self, x: Any, block: Any) -> Any:
        """The stream that leaves a block, from the stream that enters it."""
        raise NotImplementedError(f"{type(self).__name__} must define block(self, x, block)")

    def readout(self, x: Any, block: Any) -> Any:
        """What the output head reads, from the stream that leaves the last block. `block` offers `norm`."""
        return x

    def gains(self, index: Number, depth: Number) -> Gains:
        """The placement's own factors on the initial weights of block `index`."""
        return Gains()


_REGISTRY: dict[str, type[Placement]] = {}


def _key(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def placements() -> dict[str, type[Placement]]:
    """Every registered placement by name, in alphabetical order.

    Example:
        >>> "spannorm" in placements()
        True
    """
    return dict(sorted(_REGISTRY.items()))


def placement(name: str) -> Placement:
    """The placement registered under `name`, with its default fields; case, spaces and hyphens are ignored.

    Raises:
        LookupError: for an unknown name, with the nearest names.
        TypeError: for a placement whose fields have no defaults; pass an instance instead.

    Example:
        >>> placement("Peri-LN")
        PeriLN()
    """
    key = _key(name)
    if key not in _REGISTRY:
        near = difflib.get_close_matches(key, _REGISTRY, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(_REGISTRY))}"
        raise LookupError(f"unknown placement {name!r}; {hint}")
    kind = _REGISTRY[key]
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]  # every subclass is made a dataclass on registration
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    if required:
        raise TypeError(f"placement {name!r} needs {', '.join(required)}; pass an instance, {kind.__name__}(...)")
    return kind()


class PreNorm(Placement):
    """Norm before each sublayer, on the branch; a final norm. arXiv:2002.04745."""

    citation = "2002.04745"

    def block(self, x: S, block: Block[S]) -> S:
        x = x + block.attention(block.norm(x))
        return x + block.ffn(block.norm(x))

    def readout(self, x: S, block: Block[S]) -> S:
        return block.norm(x)


class PostNorm(Placement):
    """Norm after each residual sum. arXiv:1706.03762."""

    citation = "1706.03762"

    def block(self, x: S, block: Block[S]) -> S:
        y = block.norm(x + block.attention(x))
        return block.norm(y + block.ffn(y))


class SpanNorm(Placement):
    """Norm after each sublayer; the FFN's skip is the block's own input. arXiv:2601.22580, Eqs. 5-8.

    In the first block attention reads the normed input. Whether that block's skip is normed too is not settled by
    the sources at hand: `norm_first_skip` chooses.
    """

    norm_first_skip: bool = False
    citation = "2601.22580"

    def block(self, x: S, block: Block[S]) -> S:
        read = block.norm(x) if block.first else x
        skip = read if self.norm_first_skip else x
        y = block.norm(skip + block.attention(read))
        return block.norm(skip + block.ffn(y))


class PeriLN(Placement):
    """Norm before and after each sublayer, on the branch; the embedding and the output are normed. arXiv:2502.02732."""

    citation = "2502.02732"

    def embed(self, x: S, block: Block[S]) -> S:
        return block.norm(x)

    def block(self, x: S, block: Block[S]) -> S:
        x = x + block.norm(block.attention(block.norm(x)))
        return x + block.norm(block.ffn(block.norm(x)))

    def readout(self, x: S, block: Block[S]) -> S:
        return block.norm(x)


class DeepNorm(Placement):
    """PostNorm with the skip times alpha and values, outputs and FFN initialised with gain beta. arXiv:2203.00555.

    `None` means the paper's choice for an encoder-only or decoder-only network of L blocks:
    alpha = (2L)^(1/4), beta = (8L)^(-1/4).
    """

    alpha: float | None = None
    beta: float | None = None
    citation = "2203.00555"

    def block(self, x: S, block: Block[S]) -> S:
        alpha = (2 * block.depth) ** QUARTER if self.alpha is None else self.alpha
        y = block.norm(alpha * x + block.attention(x))
        return block.norm(alpha * y + block.ffn(y))

    def gains(self, index: Number, depth: Number) -> Gains:
        beta = (8 * depth) ** -QUARTER if self.beta is None else self.beta
        return Gains(value=beta, attention_out=beta, ffn_in=beta, ffn_out=beta)


class LayerNormScaling(Placement):
    """PreNorm with each norm's output divided by the square root of the block's index. arXiv:2502.05795."""

    citation = "2502.05795"

    def block(self, x: S, block: Block[S]) -> S:
        scale = block.index ** -Fraction(1, 2)
        x = x + block.attention(scale * block.norm(x))
        return x + block.ffn(scale * block.norm(x))

    def readout(self, x: S, block: Block[S]) -> S:
        return block.norm(x)
