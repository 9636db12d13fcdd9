"""Writes `docs/generated/`: the pages that are made from the registry and from committed results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import propagate as pg
from docs import claims, placement_pages, recipes, results, systems_page
from propagate.figures import workers
from propagate.files import replace

HERE = Path(__file__).resolve().parent
GENERATED = HERE / "generated"


OUTLINE = "% An outline, without what takes seconds to work out; `make docs` writes the whole page.\n"


def write() -> None:
    """Every generated page. Placements and recipes are done in two processes, if a source is newer than their pages."""
    stale = [page for page in _listed() if page.stale]
    if stale:  # the longest take longest: they begin first
        with workers() as pool:
            for page, text in zip(stale, pool.map(Page.made, stale), strict=True):
                replace(page.path, text.encode())


def outline() -> None:
    """The same pages, but of those that take seconds only what has references in it; whole ones stay."""
    for page in _listed():
        if page.stale:
            replace(page.path, (OUTLINE + page.outlined()).encode())


def _listed() -> list[Page]:
    """The pages that take seconds, once all others are written."""
    GENERATED.mkdir(exist_ok=True)
    for name, text in (("performance", results.performance()), ("agreement", results.agreement())):
        replace(GENERATED / f"{name}.md", text.encode())
    replace(GENERATED / "architectures.md", results.architectures().encode())
    replace(GENERATED / "explorer_speed.md", results.explorer().encode())
    replace(GENERATED / "systems.md", systems_page.page().encode())
    replace(GENERATED / "same_law.md", results.same_law().encode())
    replace(GENERATED / "notebooks.md", _notebooks().encode())
    placements = sorted(placement_pages.names(), key=lambda name: -len(pg.equations(name)))
    wanted = [*(Page("recipes", name) for name in recipes.names()), *(Page("placements", name) for name in placements)]
    for folder, index in (("recipes", recipes.index), ("placements", placement_pages.index)):
        (GENERATED / folder).mkdir(exist_ok=True)
        for path in (GENERATED / folder).glob("*.md"):
            if path not in [page.path for page in wanted]:
                path.unlink()
        replace(GENERATED / folder / "index.md", index().encode())
    return [Page("", "claims"), *wanted]


@dataclass(frozen=True)
class Page:
    """A page that takes seconds to make.

    Attributes:
        folder: "placements" or "recipes", or none for the page of claims.
        name: of the page.
    """

    folder: str
    name: str

    @property
    def path(self) -> Path:
        """Of its file."""
        return GENERATED / self.folder / f"{self.name}.md"

    @property
    def stale(self) -> bool:
        """Whether there is none yet, or an outline alone, or a source of it is newer."""
        sources = [*(HERE.parent / "propagate").rglob("*.py"), *HERE.glob("*.py"), placement_pages.VERIFIED]
        sources += [recipes.SOURCES / f"{self.name}.md"] if self.folder == "recipes" else []
        if not self.path.exists() or self.path.read_text(encoding="utf-8").startswith(OUTLINE):
            return True
        return self.path.stat().st_mtime < max(one.stat().st_mtime for one in sources)

    def made(self) -> str:
        """Its text; pictures are written beside it."""
        if not self.folder:
            return claims.page()
        make = recipes.page if self.folder == "recipes" else placement_pages.page
        return make(self.name, self.path.parent)

    def outlined(self) -> str:
        """Its text without what is worked out."""
        if not self.folder:
            return claims.OPENING
        return (recipes.outline if self.folder == "recipes" else placement_pages.outline)(self.name)


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
