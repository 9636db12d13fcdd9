"""Proposition 10c: under a causal mask PostNorm's gradient gathers on the first token."""

from __future__ import annotations

import sympy as sp

from proofs import axioms, notation
from proofs.maps import Moments, ffn_backward, norm_backward
from proofs.notation import ell, s_f, sigma
from proofs.vocabulary import Equality, Inequality, Limit, Proposition, Quantity, Recurrence, Step

a, i, j, t, w, v, x, y, z, R = sp.symbols("a i j t w v x y z R", positive=True)
lam = sp.Symbol("lambda", real=True)
T, S = sp.Symbol("T", positive=True), sp.Symbol("S", positive=True)
GAIN = sigma**2
ONE = sp.Integer(1)
SMALL = 5  # tokens of the explicit matrices


def attention() -> sp.Matrix:
    """Uniform causal attention among SMALL tokens: row t averages tokens 1..t."""
    return sp.Matrix(SMALL, SMALL, lambda row, col: sp.Rational(1, row + 1) if col <= row else 0)


def gram() -> sp.Matrix:
    """A symmetric matrix of symbols: second moments of the gradients of SMALL tokens."""
    return sp.Matrix(SMALL, SMALL, lambda r, s: sp.Symbol(f"Gamma_{min(r, s) + 1}{max(r, s) + 1}", positive=True))


def backward(second: sp.Matrix) -> sp.Matrix:
    """One PostNorm attention sublayer back, identical tokens: norm by 1 + sigma^2, then skip plus A' . A."""
    return (second + GAIN * attention().T * second * attention()) / (1 + GAIN)


def gram_symbols() -> tuple[Quantity, ...]:
    """Ranges for the explicit matrix's entries."""
    return tuple(
        Quantity(symbol, "a gradient second moment of two of five tokens")
        for symbol in sorted(gram().free_symbols, key=str)
    )


def collapse() -> tuple[Step, ...]:
    """Forward: every token's correlation with the first one tends to 1, geometrically."""
    least = (w + GAIN * (1 + (t - 1) * w) / t) / (1 + GAIN)
    rate = (1 + GAIN * (T - 1) / T) / (1 + GAIN)
    return (
        Inequality(
            (1 + GAIN) * (1 + GAIN * v),
            (1 + GAIN) ** 2,
            r"the first token attends to itself and keeps variance $1+\sigma^2$ before the norm; another one has "
            r"$1+\sigma^2 v$ with $v \le 1$ (an average of correlations). Their correlation is divided by the root of",
        ),
        Equality(
            1 - least,
            (1 - w) * (1 + GAIN * (t - 1) / t) / (1 + GAIN),
            r"if every correlation with token 1 is at least $w \ge 0$, token $t$'s is at least $w' = \frac{w + "
            r"\sigma^2(1 + "
            r"(t-1)w)/t}{1+\sigma^2}$ after one block, one of its $t$ terms being token 1 itself",
            label="1 - w'",
        ),
        Inequality(
            ((1 - w) * (1 + GAIN * (t - 1) / t) / (1 + GAIN)).subs(t, 1 + i),
            ((1 - w) * rate).subs(T, 1 + i + j),
            r"for $t \le T$ (with $t = 1+i$, $T = 1+i+j$)",
            "collapse",
            smaller_label="1 - w'",
        ),
        Inequality(
            rate.subs(T, 1 + i), ONE, r"a rate below one: tokens become identical, all equal to the first", strict=True
        ),
    )


