"""What stands above a printed recursion: which attention it has, and a key to its letters."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

from propagate.experts import Experts

ALWAYS = (
    "q, p: variance and covariance of the stream that enters; gamma, kappa: of the gradient that arrives; prime: at the"
    " other end of a block. Of sublayer k: q_k, p_k of what it reads, a_k, b_k of what it adds; g_k, h_k of the"
    " gradient that arrives at its output, u_k, v_k of what it sends back."
)
MET = {
    r"g_a": "g_a: attention's gain",
    r"g_f": "g_f: the FFN's gain",
    r"T": "T: tokens",
    r"l": "l: the block's index",
    r"L": "L: the depth",
    r"tau": "tau: logit_std^2",
    r"q\d\d": "q12: of streams 1 and 2 together",
    r"w\d": "w1: a number that passes from block to block",
    r"n_\d+": "n_1, ...: variances that norms divide by",
    r"softmax_.*": "softmax_second(T, v, c) and its like: averages over the softmax of T tokens of correlation c, whose"
    " logits have variance v, less those of uniform attention",
    r"gate_.*": "gate_routed(v, c) and its like: averages over the mixture's gates, its logits of variance v, of two"
    " tokens of correlation c",
    r"tanh_mean_slope": "tanh_mean_slope(q): E tanh'(x), x Gaussian of variance q",
}
"""What is said of letters and functions, by the pattern of their names, where they are met."""
AVERAGES = {"value": "f(x) f(y)", "slope": "f'(x) f'(y)"}
WIDTH = 118


def legend(equations: Sequence[Any]) -> list[str]:
    """The key to the letters of printed equations, in lines.

    Example:
        >>> import sympy
        >>> q, T = sympy.symbols("q T")
        >>> " ".join(legend([sympy.Eq(sympy.Symbol("q'"), sympy.Function("silu_value")(q, q) / T)])).split(". ")[-1]
        'T: tokens; silu_value(q, p): E f(x) f(y), x and y Gaussian of variance q and covariance p, f silu.'
    """
    from sympy.core.function import AppliedUndef

    names = {str(symbol) for each in equations for side in each.args for symbol in side.free_symbols}
    functions = {str(part.func) for each in equations for part in each.rhs.atoms(AppliedUndef)}
    met = [said for pattern, said in MET.items() if any(re.fullmatch(pattern, name) for name in names | functions)]
    for name in sorted(functions):
        core, _, kind = name.rpartition("_")
        if kind in AVERAGES and not name.startswith(("gate_", "softmax_")):
            average = AVERAGES[kind]
            met.append(f"{name}(q, p): E {average}, x and y Gaussian of variance q and covariance p, f {core}")
    return textwrap.wrap(f"{ALWAYS} {'; '.join(met)}." if met else ALWAYS, WIDTH)


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
