"""Proposition 14: what the last matrices of all branches do in the first step, over depth, where tokens are alike."""

from __future__ import annotations

from functools import cache

import sympy as sp

from proofs import axioms, blocks, notation
from proofs.maps import Moments, ffn_backward, mean_mode, norm_backward
from proofs.notation import L, T, a_a, a_f, alpha, gamma, q, s_f
from proofs.vocabulary import (
    PREVIOUS,
    Bounds,
    Chain,
    Conclusion,
    Equality,
    Hypothesis,
    Inequality,
    Instance,
    Named,
    Proposition,
    Quantity,
    Recurrence,
    Step,
    concluded,
    resting_on,
    stated,
)

B, s, w, x, y = sp.symbols("B s w x y", positive=True)
n = sp.Symbol("n", nonnegative=True, integer=True)
ONE = sp.Integer(1)
STREAM, ALIKE, GRADIENT = Moments(q, q), Moments(ONE, ONE), Moments(gamma, gamma)
STREAM_SUM, PRE, POST, SPAN = map(sp.IndexedBase, ("q", "F", "P", "S"))

WIDE = Hypothesis("wide limit; uniform attention")
COLLAPSED = Hypothesis("all tokens are alike, and so are their gradients: correlations are 1; a homogeneous FFN")
SCALED = Hypothesis(
    r"branches are multiplied by $L^{-\alpha}$ and their matrices are not",
    (
        sp.Eq(B, a_a * L ** (-2 * alpha)),
        sp.Eq(s_f, a_f * L ** (-2 * alpha)),
        sp.Eq(s, (a_a + a_f) * L ** (-2 * alpha)),
    ),
)

SHARE = blocks.attention_share(ALIKE, B, T)
POST_BACK = blocks.postnorm_backward(GRADIENT, SHARE, B, T, s_f, ONE, ONE)
SPAN_BACK = blocks.spannorm_backward(GRADIENT, SHARE, B, T, s_f, ONE, ONE)
PRE_AHEAD = blocks.prenorm(STREAM, B, T, s_f, ONE)
PRE_BACK = blocks.prenorm_backward(GRADIENT, q, q + SHARE, B, T, s_f, ONE, ONE)
AT_FFN = norm_backward(GRADIENT, 1 + s_f)  # the gradient at the FFN's output, behind which a norm stands
POST_ATTENTION = norm_backward(AT_FFN + ffn_backward(AT_FFN, s_f, ONE, ONE), 1 + SHARE)
SPAN_ATTENTION = norm_backward(ffn_backward(AT_FFN, s_f, ONE, ONE), 1 + SHARE)
POST_EFFECT = sp.sqrt(B / (1 + B))
SPAN_EFFECT = sp.sqrt(B * s_f / ((1 + B) * (1 + s_f)))


def gradients() -> tuple[Step, ...]:
    """The mean mode passes blocks whose skips are normed untouched; in PreNorm it falls as the stream grows."""
    return (
        Equality(
            Named(r"\gamma_{l-1}^{\text{PostNorm}}", POST_BACK.variance),
            gamma,
            "PostNorm: a block hands back the whole gradient of the mean over tokens",
            name="post",
            derived=True,
        ),
        Equality(
            Named(r"\gamma_{l-1}^{\text{SpanNorm}}", SPAN_BACK.variance),
            gamma,
            "SpanNorm: so does its block, by two ways",
            name="span",
            derived=True,
        ),
        Recurrence(
            n,
            PREVIOUS + s,
            ONE,
            1 + n * s,
            "PreNorm: every block adds $s = B + s_f$ to the stream's variance",
            sequence=STREAM_SUM,
            name="stream",
            uses=("added",),
        ),
        Equality(
            Named(r"\gamma_{l-1}^{\text{PreNorm}}\,q_{l-1}", PRE_BACK.variance * q),
            gamma * PRE_AHEAD.variance,
            "and the gradient variance times the stream's is the same before and after a block",
            name="kept",
        ),
    )


