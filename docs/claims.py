"""The page of claims: what papers say, the evidence found here, the verdicts that follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from propagate.checkout import folder
from propagate.claims.audit import audit, here
from propagate.claims.claim import Evidence, Judged

OPENING = """\
# Claims

What papers claim of signal propagation, put to the test. {func}`propagate.audit` and `propagate audit` say the same
anywhere: theory is worked out and networks are simulated on the spot, proofs are
[those of their pages](../../proofs/rendered/README.md), training is read from [records](../training.md) made on a GPU.
Verdicts are computed from these numbers. Training here is small: 24 blocks of width 128, a few hundred steps, old and
religious English.
"""


def page() -> str:
    """Markdown: a table of verdicts, then claim by claim."""
    found = audit(sources=dataclasses.replace(here(), proved=_rendered))
    table = ["| claim | in words | verdict |", "|---|---|---|"]
    table += [f"| {one.claim.name} | {one.claim.words} | **{one.verdict}** |" for one in found]
    return "\n".join([OPENING, *table, "", *(_section(one) for one in found)])


def _rendered(numbers: Sequence[str]) -> bool:
    """Whether these propositions have pages; the tests hold those to what is proved."""
    pages = [path.name for path in (folder("proofs") / "rendered").glob("*.md")]
    return all(any(page.startswith(f"{number.zfill(2)}_") for page in pages) for number in numbers)


def _section(one: Judged) -> str:
    claim = one.claim
    lines = [f"## {claim.name}: {one.verdict}", f"> {claim.words}", f"Source: {claim.source}; {claim.sure}."]
    lines.append(f"**Tested.** {claim.statement}")
    if one.evidence:
        lines.append("\n".join(map(_item, one.evidence)))
    lines.append(f"**What would change it.** {claim.change[:1].upper()}{claim.change[1:]}")
    return "\n\n".join(lines) + "\n"


def _item(found: Evidence) -> str:
    where, _, said = str(found).partition(": ")
    return f"- *{where}:* {said[:1].upper()}{said[1:]}"
