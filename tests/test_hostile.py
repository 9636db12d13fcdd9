"""No value makes a public callable or an option of the command line fall over, hang, or answer with no number."""

import importlib.util
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hostile
import hostile_lines
import numpy as np
import pytest
import xarray as xr
from hostile import VALUES, apart, combinations, faults, outcome, tried
from hostile_lines import command_lines, random_lines, tried_line

import propagate as pg
from propagate import corpora, progress, weights

LEFT_OUT = {
    "explore": "serves pages: tests of the explorer",
    "Configuration": "what configuration gives",
    "configurations": "takes nothing",
    "Diagnosis": "a record that diagnose makes",
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
}


def test_every_public_name_is_tried_or_left_out_for_a_reason() -> None:
    named = {name for name, _, _ in combinations()}
    needing = {"trace", "train", "describe", "build", "build_language_model", "grow"}
    absent = set() if importlib.util.find_spec("torch") else needing
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
    chosen = [line for line in few(command_lines(), 1, seed=4)[::80] if line[0] != "trace"]  # which loads a library
    assert faults(apart(tried_line, chosen)) == []


@pytest.mark.slow
def test_every_value_for_every_option() -> None:
    chosen = combinations()
    assert len(chosen) > 1500
    assert faults(apart(tried, chosen)) == []


@pytest.mark.slow
def test_every_word_for_every_option_of_the_command_line() -> None:
    assert faults(apart(tried_line, command_lines())) == []


@pytest.mark.slow
def test_random_words_for_every_option_of_the_command_line() -> None:
    assert faults(apart(tried_line, random_lines(seed=0, each=3))) == []


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
    "hangs": lambda: any(time.time() < 0 for _ in iter(int, 1)),
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


def ended(text: str) -> Callable[[], None]:
    def main() -> None:
        print(text, file=sys.stderr)
        raise SystemExit(2)

    return main


def left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a line tried in this process replaces for good: tests that follow would meet it."""
    for module, name in ((progress, "PAUSE"), (weights, "checked"), (weights, "fetched"), (corpora, "fetched")):
        monkeypatch.setattr(module, name, vars(module)[name])
    monkeypatch.setitem(corpora.SOURCES, "kjv", corpora.SOURCES["kjv"])


def test_planted_faults_of_the_command_line_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(hostile_lines._RIGHT, "predict", ("0", []))
    left_as_it_was(monkeypatch)
    for main, said in (
        (ended("error: depth must be at least 1"), "refused"),
        (ended("error: something must be at least 1"), "no option is named"),
        (ended("error: depth\nerror: width"), "long or many lines"),
        (lambda: len(3), "traceback: TypeError"),  # type: ignore[arg-type]
        (lambda: (tmp_path / "kept.txt").unlink(), "what was there is lost"),
    ):
        monkeypatch.setattr(hostile_lines.cli, "main", main)
        assert tried_line(("predict", "--depth", "0")).startswith(said), said
    monkeypatch.setitem(hostile_lines._RIGHT, "predict", ("2", ["error"]))
    assert tried_line(("predict", "--depth", "0")).startswith("the right line ends with")