def effects() -> tuple[Step, ...]:
    """Branch variance times the gradient variance at the branch's output, a block."""
    return (
        Equality(
            Named(r"q_l^{\text{PreNorm}} - q_{l-1}^{\text{PreNorm}}", PRE_AHEAD.variance - q),
            B + s_f,
            "PreNorm: what a block adds",
            name="added",
            derived=True,
        ),
        Equality(
            Named(r"e^2_{\text{attention, PostNorm}}", B * mean_mode(POST_ATTENTION, T)),
            POST_EFFECT**2 * gamma,
            "PostNorm: attention's branch, of variance $B$, behind which its norm stands",
            name="post_attention",
        ),
        Equality(
            Named(r"e^2_{\text{attention, SpanNorm}}", B * mean_mode(SPAN_ATTENTION, T)),
            SPAN_EFFECT**2 * gamma,
            "SpanNorm: attention reaches the stream through the FFN alone",
            name="span_attention",
        ),
        Equality(
            Named(r"e^2_{\text{FFN}}", s_f * mean_mode(AT_FFN, T)),
            s_f / (1 + s_f) * gamma,
            "the FFN's branch, of both",
            name="ffn",
        ),
    )


def sums() -> tuple[Step, ...]:
    """Roots of them, over blocks: what is counted against the gradient at the top."""
    term = w / sp.sqrt(1 + (n + 1) * s)
    upper = 2 * w * n / (1 + sp.sqrt(1 + n * s))
    lower = w * n / sp.sqrt(1 + n * s)
    tangent = Inequality(
        w * (2 * sp.sqrt(x) + (y - x) / sp.sqrt(y) - 2) / s,
        w * (2 * sp.sqrt(y) - 2) / s,
        "a root lies below its tangent",
        name="tangent",
    )
    falls = Inequality(w / sp.sqrt(x + y), w / sp.sqrt(x), "the terms fall from block to block", name="falls", along=y)
    at = {x: 1 + n * s, y: 1 + (n + 1) * s}
    above = Chain(upper + term, upper.subs(n, n + 1), "so one block more", (tangent,), name="above", at=(at,))
    below = Chain(term, w / sp.sqrt(1 + n * s), "and from below", (falls,), name="below", at=({x: 1 + n * s, y: s},))
    pre = Bounds(
        n,
        PREVIOUS + term,
        sp.Integer(0),
        lower,
        upper,
        (),
        r"PreNorm: the sum over $n$ blocks of $w/\sqrt{q_l}$",
        sequence=PRE,
        name="pre_sum",
        uses=("stream", "kept"),
        below=below,
        above=above,
    )
    return (
        tangent,
        falls,
        above,
        below,
        pre,
        *(
            Recurrence(n, PREVIOUS + effect, sp.Integer(0), n * effect, reason, sequence=sequence, name=name, uses=uses)
            for effect, reason, sequence, name, uses in (
                (POST_EFFECT, "PostNorm, attention", POST, "post_sum", ("post", "post_attention")),
                (SPAN_EFFECT, "SpanNorm, attention", SPAN, "span_sum", ("span", "span_attention")),
            )
        ),
        Instance(
            (sp.Le(L, PRE[L]), sp.Le(PRE[L], 2 * L * sp.sqrt(1 + L * s) / (1 + sp.sqrt(1 + L * s)))),
            pre,
            {n: L, w: sp.sqrt(1 + L * s)},
            r"PreNorm: over all $L$ blocks, each against the top, where $w = \sqrt{q_L}$",
            name="pre_all",
        ),
        Inequality(
            2 * L * sp.sqrt(1 + L * s) / (1 + sp.sqrt(1 + L * s)),
            2 * L,
            "so that between once and twice the number of blocks count",
            name="twice",
            uses=("pre_all",),
        ),
    )


def exponents() -> tuple[Step, ...]:
    """With a multiplier L^-alpha on branches."""
    return (
        Equality(
            Named(r"L\,e_{\text{attention, PostNorm}}", L * POST_EFFECT),
            sp.sqrt(a_a / (1 + a_a * L ** (-2 * alpha))) * L ** (1 - alpha),
            "all $L$ blocks of PostNorm, whose attention counts as its FFN does",
            name="post_exponent",
            uses=("post_sum", SCALED),
        ),
        Equality(
            Named(r"L\,e_{\text{attention, SpanNorm}}", L * SPAN_EFFECT),
            sp.sqrt(a_a * a_f / ((1 + a_a * L ** (-2 * alpha)) * (1 + a_f * L ** (-2 * alpha)))) * L ** (1 - 2 * alpha),
            "all $L$ blocks of SpanNorm: attention fades twice as fast",
            name="span_exponent",
            uses=("span_sum", SCALED),
        ),
        Equality(
            Named(r"L\,\sqrt{s_f}", L * sp.sqrt(s_f)),
            sp.sqrt(a_f) * L ** (1 - alpha),
            "and of PreNorm between once and twice",
            name="pre_exponent",
            uses=("pre_all", "twice", SCALED),
        ),
    )


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    added, *of_branches = effects()
    return resting_on(
        (axioms.WIDE, axioms.INDEPENDENCE, WIDE, COLLAPSED),
        (added, *gradients(), *of_branches),
        sums(),
        exponents(),
    )


