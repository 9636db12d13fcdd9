"""Proposition 12: one block of placements of the package, as `propagate.recursion` derives it."""

from __future__ import annotations

import re
from functools import cache

import sympy as sp

import propagate
from proofs import axioms, blocks
from proofs.gaussian import relu_derivative_kernel, relu_kernel
from proofs.maps import Moments, mean_mode, normed
from proofs.placements import BY_HAND, GRADIENT, ONE, STREAM, L, Notebook, T, block, g_a, g_f, gamma, kappa, p, q
from proofs.vocabulary import (
    PREVIOUS,
    Equality,
    Hypothesis,
    Named,
    Proposition,
    Quantity,
    Recurrence,
    Step,
    resting_on,
    stated,
)
from propagate.placements import DeepNorm
from propagate.theory.recursion import Recursion

q_0, s = sp.symbols("q_0 s", positive=True)
RESULTS = ("q'", "p'", "gamma'", "kappa'")
PARTS = {
    "q": ("what attention reads", "what the FFN reads"),
    "a": ("what attention adds", "what the FFN adds"),
    "g": ("the gradient that arrives at attention's output", "the gradient that arrives at the FFN's output"),
    "u": ("the gradient that attention sends back", "the gradient that the FFN sends back"),
}
NAMES = {"q": ("q", "p"), "a": ("a", "b"), "g": ("g", "h"), "u": ("u", "v")}
derive = cache(propagate.recursion)

WIDE = Hypothesis("wide limit; uniform attention; exchangeable tokens")
RELU = Hypothesis("ReLU; a single stream")


def own() -> tuple[str, ...]:
    """The names of the placements that somebody composed by hand."""
    return tuple(name for name in propagate.placements() if name in BY_HAND)


def title(name: str) -> str:
    """The placement's name as it is written."""
    return propagate.placements()[name].__name__


def label(name: str, placement: str) -> str:
    """The LaTeX of a moment's name, which says of what placement it is."""
    mark = "_" if "'" in name else "^"
    return re.sub(r"^(gamma|kappa)", r"\\\1", name) + rf"{mark}{{\text{{{title(placement)}}}}}"


def sides(recursion: Recursion) -> dict[str, sp.Expr]:
    """What the package's recursion says, by name, with the variances that norms divide by written out."""
    results = (recursion.variance, recursion.covariance, recursion.grad_variance, recursion.grad_covariance)
    said = {str(e.lhs): e.rhs for e in recursion.definitions} | dict(zip(RESULTS, results, strict=True))
    for definition in reversed(recursion.definitions):
        if str(definition.lhs).startswith("n_"):
            said.pop(str(definition.lhs))
            said = {name: side.subs(definition.lhs, definition.rhs) for name, side in said.items()}
    return said


def step_name(placement: str, name: str) -> str:
    """A step's name, fit for a statement."""
    return f"{placement}_{name.replace(chr(39), '_out')}"


def definitions(placement: str) -> tuple[Step, ...]:
    """Every equation of one placement's recursion, against the composition by hand."""
    recursion = derive(placement)
    names = {str(e.lhs): e.lhs for e in recursion.definitions}
    said = sides(recursion)
    return tuple(
        Equality(
            Named(label(name, placement), said.pop(name)),
            value,
            f"{title(placement)}, {meaning(name)}",
            name=step_name(placement, name),
            derived=True,
        )
        for name, value in BY_HAND[placement](Notebook(names))
    ) + tuple(  # an equation that the composition by hand does not know would go unchecked
        Equality(value, sp.Integer(0), f"{title(placement)}: {name} has no counterpart") for name, value in said.items()
    )


def meaning(name: str) -> str:
    """What a name stands for, in words."""
    if name in RESULTS:
        end = "the stream that leaves" if name in RESULTS[:2] else "the gradient at the stream that enters"
        return f"{'variance' if RESULTS.index(name) % 2 == 0 else 'covariance'} of {end}"
    letter, number = name.split("_")
    [(part, pair)] = [(part, pair) for part, pair in NAMES.items() if letter in pair]
    return f"{'variance' if letter == pair[0] else 'covariance'} of {PARTS[part][int(number) - 1]}"


