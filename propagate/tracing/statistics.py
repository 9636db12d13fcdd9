"""Second moments of streams, as tensors hold them, over the tokens that count.

A stream is (sequences, tokens, width). Every quantity is made for each sequence and then averaged over sequences.
`keep` is (sequences, tokens), true for the tokens that count; padding is never one of them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def precise(x: Tensor) -> Tensor:
    """At least float32, and without gradient: sums in half precision would measure their own rounding.

    Example:
        >>> precise(torch.ones(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def second_moments(x: Tensor, keep: Tensor) -> dict[str, float]:
    """`variance`, `covariance` and `deviation`; the last two are NaN if a sequence has but one token that counts.

    Example: the second token is padding, and what it holds does not matter.
        >>> x = torch.tensor([[[1.0, 1.0], [9.0, 9.0], [1.0, -1.0]]])
        >>> second_moments(x, torch.tensor([[True, False, True]]))
        {'variance': 1.0, 'covariance': 0.0, 'deviation': 1.0}
    """
    x, count = _kept(precise(x), keep), keep.sum(-1)
    width = x.shape[-1]
    variance = x.square().sum((-1, -2)) / (count * width)
    mean = x.sum(-2, keepdim=True) / count[:, None, None]
    spread = (x - mean) * keep[..., None]
    # the covariance from the token mean, so that neither of the two is a difference of large numbers
    deviation = torch.where(count > 1, spread.square().sum((-1, -2)) / ((count - 1) * width), torch.nan)
    covariance = mean.square().mean((-1, -2)) - deviation / count
    named = {"variance": variance, "covariance": covariance, "deviation": deviation}
    return {name: value.mean().item() for name, value in named.items()}


def token_gram(x: Tensor) -> Tensor:
    """Second moments per coordinate of every two tokens, (tokens, tokens); the mean over sequences.

    Example:
        >>> token_gram(torch.tensor([[[1.0, 1.0], [2.0, 0.0]]]))
        tensor([[1., 1.],
                [1., 2.]], dtype=torch.float64)
    """
    x = x.detach().double()
    return (x @ x.mT).mean(0) / x.shape[-1]


def cosine(x: Tensor, y: Tensor, keep: Tensor) -> float:
    """Mean over tokens of the cosine between a token in x and the same in y.

    Example:
        >>> cosine(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[1.0, 0.0]]]), torch.tensor([[True]]))
        0.6
    """
    found = torch.nn.functional.cosine_similarity(precise(x), precise(y), dim=-1)
    return round(float(_mean(found, keep)), 7)


def shared(x: Tensor, y: Tensor, keep: Tensor) -> float:
    """Mean over tokens of the squared cosine between a token in x and the same in y.

    Example:
        >>> round(shared(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[1.0, 0.0]]]), torch.tensor([[True]])), 6)
        0.36
    """
    return float(_mean(torch.nn.functional.cosine_similarity(precise(x), precise(y), dim=-1).square(), keep))


def change(x: Tensor, y: Tensor, keep: Tensor) -> float:
    """Root mean square of y - x over that of x: what the branches wrote, against what the skip kept.

    Example:
        >>> change(torch.ones(1, 1, 4), 1.5 * torch.ones(1, 1, 4), torch.tensor([[True]]))
        0.5
    """
    x, y = precise(x), precise(y)
    return float((_mean((y - x).square().mean(-1), keep) / _mean(x.square().mean(-1), keep)).sqrt())


def effective_rank(x: Tensor, keep: Tensor) -> float:
    """Exponential of the entropy of the eigenvalues of the token Gram matrix (Roy & Vetterli 2007), in tokens.

    From 1, all tokens multiples of one vector, to the number of tokens.

    Example:
        >>> effective_rank(torch.eye(3)[None], torch.ones(1, 3, dtype=torch.bool))
        3.0
    """
    x = _kept(precise(x), keep)
    if not torch.isfinite(x).all():
        return float("nan")
    squares = torch.linalg.svdvals(x).square()
    share = squares / squares.sum(-1, keepdim=True)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return round(float(entropy.exp().mean()), 6)


def _kept(x: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep[..., None], x, 0.0)


def _mean(values: Tensor, keep: Tensor) -> Tensor:
    return (torch.where(keep, values, 0.0).sum(-1) / keep.sum(-1)).mean()
