"""Embedded texts as a torch module: a table of tokens, hashed n-grams beside it, a scale and a norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from propagate.embeddings import TokenEmbedding
from propagate.tracing.layers import Projection, times


class Embedding(nn.Embedding):
    """Of token ids, of variance 1.

    Attributes:
        multiplier: of its output, and no part of the weights: 1, but under a rule of transfer.
    """

    multiplier: float = 1.0

    def forward(self, ids: Tensor) -> Tensor:
        return times(self.multiplier, super().forward(ids))


class Table(nn.Embedding):
    """Rows that know the standard deviation of their initial coordinates."""

    def __init__(self, rows: int, size: int, std: float) -> None:
        super().__init__(rows, size)
        self.std = std

    def reset_parameters(self) -> None:
        """Nothing: `draw` does it, once dtype and device are known."""

    def draw(self, generator: torch.Generator) -> None:
        """Rows afresh."""
        nn.init.normal_(self.weight, std=self.std, generator=generator)


class TextEmbedding(nn.Module):
    """What a description says: token ids (..., tokens) to the stream (..., tokens, width).

    Example:
        >>> from propagate.embeddings import NGrams
        >>> made = TextEmbedding(TokenEmbedding(10, ngrams=NGrams(longest=2, tables=2, rows=7)), width=8)
        >>> made(torch.tensor([[1, 2, 3]])).shape, [tuple(table.weight.shape) for table in made.tables]
        (torch.Size([1, 3, 8]), [(7, 4), (7, 4)])
    """

    def __init__(self, embedding: TokenEmbedding, width: int) -> None:
        super().__init__()
        self.description, self.factor = embedding, embedding.factor(width)
        self.tokens = Table(embedding.vocabulary, width, embedding.std)
        self.tables, self.projections = nn.ModuleList(), nn.ModuleList()
        if (ngrams := embedding.ngrams) is not None:
            size = ngrams.size(width)
            for _, rows in ngrams.sizes:
                self.tables.append(Table(rows, size, ngrams.std))
                self.projections.append(Projection(size, width, ngrams.gain))
        self.norm: nn.Module = nn.Identity()
        if (norm := embedding.norm) is not None:
            self.norm = (nn.LayerNorm if norm.centred else nn.RMSNorm)(width, eps=norm.eps)

    @property
    def weight(self) -> Tensor:
        """The tokens' own table."""
        return self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.tokens(ids)
        for table, projection, rows in zip(self.tables, self.projections, hashed(self.description, ids), strict=True):
            x = x + projection(table(rows))
        normed: Tensor = self.norm(self.factor * x)
        return normed


def not_of_a_model(module: nn.Module) -> list[str]:
    """In words, what this embedding has and a `Model`, which begins behind it, cannot say.

    Example:
        >>> not_of_a_model(TextEmbedding(TokenEmbedding(10, tied=True), width=8))
        ['a head tied to the table of tokens']
    """
    if not isinstance(module, TextEmbedding):
        return []
    embedding, words = module.description, []
    if (ngrams := embedding.ngrams) is not None:
        words.append(
            f"{ngrams.count} tables of hashed n-grams in the embedding: a text's gram, of"
            " propagate.theory.ngrams.embedded_gram, is where to start from"
        )
    return words + (["a head tied to the table of tokens"] if embedding.tied else [])


class Tied(nn.Module):
    """A head that reads logits off with the table of tokens, which it holds too."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.weight = table.weight

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


def hashed(embedding: TokenEmbedding, ids: Tensor) -> list[Tensor]:
    """Of each table of n-grams, the rows that every token reads: of longer n-grams by what was found for shorter ones.

    Example:
        >>> from propagate.embeddings import NGrams
        >>> bigrams = TokenEmbedding(10, ngrams=NGrams(longest=2, tables=1, rows=20))
        >>> hashed(bigrams, torch.tensor([3, 4, 5]))[0].tolist()
        [3, 14, 5]
    """
    ngrams, found = embedding.ngrams, []
    for n, rows in () if ngrams is None else ngrams.sizes:
        total, power, before = ids.long() % rows, 1, ids.long()
        for _ in range(1, n):
            before = nn.functional.pad(before[..., :-1], (1, 0))
            power = power * embedding.vocabulary % rows
            total = (total + before * power) % rows
        found.append(total)
    return found
