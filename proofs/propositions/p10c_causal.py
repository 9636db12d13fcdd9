"""Proposition 10c: under a causal mask PostNorm's gradient gathers on the first token."""

from __future__ import annotations

from functools import cache

import sympy as sp

from proofs import axioms, notation
from proofs.maps import Moments, ffn_backward, norm_backward
from proofs.notation import ell, s_f, sigma
from proofs.vocabulary import (
    PREVIOUS,
    Bounds,
    Equality,
    Hypothesis,
    Inequality,
    Limit,
    Named,
    Proposition,
    Quantity,
    Recurrence,
    Step,
    resting_on,
    stated,
)

a, t, w, v, x, y, z, S, T = sp.symbols("a t w v x y z S T", positive=True)
i, j = sp.symbols("i j", nonnegative=True)
lam = sp.Symbol("lambda", real=True)
GAIN = sigma**2
ONE = sp.Integer(1)
SIZES = (2, 3, 5)  # tokens of the explicit matrices

WIDE = Hypothesis(r"wide limit; linear FFN; correlations non-negative at the input")
IDENTICAL = Hypothesis(
    r"backward: tokens already identical ($c = 1$), to which the forward pass tends geometrically; $\Gamma_{ts} "
    r"\ge 0$ at the "
    "top, for instance gradients uncorrelated between tokens"
)


def attention(tokens: int) -> sp.Matrix:
    """Uniform causal attention: row t averages tokens 1..t."""
    return sp.Matrix(tokens, tokens, lambda row, col: sp.Rational(1, row + 1) if col <= row else 0)


def gram(tokens: int) -> sp.Matrix:
    """A symmetric matrix of symbols: second moments of the tokens' gradients."""
    return sp.Matrix(tokens, tokens, lambda r, s: sp.Symbol(f"Gamma_{min(r, s) + 1}{max(r, s) + 1}", positive=True))


def backward(second: sp.Matrix) -> sp.Matrix:
    """One PostNorm attention sublayer back, identical tokens: norm by 1 + sigma^2, then skip plus A' . A."""
    weights = attention(second.rows)
    return (second + GAIN * weights.T * second * weights) / (1 + GAIN)


def gram_symbols() -> tuple[Quantity, ...]:
    """Ranges for the explicit matrices' entries."""
    return tuple(
        Quantity(symbol, "a gradient second moment of two tokens")
        for symbol in sorted(gram(max(SIZES)).free_symbols, key=str)
    )


def collapse() -> tuple[Step, ...]:
    """Forward: every token's correlation with the first one tends to 1, geometrically."""
    least = (w + GAIN * (1 + (t - 1) * w) / t) / (1 + GAIN)
    rate = (1 + GAIN * (T - 1) / T) / (1 + GAIN)
    share = (1 + GAIN * v * (T - 1) / T) / (1 + GAIN)
    at_most = Inequality(
        share,
        rate,
        r"for $t \le T$, $(t-1)/t = v\,(T-1)/T$ with $0 \le v \le 1$",
        name="collapse",
        uses=("distance",),
    )
    return (
        Inequality(
            (1 + GAIN) * (1 + GAIN * v),
            (1 + GAIN) ** 2,
            r"the first token attends to itself and keeps variance $1+\sigma^2$ before the norm; another one has "
            r"$1+\sigma^2 v$ with $v \le 1$ (an average of correlations). Their correlation is divided by the root of",
            name="norms",
        ),
        Equality(
            Named("1 - w'", 1 - least),
            (1 - w) * (1 + GAIN * (t - 1) / t) / (1 + GAIN),
            r"if every correlation with token 1 is at least $w \ge 0$, token $t$'s is at least "
            r"$w' = \frac{w + \sigma^2(1 + (t-1)w)/t}{1+\sigma^2}$ after one block, one of its $t$ terms being token 1 "
            "itself",
            name="distance",
            uses=("norms",),
        ),
        at_most,
        Bounds(
            ell,
            PREVIOUS * share,
            1 - w,
            None,
            (1 - w) * rate**ell,
            (v,),
            "so over $l$ blocks the distance $d_l$ of any token from the first, $1 - w$ at the input, is at most",
            sequence=sp.IndexedBase("d"),
            name="identical",
            above=at_most,
        ),
        Inequality(
            rate,
            ONE,
            r"a rate below one: tokens become identical, all equal to the first",
            name="below_one",
            strict=True,
        ),
    )


