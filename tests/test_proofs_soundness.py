"""False steps that numbers near the ends of ranges do not find, or whose ground is no ground: each is refused."""

import random

import pytest
import sympy as sp

from proofs.proving import prove
from proofs.vocabulary import (
    PREVIOUS,
    Bounds,
    Chain,
    Domain,
    Equality,
    Hypothesis,
    Inequality,
    Instance,
    Limit,
    Named,
    Proposition,
    Quantity,
    Recurrence,
    Series,
    Step,
    check,
    stated,
)

x, y, t, share = sp.symbols("x y t s", positive=True)
z = sp.Symbol("z", real=True)
ell, m = sp.symbols("l m", nonnegative=True)
u = sp.IndexedBase("u")
HALF = sp.Rational(1, 2)
QUANTITIES = (
    Quantity(x, "a positive number"),
    Quantity(y, "another"),
    Quantity(share, "a share", 0, 1),
    Quantity(z, "any number", -sp.oo),
    Quantity(ell, "an index", 0, sp.oo, integer=True),
    Quantity(m, "another index", 0, sp.oo, integer=True),
)
COUNTS = Recurrence(ell, PREVIOUS + 1, sp.Integer(0), ell, "counts", u)
TWICE = Inequality(m, 2 * m, "of an index")


def refusal(step: Step) -> str | None:
    return check(step, Domain(QUANTITIES), random.Random(0))


WRONG = {
    "a bound on what falls below zero, whose square then passes it": (
        Bounds(ell, PREVIOUS**2 - ell**4 / 1000, sp.Integer(0), None, sp.Integer(1), (), "", u),
        "is not negative",
    ),
    "an integral across a pole far out": (
        Equality(sp.Integral(1 / (t + 10 - x), (t, 0, 1)), sp.log(11 - x) - sp.log(10 - x), ""),
        "pole",
    ),
    "an integral across a double pole": (
        Equality(sp.Integral(1 / (t + 10 - x) ** 2, (t, 0, 1)), 1 / (10 - x) - 1 / (11 - x), ""),
        "pole",
    ),
    "a sequence at a half": (
        Instance((sp.Eq(u[HALF], HALF, evaluate=False),), COUNTS, {ell: HALF}),
        "no integer",
    ),
    "a sequence at any number": (Instance((sp.Eq(u[x], x, evaluate=False),), COUNTS, {ell: x}), "no integer"),
    "what holds of integers, of any number": (Chain(x, 2 * x, "", (TWICE,), at=({m: x},)), "no integer"),
    "induction over real numbers": (
        Recurrence(x, PREVIOUS + 1, sp.Integer(0), x + sp.sin(2 * sp.pi * x), "", u),
        "does not count",
    ),
    "a closed form that passes infinity": (
        Recurrence(ell, PREVIOUS / (1 - PREVIOUS), sp.Rational(1, 20), 1 / (20 - ell), "", u),
        "may vanish",
    ),
    "a limit from one side of two": (Limit(sp.Abs(z) / z, z, 0, sp.Integer(1), ""), "one side"),
    "a series from one side of two": (Series(sp.Abs(z), z, z, 3, ""), "remainder"),
}


@pytest.mark.parametrize("name", WRONG)
def test_false_steps_are_refused_for_what_is_wrong(name: str) -> None:
    step, why = WRONG[name]
    assert why in (refusal(step) or "")


TRUE: list[Step] = [
    COUNTS,
    TWICE,
    Bounds(ell, PREVIOUS**2 / 2, sp.Integer(1), None, sp.Integer(1), (), "", u),
    Equality(sp.Integral(1 / (t + 10 + x) ** 2, (t, 0, 1)), 1 / (10 + x) - 1 / (11 + x), ""),
    Instance((sp.Eq(u[2 * m + 1], 2 * m + 1, evaluate=False),), COUNTS, {ell: 2 * m + 1}),
    Limit(sp.sin(x) / x, x, 0, sp.Integer(1), ""),
    Series(sp.exp(z), z, 1 + z, 2, "both sides"),
]


@pytest.mark.parametrize("step", TRUE, ids=lambda step: type(step).__name__)
def test_true_ones_like_them_are_not(step: Step) -> None:
    assert refusal(step) is None


def told(step: Equality, *hypotheses: Hypothesis) -> str:
    named = Equality(step.left, step.right, step.reason, "first", hypotheses, derived=True)
    whole = ("p", "0", "P", QUANTITIES, "", hypotheses, "<<first>>", "")
    return prove(Proposition(*whole, lambda: (named,), lambda: stated(lambda: (named,), "first")), ()).failure


def test_hypotheses_that_nothing_meets_prove_nothing() -> None:
    step = Equality(x * y * share, x * share, "")
    assert told(step, Hypothesis("y is 1", (sp.Eq(y, 1),))) == ""
    twice = Hypothesis("y is 1", (sp.Eq(y, 1),)), Hypothesis("y is 2", (sp.Eq(y, 2),))
    assert "hypotheses say that y is 1 and 2" in told(step, *twice)
    assert "outside its range" in told(step, Hypothesis("s is 3", (sp.Eq(share, 3),)))
    assert "outside its range" in told(step, Hypothesis("l is a half", (sp.Eq(ell, HALF),)))


def test_a_name_is_no_quantitys() -> None:
    assert told(Equality(Named("f", (x + y) ** 2), x**2 + 2 * x * y + y**2, "")) == ""
    assert "x stands for" in told(Equality(Named("x", 2 * y), 2 * y, ""))
