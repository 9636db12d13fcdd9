"""What stands above a printed recursion: which attention it has, and a key to its letters."""

from __future__ import annotations

from propagate.experts import Experts

LEGEND = (
    "q, p: variance and covariance of the stream that enters; gamma, kappa: of the gradient that arrives; prime:",
    "at the other end of a block. Of sublayer k: q_k, p_k of what it reads, a_k, b_k of what it adds; g_k, h_k of the",
    "gradient that arrives at its output, u_k, v_k of what it sends back. g_a, g_f: gains of attention and FFN;",
    "T: tokens; l, L: the block's index and the depth; tau: logit_std^2; q12: of streams 1 and 2; w1: a number;",
    "n_1, ...: variances that norms divide by.",
)

KEY = (
    r"$q, p$ are variance and covariance of the stream that enters, $\gamma, \kappa$ those of the gradient that"
    r" arrives; $q_k, p_k$ those of what sublayer $k$ reads, $a_k, b_k$ of what it adds, $g_k, h_k$ of the gradient"
    r" that arrives there, $u_k, v_k$ of what it sends back; a prime marks the other end of the block. $g_a, g_f$ are"
    r" the gains of attention and FFN, $T$ is the number of tokens, $l$ the block's index, $L$ the depth, $\tau$ the"
    r" variance of attention's logits; of two streams, $q_{12}$ is the joint moment of the first and the second,"
    r" $w_1$ a number that passes from block to block; norms divide by variances $n_1, \ldots$."
)
"""The same key, for a page of formulas."""

MEANS = (
    "Map of means over routers and tokens: predict, which draws routers and resolves tokens, answers otherwise where"
    " gates differ from token to token"
)


def about(logit_std: float | str, experts: Experts | None = None) -> str:
    """Which attention it is, which is not the one of a Model's defaults, and what is left out with experts.

    Example:
        >>> about(0.0).split(":")[0]
        'Uniform attention'
    """
    same = "the map of predict(Model(..., logit_std={}), head_size=math.inf); a Model's default is logit_std=1 in heads"
    if logit_std == 0:
        attention = "Uniform attention: " + same.format(0)
    else:
        attention = "Softmax attention in wide heads: " + same.format(
            "tau**0.5" if logit_std == "symbol" else logit_std
        )
    return attention if experts is None else f"{attention}. {MEANS}"
