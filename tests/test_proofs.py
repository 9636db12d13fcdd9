"""Every proposition proves; the pages are current; deliberately spoiled propositions fail."""

from __future__ import annotations

import dataclasses
import re

import mpmath
import pytest
import sympy as sp

from proofs import axioms, gaussian, runner
from proofs.vocabulary import Equality, Inequality, Limit, Proposition, Recurrence, Series, Step, prove, steps_of

PROPOSITIONS = runner.discover()
NAMES = [p.name for p in PROPOSITIONS]


@pytest.mark.parametrize("name", NAMES)
def test_proposition_is_proved(name: str) -> None:
    [report] = runner.prove([name])
    assert report.proved, report.failure


def spoiled(step: Step) -> Step:
    """The same step with its claim off by one part in ten (or by one, where it claims zero)."""
    off = sp.Rational(11, 10)
    match step:
        case Equality():
            return dataclasses.replace(step, right=off * step.right if step.right != 0 else sp.Integer(1))
        case Inequality():
            return dataclasses.replace(step, smaller=step.larger, larger=step.smaller)
        case Limit():
            value = sp.Integer(1) if step.value in (0, sp.oo) else off * step.value
            return dataclasses.replace(step, value=value)
        case Series():
            return dataclasses.replace(step, polynomial=off * step.polynomial)
        case Recurrence():
            return dataclasses.replace(step, closed_form=off * step.closed_form)


QUICK = ["linear_layer", "relu", "ffn", "uniform_attention", "residual", "duality", "swiglu"]
LONG = ["norms", "postnorm", "spannorm", "scale_init", "companions", "placements"]  # the others take minutes


@pytest.mark.parametrize("name", QUICK + [pytest.param(name, marks=pytest.mark.slow) for name in LONG])
def test_a_proposition_with_one_step_spoiled_is_not_proved(name: str) -> None:
    """Negative control: whichever step is spoiled, the proof stops there."""
    [proposition] = runner.select([name])
    steps = steps_of(proposition)
    for step in steps:
        alone = dataclasses.replace(proposition, derivation=lambda step=step: (spoiled(step),))
        assert not prove(alone).proved, f"accepted a spoiled step: {step.reason}"


def test_names_and_numbers_are_unique_and_ordered() -> None:
    assert len(set(NAMES)) == len(NAMES)
    numbers = [p.number for p in PROPOSITIONS]
    assert numbers == ["1", "2", "3a", "3b", "3c", "4", "5", "6", "7", "8", "9", "10", "10a", "10b", "10c", "11", "12"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(LookupError, match="no proposition called nonesuch"):
        runner.prove(["nonesuch"])


def test_axioms_are_few_used_and_referenced() -> None:
    used = {axiom for p in PROPOSITIONS for axiom in p.axioms}
    assert used == set(axioms.ALL)
    assert len(axioms.ALL) <= 7
    assert all(axiom.reference and axiom.statement for axiom in axioms.ALL)


def test_rendered_pages_are_current() -> None:
    """Run `runner.write()` after changing a proposition."""
    committed = {path.name: path.read_text(encoding="utf-8") for path in runner.RENDERED.glob("*.md")}
    assert committed == runner.pages()


def test_pages_carry_no_float_and_no_unfilled_name() -> None:
    """A float in a derivation would mean that a number was rounded before it was proved."""
    for page in runner.RENDERED.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert "<<" not in text
        assert not re.search(r"\d\.\d{6,}", text), page.name


@pytest.mark.parametrize("proposition", PROPOSITIONS, ids=NAMES)
def test_every_step_has_a_reason_and_every_statement_a_checked_equation(proposition: Proposition) -> None:
    steps = steps_of(proposition)
    assert all(step.reason for step in steps)
    assert "<<" in proposition.statement
    names = [step.name for step in steps if step.name]
    assert len(set(names)) == len(names)


def test_the_swiglu_ratio_quoted_in_the_remark() -> None:
    """chi = 1 + dK/K at unit variance, by quadrature: the only number quoted that no step proves."""
    kernel = gaussian.univariate(lambda u: gaussian.silu(u) ** 2, mpmath.mpf(1))
    slope = gaussian.univariate(lambda u: gaussian.silu_derivative(u) ** 2, mpmath.mpf(1))
    assert round(float(1 + slope / kernel), 4) == 2.0666


@pytest.mark.parametrize("proposition", PROPOSITIONS, ids=NAMES)
def test_the_test_that_confronts_it_with_simulation_exists(proposition: Proposition) -> None:
    file, _, function = proposition.confronted.partition("::")
    assert f"def {function}(" in (runner.RENDERED.parents[1] / file).read_text(encoding="utf-8")
