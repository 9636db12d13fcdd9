"""Every proposition proves; the pages are current. That spoiled ones fail is in test_proofs_mutations.py."""

from __future__ import annotations

import re
from pathlib import Path

import mpmath
import pytest

from proofs import axioms, gaussian, proving, runner
from proofs.vocabulary import Proposition, axioms_of, conclusion_of, steps_of

PROPOSITIONS = runner.discover()
NAMES = [p.name for p in PROPOSITIONS]


# four seconds and more, each
LONG = {"small_logits", "placements", "prenorm", "scale_init", "gelu", "norms", "swiglu", "relu"}
BUILT_LONG = {"small_logits", "placements", "one_step"}  # three seconds and more before anything is proved


@pytest.mark.few(2)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in NAMES])
def test_proposition_is_proved(name: str) -> None:
    [report] = runner.prove([name])
    assert report.proved, report.failure


def test_names_and_numbers_are_unique_and_ordered() -> None:
    assert len(set(NAMES)) == len(NAMES)
    numbers = " ".join(p.number for p in PROPOSITIONS)
    assert numbers == "1 2 3a 3b 3c 4 5 6 7 8 9 10 10a 10b 10c 11 12 13 14 15"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(LookupError, match="no proposition called nonesuch"):
        runner.prove(["nonesuch"])


@pytest.mark.slow
def test_axioms_are_few_used_and_referenced() -> None:
    used = {axiom for p in PROPOSITIONS for axiom in axioms_of(p)}
    assert used == set(axioms.ALL)
    assert len(axioms.ALL) <= 7
    assert all(axiom.reference and axiom.statement for axiom in axioms.ALL)


def test_rendered_pages_were_written_from_todays_sources() -> None:
    """Run `runner.write()` after changing a proposition."""
    assert f"`{runner.digest()}`" in (runner.RENDERED / "README.md").read_text(encoding="utf-8")


def test_a_changed_source_has_another_digest(tmp_path: Path) -> None:
    found = []
    for text in ("x = 1", "x = 2"):
        (tmp_path / "one.py").write_text(text, encoding="utf-8")
        found.append(runner.digest(tmp_path))
    assert found[0] != found[1]


@pytest.mark.slow
def test_rendered_pages_are_current() -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in runner.RENDERED.glob("*.md")}
    assert committed == runner.pages()


def test_pages_carry_no_float_and_no_unfilled_name() -> None:
    """A float in a derivation would mean that a number was rounded before it was proved."""
    for page in runner.RENDERED.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert "<<" not in text
        assert not re.search(r"\d\.\d{6,}", text), page.name


@pytest.mark.parametrize(
    "proposition",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.name in BUILT_LONG)) for p in PROPOSITIONS],
    ids=NAMES,
)
def test_every_step_has_a_reason_and_every_proposition_a_conclusion(proposition: Proposition) -> None:
    steps = steps_of(proposition)
    assert all(step.reason for step in steps)
    assert conclusion_of(proposition)
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


def test_a_module_that_cannot_be_read_fails_and_is_no_traceback() -> None:
    broken = runner.load("nonesuch")
    report = proving.prove(broken, axioms.ALL)
    assert not report.proved
    assert "ModuleNotFoundError" in report.failure
