"""The benchmark that compares the samplers' laws: its correction, its verdict, and that its verdict can be no."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "same_law.py"
SHORT = ["--backend", "numpy", "--draws", "300", "--networks", "postnorm relu"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("same_law")


def test_holm_is_holms(script: ModuleType) -> None:
    """The textbook example: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, none below its predecessor."""
    assert script.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert script.holm([0.9, 0.8]) == [1.0, 1.0]


def verdict(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """The exit code of the benchmark, run in this process."""
    for name in script.WRONG:
        monkeypatch.setitem(script.SAMPLERS, name, script.SAMPLERS["dense"])  # put back afterwards
    monkeypatch.setattr(sys, "argv", ["same_law.py", *SHORT, *options])
    code: int = script.main()
    return code


@pytest.mark.parametrize("precision", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_samplers_agree_and_the_control_does_not(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "law.json"
    assert verdict(script, monkeypatch, "--precision", precision, "--out", str(out)) == 0
    found = json.loads(out.read_text())
    assert found["summary"]["same_law"]
    assert found["summary"]["control_found_out"]
    assert found["against_dense"]["weightless"]["postnorm relu"]["tests"] >= 12


def test_a_wrong_weightless_sampler_gets_the_verdict_no(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(script.SAMPLERS, "weightless", script.unprojected)
    assert verdict(script, monkeypatch) == 1
    assert "DOES NOT HAVE" in capsys.readouterr().out
