"""The committed notebooks are their texts, executed in full and kept without times; here they run small."""

import tomllib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(find_spec("jupytext") is None, reason="install the extra [notebooks]")
FOLDER = Path(__file__).parents[1] / "notebooks"
TEXTS = sorted(FOLDER.glob("[0-9]*.py"))
SMALL = tomllib.loads((FOLDER / "small.toml").read_text(encoding="utf-8"))
USED = {"IPython", "dataclasses", "matplotlib", "numpy", "propagate", "sympy", "torch", "transformers", "xarray"}


def executed(text: Path) -> Any:
    import nbformat

    return nbformat.read(text.with_suffix(".ipynb"), as_version=4)


def source(text: Path) -> Any:
    import jupytext

    return jupytext.read(text)


def cells(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def faults(notebook: Any) -> list[str]:
    """What does not belong into the committed outputs of a full run."""
    found = []
    for cell in notebook.cells:
        if "execution" in cell.metadata:
            found.append("times")
        for output in cell.get("outputs", []):
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(output.output_type)
        if cell.cell_type == "code" and cell.execution_count is None:
            found.append("not run")
    return found


def test_there_are_nine() -> None:
    assert [text.stem for text in TEXTS] == [
        "1_ten_minutes",
        "2_variance_plots",
        "3_postnorm_gradient",
        "4_how_deep",
        "5_experts_and_real_models",
        "6_width_one_million",
        "7_your_own_pieces",
        "8_the_first_step",
        "9_does_it_train",
    ]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.stem)
def test_a_notebook_is_its_text_and_was_run(text: Path) -> None:
    notebook = executed(text)
    assert cells(notebook) == cells(source(text))
    assert faults(notebook) == []
    assert sum(cell.cell_type == "code" and bool(cell.outputs) for cell in notebook.cells) >= 3
    assert "## What to try next" in notebook.cells[-1].source


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.stem)
def test_nothing_in_a_notebook_depends_on_the_machine(text: Path) -> None:
    content = text.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert str(FOLDER.parent) not in content
    assert "/lib/python" not in content
    assert " at 0x" not in content


def test_a_stale_or_failed_notebook_would_be_found_out() -> None:
    text = TEXTS[0]
    import nbformat

    notebook = executed(text)
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    code.source += "\nx = 1"
    assert cells(notebook) != cells(source(text))
    code.outputs.append(nbformat.v4.new_output("stream", name="stderr", text="a warning"))
    code.execution_count = None
    code.metadata["execution"] = {}
    assert faults(notebook) == ["times", "stream", "not run"]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.stem)
def test_a_notebook_imports_what_a_user_would(text: Path) -> None:
    """The package by its name, and what is installed beside it: no helper that lies in some folder of the checkout."""
    first = next(cell.source for cell in source(text).cells if cell.cell_type == "code")
    lines = [line for line in first.splitlines() if "import" in line]
    assert "import propagate as pg" in lines
    assert {line for line in lines if "propagate" in line} == {"import propagate as pg"}
    assert {line.split()[1].split(".")[0] for line in lines} <= USED


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.stem)
def test_a_notebook_runs(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In IPython, which shows what a cell ends in, but in this process: a kernel of its own would import all anew."""
    monkeypatch.chdir(FOLDER)
    run(source(text).cells, SMALL[text.stem])


def run(cells: Iterable[Any], small: dict[str, Any]) -> None:
    """All code cells; of those with the tag `parameters` the values are replaced, and must have been there."""
    from IPython.core.interactiveshell import InteractiveShell

    shell, left = InteractiveShell(), dict(small)
    for cell in cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source).raise_error()
        if "parameters" in cell.metadata.get("tags", []):
            assert set(left) <= set(shell.user_ns)
            shell.push(left)
            left = {}
    assert not left, "no cell has the tag `parameters`"


def code(text: str, *tags: str) -> Any:
    import nbformat

    return nbformat.v4.new_code_cell(text, metadata={"tags": list(tags)})


def test_parameters_are_replaced_where_they_are_and_nowhere_else() -> None:
    run([code("x = 512", "parameters"), code("assert x == 2")], {"x": 2})
    for cells in ([code("x = 512"), code("assert x == 512")], [code("y = 512", "parameters")]):
        with pytest.raises(AssertionError):
            run(cells, {"x": 2})


def test_an_error_in_a_cell_is_one() -> None:
    with pytest.raises(ZeroDivisionError):
        run([code("x = 0"), code("1 / x")], {})