def gathering() -> tuple[Step, ...]:
    """Backward at identical tokens: tails decay, the total is kept."""
    share = (T - a + 1) / T
    rate = (1 + GAIN * share**2) / (1 + GAIN)
    inside = norm_backward(Moments(x, y), 1 + s_f)
    ones = sp.Matrix([1] * SMALL)
    second = gram()
    return (
        Equality(
            (inside + ffn_backward(inside, s_f, ONE, ONE)).variance,
            x,
            "a linear FFN leaves identical tokens identical, and its sublayer (norm, then skip and branch) returns "
            "gradient "
            "second moments unchanged",
            label=r"\gamma'",
        ),
        Inequality(
            (i + 1) / (a + i),
            share.subs(T, a + i + j),
            r"let $u_a$ be 1 on tokens $\ge a$ and 0 before. Row $r = a+i$ of $A u_a$ is $(r-a+1)/r$, largest at "
            r"the last row "
            r"$T = a+i+j$: so $A u_a \le \frac{T-a+1}{T} u_a$ entrywise",
            smaller_label="(A u_a)_r",
        ),
        Inequality(
            (x + GAIN * x * (y * share.subs(T, a + i)) ** 2) / (1 + GAIN),
            x * rate.subs(T, a + i),
            r"so for non-negative second moments the tail sum $S_a = u_a^\top\Gamma u_a$ falls at least by this "
            r"rate per "
            r"sublayer (here $x$ is $S_a$, and $0 \le y \le 1$ what the entrywise bound leaves)",
            smaller_label="S_a'",
        ),
        Inequality(
            rate.subs({a: 2 + i, T: 2 + i + j}),
            ONE,
            r"and for $a \ge 2$ the rate is below one",
            "rate",
            strict=True,
        ),
        Recurrence(ell, lambda n, s: s * R, S, S * R**ell, "geometric decay over blocks", "S", solve=True),
        Equality(
            (ones.T * backward(second) * ones)[0],
            (ones.T * second * ones)[0],
            r"the total $\mathbf 1^\top\Gamma\mathbf 1$ is kept, since rows of $A$ sum to one (written out for five "
            r"tokens)",
            label=r"\mathbf 1^\top\Gamma'\mathbf 1",
        ),
        Inequality(
            (sp.sqrt(x) - sp.sqrt(y)) ** 2,
            x + y + 2 * sp.sqrt(x * y),
            r"by Cauchy-Schwarz the total lies between $(\sqrt{\Gamma_{11}} \mp \sqrt{S_2})^2$ (the two ends, in "
            r"$x=\Gamma_{11}$, "
            r"$y=S_2$)",
        ),
        Limit(
            (sp.sqrt(x) + sp.sqrt(y * (1 + z) ** (-ell))) ** 2,
            ell,
            sp.oo,
            x,
            r"so as $S_2 \to 0$ the first token's gradient variance tends to the total",
            "first",
            r"\mathbf 1^\top\Gamma_l\mathbf 1",
        ),
    )


def spectrum() -> tuple[Step, ...]:
    """The exact rates: eigenvalues of the triangular matrix."""
    second = gram()
    last = second[SMALL - 1, SMALL - 1]
    return (
        Equality(
            (lam * sp.eye(SMALL) - attention()).det(),
            sp.prod(lam - sp.Rational(1, n) for n in range(1, SMALL + 1)),
            r"a triangular matrix has its diagonal as eigenvalues, $1/t$ (five tokens)",
            "eigenvalues",
            r"\det(\lambda I - A)",
            derived=True,
        ),
        Equality(
            sp.expand(backward(second)[SMALL - 1, SMALL - 1]),
            (1 + GAIN / SMALL**2) / (1 + GAIN) * last,
            r"and the last token hears of no other: $(A^\top\Gamma A)_{TT} = \Gamma_{TT}/T^2$, $T = 5$",
            label=r"\Gamma'_{55}",
        ),
        Recurrence(
            ell,
            lambda n, g: g * (1 + GAIN / T**2) / (1 + GAIN),
            x,
            x * ((1 + GAIN / T**2) / (1 + GAIN)) ** ell,
            r"so the last token's gradient variance is, exactly, after $l$ sublayers back",
            r"(\Gamma_{TT})",
            "last",
        ),
        Equality(
            sp.diff(sp.expand(backward(second)[1, 1]), second[1, 1]),
            (1 + GAIN / 4) / (1 + GAIN),
            r"in general $\Gamma_{ts}$ is fed only by later tokens and has eigenvalue "
            r"$\frac{1+\sigma^2/(ts)}{1+\sigma^2}$: the "
            "second token's is",
            label=r"\partial\Gamma'_{22}/\partial\Gamma_{22}",
        ),
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
        Quantity(y, "another, or a share", 0, 1),
        Quantity(z, "a positive number", sp.Rational(1, 2)),
        Quantity(R, "a rate", 0, 1),
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
        r"wide limit; linear FFN; correlations non-negative at the input",
        r"backward: tokens already identical ($c = 1$), to which the forward pass tends geometrically; $\Gamma_{ts} "
        r"\ge 0$ at the "
        "top, for instance gradients uncorrelated between tokens",
    ),
    statement=(
        "Forward, the tokens' distance from the first one falls geometrically:\n\n$$<<collapse>>$$\n\nBackward, the "
        "sum of all "
        "second moments is kept while every tail that leaves out the first token decays geometrically, at most "
        "at\n\n$$<<rate>>$$"
        "\n\nper sublayer ($a = 2+i$, $T = 2+i+j$). So the first token receives, in the limit, the whole of "
        "$\\mathbf 1^\\top"
        "\\Gamma\\mathbf 1$ ($T$ times what it would alone, for uncorrelated unit gradients), and every other "
        "token's gradient "
        "vanishes; the last one's exactly as\n\n$$<<last>>$$"
    ),
    source="Derived here.",
    confronted="tests/test_proofs_against_simulation_depth.py::test_causal",
    derivation=lambda: collapse() + gathering() + spectrum(),
    axioms=(axioms.WIDE, axioms.INDEPENDENCE),
)
