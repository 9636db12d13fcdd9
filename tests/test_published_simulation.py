"""`predict` at finite logits reproduces two tables that another program computed and simulated."""

import csv
import math
from pathlib import Path

import pytest
from scipy import stats

import propagate as pg
from propagate.theory import sublayers
from propagate.theory.softmax import SoftmaxAverages, softmax_averages

CASES = {
    "published_relu.csv": ({"depth": 24, "activation": "relu", "width": 512}, 0.0),
    "published_gelu.csv": ({"depth": 12, "activation": "gelu", "width": 256}, 0.3),
}
DRAWS = 12
QUANTITIES = (
    "variance",
    "one_minus_correlation",
    "grad_variance_independent",
    "grad_variance_shared",
    "grad_deviation_independent",
)


def rows() -> list:
    found = []
    for name in CASES:
        with (Path(__file__).parent / "data" / name).open() as lines:
            assert next(lines).startswith("# simulation table")
            for row in csv.DictReader(lines):
                label = f"{row['placement']}-{row['scale_init'] or 'none'}-{CASES[name][0]['activation']}"
                found.append(pytest.param(name, row, id=label))
    return found


def predicted(name: str, row: dict[str, str], **changes: float) -> dict[str, tuple[float, float]]:
    """Each quantity of the table with its stated finite-width allowance."""
    fields, correlation = CASES[name]
    scaling = pg.ScaleInit(float(row["scale_init"])) if row["scale_init"] else None
    model = pg.Model(row["placement"], **{"tokens": 32, "heads": 8, "scaling": scaling} | fields | changes)
    alone, shared = (pg.predict(model, covariance=correlation, grad_covariance=kappa) for kappa in (0.0, 1.0))
    values = (
        (alone.variance[-1], alone.variance_allowance[-1]),
        (alone.deviation[-1] / alone.variance[-1], alone.deviation_allowance[-1]),
        (alone.grad_variance[0], alone.grad_variance_allowance[0]),
        (shared.grad_variance[0], shared.grad_variance_allowance[0]),
        (alone.grad_deviation[0], alone.grad_deviation_allowance[0]),
    )
    return {key: (float(a), float(b)) for key, (a, b) in zip(QUANTITIES, values, strict=True)}


def z_scores(row: dict[str, str], theory: dict[str, tuple[float, float]]) -> list[float]:
    """log(simulation / theory) over its error, as normal scores of a t statistic of 11 degrees of freedom."""
    scores = []
    for key, (value, allowance) in theory.items():
        error = math.hypot(float(row[f"{key}_percent"]) / 100, 5e-4, allowance)  # the table prints 0.1 per cent
        t = math.log(float(row[f"{key}_mean"]) / value) / error
        scores.append(float(stats.norm.isf(stats.t.sf(abs(t), DRAWS - 1))))
    return scores


# The other program took its softmax averages from a table of Gaussian samples; the check printed with it found them
# up to 0.4 per cent off. What that moves a number by, plus half a unit of its last digit, is the tolerance.
SAMPLED = 0.004


def tolerances(name: str, row: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    exact = predicted(name, row)
    slack = {key: 0.5 * 10 ** (math.floor(math.log10(value)) - 3) for key, (value, _) in exact.items()}
    for field in SoftmaxAverages._fields:

        def sampled(tokens: int, spread: float, correlation: float, field: str = field) -> SoftmaxAverages:
            averages = softmax_averages(tokens, spread, correlation)
            return averages._replace(**{field: getattr(averages, field) * (1 + SAMPLED)})

        monkeypatch.setattr(sublayers, "softmax_averages", sampled)
        moved = predicted(name, row)
        slack = {key: slack[key] + abs(moved[key][0] - exact[key][0]) for key in QUANTITIES}
    monkeypatch.undo()
    return slack


def misses(row: dict[str, str], theory: dict[str, tuple[float, float]], slack: dict[str, float]) -> list[str]:
    return [key for key in QUANTITIES if abs(theory[key][0] - float(row[f"{key}_theory"])) > slack[key]]


@pytest.mark.parametrize(("name", "row"), rows())
def test_the_theory_columns(name: str, row: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert misses(row, predicted(name, row), tolerances(name, row, monkeypatch)) == []


@pytest.mark.parametrize(("name", "row"), rows())
def test_wrong_theories_miss_the_theory_columns(
    name: str, row: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slack = tolerances(name, row, monkeypatch)
    assert misses(row, predicted(name, row, logit_std=0.0), slack)  # no query and key paths
    assert misses(row, predicted(name, row, logit_std=0.9), slack)
    assert misses(row, predicted(name, row, tokens=30), slack)


@pytest.mark.parametrize(("name", "row"), rows())
def test_the_simulated_columns_within_their_errors(name: str, row: dict[str, str]) -> None:
    assert max(z_scores(row, predicted(name, row))) < 4


@pytest.mark.parametrize("table", CASES)
def test_uniform_attention_is_rejected_by_the_simulated_columns(table: str) -> None:
    own = [case.values[1] for case in rows() if case.values[0] == table]
    assert max(max(z_scores(row, predicted(table, row, logit_std=0.0))) for row in own) > 4
