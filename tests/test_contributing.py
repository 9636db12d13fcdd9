"""CONTRIBUTING.md is true to the letter: its example placement, added as it says, breaks no test."""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import test_docs
import test_equations

import propagate as pg
from docs import placement_pages
from propagate.references import REFERENCES

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = re.compile(r"^## Add a placement\n.*?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ENTRY = {"title": "A Norm of My Own", "year": "2000"}
TESTED = ("equations", "placements_agree", "docs")


def example() -> str:
    found = EXAMPLE.search((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its name, while it is registered."""
    registry = importlib.import_module("propagate.placement")  # beside the function of that name
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    file = tmp_path / "mine.py"
    file.write_text(f"from propagate.placement import Placement\n\nS = Block = list\n\n\n{example()}")
    spec = importlib.util.spec_from_file_location("mine", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mine", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(REFERENCES, "0000.00000", ENTRY)
    return "mynorm"


def test_its_example_placement_passes_what_is_asked_of_every_placement(added: str, tmp_path: Path) -> None:
    test_equations.test_the_text_holds_the_sublayers(added)
    test_equations.test_every_placement_has_its_paper(added)
    test_docs.test_the_picture_meets_the_norms_that_the_equations_count(added)
    test_docs.test_nothing_in_a_picture_covers_anything_else(added)
    test_docs.test_a_picture_is_drawn_whole(added)
    assert "| exchangeable tokens | yes |" in placement_pages.page(added, tmp_path)
    model = pg.Model(added, depth=3, width=64, tokens=4, heads=2)
    seen = pg.simulate(model, draws=100, backend="numpy", progress=False, covariance=0.3)
    verdicts = {
        name: pg.compare(pg.predict(pg.Model(name, depth=3, width=64, tokens=4, heads=2), covariance=0.3), seen)
        for name in (added, "prenorm")
    }
    assert [one.attrs["verdict"] == "disagrees" for one in verdicts.values()] == [False, True]


def test_one_without_its_reference_is_noticed(added: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(REFERENCES, "0000.00000")
    with pytest.raises(pg.ModelError):
        test_equations.test_every_placement_has_its_paper(added)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what is committed, in which someone has followed the section, and done nothing else."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("the sources are no Git checkout")
    for name in listed.stdout.splitlines():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name, text in (("placements", example()), ("references", f'REFERENCES["0000.00000"] = {ENTRY}')):
        with (tmp_path / "propagate" / f"{name}.py").open("a", encoding="utf-8") as file:
            file.write(f"\n\n{text.strip()}\n")
    return tmp_path


@pytest.mark.slow
def test_added_to_the_package_it_breaks_no_test(checkout: Path) -> None:
    """Of those over the table of placements; without its reference it does."""

    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={checkout}", "-m", "not slow"]
    options += ["-k", "mynorm or registry or listed or every_placement"]

    def failures() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *(f"tests/test_{name}.py" for name in TESTED)],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout)},
            capture_output=True,
            text=True,
            check=False,
        )
        passed = re.findall(r"(\d+) passed", done.stdout)
        assert passed, done.stdout + done.stderr
        assert int(passed[-1]) >= 8
        return "\n".join(re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.MULTILINE))

    assert failures() == ""
    shutil.copy(ROOT / "propagate" / "references.py", checkout / "propagate")
    assert "listed_in_vain" in failures()
