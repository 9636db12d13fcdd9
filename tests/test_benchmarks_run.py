"""The speed benchmarks run, at sizes too small to mean anything, and write what they found."""

import importlib
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
ENDS = ("variance", "deviation", "grad_variance", "grad_deviation")
NUMPY = ["--backend", "numpy", "--repeats", "1"]
TORCH = [pytest.mark.slow, pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")]
SCRIPTS = [
    ("samplers", [*NUMPY, "--widths", "32", "--tokens", "4"]),
    ("dense_ceiling", [*NUMPY, "--widths", "32", "--tokens", "4"]),
    ("operator_table", ["--backend", "numpy", "--operators", "relu", "--tokens", "100", "--effort", "0.05"]),
    ("million", ["--width", "1024", "--memory", "1e6"]),
    pytest.param(
        "steps_speed",
        ["--repeats", "1", "--dense-width", "64", "--width", "128", "--depth", "1", "--tokens", "4", "--steps", "1"],
        marks=pytest.mark.slow,  # four processes
    ),
    pytest.param(
        "against_torch",
        [*NUMPY, "--widths", "32", "--tokens", "4", "--torch-draws", "1", "--check-draws", "500"],
        marks=TORCH,
    ),
    pytest.param("llama_7b", ["--tiny", "--device", "cpu", "--blocks", "2", "--tokens", "6"], marks=TORCH),
    pytest.param("coordinate_check", ["--widths", "64", "128", "--draws", "2", "--some", "13"], marks=TORCH),
    pytest.param(
        "systems",
        ["--names", "DeepSeek-V3", "--width", "128", "--sequences", "2", "--draws", "2"],
        marks=TORCH,
    ),
    pytest.param("architectures", ["--names", "bert", "deepseek_v3", "--draws", "2"], marks=TORCH),
    pytest.param(
        "training_speed",
        [
            *(
                "--device",
                "cpu",
                "--depth",
                "2",
                "--width",
                "32",
                "--tokens",
                "16",
                "--batch",
                "2",
                "--members",
                "1",
                "2",
            ),
            *("--vocabulary", "64", "--precisions", "float32", "--backends", "none", "--seconds", "0.1"),
        ],
        marks=TORCH,
    ),
    pytest.param("scaling", [*NUMPY, "--largest", "64", "--base", "32", "4", "1", "1"], marks=TORCH),
]


@pytest.mark.few(1)
@pytest.mark.parametrize(("script", "arguments"), SCRIPTS)
def test_a_benchmark_runs(script: str, arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, str(FOLDER / f"{script}.py"), *arguments, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert {"command", "device", "processor", "python", "numpy"} <= set(found["summary"])
    assert found["rows"] if "rows" in found else found["curves"]


def test_every_architecture_that_disagrees_by_much_says_what_was_not_read() -> None:
    rows = json.loads((FOLDER / "results" / "architectures.json").read_text())["rows"]
    told = [row for row in rows if "verdict" in row]
    apart = [row for row in told if row["verdict"] == "disagrees"]
    assert 0 < len(apart) < len(told) / 8

    def silent(rows: list[dict[str, Any]]) -> list[str]:
        unsaid = [row for row in rows if not row["unread"]]
        return [row["name"] for row in unsaid if not all(0.95 < row[q]["ratio"] < 1.05 for q in ENDS)]

    assert not silent(apart)
    assert len(silent([row | {"unread": []} for row in apart])) > 4


def test_the_table_of_architectures_tells_ten_percent_and_the_readme_counts_as_it_does() -> None:
    rows = json.loads((FOLDER / "results" / "architectures.json").read_text())["rows"]
    told = [row for row in rows if "verdict" in row]
    smallest = [max(math.inf if one is None else one for one in row["unresolved"].values()) for row in told]
    assert sum(one < 0.1 for one in smallest) > 0.7 * len(told)
    assert sum(row["verdict"] == "cannot tell" for row in told) < 0.1 * len(told)
    theirs = [row for row in told if not row["name"].startswith("x-transformers")]
    assert f"\n{len(theirs)} architectures of `transformers`" in (FOLDER.parent / "README.md").read_text()


def test_one_architecture_that_fails_is_a_row_and_a_run_of_other_sizes_is_not_continued(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("transformers", reason="transformers is absent: install the extra [text]")
    monkeypatch.syspath_prepend(FOLDER)
    script = importlib.import_module("architectures")
    assert script.row_of("nosuch", 2)["failed"].startswith("Absent: transformers ")
    monkeypatch.setattr(script, "measured", lambda *_: 1 / 0)
    assert script.row_of("bert", 2) == {"name": "bert", "failed": "ZeroDivisionError: division by zero"}
    summary = {"draws": 2, "sizes": {"width": 8}, "torch": "1", "transformers": "2", "x_transformers": "3"}
    summary |= {"propagate": "4"}
    rows = [{"name": "bert", "verdict": "agrees"}, {"name": "gpt2", "failed": "why"}]
    (tmp_path / "found.json").write_text(json.dumps({"summary": summary, "rows": rows}))
    assert script.before(tmp_path / "found.json", summary) == rows[:1]
    assert script.before(tmp_path / "found.json", summary | {"draws": 3}) == []
    assert script.before(tmp_path / "none.json", summary) == []