def gathering() -> tuple[Step, ...]:
    """Backward at identical tokens: tails decay, the total is kept."""
    share = (T - a + 1) / T
    rate = (1 + GAIN * share**2) / (1 + GAIN)
    inside = norm_backward(Moments(x, y), 1 + s_f)
    tail = ((1 + GAIN * (y * share) ** 2) / (1 + GAIN)).subs(T, a + i)
    at_most = Inequality(
        tail,
        rate.subs(T, a + i),
        r"so for non-negative second moments the tail sum $S_a = u_a^\top\Gamma u_a$ falls at least by this rate per "
        r"sublayer ($T = a + i$ here, and $0 \le y \le 1$ is what the entrywise bound leaves)",
        name="tail",
        uses=("entrywise",),
    )
    return (
        Equality(
            Named(r"\gamma'", (inside + ffn_backward(inside, s_f, ONE, ONE)).variance),
            x,
            "a linear FFN leaves identical tokens identical, and its sublayer (norm, then skip and branch) returns "
            "gradient second moments unchanged",
            name="ffn",
        ),
        Inequality(
            Named("(A u_a)_r", (i + 1) / (a + i)),
            share.subs(T, a + i + j),
            r"let $u_a$ be 1 on tokens $\ge a$ and 0 before. Row $r = a+i$ of $A u_a$ is $(r-a+1)/r$, largest at "
            r"the last row $T = a+i+j$: so $A u_a \le \frac{T-a+1}{T} u_a$ entrywise",
            name="entrywise",
        ),
        at_most,
        Bounds(
            ell,
            PREVIOUS * tail,
            S,
            None,
            S * rate.subs(T, a + i) ** ell,
            (y,),
            "so over $l$ sublayers",
            sequence=sp.IndexedBase("S"),
            name="decay",
            uses=("ffn",),
            above=at_most,
        ),
        Inequality(
            rate.subs({a: 2 + i, T: 2 + i + j}),
            ONE,
            r"and for $a \ge 2$ the rate is below one",
            name="rate",
            strict=True,
        ),
        *(
            Equality(
                Named(
                    rf"\mathbf 1^\top\Gamma'\mathbf 1\big|_{{T={tokens}}}",
                    sum(backward(gram(tokens)), start=sp.Integer(0)),
                ),
                sum(gram(tokens), start=sp.Integer(0)),
                r"the total $\mathbf 1^\top\Gamma\mathbf 1$ is kept, since rows of $A$ sum to one (written out for "
                f"{tokens} tokens)",
                name=f"total_{tokens}",
            )
            for tokens in SIZES
        ),
        Inequality(
            (sp.sqrt(x) - sp.sqrt(z)) ** 2,
            x + z + 2 * sp.sqrt(x * z),
            r"by Cauchy-Schwarz the total lies between $(\sqrt{\Gamma_{11}} \mp \sqrt{S_2})^2$ (the two ends, in "
            r"$x=\Gamma_{11}$, $z=S_2$)",
            name="ends",
            uses=tuple(f"total_{tokens}" for tokens in SIZES),
        ),
        *(
            Limit(
                Named(rf"(\sqrt{{\Gamma_{{11}}}} {sign} \sqrt{{S_2}})^2", (sp.sqrt(x) + factor * sp.sqrt(z)) ** 2),
                z,
                0,
                x,
                reason,
                name=name,
                uses=("decay", "rate", "ends"),
            )
            for sign, factor, name, reason in (
                ("+", 1, "first", r"so as $S_2 \to 0$ the first token's gradient variance tends to the total"),
                ("-", -1, "first_low", "from either side"),
            )
        ),
    )


