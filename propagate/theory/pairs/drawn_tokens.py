"""Attention and norms of tokens that are drawn at random, in place of tokens whose second moments are exact.

Attention. The Gram matrix of T Gaussian tokens of d coordinates fluctuates: its entries by 1 / sqrt(d), and the T
entries of a row together are seen by attention as T / d. For T >> d a softmax over keys m . x_s with Gaussian x_s of
covariance C is a tilt of that Gaussian: its mean moves by C m, and its covariance stays C. With C = deviation for each
coordinate, and |m|^2 = logit variance x variance of the query's token, second moments per coordinate gain

    of the output                   logit_variance deviation^2 / d times those of the stream itself
    of the queries' cotangent       logit_variance deviation^2 / d times those of the cotangent

beside what attention makes of the average Gram matrix, of order 1 / T. Fluctuations change nothing else at this order.
The first line is the one term of arXiv:2403.09635's forward variance that grows with T / d; its gradient has neither.

Norms. The size of a Gaussian token of n free coordinates (d, less 1 for LayerNorm) is that of chi-squared / n.
Directions and sizes are independent, and a norm's Jacobian projects the token's own direction, and for LayerNorm the
mean, away: E 1 / chi-squared_n = 1 / (n - 2) gives the cotangent's variance exactly. Two tokens' sizes are correlated
by the square of their correlation c, and to first order in 1 / d

    covariance of the output        c (1 - (1 - c^2) / 2 n)
    covariance of the cotangent     (1 + (3 c^2 - 1) / 2 d) times what the limit says
"""

from __future__ import annotations

from collections.abc import Callable

from propagate.theory.gaussian.functions import Scalar
from propagate.theory.pairs.moments import Moments
from propagate.theory.pairs.sublayers import attention_paths


def attention_of_drawn_tokens(
    tokens: int, coordinates: Scalar, logit_variance: Scalar, x: Moments
) -> tuple[Moments, Callable[[Moments], Moments]]:
    """Softmax attention with unit gains over Gaussian tokens of so many coordinates: its output, and the pull.

    Relative errors are of order 1 / coordinates, however many the tokens.

    Example: ten tokens a coordinate; their fluctuations give as much as their average does, 1 / tokens.
        >>> output, pull = attention_of_drawn_tokens(1000, 100, 0.1, Moments(1.0, 1.0))
        >>> round(1000 * output.variance, 2), round(1000 * output.covariance, 2)
        (2.11, 1.0)
    """
    paths = attention_paths(tokens, logit_variance, x)
    noise = logit_variance * x.deviation * x.deviation / coordinates

    def pull(g: Moments) -> Moments:
        sent = paths.pull(g)
        query = Moments(sent.query.variance + noise * g.variance, sent.query.deviation + noise * g.deviation)
        return sent.value.plus(query).plus(sent.key)

    return Moments(paths.output.variance + noise * x.variance, paths.output.deviation + noise * x.deviation), pull


def norm_of_drawn_tokens(
    coordinates: Scalar, x: Moments, *, centred: bool = False
) -> tuple[Moments, Callable[[Moments], Moments]]:
    """RMSNorm, or LayerNorm if `centred`, of Gaussian tokens of so many coordinates: its output, and the pull.

    Example: two free coordinates fewer than the token has.
        >>> output, pull = norm_of_drawn_tokens(100, Moments(4.0, 4.0))
        >>> output.variance, pull(Moments(1.0, 1.0)).variance == 99 / 98 / 4
        (1.0, True)
    """
    free = coordinates - 1 if centred else coordinates
    c = x.covariance / x.variance
    own = (free - 1) / (free - 2) / x.variance
    pair = (1 + (3 * c * c - 1) / (2 * coordinates)) / x.variance

    def pull(g: Moments) -> Moments:
        return Moments(own * g.variance, own * g.variance - pair * g.covariance)

    return Moments(1.0, 1 - c * (1 - (1 - c * c) / (2 * free))), pull