def composed() -> tuple[Step, ...]:
    """PreNorm, PostNorm and SpanNorm in one piece: the blocks of propositions 7-10 at unit input variance."""
    unit = Moments(ONE, p)
    heard = {
        "prenorm": normed(unit + blocks.uniform_attention(unit, g_a**2, T)).covariance,
        "postnorm": blocks.after_attention(unit, g_a**2, T).covariance,
        "spannorm": blocks.after_attention(unit, g_a**2, T).covariance,
    }
    steps: list[Step] = []
    for name, c in heard.items():
        share = blocks.attention_share(unit, g_a**2, T)
        kernel, ratio = 2 * relu_kernel(ONE, c), 2 * relu_derivative_kernel(c)
        out = getattr(blocks, name)(unit, g_a**2, T, g_f**2, kernel)
        if name == "prenorm":
            back = blocks.prenorm_backward(GRADIENT, ONE, 1 + share, g_a**2, T, g_f**2, ONE, ratio)
        else:
            back = getattr(blocks, f"{name}_backward")(GRADIENT, share, g_a**2, T, g_f**2, ONE, ratio)
        ours = (out.variance, out.covariance, back.variance, back.covariance)
        for which, (closed, side) in enumerate(zip(derive(name).closed(), ours, strict=True)):
            steps.append(
                Equality(
                    Named(rf"{label(RESULTS[which], name)}\big|_{{q=1}}", closed.subs(q, 1)),
                    side,
                    f"{title(name)} in one piece at unit input variance, as propositions 7-10 use it: "
                    f"{meaning(RESULTS[which])}",
                    name=f"composed_{name}_{which}",
                    derived=True,
                )
            )
    return tuple(steps)


def consequences() -> tuple[Step, ...]:
    """What follows at once for the placements that no earlier proposition treats."""
    variance = {name: derive(name).closed()[0] for name in ("periln", "deepnorm", "layernormscaling")}
    plain = derive(DeepNorm(alpha=1, beta=1)).closed()  # type: ignore[arg-type]
    n = sp.Symbol("n", nonnegative=True, integer=True)
    steps: list[Step] = [
        Equality(
            Named(rf"{label(RESULTS[0], 'periln')}\big|_{{\text{{in one piece}}}}", variance["periln"]),
            q + 2,
            r"Peri-LN: each branch is normed after it is computed, so a block adds exactly 2, whatever the gains",
            name="peri",
            uses=("periln_q_out",),
            derived=True,
        ),
        Recurrence(
            n,
            PREVIOUS + 2,
            q_0,
            q_0 + 2 * n,
            "so over $n$ blocks",
            sequence=sp.IndexedBase("q"),
            name="peri_depth",
            uses=("peri",),
            solve=True,
        ),
        Equality(
            Named(rf"{label(RESULTS[0], 'deepnorm')}\big|_{{q=1}}", variance["deepnorm"].subs(q, 1)),
            ONE,
            "DeepNorm: the norm stands after the sum",
            name="deep",
            derived=True,
        ),
        Equality(
            Named(
                rf"{label(RESULTS[0], 'layernormscaling')}\big|_{{\text{{in one piece}}}}", variance["layernormscaling"]
            )
            - q,
            (g_a**2 * mean_mode(normed(STREAM), T) + g_f**2) / block,
            r"LayerNorm-Scaling with ReLU: attention and FFN are both homogeneous, so dividing what they read by "
            r"$\sqrt l$ divides what they add by $l$",
            name="lns",
            uses=("layernormscaling_q_out",),
        ),
        Recurrence(
            n,
            PREVIOUS + s / (n + 1),
            q_0,
            q_0 + s * sp.harmonic(n),
            r"with $s = g_a^2 + g_f^2$ (identical tokens) the variance after $n$ blocks grows like the harmonic "
            r"numbers, $s\log n$",
            sequence=sp.IndexedBase("q"),
            name="lns_depth",
            uses=("lns",),
        ),
    ]
    for which, (deep, post) in enumerate(zip(plain, derive("postnorm").closed(), strict=True)):
        steps.append(
            Equality(
                Named(rf"{label(RESULTS[which], 'deepnorm')}\big|_{{\alpha=\beta=1}}", deep),
                post,
                rf"DeepNorm with $\alpha = \beta = 1$ is PostNorm: {meaning(RESULTS[which])}",
                name=f"deep_is_post_{which}",
                derived=True,
            )
        )
    return tuple(steps)


