"""Writes `docs/generated/`: the pages that are made from the registry and from committed results."""

from __future__ import annotations

import json
from pathlib import Path

import propagate as pg
from docs import placement_pages, recipes, results
from propagate.figures import workers
from propagate.files import replace

HERE = Path(__file__).resolve().parent
GENERATED = HERE / "generated"


def write() -> None:
    """Every generated page. Placements and recipes are done in two processes, if a source is newer than their pages."""
    folder = GENERATED / "placements"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("performance", results.performance()), ("agreement", results.agreement())):
        replace(GENERATED / f"{name}.md", text.encode())
    replace(GENERATED / "architectures.md", results.architectures().encode())
    replace(GENERATED / "same_law.md", results.same_law().encode())
    replace(GENERATED / "notebooks.md", _notebooks().encode())
    _recipes()
    wanted = placement_pages.names()
    for page in folder.glob("*.md"):
        if page.stem not in wanted:
            page.unlink()
    if (stale := [name for name in wanted if _older(folder / f"{name}.md")]) or _older(folder / "index.md"):
        stale.sort(key=lambda name: -len(pg.equations(name)))  # the longest take longest: they begin first
        with workers() as pool:
            for name, text in zip(stale, pool.map(_page, stale), strict=True):
                replace(folder / f"{name}.md", text.encode())
        replace(folder / "index.md", placement_pages.index().encode())


def _recipes() -> None:
    folder = GENERATED / "recipes"
    folder.mkdir(exist_ok=True)
    for page in folder.glob("*.md"):
        if page.stem not in ("index", *recipes.names()):
            page.unlink()
    if stale := [name for name in recipes.names() if _older(folder / f"{name}.md", recipes.SOURCES / f"{name}.md")]:
        with workers() as pool:
            for name, text in zip(stale, pool.map(_recipe, stale), strict=True):
                replace(folder / f"{name}.md", text.encode())
    replace(folder / "index.md", recipes.index().encode())


def _recipe(name: str) -> str:
    return recipes.page(name, GENERATED / "recipes")


def _page(name: str) -> str:
    return placement_pages.page(name, GENERATED / "placements")


def _older(page: Path, *more: Path) -> bool:
    sources = [*more, *(HERE.parent / "propagate").rglob("*.py"), *HERE.glob("*.py"), placement_pages.VERIFIED]
    return not page.exists() or page.stat().st_mtime < max(source.stat().st_mtime for source in sources)


def _notebooks() -> str:
    """Those there are: title, opening paragraph, and the table of contents."""
    paths = sorted((HERE.parent / "notebooks").glob("*.ipynb"))
    if not paths:
        return "This checkout has no notebooks.\n"
    items = []
    for path in paths:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        title, _, rest = text.partition("\n")
        opening = " ".join(rest.strip().split("\n\n")[0].split())
        items.append(f"- **[{title.lstrip('# ')}](/notebooks/{path.name})** {opening}")
    toctree = ["```{toctree}", ":hidden:", "", *(f"/notebooks/{path.stem}" for path in paths), "```", ""]
    return "\n".join([*items, "", *toctree])
