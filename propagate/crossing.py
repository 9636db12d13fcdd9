"""The description of cross-attention: a decoder's tokens attend to those of another stream, its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from propagate.arrays import moment, second_moments
from propagate.checks import ModelError, as_array, integer, number
from propagate.scaling import Gains, Number
from propagate.sublayers import Attention, Sublayer, as_names, of_head, scaled_projections

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_TOKENS = 1024  # of a memory, whose second moments a description holds one by one


@dataclass(frozen=True, repr=False)
class Memory:
    """Second moments per coordinate of the tokens that a decoder attends to; hashable.

    A network's memory is one and the same in all of its blocks. Its coordinates are taken for Gaussian, and it for
    independent of what the decoder begins with.

    Raises:
        ModelError: unless it is a square matrix of second moments in which every token has some variance.

    Example: what an encoder's last norm gave.
        >>> memory = Memory.of([[1.0, 0.25], [0.25, 1.0]])
        >>> memory == Memory.alike(2, covariance=0.25), memory.tokens
        (True, 2)
        >>> memory
        Memory(2 tokens, variance 1, covariance 0.25, sha256 a326be17)
    """

    rows: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, values: Any) -> Memory:
        """From a (tokens, tokens) matrix, or a Memory itself."""
        if isinstance(values, Memory):
            return values
        try:
            tokens = len(as_array(values))
        except Exception:  # a number, rows of unequal length, or whatever somebody else's conversion raises
            raise ModelError(
                f"memory must be a matrix of second moments or a propagate.Memory, got {type(values).__name__}"
            ) from None
        integer("tokens of a memory", tokens, at_most=MOST_TOKENS)
        return cls(tuple(map(tuple, second_moments("memory", values, tokens, positive=True).tolist())))

    @classmethod
    def alike(cls, tokens: int, variance: float = 1.0, covariance: float = 0.0) -> Memory:
        """Of so many tokens of one variance, each two of which have this covariance."""
        count = integer("tokens", tokens, at_most=MOST_TOKENS)
        size, shared = moment("variance", variance, positive=True), moment("covariance", covariance)
        return cls.of([[size if t == s else shared for s in range(count)] for t in range(count)])

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self.rows)

    @property
    def gram(self) -> NDArray[np.float64]:
        """(tokens, tokens) second moments."""
        import numpy as np

        return np.array(self.rows)

    def __repr__(self) -> str:
        import hashlib

        gram = self.gram
        pairs = max(self.tokens * (self.tokens - 1), 1)
        variance, covariance = gram.trace() / self.tokens, (gram.sum() - gram.trace()) / pairs
        digest = hashlib.sha256(gram.tobytes()).hexdigest()[:8]
        return f"Memory({self.tokens} tokens, variance {variance:.3g}, covariance {covariance:.3g}, sha256 {digest})"


@dataclass(frozen=True)
class CrossAttention(Sublayer):
    """Softmax attention of a stream's tokens to all of a memory's, as decoders of encoder-decoders have it.

    Queries are made of the stream, keys and values of the memory. A placement calls it by
    `block.apply(CrossAttention(memory), x)`. `memory_of` an encoder is what a prediction of it leaves;
    `memory_gradient` of a decoder is what that sends back.

    Attributes:
        memory: a `Memory`, or the (memory tokens, memory tokens) matrix of its second moments.
        heads: attention heads.
        head_size: coordinates of a head; None is width / heads.
        logit_std: standard deviation of a logit between unit-variance tokens at gains 1; 0 is uniform attention.
        query_gain, key_gain, value_gain, out_gain: standard deviation of a matrix's entries times sqrt(fan_in).
        normed: inner projections that pass the norm, as of `Attention`.

    Raises:
        ModelError: names the field, the value and what is allowed.

    Example: T5's decoder.
        >>> from propagate import Model, Placement, predict
        >>> class CrossingDecoder(Placement):
        ...     cross: CrossAttention
        ...
        ...     def block(self, x, block):
        ...         x = x + block.attention(block.norm(x))
        ...         x = x + block.apply(self.cross, block.norm(x))
        ...         return x + block.ffn(block.norm(x))
        >>> cross = CrossAttention(Memory.alike(10, covariance=0.5))
        >>> said = predict(Model(CrossingDecoder(cross), depth=1, tokens=4, causal=True), include={"calls"})
        >>> bool(0.5 < said.call_variance.sel(call="crossattention1")[1] < 1)
        True
    """

    inner_norms: ClassVar[tuple[str, ...]] = Attention.inner_norms
    alike: ClassVar[bool] = False  # it does; but its theory follows tokens one by one

    memory: Any
    heads: int = 8
    head_size: int | None = None
    logit_std: float = 1.0
    query_gain: Number = 1.0
    key_gain: Number = 1.0
    value_gain: Number = 1.0
    out_gain: Number = 1.0
    normed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "memory", Memory.of(self.memory))
        set_(self, "heads", integer("heads", self.heads))
        if self.head_size is not None:
            set_(self, "head_size", integer("head_size", self.head_size))
        for name in ("logit_std", "query_gain", "key_gain", "value_gain", "out_gain"):
            set_(self, name, number(name, getattr(self, name), positive=False))
        set_(self, "normed", as_names("normed", self.normed, self.inner_norms))

    def fitted(self, width: int, tokens: int) -> CrossAttention:
        return self.with_(head_size=of_head(self.head_size, width, self.heads))

    def scaled(self, gains: Gains) -> CrossAttention:
        return self.with_(**scaled_projections(self, gains))

    @property
    def size(self) -> int:
        """Coordinates of a head, once `fitted`."""
        assert self.head_size is not None
        return self.head_size

    @property
    def inside(self) -> int:
        """Coordinates of all heads together, once `fitted`."""
        return self.heads * self.size
