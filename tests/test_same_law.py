"""The benchmark that compares the samplers' laws: its correction, its verdict, and that its verdict can be no."""

import importlib
import json
import subprocess
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


@pytest.mark.parametrize("precision", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_samplers_agree_and_the_control_does_not(tmp_path: Path, precision: str) -> None:
    out = tmp_path / "law.json"
    command = [sys.executable, str(SCRIPT), *SHORT, "--precision", precision, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["summary"]["same_law"]
    assert found["summary"]["control_found_out"]
    assert found["against_dense"]["weightless"]["postnorm relu"]["tests"] >= 12


def test_a_wrong_weightless_sampler_gets_the_verdict_no(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["same_law.py", *SHORT])
    for name, sampler in (("unprojected", script.SAMPLERS["dense"]), ("untied", script.SAMPLERS["dense"])):
        monkeypatch.setitem(script.SAMPLERS, name, sampler)  # put back afterwards
    monkeypatch.setitem(script.SAMPLERS, "weightless", script.unprojected)
    assert script.main() == 1
    assert "DOES NOT HAVE" in capsys.readouterr().out
