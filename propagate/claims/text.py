"""Judged claims as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from propagate.claims.claim import Judged


BESIDE = "which a checkout of the project has, and a wheel of it"


def text_of(found: Sequence[Judged], width: int = 100) -> str:
    """A page of claims: words, statement, evidence, verdict, and what would change it."""
    return "\n\n".join(_one(one, width) for one in found)


def _one(one: Judged, width: int) -> str:
    claim = one.claim
    lines = [f"{claim.name}  {one.verdict.upper()}", f'"{claim.words}" ({claim.source}; {claim.sure})']
    lines.append(f"Tested: {claim.statement}")
    lines += [f"- {found}" for found in one.evidence]
    if one.missing:
        needed = f"{one.missing} more test{'s' if one.missing > 1 else ''}"
        lines.append(f"Not at hand: what {needed} would read, proofs or records of training, {BESIDE}.")
    lines.append(f"What would change it: {claim.change}")
    return "\n".join(textwrap.fill(line, width, subsequent_indent="  ") for line in lines)
