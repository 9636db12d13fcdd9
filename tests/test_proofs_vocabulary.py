"""The proof vocabulary: it accepts what is true, and rejects what is wrong, vacuous, or beyond what SymPy can tell."""

from __future__ import annotations

import dataclasses
import random

import pytest
import sympy as sp

from proofs import signs
from proofs.proving import prove
from proofs.vocabulary import (
    PREVIOUS,
    Axiom,
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
    Witness,
    check,
    stated,
)

x, y, n = sp.symbols("x y n", positive=True)
ell = sp.Symbol("l", nonnegative=True)
z, below_ten = sp.symbols("z b", real=True)
share = sp.Symbol("s", positive=True)
u = sp.IndexedBase("u")
QUANTITIES = (
    Quantity(x, "a positive number"),
    Quantity(y, "another"),
    Quantity(z, "any number", -sp.oo),
    Quantity(below_ten, "below ten", -sp.oo, 10),
    Quantity(share, "a share", 0, 1),
    Quantity(n, "an index", 1, sp.oo, integer=True),
    Quantity(ell, "an index from zero", 0, sp.oo, integer=True),
)
DOMAIN = Domain(QUANTITIES)


def refusal(step: Step, domain: Domain = DOMAIN) -> str | None:
    """Why the step is not discharged."""
    return check(step, domain, random.Random(0))


ONE_BLOCK = Inequality(1 + share * x, 1 + x, "a share of x", name="one")
TANGENT = Inequality(1 + x, sp.exp(x), "convexity", name="tangent", along=x)
PRODUCT = Bounds(
    ell, PREVIOUS * (1 + share * x), sp.Integer(1), None, (1 + x) ** ell, (share,), "multiply", u, above=ONE_BLOCK
)
TRUE = [
    Equality((x + y) ** 2, x**2 + 2 * x * y + y**2, "expand"),
    Equality(sp.Integral(sp.exp(-x * y), (y, 0, sp.oo)), 1 / x, "integrate"),
    Equality(sp.Derivative(sp.sin(x), x), sp.cos(x), "differentiate"),
    Equality(sp.log(x**2 * y), 2 * sp.log(x) + sp.log(y), "logarithms of positive numbers"),
    Equality(sp.sqrt(x**2 * y), x * sp.sqrt(y), "a root of a positive number", derived=True),
    Equality(x * y, x * y, "a number from elsewhere", witnesses=(Witness(lambda at: at[x] * at[y]),)),
    Inequality(2 * x * y, x**2 + y**2, "a square"),
    TANGENT,
    Inequality(share**2, share, "a share"),
    Inequality(sp.Integer(0), x / (1 + x), "positive", strict=True),
    Inequality(sp.Integer(0), 10 - below_ten, "below ten"),
    Inequality(sp.Integer(0), sp.atan(x), "an arc tangent", along=x),
    Limit((1 + x / n) ** n, n, sp.oo, sp.exp(x), "compound interest"),
    Limit(sp.sin(x) / x, x, 0, sp.Integer(1), "the unit circle"),
    Limit(x**2 * y, x, sp.oo, sp.oo, "grows"),
    Series(sp.exp(x), x, 1 + x + x**2 / 2, 3, "the exponential series"),
    Recurrence(ell, PREVIOUS / (1 + x), y, y * (1 + x) ** (-ell), "geometric", u, solve=True),
    Recurrence(ell, PREVIOUS + ell, sp.Integer(0), ell * (ell - 1) / 2, "triangular numbers", u, solve=True),
    PRODUCT,
    Chain(1 + share * x, sp.exp(x), "one after the other", (ONE_BLOCK, TANGENT)),
    Chain(1 + x * y, sp.exp(x * y), "elsewhere", (TANGENT,), at=({x: x * y},)),
    Instance((sp.Le(u[n], (1 + x) ** n),), PRODUCT, {ell: n}, "at n"),
]

