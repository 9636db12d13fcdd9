"""The proof vocabulary: it accepts what is true, and rejects what is wrong, vacuous, or beyond what SymPy can tell."""

from __future__ import annotations

import dataclasses
import random

import pytest
import sympy as sp

from proofs.vocabulary import (
    Axiom,
    Domain,
    Equality,
    Inequality,
    Limit,
    Proposition,
    Quantity,
    Recurrence,
    Series,
    Step,
    check,
    prove,
)

x, y, n = sp.symbols("x y n", positive=True)
share = sp.Symbol("s", positive=True)
QUANTITIES = (
    Quantity(x, "a positive number"),
    Quantity(y, "another"),
    Quantity(share, "a share", 0, 1),
    Quantity(n, "an index", 0, sp.oo, integer=True),
)
DOMAIN = Domain(QUANTITIES)


def refusal(step: Step) -> str | None:
    """Why the step is not discharged."""
    return check(step, DOMAIN, random.Random(0))


TRUE = [
    Equality((x + y) ** 2, x**2 + 2 * x * y + y**2, "expand"),
    Equality(sp.Integral(sp.exp(-x * y), (y, 0, sp.oo)), 1 / x, "integrate"),
    Equality(sp.Derivative(sp.sin(x), x), sp.cos(x), "differentiate"),
    Equality(x * y, x * y, "a number from elsewhere", witness=lambda at: at[x] * at[y]),
    Inequality(2 * x * y, x**2 + y**2, "a square"),
    Inequality(1 + x, sp.exp(x), "convexity", along=x),
    Inequality(share**2, share, "a share"),
    Inequality(sp.Integer(0), x / (1 + x), "positive", strict=True),
    Limit((1 + x / n) ** n, n, sp.oo, sp.exp(x), "compound interest"),
    Limit(sp.sin(x) / x, x, 0, sp.Integer(1), "the unit circle"),
    Limit(x**2 * y, x, sp.oo, sp.oo, "grows"),
    Series(sp.exp(x), x, 1 + x + x**2 / 2, 3, "the exponential series"),
    Recurrence(n, lambda _, v: v / (1 + x), y, y * (1 + x) ** (-n), "geometric", "v", solve=True),
    Recurrence(n, lambda k, v: v + k, sp.Integer(0), n * (n - 1) / 2, "triangular numbers", "v", solve=True),
]

WRONG = {
    "an identity that holds at one point only": Equality(x**2, x, "true at 1"),
    "a constant off by one part in a thousand": Equality(sp.Rational(1001, 1000) * x, x, "almost"),
    "a wrong integral": Equality(sp.Integral(sp.exp(-x * y), (y, 0, sp.oo)), 2 / x, "off by two"),
    "a right formula whose witness disagrees": Equality(x * y, x * y, "no", witness=lambda at: at[x] + at[y]),
    "the same expression twice": Equality(x + y, y + x, "says nothing"),
    "an inequality the wrong way round": Inequality(x**2 + y**2, 2 * x * y, "reversed"),
    "an inequality true for small values only": Inequality(x**2, x, "true below 1"),
    "a strict inequality that is an equality": Inequality(x + y, x + y, "not strict", strict=True),
    "a strict inequality with a zero inside": Inequality(sp.Integer(0), (x - 1) ** 2, "zero at 1", strict=True),
    "an inequality along a variable, reversed": Inequality(sp.exp(x), 1 + x, "reversed", along=x),
    "an inequality that is true but beyond SymPy": Inequality(
        sp.sin(x) ** 2 / 2, sp.cosh(sp.sin(x)) - 1, "not discharged"
    ),
    "a wrong limit": Limit((1 + x / n) ** n, n, sp.oo, 1 + x, "too simple"),
    "a limit that does not exist": Limit(sp.sin(n) * x, n, sp.oo, x, "oscillates"),
    "a divergence that is a limit": Limit(x / (1 + x), x, sp.oo, sp.oo, "bounded"),
    "a series with a wrong coefficient": Series(sp.exp(x), x, 1 + x + x**2, 3, "missing factor"),
    "a series with too low an order claimed": Series(sp.exp(x), x, 1 + x, 3, "one term short"),
    "an induction with a wrong step": Recurrence(n, lambda _, v: v / (1 + x), y, y * (1 + x) ** (1 - n), "start", "v"),
    "an induction with a wrong start": Recurrence(n, lambda _, v: v + x, y, x * n, "forgets y", "v"),
    "an undeclared symbol": Equality(sp.Symbol("z") * 2, sp.Symbol("z") + sp.Symbol("z") + 0 * x, "no range"),
}


@pytest.mark.parametrize("step", TRUE, ids=lambda s: s.reason)
def test_true_steps_are_discharged(step: Step) -> None:
    assert refusal(step) is None


@pytest.mark.parametrize("name", WRONG)
def test_wrong_steps_are_rejected(name: str) -> None:
    assert refusal(WRONG[name])


def test_numbers_reject_what_a_wrong_simplification_would_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two discharges are independent: were SymPy to accept everything, the numbers would still refuse."""
    monkeypatch.setattr("proofs.vocabulary.vanishes", lambda expression: True)
    monkeypatch.setattr("proofs.vocabulary.nonnegative", lambda *arguments: True)
    wrong = WRONG["an identity that holds at one point only"], WRONG["an inequality true for small values only"]
    assert all("numeric" in (refusal(step) or "") for step in wrong)


def test_symbols_reject_what_lucky_numbers_would_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the other way round: at the one point where it holds, x^2 = x is still refused."""
    monkeypatch.setattr(Quantity, "draw", lambda self, rng: 1)
    assert "symbolic" in (refusal(WRONG["an identity that holds at one point only"]) or "")


def proposition(*steps: Step) -> Proposition:
    """A proposition with nothing but steps."""
    return Proposition("p", "0", "P", QUANTITIES, "", (), "", "", lambda: steps, (Axiom("a", "b", "c"),))


def test_one_wrong_step_fails_the_proof_and_is_named() -> None:
    report = prove(proposition(TRUE[0], WRONG["a wrong limit"], TRUE[1]))
    assert not report.proved
    assert "step 2 (too simple)" in report.failure


def test_a_proof_reports_its_steps_and_axioms() -> None:
    report = prove(proposition(*TRUE[:3]))
    assert report.proved
    assert report.steps == 3
    assert [axiom.name for axiom in report.axioms] == ["a"]


def test_a_proof_without_steps_proves_nothing() -> None:
    assert not prove(proposition()).proved


def test_points_are_drawn_from_a_fixed_seed() -> None:
    first, second = (DOMAIN.point(QUANTITIES, random.Random(7)) for _ in range(2))
    assert first == second


def test_the_vocabulary_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TRUE[0].reason = "another"  # type: ignore[misc]