def spectrum() -> tuple[Step, ...]:
    """The exact rates: eigenvalues of the triangular matrix."""
    second = gram(5)
    return (
        *(
            Equality(
                Named(rf"\det(\lambda I - A)|_{{T={tokens}}}", (lam * sp.eye(tokens) - attention(tokens)).det()),
                sp.prod(lam - sp.Rational(1, n) for n in range(1, tokens + 1)),
                rf"a triangular matrix has its diagonal as eigenvalues, $1/t$ ({tokens} tokens)",
                name=f"eigenvalues_{tokens}",
                derived=True,
            )
            for tokens in SIZES
        ),
        *(
            Equality(
                Named(rf"\Gamma'_{{{tokens}{tokens}}}", sp.expand(backward(gram(tokens))[tokens - 1, tokens - 1])),
                (1 + GAIN / tokens**2) / (1 + GAIN) * gram(tokens)[tokens - 1, tokens - 1],
                rf"and the last token hears of no other: $(A^\top\Gamma A)_{{TT}} = \Gamma_{{TT}}/T^2$, $T = {tokens}$",
                name=f"last_{tokens}",
            )
            for tokens in SIZES
        ),
        Recurrence(
            ell,
            PREVIOUS * (1 + GAIN / T**2) / (1 + GAIN),
            x,
            x * ((1 + GAIN / T**2) / (1 + GAIN)) ** ell,
            r"so the last token's gradient variance is, exactly, after $l$ sublayers back",
            sequence=sp.IndexedBase(r"(\Gamma_{TT})"),
            name="last",
            uses=tuple(f"last_{tokens}" for tokens in SIZES),
        ),
        Equality(
            Named(
                r"\partial\Gamma'_{22}/\partial\Gamma_{22}", sp.diff(sp.expand(backward(second)[1, 1]), second[1, 1])
            ),
            (1 + GAIN / 4) / (1 + GAIN),
            r"in general $\Gamma_{ts}$ is fed only by later tokens and has eigenvalue "
            r"$\frac{1+\sigma^2/(ts)}{1+\sigma^2}$: the second token's is",
            name="second",
            uses=tuple(f"eigenvalues_{tokens}" for tokens in SIZES),
        ),
    )


@cache
def derivation() -> tuple[Step, ...]:
    """All steps."""
    return resting_on((axioms.WIDE, WIDE), collapse()) + resting_on(
        (axioms.WIDE, axioms.INDEPENDENCE, WIDE, IDENTICAL), gathering(), spectrum()
    )


PROPOSITION = Proposition(
    name="causal",
    number="10c",
    title="Causal masks: the gradient gathers on the first token",
    quantities=(
        notation.SIGMA,
        notation.FFN_GAIN,
        notation.BLOCK,
        Quantity(T, "number of tokens", 2),
        Quantity(a, "a token", 1),
        Quantity(i, "tokens in between", 0, sp.oo, integer=True),
        Quantity(j, "tokens after", 0, sp.oo, integer=True),
        Quantity(t, "a token", 1),
        Quantity(w, "a lower bound of correlations with token 1", 0, 1),
        Quantity(v, "variance of what a token attends to", 0, 1),
        Quantity(x, "a gradient second moment"),
        Quantity(y, "a share", 0, 1),
        Quantity(z, "the sum of all second moments that leave out the first token"),
        Quantity(S, "a tail sum at the top"),
        Quantity(lam, "a variable", -sp.oo),
        *gram_symbols(),
    ),
    setting=(
        r"Uniform causal attention: $A_{ts} = 1/t$ for $s \le t$, else 0. PostNorm blocks; $\Gamma_{ts} = \mathbb "
        r"E[g_{ti}g_{si}]$ "
        r"is the second moment of the gradients of tokens $t$ and $s$, $\mathbf 1$ the vector of ones. Through a "
        r"norm whose inputs "
        r"have variance $D$ and attention's sublayer $\Gamma' = (\Gamma + \sigma^2A^\top\Gamma A)/D$; for identical "
        r"tokens $D = "
        r"1+\sigma^2$."
    ),
    hypotheses=(
        WIDE,
        IDENTICAL,
    ),
    statement=(
        "Forward, the tokens' distance $d_l$ from the first one falls geometrically:\n\n$$<<identical>>$$\n\n"
        "$$<<below_one>>$$\n\nBackward, the sum of all second moments is kept, written out for 2, 3 and 5 "
        "tokens,\n\n$$<<total_*>>$$\n\nwhile every tail that leaves out the first token decays geometrically, with "
        "$T = a + i$ tokens:\n\n$$<<decay>>$$\n\n$$<<rate>>$$\n\n(the latter with $a = 2+i$, $T = 2+i+j$). So the "
        "first "
        "token receives, in the limit, the whole of $\\mathbf 1^\\top\\Gamma\\mathbf 1$ ($T$ times what it would "
        "alone, "
        "for uncorrelated unit gradients), which lies between two bounds that close on $x = \\Gamma_{11}$ as $z = S_2$ "
        "vanishes:\n\n$$<<first>>, \\qquad <<first_low>>$$\n\nEvery other token's gradient vanishes; the last one's "
        "exactly as\n\n$$<<last>>$$"
    ),
    source="Derived here.",
    confronted="tests/test_proofs_against_simulation_depth.py::test_causal",
    derivation=derivation,
    conclusion=lambda: stated(
        derivation,
        *("identical", "below_one", *(f"total_{tokens}" for tokens in SIZES), "decay", "rate", "first", "first_low"),
        "last",
    ),
)