WRONG = {
    "an identity that holds at one point only": Equality(x**2, x, "true at 1"),
    "a constant off by one part in a thousand": Equality(sp.Rational(1001, 1000) * x, x, "almost"),
    "a wrong integral": Equality(sp.Integral(sp.exp(-x * y), (y, 0, sp.oo)), 2 / x, "off by two"),
    "a right formula whose witness disagrees": Equality(
        x * y, x * y, "no", witnesses=(Witness(lambda at: at[x] + at[y]),)
    ),
    "the same expression twice": Equality(x + y, y + x, "says nothing"),
    "a logarithm of a square of what changes sign": Equality(
        sp.log((10 - x) ** 2), 2 * sp.log(10 - x), "only below 10"
    ),
    "a product of negative numbers under a logarithm": Equality(
        sp.log((x - 10) * (y - 10)), sp.log(x - 10) + sp.log(y - 10), "not for both below 10"
    ),
    "a root of a square of any sign": Equality(sp.sqrt(z**2), z, "only above zero"),
    "an identity that fails far out alone": Equality(sp.Max(x, 5000), sp.Integer(5000), "only below 5000"),
    "a bound variable declared positive and integrated from below zero": Equality(
        sp.Integral(sp.sqrt(y**2), (y, -1, 1)), sp.Integer(0), "the root is not the number there"
    ),
    "an inequality the wrong way round": Inequality(x**2 + y**2, 2 * x * y, "reversed"),
    "an inequality true for small values only": Inequality(x**2, x, "true below 1"),
    "an inequality that fails far out alone": Inequality(sp.log(1 + x), 9 * x / (1 + x), "only below 8000", along=x),
    "a strict inequality that is an equality": Inequality(x + y, x + y, "not strict", strict=True),
    "a strict inequality with a zero inside": Inequality(sp.Integer(0), (x - 1) ** 2, "zero at 1", strict=True),
    "an inequality along a variable, reversed": Inequality(sp.exp(x), 1 + x, "reversed", along=x),
    "an inequality along a variable, through a pole": Inequality(
        sp.Integer(0), sp.atan(1 / (10 - x)), "it jumps at 10", along=x
    ),
    "another through a pole, where it never is negative": Inequality(
        sp.Integer(-2), sp.atan(1 / (10 - x)), "the derivative says nothing", along=x
    ),
    "an inequality that is true but beyond SymPy": Inequality(
        sp.sin(x) ** 2 / 2, sp.cosh(sp.sin(x)) - 1, "not discharged"
    ),
    "a wrong limit": Limit((1 + x / n) ** n, n, sp.oo, 1 + x, "too simple"),
    "a limit that does not exist": Limit(sp.sin(n) * x, n, sp.oo, x, "oscillates"),
    "a divergence that is a limit": Limit(x / (1 + x), x, sp.oo, sp.oo, "bounded"),
    "a limit where the variable never gets": Limit(share / (1 + share), share, sp.oo, sp.Integer(1), "a share"),
    "a series with a wrong coefficient": Series(sp.exp(x), x, 1 + x + x**2, 3, "missing factor"),
    "a series with too low an order claimed": Series(sp.exp(x), x, 1 + x, 3, "one term short"),
    "an induction with a wrong step": Recurrence(ell, PREVIOUS / (1 + x), y, y * (1 + x) ** (1 - ell), "start", u),
    "an induction with a wrong start": Recurrence(ell, PREVIOUS + x, y, x * ell, "forgets y", u),
    "an undeclared symbol": Equality(sp.Symbol("z") * 2, sp.Symbol("z") + sp.Symbol("z") + 0 * x, "no range"),
    "a bound that the blocks pass": dataclasses.replace(PRODUCT, upper=(1 + x / 2) ** ell),
    "a bound that starts too low": dataclasses.replace(PRODUCT, upper=(1 + x) ** ell / 2),
    "a bound that leans on what varies": dataclasses.replace(PRODUCT, upper=(1 + share * x) ** ell),
    "a bound whose block was weakened": dataclasses.replace(
        PRODUCT, above=dataclasses.replace(ONE_BLOCK, larger=1 + 5 * x)
    ),
    "a bound on what falls as it grows": Bounds(
        ell, 1 / (1 + PREVIOUS), sp.Integer(1), None, sp.Integer(1) + 0 * ell, (), "turns over", u
    ),
    "a broken chain": Chain(1 + share * x, sp.exp(2 * x), "a gap", (ONE_BLOCK, TANGENT)),
    "a chain through a place outside the range": Chain(1 + z, sp.exp(z), "z may be negative", (TANGENT,), at=({x: z},)),
    "a chain of nothing": Chain(x, 2 * x, "no link", ()),
    "an instance with another exponent": Instance((sp.Le(u[n], (1 + x) ** (2 * n)),), PRODUCT, {ell: n}, "no"),
    "an instance outside the range": Instance((sp.Le(u[z], (1 + x) ** z),), PRODUCT, {ell: z}, "no"),
}


@pytest.mark.parametrize("step", TRUE, ids=lambda s: s.reason)
def test_true_steps_are_discharged(step: Step) -> None:
    assert refusal(step) is None


