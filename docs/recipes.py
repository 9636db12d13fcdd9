"""Pages that answer a question: text with Python in it, which is run, and what it prints and draws stands below it.

A page lies in `docs/recipes/`. Its blocks of Python share their names; what a block prints stands behind it, and so
does a picture that it leaves in `figure`. In the text `{{expression}}` stands for its value: no result is typed.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

from propagate.plots import render

SOURCES = Path(__file__).resolve().parent / "recipes"
BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


def names() -> list[str]:
    """Of all pages, in the order of their index."""
    return re.findall(r"^- \[.*?\]\((\w+)\.md\)", (SOURCES / "index.md").read_text(encoding="utf-8"), re.MULTILINE)


def index() -> str:
    """The list of questions, with their table of contents."""
    text = (SOURCES / "index.md").read_text(encoding="utf-8")
    return "\n".join([text, "```{toctree}", ":hidden:", "", *names(), "```", ""])


def page(name: str, folder: Path) -> str:
    """A page, its Python run; its pictures are written into the folder."""
    return rendered((SOURCES / f"{name}.md").read_text(encoding="utf-8"), name, folder)


def outline(name: str) -> str:
    """A page as it is written, nothing run."""
    return (SOURCES / f"{name}.md").read_text(encoding="utf-8")


def rendered(text: str, name: str, folder: Path) -> str:
    """The text with what its blocks print and draw, and with its expressions' values.

    Example:
        >>> text = "```python\\nx = 2\\nprint(2 * x)\\n```\\nThat is {{2 * x}}."
        >>> rendered(text, "twice", Path()).split("\\n")[4:]
        ['', '```text', '4', '```', '', 'That is 4.']
    """
    given: dict[str, Any] = {"__name__": "__main__"}
    parts, at = [], 0
    for block in BLOCK.finditer(text):
        parts.append(_filled(text[at : block.start()], given))
        parts.append(block[0])
        parts.append(_ran(block[1], given, f"{name}_{len(parts)}", folder))
        at = block.end()
    return "".join([*parts, _filled(text[at:], given)])


def _filled(text: str, given: dict[str, Any]) -> str:
    return re.sub(r"\{\{(.+?)\}\}", lambda found: str(eval(found[1], given)), text)


def _ran(code: str, given: dict[str, Any], name: str, folder: Path) -> str:
    """What a block prints, and the picture that it leaves."""
    given.pop("figure", None)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, name, "exec"), given)
    shown = ["", "```text", printed.getvalue().rstrip("\n"), "```", ""] if printed.getvalue() else []
    if "figure" in given:
        (folder / f"{name}.svg").write_bytes(render(given["figure"], "svg"))
        shown += ["", f"![What the code above draws]({name}.svg)", ""]
    return "\n".join([*shown, ""]) if shown else ""
