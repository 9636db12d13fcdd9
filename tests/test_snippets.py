"""Every snippet of the README and the documentation runs as printed, and prints what is printed beside it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```\n\$ (propagate [^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("tcp://scheduler", "SLURMCluster")
"""In snippets that need a cluster; the same calls are made in test_dask.py."""


def snippets(page: str) -> list[str]:
    return PYTHON.findall((ROOT / page).read_text(encoding="utf-8"))


def commands(page: str) -> list[tuple[str, str]]:
    """Command lines, and what stands below each."""
    return SHELL.findall((ROOT / page).read_text(encoding="utf-8"))


def undefined(code: str) -> list[str]:
    """Names that are used and never given."""
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E9,F821", "--output-format", "concise"]
    found = subprocess.run([*ruff, "-"], input=code, capture_output=True, text=True, check=False)
    return re.findall(r"F821.*|E9\d\d.*|invalid-syntax.*", found.stdout)


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)])
def test_a_page_gives_every_name_that_its_snippets_use(page: str) -> None:
    assert undefined("\n".join(snippets(page))) == []


def test_a_name_that_is_nowhere_given_would_be_found() -> None:
    assert undefined("import propagate as pg\nseen = pg.trace(llama, ids)\n")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)])
def test_the_snippets_of_a_page_run_one_after_the_other(page: str, tmp_path: Path) -> None:
    here = [snippet for snippet in snippets(page) if not any(word in snippet for word in ELSEWHERE)]
    script = tmp_path / "page.py"
    script.write_text("\n".join(here), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_print_what_a_page_shows(page: str) -> None:
    for command, printed in commands(page):
        program = [sys.executable, "-c", "from propagate.cli import main; main()", *command.split()[1:]]
        run = subprocess.run(program, env=environment(), capture_output=True, text=True, check=False)
        assert [line.rstrip() for line in run.stdout.splitlines()] == [line.rstrip() for line in printed.splitlines()]


def test_pages_show_what_commands_print() -> None:
    assert {"README.md", "docs/diagnose.md"} <= {page for page in PAGES if commands(page)}


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