@pytest.mark.parametrize("name", WRONG)
def test_wrong_steps_are_rejected(name: str) -> None:
    reason = refusal(WRONG[name])
    assert reason
    assert "Error" not in reason or name == "an undeclared symbol"  # rejected for what it says, not for a crash


FAULTY = {
    "an empty range": Quantity(x, "none", 2, 1),
    "a range of one point": Quantity(x, "one", 2, 2),
    "a positive symbol over a range that is not": Quantity(x, "any", -1, 1),
    "a positive symbol over all numbers": Quantity(x, "any", -sp.oo),
    "a positive index from zero": Quantity(n, "an index", 0, sp.oo, integer=True),
    "an integer symbol over real numbers": Quantity(sp.Symbol("k", integer=True), "real"),
    "an even symbol": Quantity(sp.Symbol("k", even=True), "even", 0, sp.oo, integer=True),
    "a nonzero symbol over a range with zero": Quantity(sp.Symbol("k", real=True, nonzero=True), "any", -1, 1),
    "a rounded end": Quantity(x, "rounded", 0, 0.5),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_range_proves_nothing(name: str) -> None:
    """Not even what is true: a claim over an empty range, or with a sign that the range does not give."""
    quantity = FAULTY[name]
    step = Equality((quantity.symbol + 1) ** 2, quantity.symbol**2 + 2 * quantity.symbol + 1, "expand")
    sound = dataclasses.replace(quantity, low=1, high=sp.oo, integer=True, symbol=sp.Symbol("k", positive=True))
    assert "ranges" in (refusal(step, Domain((quantity,))) or "")
    assert (
        refusal(Equality((sound.symbol + 1) ** 2, sp.expand((sound.symbol + 1) ** 2), "so"), Domain((sound,))) is None
    )


def test_points_reach_far_and_near() -> None:
    rng = random.Random(0)
    drawn = [float(DOMAIN.point(DOMAIN.of(x), rng)[x]) for _ in range(200)]  # type: ignore[arg-type]
    assert max(drawn) > 1e5
    assert min(drawn) < 1e-5
    shares = [float(DOMAIN.point(DOMAIN.of(share), rng)[share]) for _ in range(200)]  # type: ignore[arg-type]
    assert min(shares) < 1e-4
    assert max(shares) > 1 - 1e-4
    indices = [DOMAIN.point(DOMAIN.of(ell), rng)[ell] for _ in range(200)]
    assert min(indices) == 0
    assert max(indices) > 10_000  # type: ignore[operator]


def test_numbers_reject_what_a_wrong_simplification_would_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two discharges are independent: were SymPy to accept everything, the numbers would still refuse."""
    for module in ("proofs.steps", "proofs.induction"):
        monkeypatch.setattr(f"{module}.vanishes", lambda expression: True)
        monkeypatch.setattr(f"{module}.nonnegative", lambda *arguments: True)
    monkeypatch.setattr("proofs.steps.grows_from_nonnegative", lambda *arguments: True)
    names = (
        "an identity that holds at one point only",
        "an inequality true for small values only",
        "an identity that fails far out alone",
        "an inequality that fails far out alone",
        "a logarithm of a square of what changes sign",
        "a root of a square of any sign",
        "an inequality along a variable, through a pole",
    )
    passed = dataclasses.replace(PRODUCT, upper=(1 + x / 2) ** ell, above=None)
    assert "numeric" in (refusal(passed) or "")
    assert {name: "numeric" in (refusal(WRONG[name]) or "") for name in names} == dict.fromkeys(names, True)


def test_symbols_reject_what_lucky_numbers_would_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the other way round: at the one point where it holds, x^2 = x is still refused."""
    monkeypatch.setattr(Quantity, "draw", lambda self, rng: 1)
    assert "symbolic" in (refusal(WRONG["an identity that holds at one point only"]) or "")


def test_a_pole_is_seen_without_numbers() -> None:
    quantities = DOMAIN.of(x)
    assert signs.smooth(sp.atan(1 / (10 + x)), quantities)
    assert not signs.smooth(sp.atan(1 / (10 - x)), quantities)
    assert not signs.smooth(sp.log(x - 1), quantities)
    assert not signs.smooth(sp.sqrt(1 - x), quantities)


KNOWN = (Axiom("a", "b", "c"),)
SIMPLE = Hypothesis("y is one", (sp.Eq(y, 1),))


def proposition(
    *steps: Step, stating: tuple[str, ...] = ("first",), hypotheses: tuple[Hypothesis, ...] = ()
) -> Proposition:
    """A proposition with nothing but steps, of which the first is called `first` and is what is stated."""
    named = tuple(dataclasses.replace(s, name=s.name or ("first" if i == 0 else f"s{i}")) for i, s in enumerate(steps))
    return Proposition(
        "p",
        "0",
        "P",
        QUANTITIES,
        "",
        hypotheses,
        "<<first>>",
        "",
        lambda: named,
        lambda: stated(lambda: named, *stating),
    )


def test_one_wrong_step_fails_the_proof_and_is_named() -> None:
    report = prove(proposition(TRUE[0], WRONG["a wrong limit"], TRUE[1]), KNOWN)
    assert not report.proved
    assert "step 2 (too simple)" in report.failure


def test_a_proof_reports_its_steps_and_axioms() -> None:
    report = prove(proposition(dataclasses.replace(TRUE[0], uses=KNOWN), *TRUE[1:3]), KNOWN)
    assert report.proved, report.failure
    assert report.steps == 3
    assert [axiom.name for axiom in report.axioms] == ["a"]


def test_an_axiom_that_is_not_listed_fails() -> None:
    report = prove(proposition(dataclasses.replace(TRUE[0], uses=KNOWN)), ())
    assert "not in the list of axioms: a" in report.failure


def test_a_proof_without_steps_or_without_conclusion_proves_nothing() -> None:
    assert not prove(proposition(stating=()), KNOWN).proved
    assert not prove(proposition(TRUE[0], stating=()), KNOWN).proved


def test_an_exception_is_a_failure() -> None:
    def raises() -> tuple[Step, ...]:
        raise ZeroDivisionError("no steps")

    broken = dataclasses.replace(proposition(TRUE[0]), derivation=raises)
    report = prove(broken, KNOWN)
    assert not report.proved
    assert report.failure == "ZeroDivisionError: no steps"


def test_a_hypothesis_is_put_in_where_it_is_used_and_only_there() -> None:
    given = Equality((x + y) ** 2, x**2 + 2 * x + 1, "at y = 1", uses=(SIMPLE,))
    assert prove(proposition(given, hypotheses=(SIMPLE,)), KNOWN).proved
    assert "not stated" in prove(proposition(given), KNOWN).failure
    unused = dataclasses.replace(given, uses=())
    assert "is not" in prove(proposition(unused), KNOWN).failure
    assert "no conclusion rests on" in prove(proposition(TRUE[0], hypotheses=(SIMPLE,)), KNOWN).failure


def test_a_composing_step_inherits_the_hypotheses_of_its_parts() -> None:
    """A link proved at y = 1 alone bears a chain at y = 1 alone."""
    link = Inequality(1 + share * x * y, 1 + x, "at y = 1", name="link", uses=(SIMPLE,))
    at_one = Chain(1 + share * x, sp.exp(x), "so", (link, TANGENT), name="first")
    assert refusal(link) is None
    assert refusal(at_one) is None
    assert "broken" in (refusal(dataclasses.replace(at_one, smaller=1 + share * x / 2)) or "")
    whole = dataclasses.replace(proposition(link, TANGENT, at_one, hypotheses=(SIMPLE,)), statement="<<first>>")
    assert prove(whole, KNOWN).proved, prove(whole, KNOWN).failure


def test_what_a_step_uses_must_be_there_before_it() -> None:
    later = dataclasses.replace(TRUE[0], uses=("s1",))
    assert "no earlier step is called" in prove(proposition(later, TRUE[1]), KNOWN).failure
    unproved = Chain(1 + share * x, sp.exp(x), "its links are no steps", (ONE_BLOCK, TANGENT))
    assert "was not proved" in prove(proposition(unproved), KNOWN).failure


def test_one_name_has_one_meaning() -> None:
    first = Equality(Named("f", (x + y) ** 2), x**2 + 2 * x * y + y**2, "expand")
    second = Equality(Named("f", (x - y) ** 2), x**2 - 2 * x * y + y**2, "expand again")
    assert "f stands for" in prove(proposition(first, second), KNOWN).failure
    assert prove(proposition(first, dataclasses.replace(second, left=Named("g", (x - y) ** 2))), KNOWN).proved


def test_points_are_drawn_from_a_fixed_seed() -> None:
    first, second = (DOMAIN.point(QUANTITIES, random.Random(7)) for _ in range(2))
    assert first == second


def test_the_vocabulary_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TRUE[0].reason = "another"  # type: ignore[misc]
