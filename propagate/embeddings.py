"""What makes a stream of token ids: a table of rows, hashed n-grams beside it, their scale or norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from propagate.checks import ModelError, as_array, check_flag, choice, integer, number, shown
from propagate.norms import Norm, as_norm

AVERAGES = ("count", "root")
ROOT_OF_WIDTH = "root_of_width"
MOST_WORDS = 2**24
"""Of a vocabulary."""
MOST_ROWS = 2**38
"""Of a table of n-grams: a row's number, times a token's, fits 64 bits."""
MOST_TABLES = 2**10

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class NGrams:
    """Tables of hashed n-grams beside a token's own row, as in LongCat-Flash-Lite (arXiv:2601.21204).

        e_i = (E(t_i) + sum_n sum_k W_nk E_nk(h_nk(t_{i-n+1}, ..., t_i))) / divisor

    with n = 2 ... `longest` and k = 1 ... `tables`. E_nk has `width` / count coordinates, count = (longest - 1) tables,
    and W_nk brings these to the stream's width. The hash is a polynomial in the vocabulary V, without any salt:
    h_nk = (t_i + t_{i-1} V + ... + t_{i-n+1} V^(n-1)) mod rows_nk. Before a sequence stands token 0.

    Attributes:
        longest: n of the longest n-gram.
        tables: of each n.
        rows: of each table, those of n = 2 first; or one number for all, which makes the tables of one n alike in what
            they cannot tell apart.
        std: standard deviation of a row's coordinate.
        gain: entries of W_nk have standard deviation gain / sqrt(fan_in).
        average: what the sum of 1 + count terms is divided by: "count", their number, or "root", its root.

    Raises:
        ModelError: names the field, the value and what is allowed.

    Example: a term of variance 1 each, over their number.
        >>> released = NGrams.beside_multiple(131072)
        >>> released.count, released.divisor, released.rows[0] - 78 * 131072, released.size(3072)
        (12, 13.0, 1, 256)
    """

    longest: int = 4
    tables: int = 4
    rows: int | tuple[int, ...] = 4096
    std: float = 1.0
    gain: float = 1.0
    average: Literal["count", "root"] = "count"

    def __post_init__(self) -> None:
        integer("longest", self.longest, at_least=2, at_most=64)
        integer("tables", self.tables, at_most=MOST_TABLES)
        number("ngrams.std", self.std, positive=True)
        number("ngrams.gain", self.gain, positive=True)
        choice("average", self.average, AVERAGES)
        given = self.rows if isinstance(self.rows, tuple | list) else (self.rows,) * self.count
        if len(given) != self.count:
            raise ModelError(f"rows must be one number, or one for each of {self.count} tables, got {len(given)}")
        object.__setattr__(self, "rows", tuple(integer("rows", one, at_most=MOST_ROWS) for one in given))

    @classmethod
    def beside_multiple(cls, vocabulary: int, ratio: int = 78, *, longest: int = 4, tables: int = 4, **own: Any) -> Any:
        """With rows as in the released code: table i = 0, 1, ... has ratio V + 2 i + 1 of them.

        Example:
            >>> NGrams.beside_multiple(256, 4, longest=2, tables=3).rows
            (1025, 1027, 1029)
        """
        multiple = integer("ratio", ratio) * integer("vocabulary", vocabulary, at_most=MOST_WORDS)
        count = (integer("longest", longest, at_least=2, at_most=64) - 1) * integer("tables", tables)
        return cls(longest, tables, tuple(multiple + 2 * i + 1 for i in range(min(count, MOST_TABLES * 64))), **own)

    @property
    def count(self) -> int:
        """Of all tables."""
        return (self.longest - 1) * self.tables

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """n and rows of each table.

        Example:
            >>> NGrams(longest=3, tables=1, rows=(10, 20)).sizes
            ((2, 10), (3, 20))
        """
        rows: Any = self.rows
        return tuple((2 + i // self.tables, one) for i, one in enumerate(rows))

    @property
    def divisor(self) -> float:
        """Of the sum of all terms."""
        terms = 1.0 + self.count
        return terms if self.average == "count" else math.sqrt(terms)

    def size(self, width: int) -> int:
        """Coordinates of a row, in a stream of that width.

        Raises:
            ModelError: for a width that is no multiple of the number of tables.
        """
        if width % self.count:
            raise ModelError(f"width must be a multiple of the {self.count} tables of n-grams, got {width}")
        return width // self.count


@dataclass(frozen=True)
class TokenEmbedding:
    """A stream's first value, from token ids.

    Attributes:
        vocabulary: how many tokens there are.
        std: standard deviation of a row's coordinate.
        ngrams: what is added to a token's row, and divides the sum.
        scale: what follows multiplies by: a number, or "root_of_width", sqrt(width) (arXiv:1706.03762; Gemma).
        norm: then, the norm of each token; None has none.
        tied: whether the matrix that logits are read off with is the table of tokens, as it is.

    Raises:
        ModelError: names the field, the value and what is allowed.

    Example: the amplification that arXiv:2601.21204 recommends, either way.
        >>> ngrams = NGrams.beside_multiple(1000)
        >>> amplified = TokenEmbedding(1000, 0.02, ngrams, scale="root_of_width")
        >>> normed = TokenEmbedding(1000, 0.02, ngrams, norm="rms")
        >>> amplified.factor(64), normed.norm
        (0.6153846153846154, Norm(kind='rms', eps=0.0))
    """

    vocabulary: int
    std: float = 1.0
    ngrams: NGrams | None = None
    scale: float | Literal["root_of_width"] = 1.0
    norm: Norm | None = None
    tied: bool = False

    def __post_init__(self) -> None:
        integer("vocabulary", self.vocabulary, at_most=MOST_WORDS)
        number("std", self.std, positive=True)
        if not isinstance(self.ngrams, NGrams | None):
            raise ModelError(f"ngrams must be None or a propagate.NGrams, got {shown(self.ngrams)}")
        if not (isinstance(self.scale, str) and self.scale == ROOT_OF_WIDTH):
            if isinstance(self.scale, str):
                choice("scale", self.scale, (ROOT_OF_WIDTH,))
            number("scale", self.scale, positive=True)
        if self.norm is not None:
            object.__setattr__(self, "norm", as_norm(self.norm))
        check_flag("tied", self.tied)

    def factor(self, width: int) -> float:
        """What the sum of terms is multiplied by before the norm: scale over divisor."""
        scale = math.sqrt(width) if isinstance(self.scale, str) else float(self.scale)
        return scale if self.ngrams is None else scale / self.ngrams.divisor

    def checked(self, ids: Any) -> Ids:
        """Token ids (tokens,) or (sequences, tokens), as whole numbers of 64 bits.

        Raises:
            ModelError: for what is no array of ids of this vocabulary.

        Example:
            >>> TokenEmbedding(4).checked([[0, 3]]).shape
            (1, 2)
        """
        import numpy as np

        try:
            array = as_array(ids)
        except Exception:
            raise ModelError(f"ids must be an array of token ids, got {type(ids).__name__}") from None
        if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or not array.size:
            raise ModelError(
                f"ids must be whole numbers of shape (tokens,) or (sequences, tokens), got {array.dtype} {array.shape}"
            )
        if int(array.min()) < 0 or int(array.max()) >= self.vocabulary:
            raise ModelError(f"ids must lie from 0 to {self.vocabulary - 1}, got {int(array.min())} to {array.max()}")
        return np.asarray(array, dtype=np.int64)