def steps() -> tuple[Step, ...]:
    """The placements, then the compositions, then what follows."""
    steps: tuple[Step, ...] = ()
    for name in own():
        steps += definitions(name)
    return steps + composed() + consequences()


def _quantities() -> tuple[Quantity, ...]:
    """The symbols of a recursion."""
    half = sp.Rational(1, 2)
    found = [
        Quantity(q, "variance of the stream that enters", 1),
        Quantity(p, "its covariance", 0, half),
        Quantity(gamma, "variance of the gradient at the stream that leaves"),
        Quantity(kappa, "its covariance", 0, 1),
        Quantity(T, "number of tokens", 2, sp.oo, integer=True),
        Quantity(g_a, "attention's gain (values times output)"),
        Quantity(g_f, "the FFN's gain"),
        Quantity(block, "number of the block", 1, sp.oo, integer=True),
        Quantity(L, "number of blocks", 1, sp.oo, integer=True),
        Quantity(q_0, "variance at the input"),
        Quantity(s, "a block's gain"),
        Quantity(sp.Symbol("n", nonnegative=True, integer=True), "number of blocks", 0, sp.oo, integer=True),
    ]
    for part, (first, second) in NAMES.items():
        for number in (1, 2):
            for letter, word in ((first, "variance"), (second, "covariance")):
                signs = {"real": True} if letter in "pbhv" else {"positive": True}
                low, high = (0, half) if letter in "pbhv" else (1, sp.oo)
                symbol = sp.Symbol(f"{letter}_{number}", **signs)
                found.append(Quantity(symbol, f"{word} of {PARTS[part][number - 1]}", low, high))
    return tuple(found)


def _statement() -> str:
    """Each placement's recursion, then the consequences."""
    written = "\n\n".join(f"**{title(name)}** (arXiv:{_cited(name)}):\n\n$$<<{name}_*>>$$" for name in own())
    return (
        f"{written}\n\nHence, for Peri-LN, $<<peri>>$ whatever the gains, and $<<peri_depth>>$; for DeepNorm "
        "$<<deep>>$, and with $\\alpha=\\beta=1$ its recursion is PostNorm's in one piece; for LayerNorm-Scaling"
        "\n\n$$<<lns>>$$\n\n$$<<lns_depth>>$$"
    )


def _concluded() -> tuple[str, ...]:
    """The names of the steps that are stated: every equation of the recursions, and what follows."""
    recursions = (s.name for s in derivation() if s.name.partition("_")[0] in own())
    return (*recursions, "peri", "peri_depth", "deep", "lns", "lns_depth")


def _cited(name: str) -> str:
    return propagate.placements()[name].citation


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return resting_on((axioms.WIDE, axioms.INDEPENDENCE, WIDE, RELU), steps())


PROPOSITION = Proposition(
    name="placements",
    number="12",
    title="Placements of the package: one block",
    quantities=_quantities(),
    setting=(
        "An interior block with uniform attention and a ReLU FFN. The stream that enters has variance $q$ and "
        r"covariance $p$; a gradient of variance $\gamma$ and covariance $\kappa$ arrives at the stream that leaves. "
        "The moments around sublayer 1 (attention) and 2 (FFN) have names: it reads $(q_k, p_k)$, adds $(a_k, b_k)$; "
        "$(g_k, h_k)$ arrives at its output and $(u_k, v_k)$ is what it sends back to its input. A moment that is a "
        "number, or has a name already, gets none. The left sides were derived by the package from the placement's "
        "equations as "
        "they stand in its code; the right sides are composed by hand from the maps of propositions 1-6. (Ranges in "
        "the table are those of the numeric check; the equalities hold wherever both sides are defined.)"
    ),
    hypotheses=(
        WIDE,
        RELU,
    ),
    statement=_statement(),
    source="The placements' equations are their papers'; the recursions are derived here.",
    confronted="tests/test_agreement.py::test_they_agree",
    derivation=derivation,
    conclusion=lambda: stated(derivation, *_concluded()),
)
