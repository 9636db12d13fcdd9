"""No value makes a public callable or an option of the command line fall over, hang, or answer with no number."""

import importlib.util
import random
import time
from collections.abc import Callable

import hostile
import numpy as np
import pytest
import xarray as xr
from hostile import VALUES, apart, combinations, command_lines, faults, outcome, tried, tried_line

import propagate as pg

LEFT_OUT = {
    "Divergence": "a record that first_divergence makes",
    "Linear": "takes nothing",
    "ModelError": "an exception",
    "Placement": "a base class: tests/test_nothing_in_silence.py writes wrong ones",
    "Solution": "what solve gives",
    "Sublayer": "a base class",
    "ValidityWarning": "a warning",
    "placements": "takes nothing",
    "use_device": "what a pool runs in its processes",
    "coordinate_check": "takes a model or functions: tests/test_coordinate_check.py",
    "CoordinateCheck": "what coordinate_check gives",
    "trace_steps": "needs torch: tests of tracing",
    "train": "works for minutes: tests of training",
    "corpus": "reads texts: tests of training",
    "Corpus": "what corpus gives",
}


def test_every_public_name_is_tried_or_left_out_for_a_reason() -> None:
    named = {name for name, _, _ in combinations()}
    absent = set() if importlib.util.find_spec("torch") else {"trace", "describe", "build", "build_language_model"}
    assert not set(pg.__all__) - named - set(LEFT_OUT) - absent


def few(every: list, values: int, seed: int) -> list:
    """Of each option so many values, and so of each value many options."""
    random_, by_option = random.Random(seed), {}
    for name, option, value in every:
        by_option.setdefault((name, option), []).append(value)
    return [(*key, value) for key, found in by_option.items() for value in random_.sample(found, values)]


def test_some_values_for_every_option() -> None:
    chosen = few(combinations(), 1, seed=0)
    assert len({value for _, _, value in chosen}) > len(VALUES) // 2
    assert len(chosen) > 100
    assert faults(apart(tried, chosen)) == []


def test_some_words_for_every_option_of_the_command_line() -> None:
    chosen = few(command_lines(), 1, seed=4)[::4]
    assert faults(apart(tried_line, chosen)) == []


@pytest.mark.slow
def test_every_value_for_every_option() -> None:
    chosen = combinations()
    assert len(chosen) > 1500
    assert faults(apart(tried, chosen)) == []


@pytest.mark.slow
def test_every_word_for_every_option_of_the_command_line() -> None:
    assert faults(apart(tried_line, command_lines())) == []


def two_lines() -> None:
    error = pg.ModelError("one")
    error.args = ("one\ntwo",)
    raise error


def memory() -> int:
    return len(bytearray(2**31))


def table_of_nothing() -> xr.Dataset:
    return xr.Dataset({"variance": ("block", [1.0, np.nan])})


PLANTED: dict[str, Callable[[], object]] = {
    "traceback: TypeError": lambda: len(3),  # type: ignore[arg-type]
    "traceback: ValueError": lambda: int("x"),
    "long or many lines": two_lines,
    "hangs": lambda: time.sleep(60),
    "takes the memory": memory,
    "silent NaN": table_of_nothing,
    "answered": lambda: 1.0,
    "refused": lambda: pg.ScaleInit("x"),  # type: ignore[arg-type]
}


def planted(name: str) -> str:
    return outcome(PLANTED[name])


def test_planted_faults_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "SECONDS", 0.5)
    for name, said in apart(planted, PLANTED):
        assert said.startswith(name), said