def conclusion() -> tuple[Conclusion, ...]:
    """What is stated, the two-sided bound written out once more by hand."""
    root = sp.sqrt(1 + L * s)
    return (
        *stated(derivation, "post", "span", "kept", "post_attention", "span_attention", "ffn"),
        concluded(
            derivation,
            "pre_all",
            sp.Le(L, PRE[L]),
            sp.Le(PRE[L], 2 * L * root / (1 + root)),
            uses=("pre_all",),
        ),
        *stated(derivation, "twice", "pre_exponent", "post_exponent", "span_exponent"),
    )


PROPOSITION = Proposition(
    name="first_step_over_depth",
    number="14",
    title="The first step over depth, where tokens are alike",
    quantities=(
        notation.TOKENS,
        notation.VARIANCE,
        notation.GRAD_VARIANCE,
        notation.DEPTH,
        notation.FFN_GAIN,
        Quantity(alpha, r"exponent: branches are multiplied by $L^{-\alpha}$", 0, 1),
        Quantity(B, r"variance that attention adds at a normed stream"),
        Quantity(s, r"$B + s_f$"),
        Quantity(n, "number of blocks", 0, sp.oo, integer=True),
        Quantity(w, r"$\sqrt{q_L}$"),
        Quantity(x, "a positive number"),
        Quantity(y, "a positive number"),
        Quantity(a_a, "variance that attention adds at $L = 1$"),
        Quantity(a_f, "variance that the FFN adds at $L = 1$"),
    ),
    setting=(
        r"A step that does not grow with the gradient (sign, Adam) of rate $\eta$ lowers the loss, by the last "
        r"matrix of a branch and to first order, by $\eta$ times a constant of the widths times $e = "
        r"\sqrt{s\,g}$, where $s$ is the branch's variance and $g$ the gradient variance at its output: the "
        r"matrix's input has variance $s$ over the multiplier squared, its gradient carries the multiplier "
        r"(proposition 13). Falls of independent matrices add up. Tokens are alike here, as they are at depth "
        r"without scaled branches. $F_L$ counts PreNorm's blocks, each by $\sqrt{g/\gamma_L}$ with $g$ the "
        r"gradient at its FFN's output."
    ),
    hypotheses=(WIDE, COLLAPSED, SCALED),
    statement=(
        "The gradient of what tokens have in common is handed back whole by PostNorm and by "
        "SpanNorm,\n\n$$<<post>>, \\qquad <<span>>$$\n\nand in PreNorm keeps its product with the stream's "
        "variance:\n\n$$<<kept>>$$\n\nThe branches' effects, squared, "
        "are\n\n$$<<post_attention>>$$\n\n$$<<span_attention>>$$\n\n$$<<ffn>>$$\n\nand over all blocks of "
        "PreNorm\n\n$$<<pre_all>>, \\qquad <<twice>>$$\n\nSo with a multiplier $L^{-\\alpha}$ the loss falls in "
        "the first step, by PreNorm's FFNs, between once and twice as\n\n$$<<pre_exponent>>$$\n\nby PostNorm's "
        "attentions as\n\n$$<<post_exponent>>$$\n\nand by SpanNorm's as\n\n$$<<span_exponent>>$$\n\nA rate that "
        "goes as $L^{\\alpha-1}$ keeps the step of order one at every depth, in PostNorm as in PreNorm; "
        "SpanNorm's attention needs $L^{2\\alpha-1}$."
    ),
    source=(
        "For identity skips: arXiv:2505.01618 (CompleteP) and depth-muP. Normed skips, and the bound for PreNorm's "
        "growing stream, are derived here."
    ),
    confronted="tests/test_first_step_over_depth.py::test_exponents_of_depth",
    derivation=derivation,
    conclusion=conclusion,
)
