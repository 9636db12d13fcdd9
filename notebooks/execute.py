"""Runs notebooks: the text of NAME.py, executed, becomes NAME.ipynb with its outputs, the same bytes on every run.

    python notebooks/execute.py [NAME ...]

No times, versions or random cell names are kept. `make notebooks` runs it for all of them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

from propagate.files import replace

FOLDER = Path(__file__).parent
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def texts() -> list[Path]:
    """The notebooks there are, as texts, in their order."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def execute(text: Path) -> nbformat.NotebookNode:
    """The notebook of that text with its outputs."""
    notebook = jupytext.read(text)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    client = NotebookClient(
        notebook,
        timeout=3600,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute()
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def main(names: list[str]) -> None:
    """Execute the named notebooks, all by default."""
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of a progress bar of tqdm's that nothing here shows
    for text in texts():
        if not names or text.stem in names:
            content = nbformat.writes(execute(text))
            print(replace(text.with_suffix(".ipynb"), f"{content}\n".encode()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
