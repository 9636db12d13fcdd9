"""`predict` reproduces the reference table of uniform attention to every digit it prints."""

import csv
from pathlib import Path

import pytest

import propagate as pg

with (Path(__file__).parent / "data" / "reference_uniform.csv").open() as lines:
    assert next(lines).startswith("# reference table, uniform attention")
    ROWS = list(csv.DictReader(lines))


def predicted(row: dict[str, str], **changes: float) -> dict[str, str]:
    """The four numbers of a row as the table prints them, six significant digits."""
    scaling = pg.ScaleInit(float(row["scale_init"])) if row["scale_init"] else None
    fields = {"depth": 24, "tokens": 32, "activation": row["activation"], "logit_std": 0.0, "scaling": scaling}
    model = pg.Model(row["placement"], **fields | changes)
    alone, shared = (pg.predict(model, covariance=0.3, grad_covariance=kappa) for kappa in (0.0, 1.0))
    numbers = {
        "variance": alone.variance[-1],
        "one_minus_correlation": alone.deviation[-1] / alone.variance[-1],
        "grad_variance_independent": alone.grad_variance[0],
        "grad_variance_shared": shared.grad_variance[0],
    }
    return {name: f"{float(value):.6g}" for name, value in numbers.items()}


def test_the_table_is_whole() -> None:
    assert len(ROWS) == 30
    assert len({row["placement"] for row in ROWS}) == 6


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(list(row.values())[:3]))
def test_every_printed_digit(row: dict[str, str]) -> None:
    expected = {name: f"{float(value):.6g}" for name, value in list(row.items())[3:]}
    assert predicted(row) == expected


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(list(row.values())[:3]))
def test_a_gain_one_part_in_a_thousand_off_is_seen(row: dict[str, str]) -> None:
    expected = {name: f"{float(value):.6g}" for name, value in list(row.items())[3:]}
    wrong = predicted(row, attention_gain=1.001) if row["placement"] != "Peri-LN" else predicted(row, tokens=33)
    assert wrong != expected
