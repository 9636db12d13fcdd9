"""Every local link of built pages leads to a file, and to a place in it: `python -m docs.check_links build/docs`."""

from __future__ import annotations

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.links.add(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def broken(folder: Path) -> list[str]:
    """Each local link that leads nowhere, with the page it stands on. Links to other hosts are not followed."""
    read = cache(Page)
    found = []
    for path in sorted(folder.rglob("*.html")):
        for link in sorted(read(path).links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.exists():
                found.append(f"{path.relative_to(folder)}: {link} (no such file)")
            elif anchor and target.suffix == ".html" and anchor not in read(target).anchors:
                found.append(f"{path.relative_to(folder)}: {link} (no such place)")
    return found


if __name__ == "__main__":
    pages = Path(sys.argv[1])
    wrong = broken(pages)
    print(*wrong, f"{len(wrong)} broken links in {len(list(pages.rglob('*.html')))} pages", sep="\n")
    sys.exit(1 if wrong else 0)
